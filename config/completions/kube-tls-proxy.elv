
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
            cand kubeconfig 'Print a kubeconfig for clients that reach the proxy by its public name'
            cand completions 'Print the completion script for a shell'
        }
        &'kube-tls-proxy;serve'= {
            cand --listen 'Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]'
            cand --cert 'Present this certificate chain: PEM, the server''s own first; repeat for more'
            cand --key 'Its private key: PEM, not encrypted; one for each --cert, in the same order'
            cand --host 'Answer to this name too, besides those in the certificates; repeat for more'
            cand --upstream 'Forward to this apiserver: https://HOST[:PORT][/PREFIX]'
            cand --upstream-ca 'Trust only the CAs in this PEM file; goes with --upstream'
            cand --upstream-name 'Expect this name or address in its certificate, instead of the one dialled'
            cand --kubeconfig 'Take URL, CA and name from this kubeconfig; its credentials are not read'
            cand --context 'Use this context of the kubeconfig [default: its current-context]'
            cand --config 'Read a YAML file: several clusters, limits, timeouts'
            cand --workers 'Worker threads [default: the CPUs this process may use]'
            cand --drain-delay 'After SIGTERM, still serve new clients for this long [default: 5s]'
            cand --drain-timeout 'After that, let running requests finish for this long [default: 20s]'
            cand --drain-tunnels 'And let tunnels (exec, port-forward) go on for this long [default: 60s]'
            cand --admin-listen 'Serve health, metrics and the status page here, as plain HTTP [default: nowhere]'
            cand --log-format 'Log as text or json [default: text]'
            cand --log-level 'Log what this filter lets through: a level, or levels for modules [default: info]'
            cand --reuse-port 'Share the listening ports with a running proxy of the same user, to replace it'
            cand --no-access-log 'Do not log each request'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;check'= {
            cand --listen 'Listen here; repeat for more. Port 0 asks the kernel for one [default: [::]:8443]'
            cand --cert 'Present this certificate chain: PEM, the server''s own first; repeat for more'
            cand --key 'Its private key: PEM, not encrypted; one for each --cert, in the same order'
            cand --host 'Answer to this name too, besides those in the certificates; repeat for more'
            cand --upstream 'Forward to this apiserver: https://HOST[:PORT][/PREFIX]'
            cand --upstream-ca 'Trust only the CAs in this PEM file; goes with --upstream'
            cand --upstream-name 'Expect this name or address in its certificate, instead of the one dialled'
            cand --kubeconfig 'Take URL, CA and name from this kubeconfig; its credentials are not read'
            cand --context 'Use this context of the kubeconfig [default: its current-context]'
            cand --config 'Read a YAML file: several clusters, limits, timeouts'
            cand --workers 'Worker threads [default: the CPUs this process may use]'
            cand --drain-delay 'After SIGTERM, still serve new clients for this long [default: 5s]'
            cand --drain-timeout 'After that, let running requests finish for this long [default: 20s]'
            cand --drain-tunnels 'And let tunnels (exec, port-forward) go on for this long [default: 60s]'
            cand --admin-listen 'Serve health, metrics and the status page here, as plain HTTP [default: nowhere]'
            cand --log-format 'Log as text or json [default: text]'
            cand --log-level 'Log what this filter lets through: a level, or levels for modules [default: info]'
            cand --through 'Also check the running proxy at this URL, as clients use it; needs no other flag'
            cand --through-ca 'CA file that clients use to verify the proxy [default: public CAs]'
            cand --token-file 'File with a bearer token to send with every request'
            cand --output 'Format of the report'
            cand --reuse-port 'Share the listening ports with a running proxy of the same user, to replace it'
            cand --no-access-log 'Do not log each request'
            cand --long 'Also check that a watch stays open for 20 seconds; needs --token-file'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;kubeconfig'= {
            cand --server 'The public URL of the proxy: https://NAME[:PORT]'
            cand --from 'Copy names and token or exec plugin from this kubeconfig, never a client certificate'
            cand --context 'Use this context of --from [default: its current-context]'
            cand --token-file 'Put the token in this file into the kubeconfig'
            cand --exec-command 'Let kubectl run this program to get a token, for example an OIDC login'
            cand --exec-arg 'An argument of that program; repeat for more'
            cand --name 'Name of cluster, user and context [default: as in --from, or the host of --server]'
            cand --output 'Write to this file, which only its owner can read, instead of stdout'
            cand --merge 'Add to the kubeconfig in --output and keep its other entries'
            cand --force 'Overwrite an existing file, or with --merge foreign entries; FILE.bak keeps the old file'
            cand -h 'Print help'
            cand --help 'Print help'
        }
        &'kube-tls-proxy;completions'= {
            cand -h 'Print help'
            cand --help 'Print help'
        }
    ]
    $completions[$command]
}
