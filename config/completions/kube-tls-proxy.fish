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
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "kubeconfig" -d 'Print a kubeconfig for clients that reach the proxy by its public name'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_needs_command" -f -a "completions" -d 'Print the completion script for a shell'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l listen -d 'Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l cert -d 'Present this certificate chain: PEM, the server\'s own first; repeat for more' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l key -d 'Its private key: PEM, not encrypted; one for each --cert, in the same order' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l host -d 'Answer to this name too, besides those in the certificates; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream -d 'Forward to this apiserver: https://HOST[:PORT][/PREFIX]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-ca -d 'Trust only the CAs in this PEM file; goes with --upstream' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l upstream-name -d 'Expect this name or address in its certificate, instead of the one dialled' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l kubeconfig -d 'Take URL, CA and name from this kubeconfig; its credentials are not read' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l context -d 'Use this context of the kubeconfig [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l config -d 'Read a YAML file: several clusters, limits, timeouts' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l workers -d 'Worker threads [default: the CPUs this process may use]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-delay -d 'After SIGTERM, still serve new clients for this long [default: 5s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-timeout -d 'After that, let running requests finish for this long [default: 20s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l drain-tunnels -d 'And let tunnels (exec, port-forward) go on for this long [default: 60s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l admin-listen -d 'Serve health, metrics and the status page here, as plain HTTP [default: nowhere]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l log-format -d 'Log as text or json [default: text]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l log-level -d 'Log what this filter lets through: a level, or levels for modules [default: info]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l reuse-port -d 'Share the listening ports with a running proxy of the same user, to replace it'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -l no-access-log -d 'Do not log each request'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand serve" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l listen -d 'Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l cert -d 'Present this certificate chain: PEM, the server\'s own first; repeat for more' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l key -d 'Its private key: PEM, not encrypted; one for each --cert, in the same order' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l host -d 'Answer to this name too, besides those in the certificates; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream -d 'Forward to this apiserver: https://HOST[:PORT][/PREFIX]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-ca -d 'Trust only the CAs in this PEM file; goes with --upstream' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l upstream-name -d 'Expect this name or address in its certificate, instead of the one dialled' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l kubeconfig -d 'Take URL, CA and name from this kubeconfig; its credentials are not read' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l context -d 'Use this context of the kubeconfig [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l config -d 'Read a YAML file: several clusters, limits, timeouts' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l workers -d 'Worker threads [default: the CPUs this process may use]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-delay -d 'After SIGTERM, still serve new clients for this long [default: 5s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-timeout -d 'After that, let running requests finish for this long [default: 20s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l drain-tunnels -d 'And let tunnels (exec, port-forward) go on for this long [default: 60s]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l admin-listen -d 'Serve health, metrics and the status page here, as plain HTTP [default: nowhere]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l log-format -d 'Log as text or json [default: text]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l log-level -d 'Log what this filter lets through: a level, or levels for modules [default: info]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l through -d 'Also check the running proxy at this URL, as clients use it; needs no other flag' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l through-ca -d 'CA file that clients use to verify the proxy [default: public CAs]' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l token-file -d 'File with a bearer token to send with every request' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l output -d 'Format of the report' -r -f -a "text\t''
json\t''"
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l reuse-port -d 'Share the listening ports with a running proxy of the same user, to replace it'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l no-access-log -d 'Do not log each request'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -l long -d 'Also check that a watch stays open for 20 seconds; needs --token-file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand check" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l server -d 'The public URL of the proxy: https://NAME[:PORT]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l from -d 'Copy names and token or exec plugin from this kubeconfig, never a client certificate' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l context -d 'Use this context of --from [default: its current-context]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l token-file -d 'Put the token in this file into the kubeconfig' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l exec-command -d 'Let kubectl run this program to get a token, for example an OIDC login' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l exec-arg -d 'An argument of that program; repeat for more' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l name -d 'Name of cluster, user and context [default: as in --from, or the host of --server]' -r
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l output -d 'Write to this file, which only its owner can read, instead of stdout' -r -F
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l merge -d 'Add to the kubeconfig in --output and keep its other entries'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -l force -d 'Overwrite an existing file, or with --merge foreign entries; FILE.bak keeps the old file'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand kubeconfig" -s h -l help -d 'Print help'
complete -c kube-tls-proxy -n "__fish_kube_tls_proxy_using_subcommand completions" -s h -l help -d 'Print help'
