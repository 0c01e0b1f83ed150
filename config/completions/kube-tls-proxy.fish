# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_kube_tls_proxy_global_optspecs
    string join \n h/help V/version
end

function __fish_kube_tls_proxy_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_kube_tls_proxy_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_kube_tls_proxy_using_subcommand
    set -l cmd (__fish_kube_tls_proxy_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -s V -l version -d 'Print version'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "serve" -d 'Run the proxy: it needs a certificate to present and an apiserver to forward to'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "check" -d 'Check configuration, certificates and network, and say how to fix what is wrong'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "kubeconfig" -d 'Print or write a kubeconfig for clients that reach the proxy by its public name'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "translate" -d 'Translate the manifests of an ingress controller or a Gateway into a configuration file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "version" -d 'Print the version, as --version does'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "completions" -d 'Print the completion script for a shell'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l listen -d 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l proxy-protocol-from -d 'Load balancers, which must name the client in a PROXY header' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l trusted-proxies -d 'HTTP proxies in front, whose X-Forwarded-For names the client' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l cert -d 'Certificate chain to present: PEM, the server certificate first; repeat for more' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l key -d 'Private key: PEM, not encrypted; one per --cert, in the same order' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme -d 'Get a certificate for this name by ACME, on port 443 by default; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme-email -d 'Email address for the ACME account' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme-directory -d 'ACME directory of the CA; its terms of service apply [default: Let\'s Encrypt]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme-directory-ca -d 'PEM file with the CAs that verify the ACME directory [default: the public CAs]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme-http01-listen -d 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l acme-store -d 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l host -d 'Host name to serve, in addition to the names in the certificates; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream -d 'URL of the apiserver: https://HOST[:PORT][/PREFIX]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-ca -d 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-name -d 'Name or address in the certificate of the apiserver [default: the host of the URL]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-host -d 'Host that requests ask the apiserver for: client or upstream [default: by the URL]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-proxy-url -d 'Proxy on the way to the apiserver: http, https or socks5 [default: none]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l kubeconfig -d 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l context -d 'Context of the kubeconfig [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -s c -l config -d 'YAML file with several clusters, limits or timeouts' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l workers -d 'Number of worker threads [default: the CPUs that this process may use]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-delay -d 'How long to serve new clients after SIGTERM [default: 5s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-timeout -d 'How long running requests may take to finish after --drain-delay [default: 20s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-tunnels -d 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l admin-listen -d 'Address for health checks, metrics and status page, over plain HTTP [default: off]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l reuse-port -d 'Share the ports with a running proxy of the same user, to replace it' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l log-format -d 'Log format: text or json [default: text]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l log-level -d 'Log filter: a level, or levels for modules [default: info]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l no-access-log -d 'Turn off the log line per request' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l log-user -d 'How log and status page name users: subject, hash or off [default: off]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l listen -d 'Address to listen on; repeat for more. Port 0 is any free port [default: [::]:8443]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l proxy-protocol-from -d 'Load balancers, which must name the client in a PROXY header' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l trusted-proxies -d 'HTTP proxies in front, whose X-Forwarded-For names the client' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l cert -d 'Certificate chain to present: PEM, the server certificate first; repeat for more' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l key -d 'Private key: PEM, not encrypted; one per --cert, in the same order' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme -d 'Get a certificate for this name by ACME, on port 443 by default; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme-email -d 'Email address for the ACME account' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme-directory -d 'ACME directory of the CA; its terms of service apply [default: Let\'s Encrypt]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme-directory-ca -d 'PEM file with the CAs that verify the ACME directory [default: the public CAs]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme-http01-listen -d 'Validate names on this port over HTTP (http-01), in place of port 443; the CA connects to port 80' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l acme-store -d 'Folder for ACME account, key and certificate [default: /var/lib/kube-tls-proxy]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l host -d 'Host name to serve, in addition to the names in the certificates; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream -d 'URL of the apiserver: https://HOST[:PORT][/PREFIX]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-ca -d 'PEM file with the CAs that verify the apiserver at --upstream; no others are trusted' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-name -d 'Name or address in the certificate of the apiserver [default: the host of the URL]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-host -d 'Host that requests ask the apiserver for: client or upstream [default: by the URL]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-proxy-url -d 'Proxy on the way to the apiserver: http, https or socks5 [default: none]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l kubeconfig -d 'Kubeconfig with URL, CA and name of the apiserver; its credentials are not used' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l context -d 'Context of the kubeconfig [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -s c -l config -d 'YAML file with several clusters, limits or timeouts' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l workers -d 'Number of worker threads [default: the CPUs that this process may use]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-delay -d 'How long to serve new clients after SIGTERM [default: 5s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-timeout -d 'How long running requests may take to finish after --drain-delay [default: 20s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-tunnels -d 'How long tunnels (exec, cp, …) may stay open after --drain-delay [default: 60s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l admin-listen -d 'Address for health checks, metrics and status page, over plain HTTP [default: off]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l reuse-port -d 'Share the ports with a running proxy of the same user, to replace it' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l log-format -d 'Log format: text or json [default: text]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l log-level -d 'Log filter: a level, or levels for modules [default: info]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l no-access-log -d 'Turn off the log line per request' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l log-user -d 'How log and status page name users: subject, hash or off [default: off]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l through -d 'Also check the running proxy at this URL, as clients use it; needs no other flag' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l connect-to -d 'Connect to HOST[:PORT], not to the host of --through, as before a change of DNS' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l explain-access -d 'Only say which access rule decides about a request, \'METHOD PATH\'; needs --from' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l from -d 'The address of the client that sends the request of --explain-access' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l through-ca -d 'CA file that clients use to verify the proxy [default: public CAs]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l token-file -d 'File with a bearer token to send with every request' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l client-cert -d 'Certificate of a user, to check who its owner is; needs --client-key' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l client-key -d 'Key of that certificate' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -s o -l output -d 'Format of the report' -r -f -a "text\t''
json\t''"
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l long -d 'Also check that a watch stays open for 20 seconds; needs --token-file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l offline -d 'Check only what needs no network and no port: configuration, certificates and CAs'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l server -d 'The public URL of the proxy: https://NAME[:PORT]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l from -d 'Copy names and token or plugin from this kubeconfig; certificates only with --direct' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l context -d 'Use this context of --from [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l tls-server-name -d 'The passthrough host, a name in the apiserver\'s certificate [default: kubernetes]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l token-file -d 'Put the token in this file into the kubeconfig' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l exec-command -d 'Let kubectl run this program to get a token, for example an OIDC login' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l exec-arg -d 'An argument of that program; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l exec-env -d 'An environment variable of that program; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l ca -d 'Put the CA certificates in this file into the kubeconfig, if the proxy has a private CA' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l namespace -d 'Default namespace of the context [default: as in --from]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l name -d 'Name of cluster, user and context [default: as in --from, or the host of --server]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l output -d 'Write to this file, which only its owner can read, instead of stdout' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l direct -d 'For a passthrough host: copy the CA and every credential of --from'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l merge -d 'Add to the kubeconfig in --output and keep its other entries, but not its comments'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l force -d 'Overwrite FILE; with --merge, entries of other clusters. FILE.bak keeps the old file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand translate" -l output -d 'Write kube-tls-proxy.yaml and the CA files that the manifests contain into this directory' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand translate" -l strict -d 'Exit with 1 if a field is not possible or not known'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand translate" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand version" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand completions" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "serve" -d 'Run the proxy: it needs a certificate to present and an apiserver to forward to'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "check" -d 'Check configuration, certificates and network, and say how to fix what is wrong'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "kubeconfig" -d 'Print or write a kubeconfig for clients that reach the proxy by its public name'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "translate" -d 'Translate the manifests of an ingress controller or a Gateway into a configuration file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "version" -d 'Print the version, as --version does'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "completions" -d 'Print the completion script for a shell'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand help; and not __fish_seen_subcommand_from serve check kubeconfig translate version completions help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
