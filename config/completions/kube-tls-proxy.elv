
use builtin;
use str;

set edit:completion:arg-completer[kube-tls-proxy] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'kube-tls-proxy'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'kube-tls-proxy'= {
            cand -h 'Print help'
            cand --help 'Print help'
            cand -V 'Print version'
            cand --version 'Print version'
            cand serve 'Run the proxy: it needs a certificate to present and an apiserver to forward to'
            cand check 'Check configuration, certificates and network, and say how to fix what is wrong'
            cand kubeconfig 'Print or write a kubeconfig for clients that reach the proxy by its public name'
            cand translate 'Translate the manifests of an ingress controller or a Gateway into a configuration file'
            cand version 'Print the version, as --version does'
            cand completions 'Print the completion script for a shell'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'kube-tls-proxy;serve'= {
            cand --listen 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]'
            cand --proxy-protocol-from 'Load balancers, which must name the client in a PROXY header'
            cand --trusted-proxies 'HTTP proxies in front, whose X-Forwarded-For names the client'
            cand --cert 'Certificate chain to present: PEM, the server certificate first; repeat for more'
            cand --key 'Private key: PEM, not encrypted; one per --cert, in the same order'
            cand --acme 'Get a certificate for this name by ACME, on port 443 by default; repeat for more'
            cand --acme-email 'Email address for the ACME account'
            cand --acme-directory 'ACME directory of the CA; its terms of service apply [default: Let''s Encrypt]'
            cand --acme-directory-ca 'PEM file with the CAs that verify the ACME directory [default: the public CAs]'
            cand --acme-http01-listen 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80'
            cand --acme-store 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]'
            cand --host 'Host name to serve, in addition to the names in the certificates; repeat for more'
            cand --upstream 'URL of the apiserver: https://HOST[:PORT][/PREFIX]'
            cand --upstream-ca 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted'
            cand --upstream-name 'Name or address in the certificate of the apiserver [default: the host of the URL]'
            cand --upstream-host 'Host that requests ask the apiserver for: client or upstream [default: by the URL]'
            cand --upstream-proxy-url 'Proxy on the way to the apiserver: http, https or socks5 [default: none]'
            cand --kubeconfig 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used'
            cand --context 'Context of the kubeconfig [default: its current-context]'
            cand -c 'YAML file with several clusters, limits or timeouts'
            cand --config 'YAML file with several clusters, limits or timeouts'
            cand --workers 'Number of worker threads [default: the CPUs that this process may use]'
            cand --drain-delay 'How long to serve new clients after SIGTERM [default: 5s]'
            cand --drain-timeout 'How long running requests may take to finish after --drain-delay [default: 20s]'
            cand --drain-tunnels 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]'
            cand --admin-listen 'Address for health checks, metrics and status page, over plain HTTP [default: off]'
            cand --reuse-port 'Share the ports with a running proxy of the same user, to replace it'
            cand --log-format 'Log format: text or json [default: text]'
            cand --log-level 'Log filter: a level, or levels for modules [default: info]'
            cand --no-access-log 'Turn off the log line per request'
            cand --log-user 'How log and status page name users: subject, hash or off [default: off]'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;check'= {
            cand --listen 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]'
            cand --proxy-protocol-from 'Load balancers, which must name the client in a PROXY header'
            cand --trusted-proxies 'HTTP proxies in front, whose X-Forwarded-For names the client'
            cand --cert 'Certificate chain to present: PEM, the server certificate first; repeat for more'
            cand --key 'Private key: PEM, not encrypted; one per --cert, in the same order'
            cand --acme 'Get a certificate for this name by ACME, on port 443 by default; repeat for more'
            cand --acme-email 'Email address for the ACME account'
            cand --acme-directory 'ACME directory of the CA; its terms of service apply [default: Let''s Encrypt]'
            cand --acme-directory-ca 'PEM file with the CAs that verify the ACME directory [default: the public CAs]'
            cand --acme-http01-listen 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80'
            cand --acme-store 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]'
            cand --host 'Host name to serve, in addition to the names in the certificates; repeat for more'
            cand --upstream 'URL of the apiserver: https://HOST[:PORT][/PREFIX]'
            cand --upstream-ca 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted'
            cand --upstream-name 'Name or address in the certificate of the apiserver [default: the host of the URL]'
            cand --upstream-host 'Host that requests ask the apiserver for: client or upstream [default: by the URL]'
            cand --upstream-proxy-url 'Proxy on the way to the apiserver: http, https or socks5 [default: none]'
            cand --kubeconfig 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used'
            cand --context 'Context of the kubeconfig [default: its current-context]'
            cand -c 'YAML file with several clusters, limits or timeouts'
            cand --config 'YAML file with several clusters, limits or timeouts'
            cand --workers 'Number of worker threads [default: the CPUs that this process may use]'
            cand --drain-delay 'How long to serve new clients after SIGTERM [default: 5s]'
            cand --drain-timeout 'How long running requests may take to finish after --drain-delay [default: 20s]'
            cand --drain-tunnels 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]'
            cand --admin-listen 'Address for health checks, metrics and status page, over plain HTTP [default: off]'
            cand --reuse-port 'Share the ports with a running proxy of the same user, to replace it'
            cand --log-format 'Log format: text or json [default: text]'
            cand --log-level 'Log filter: a level, or levels for modules [default: info]'
            cand --no-access-log 'Turn off the log line per request'
            cand --log-user 'How log and status page name users: subject, hash or off [default: off]'
            cand --through 'Also check the running proxy at this URL, as clients use it; needs no other flag'
            cand --connect-to 'Connect to HOST[:PORT], not to the host of --through, as before a change of DNS'
            cand --explain-access 'Only say which access rule decides about a request, ''METHOD PATH''; needs --from'
            cand --from 'The address of the client that sends the request of --explain-access'
            cand --through-ca 'CA file that clients use to verify the proxy [default: public CAs]'
            cand --token-file 'File with a bearer token to send with every request'
            cand --client-cert 'Certificate of a user, to check who its owner is; needs --client-key'
            cand --client-key 'Key of that certificate'
            cand -o 'Format of the report'
            cand --output 'Format of the report'
            cand --long 'Also check that a watch stays open for 20 seconds; needs --token-file'
            cand --offline 'Check only what needs no network and no port: configuration, certificates and CAs'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;kubeconfig'= {
            cand --server 'The public URL of the proxy: https://NAME[:PORT]'
            cand --from 'Copy names and token or plugin from this kubeconfig; certificates only with --direct'
            cand --context 'Use this context of --from [default: its current-context]'
            cand --tls-server-name 'The passthrough host, a name in the apiserver''s certificate [default: kubernetes]'
            cand --token-file 'Put the token in this file into the kubeconfig'
            cand --exec-command 'Let kubectl run this program to get a token, for example an OIDC login'
            cand --exec-arg 'An argument of that program; repeat for more'
            cand --exec-env 'An environment variable of that program; repeat for more'
            cand --ca 'Put the CA certificates in this file into the kubeconfig, if the proxy has a private CA'
            cand --namespace 'Default namespace of the context [default: as in --from]'
            cand --name 'Name of cluster, user and context [default: as in --from, or the host of --server]'
            cand --output 'Write to this file, which only its owner can read, instead of stdout'
            cand --direct 'For a passthrough host: copy the CA and every credential of --from'
            cand --merge 'Add to the kubeconfig in --output and keep its other entries, but not its comments'
            cand --force 'Overwrite FILE; with --merge, entries of other clusters. FILE.bak keeps the old file'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;translate'= {
            cand --output 'Write kube-tls-proxy.yaml and the CA files that the manifests contain into this directory'
            cand --strict 'Exit with 1 if a field is not possible or not known'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;version'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;completions'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;help'= {
            cand serve 'Run the proxy: it needs a certificate to present and an apiserver to forward to'
            cand check 'Check configuration, certificates and network, and say how to fix what is wrong'
            cand kubeconfig 'Print or write a kubeconfig for clients that reach the proxy by its public name'
            cand translate 'Translate the manifests of an ingress controller or a Gateway into a configuration file'
            cand version 'Print the version, as --version does'
            cand completions 'Print the completion script for a shell'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'kube-tls-proxy;help;serve'= {
        }
        &'kube-tls-proxy;help;check'= {
        }
        &'kube-tls-proxy;help;kubeconfig'= {
        }
        &'kube-tls-proxy;help;translate'= {
        }
        &'kube-tls-proxy;help;version'= {
        }
        &'kube-tls-proxy;help;completions'= {
        }
        &'kube-tls-proxy;help;help'= {
        }
    ]
    $completions[$command]
}
