
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'kube-tls-proxy' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'kube-tls-proxy'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'kube-tls-proxy' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Run the proxy: it needs a certificate to present and an apiserver to forward to')
            [CompletionResult]::new('check', 'check', [CompletionResultType]::ParameterValue, 'Check configuration, certificates and network, and say how to fix what is wrong')
            [CompletionResult]::new('kubeconfig', 'kubeconfig', [CompletionResultType]::ParameterValue, 'Print or write a kubeconfig for clients that reach the proxy by its public name')
            [CompletionResult]::new('translate', 'translate', [CompletionResultType]::ParameterValue, 'Translate the manifests of an ingress controller or a Gateway into a configuration file')
            [CompletionResult]::new('version', 'version', [CompletionResultType]::ParameterValue, 'Print the version, as --version does')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print the completion script for a shell')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'kube-tls-proxy;serve' {
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]')
            [CompletionResult]::new('--proxy-protocol-from', '--proxy-protocol-from', [CompletionResultType]::ParameterName, 'Load balancers, which must name the client in a PROXY header')
            [CompletionResult]::new('--trusted-proxies', '--trusted-proxies', [CompletionResultType]::ParameterName, 'HTTP proxies in front, whose X-Forwarded-For names the client')
            [CompletionResult]::new('--cert', '--cert', [CompletionResultType]::ParameterName, 'Certificate chain to present: PEM, the server certificate first; repeat for more')
            [CompletionResult]::new('--key', '--key', [CompletionResultType]::ParameterName, 'Private key: PEM, not encrypted; one per --cert, in the same order')
            [CompletionResult]::new('--acme', '--acme', [CompletionResultType]::ParameterName, 'Get a certificate for this name by ACME, on port 443 by default; repeat for more')
            [CompletionResult]::new('--acme-email', '--acme-email', [CompletionResultType]::ParameterName, 'Email address for the ACME account')
            [CompletionResult]::new('--acme-directory', '--acme-directory', [CompletionResultType]::ParameterName, 'ACME directory of the CA; its terms of service apply [default: Let''s Encrypt]')
            [CompletionResult]::new('--acme-directory-ca', '--acme-directory-ca', [CompletionResultType]::ParameterName, 'PEM file with the CAs that verify the ACME directory [default: the public CAs]')
            [CompletionResult]::new('--acme-http01-listen', '--acme-http01-listen', [CompletionResultType]::ParameterName, 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80')
            [CompletionResult]::new('--acme-store', '--acme-store', [CompletionResultType]::ParameterName, 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]')
            [CompletionResult]::new('--host', '--host', [CompletionResultType]::ParameterName, 'Host name to serve, in addition to the names in the certificates; repeat for more')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'URL of the apiserver: https://HOST[:PORT][/PREFIX]')
            [CompletionResult]::new('--upstream-ca', '--upstream-ca', [CompletionResultType]::ParameterName, 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted')
            [CompletionResult]::new('--upstream-name', '--upstream-name', [CompletionResultType]::ParameterName, 'Name or address in the certificate of the apiserver [default: the host of the URL]')
            [CompletionResult]::new('--upstream-host', '--upstream-host', [CompletionResultType]::ParameterName, 'Host that requests ask the apiserver for: client or upstream [default: by the URL]')
            [CompletionResult]::new('--upstream-proxy-url', '--upstream-proxy-url', [CompletionResultType]::ParameterName, 'Proxy on the way to the apiserver: http, https or socks5 [default: none]')
            [CompletionResult]::new('--kubeconfig', '--kubeconfig', [CompletionResultType]::ParameterName, 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used')
            [CompletionResult]::new('--context', '--context', [CompletionResultType]::ParameterName, 'Context of the kubeconfig [default: its current-context]')
            [CompletionResult]::new('-c', '-c', [CompletionResultType]::ParameterName, 'YAML file with several clusters, limits or timeouts')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'YAML file with several clusters, limits or timeouts')
            [CompletionResult]::new('--workers', '--workers', [CompletionResultType]::ParameterName, 'Number of worker threads [default: the CPUs that this process may use]')
            [CompletionResult]::new('--drain-delay', '--drain-delay', [CompletionResultType]::ParameterName, 'How long to serve new clients after SIGTERM [default: 5s]')
            [CompletionResult]::new('--drain-timeout', '--drain-timeout', [CompletionResultType]::ParameterName, 'How long running requests may take to finish after --drain-delay [default: 20s]')
            [CompletionResult]::new('--drain-tunnels', '--drain-tunnels', [CompletionResultType]::ParameterName, 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]')
            [CompletionResult]::new('--admin-listen', '--admin-listen', [CompletionResultType]::ParameterName, 'Address for health checks, metrics and status page, over plain HTTP [default: off]')
            [CompletionResult]::new('--reuse-port', '--reuse-port', [CompletionResultType]::ParameterName, 'Share the ports with a running proxy of the same user, to replace it')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'Log format: text or json [default: text]')
            [CompletionResult]::new('--log-level', '--log-level', [CompletionResultType]::ParameterName, 'Log filter: a level, or levels for modules [default: info]')
            [CompletionResult]::new('--no-access-log', '--no-access-log', [CompletionResultType]::ParameterName, 'Turn off the log line per request')
            [CompletionResult]::new('--log-user', '--log-user', [CompletionResultType]::ParameterName, 'How log and status page name users: subject, hash or off [default: off]')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;check' {
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]')
            [CompletionResult]::new('--proxy-protocol-from', '--proxy-protocol-from', [CompletionResultType]::ParameterName, 'Load balancers, which must name the client in a PROXY header')
            [CompletionResult]::new('--trusted-proxies', '--trusted-proxies', [CompletionResultType]::ParameterName, 'HTTP proxies in front, whose X-Forwarded-For names the client')
            [CompletionResult]::new('--cert', '--cert', [CompletionResultType]::ParameterName, 'Certificate chain to present: PEM, the server certificate first; repeat for more')
            [CompletionResult]::new('--key', '--key', [CompletionResultType]::ParameterName, 'Private key: PEM, not encrypted; one per --cert, in the same order')
            [CompletionResult]::new('--acme', '--acme', [CompletionResultType]::ParameterName, 'Get a certificate for this name by ACME, on port 443 by default; repeat for more')
            [CompletionResult]::new('--acme-email', '--acme-email', [CompletionResultType]::ParameterName, 'Email address for the ACME account')
            [CompletionResult]::new('--acme-directory', '--acme-directory', [CompletionResultType]::ParameterName, 'ACME directory of the CA; its terms of service apply [default: Let''s Encrypt]')
            [CompletionResult]::new('--acme-directory-ca', '--acme-directory-ca', [CompletionResultType]::ParameterName, 'PEM file with the CAs that verify the ACME directory [default: the public CAs]')
            [CompletionResult]::new('--acme-http01-listen', '--acme-http01-listen', [CompletionResultType]::ParameterName, 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80')
            [CompletionResult]::new('--acme-store', '--acme-store', [CompletionResultType]::ParameterName, 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]')
            [CompletionResult]::new('--host', '--host', [CompletionResultType]::ParameterName, 'Host name to serve, in addition to the names in the certificates; repeat for more')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'URL of the apiserver: https://HOST[:PORT][/PREFIX]')
            [CompletionResult]::new('--upstream-ca', '--upstream-ca', [CompletionResultType]::ParameterName, 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted')
            [CompletionResult]::new('--upstream-name', '--upstream-name', [CompletionResultType]::ParameterName, 'Name or address in the certificate of the apiserver [default: the host of the URL]')
            [CompletionResult]::new('--upstream-host', '--upstream-host', [CompletionResultType]::ParameterName, 'Host that requests ask the apiserver for: client or upstream [default: by the URL]')
            [CompletionResult]::new('--upstream-proxy-url', '--upstream-proxy-url', [CompletionResultType]::ParameterName, 'Proxy on the way to the apiserver: http, https or socks5 [default: none]')
            [CompletionResult]::new('--kubeconfig', '--kubeconfig', [CompletionResultType]::ParameterName, 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used')
            [CompletionResult]::new('--context', '--context', [CompletionResultType]::ParameterName, 'Context of the kubeconfig [default: its current-context]')
            [CompletionResult]::new('-c', '-c', [CompletionResultType]::ParameterName, 'YAML file with several clusters, limits or timeouts')
            [CompletionResult]::new('--config', '--config', [CompletionResultType]::ParameterName, 'YAML file with several clusters, limits or timeouts')
            [CompletionResult]::new('--workers', '--workers', [CompletionResultType]::ParameterName, 'Number of worker threads [default: the CPUs that this process may use]')
            [CompletionResult]::new('--drain-delay', '--drain-delay', [CompletionResultType]::ParameterName, 'How long to serve new clients after SIGTERM [default: 5s]')
            [CompletionResult]::new('--drain-timeout', '--drain-timeout', [CompletionResultType]::ParameterName, 'How long running requests may take to finish after --drain-delay [default: 20s]')
            [CompletionResult]::new('--drain-tunnels', '--drain-tunnels', [CompletionResultType]::ParameterName, 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]')
            [CompletionResult]::new('--admin-listen', '--admin-listen', [CompletionResultType]::ParameterName, 'Address for health checks, metrics and status page, over plain HTTP [default: off]')
            [CompletionResult]::new('--reuse-port', '--reuse-port', [CompletionResultType]::ParameterName, 'Share the ports with a running proxy of the same user, to replace it')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'Log format: text or json [default: text]')
            [CompletionResult]::new('--log-level', '--log-level', [CompletionResultType]::ParameterName, 'Log filter: a level, or levels for modules [default: info]')
            [CompletionResult]::new('--no-access-log', '--no-access-log', [CompletionResultType]::ParameterName, 'Turn off the log line per request')
            [CompletionResult]::new('--log-user', '--log-user', [CompletionResultType]::ParameterName, 'How log and status page name users: subject, hash or off [default: off]')
            [CompletionResult]::new('--through', '--through', [CompletionResultType]::ParameterName, 'Also check the running proxy at this URL, as clients use it; needs no other flag')
            [CompletionResult]::new('--connect-to', '--connect-to', [CompletionResultType]::ParameterName, 'Connect to HOST[:PORT], not to the host of --through, as before a change of DNS')
            [CompletionResult]::new('--explain-access', '--explain-access', [CompletionResultType]::ParameterName, 'Only say which access rule decides about a request, ''METHOD PATH''; needs --from')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'The address of the client that sends the request of --explain-access')
            [CompletionResult]::new('--through-ca', '--through-ca', [CompletionResultType]::ParameterName, 'CA file that clients use to verify the proxy [default: public CAs]')
            [CompletionResult]::new('--token-file', '--token-file', [CompletionResultType]::ParameterName, 'File with a bearer token to send with every request')
            [CompletionResult]::new('--client-cert', '--client-cert', [CompletionResultType]::ParameterName, 'Certificate of a user, to check who its owner is; needs --client-key')
            [CompletionResult]::new('--client-key', '--client-key', [CompletionResultType]::ParameterName, 'Key of that certificate')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Format of the report')
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'Format of the report')
            [CompletionResult]::new('--long', '--long', [CompletionResultType]::ParameterName, 'Also check that a watch stays open for 20 seconds; needs --token-file')
            [CompletionResult]::new('--offline', '--offline', [CompletionResultType]::ParameterName, 'Check only what needs no network and no port: configuration, certificates and CAs')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;kubeconfig' {
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'The public URL of the proxy: https://NAME[:PORT]')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Copy names and token or plugin from this kubeconfig; certificates only with --direct')
            [CompletionResult]::new('--context', '--context', [CompletionResultType]::ParameterName, 'Use this context of --from [default: its current-context]')
            [CompletionResult]::new('--tls-server-name', '--tls-server-name', [CompletionResultType]::ParameterName, 'The passthrough host, a name in the apiserver''s certificate [default: kubernetes]')
            [CompletionResult]::new('--token-file', '--token-file', [CompletionResultType]::ParameterName, 'Put the token in this file into the kubeconfig')
            [CompletionResult]::new('--exec-command', '--exec-command', [CompletionResultType]::ParameterName, 'Let kubectl run this program to get a token, for example an OIDC login')
            [CompletionResult]::new('--exec-arg', '--exec-arg', [CompletionResultType]::ParameterName, 'An argument of that program; repeat for more')
            [CompletionResult]::new('--exec-env', '--exec-env', [CompletionResultType]::ParameterName, 'An environment variable of that program; repeat for more')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'Put the CA certificates in this file into the kubeconfig, if the proxy has a private CA')
            [CompletionResult]::new('--namespace', '--namespace', [CompletionResultType]::ParameterName, 'Default namespace of the context [default: as in --from]')
            [CompletionResult]::new('--name', '--name', [CompletionResultType]::ParameterName, 'Name of cluster, user and context [default: as in --from, or the host of --server]')
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'Write to this file, which only its owner can read, instead of stdout')
            [CompletionResult]::new('--direct', '--direct', [CompletionResultType]::ParameterName, 'For a passthrough host: copy the CA and every credential of --from')
            [CompletionResult]::new('--merge', '--merge', [CompletionResultType]::ParameterName, 'Add to the kubeconfig in --output and keep its other entries, but not its comments')
            [CompletionResult]::new('--force', '--force', [CompletionResultType]::ParameterName, 'Overwrite FILE; with --merge, entries of other clusters. FILE.bak keeps the old file')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;translate' {
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'Write kube-tls-proxy.yaml and the CA files that the manifests contain into this directory')
            [CompletionResult]::new('--strict', '--strict', [CompletionResultType]::ParameterName, 'Exit with 1 if a field is not possible or not known')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;version' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;completions' {
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            break
        }
        'kube-tls-proxy;help' {
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Run the proxy: it needs a certificate to present and an apiserver to forward to')
            [CompletionResult]::new('check', 'check', [CompletionResultType]::ParameterValue, 'Check configuration, certificates and network, and say how to fix what is wrong')
            [CompletionResult]::new('kubeconfig', 'kubeconfig', [CompletionResultType]::ParameterValue, 'Print or write a kubeconfig for clients that reach the proxy by its public name')
            [CompletionResult]::new('translate', 'translate', [CompletionResultType]::ParameterValue, 'Translate the manifests of an ingress controller or a Gateway into a configuration file')
            [CompletionResult]::new('version', 'version', [CompletionResultType]::ParameterValue, 'Print the version, as --version does')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print the completion script for a shell')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'kube-tls-proxy;help;serve' {
            break
        }
        'kube-tls-proxy;help;check' {
            break
        }
        'kube-tls-proxy;help;kubeconfig' {
            break
        }
        'kube-tls-proxy;help;translate' {
            break
        }
        'kube-tls-proxy;help;version' {
            break
        }
        'kube-tls-proxy;help;completions' {
            break
        }
        'kube-tls-proxy;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
