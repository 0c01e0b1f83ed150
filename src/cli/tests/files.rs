//! Configuration files that are refused.

use super::*;

#[test]
fn bad_config_files() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // CLUSTER is replaced by a valid cluster, AT by the settings that locate its apiserver.
    for (text, expected) in [
        (
            "clusters: [{name: a, pathPrefix: clusters, inCluster: true}]",
            "config file DIR/proxy.yaml, line 1, column 34: `clusters` is not a path prefix; write one such as /clusters/prod, with letters, digits, `-`, `.`, `_` and `~`, and no slash at the end",
        ),
        (
            "clusters: [{name: a, pathPrefix: /a%2fb, inCluster: true}]",
            "config file DIR/proxy.yaml, line 1, column 34: `/a%2fb` is not a path prefix; write one such as /clusters/prod, with letters, digits, `-`, `.`, `_` and `~`, and no slash at the end",
        ),
        (
            "clusters: [{name: a, pathPrefix: /a/, inCluster: true}]",
            "config file DIR/proxy.yaml, line 1, column 34: `/a/` is not a path prefix; write one such as /clusters/prod, with letters, digits, `-`, `.`, `_` and `~`, and no slash at the end",
        ),
        (
            "clusters:\n- {name: a, pathPrefix: /c, AT}\n- {name: b, pathPrefix: /c/d, AT}\n",
            "config file DIR/proxy.yaml, line 3, column 25: path prefix `/c/d` overlaps with `/c` of cluster `a` (config file DIR/proxy.yaml, line 2, column 25); choose one that lies neither below nor above it",
        ),
        (
            "clusters:\n- {name: a, hosts: [x.example], AT}\n- {name: b, hosts: [x.example], pathPrefix: /c, AT}\n",
            "config file DIR/proxy.yaml, line 3, column 21: host `x.example` is already listed for cluster `a`; remove one of the two",
        ),
        (
            "clusters:\n- {name: a, hosts: [x.example], passthrough: true, pathPrefix: /c, AT}\n",
            "config file DIR/proxy.yaml, line 2, column 64: cluster `a` has `passthrough` and `pathPrefix`; remove one of them, because the proxy sees no path of a connection that it passes on",
        ),
        (
            "clusters:\n- {name: a, pathPrefix: /c, AT, clientCertificates: {ca: a, frontProxy: {certificate: b, key: c}}}\n",
            "config file DIR/proxy.yaml, line 2, column 25: cluster `a` has `pathPrefix` and `clientCertificates`; give it a host of its own, because a certificate is asked for before a path is known",
        ),
        (
            "",
            "config file DIR/proxy.yaml: the file is empty; check the path",
        ),
        (
            "listen: [\n",
            "config file DIR/proxy.yaml, line 1, column 9: unclosed bracket '['; fix the YAML there",
        ),
        (
            "- a\n",
            "config file DIR/proxy.yaml, line 1, column 1: expected keys with values; write each as `key: value` on its own line",
        ),
        (
            "listen: 5\nCLUSTER",
            "config file DIR/proxy.yaml, line 1, column 9: this must be a list; write each item on its own line, after a dash",
        ),
        (
            "listen: []\nCLUSTER",
            "config file DIR/proxy.yaml, line 1, column 9: `listen` is an empty list; add an address, or remove the key",
        ),
        (
            "listen: [a]\n",
            "config file DIR/proxy.yaml, line 1, column 10: `a` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "lisen: ['[::]:1']\n",
            "config file DIR/proxy.yaml, line 1, column 1: unknown key `lisen`; did you mean `listen`?",
        ),
        (
            "listen:\n- address: ':1'\n  proxyProtocol: {from: [10.0.0.1/8]}\n",
            "config file DIR/proxy.yaml, line 3, column 26: `10.0.0.1/8` is not the first address of its range; write 10.0.0.0/8, or 10.0.0.1 for this address alone",
        ),
        (
            "listen:\n- address: ':1'\n  proxyProtocol: {from: []}\n",
            "config file DIR/proxy.yaml, line 3, column 25: `from` is an empty list; add a range of addresses, or remove the key",
        ),
        (
            "listen:\n- address: ':1'\n  allow: []\n",
            "config file DIR/proxy.yaml, line 3, column 10: `allow` is an empty list; add a range of addresses, or remove the key",
        ),
        (
            "listen:\n- address: ':1'\n  denied: [10.0.0.0/8]\n",
            "config file DIR/proxy.yaml, line 3, column 3: unknown key `denied`; did you mean `deny`?",
        ),
        (
            "listen:\n- deny: [10.0.0.0/8]\n",
            "config file DIR/proxy.yaml, line 2, column 3: `address` is missing; add it, with the same indentation as the other keys",
        ),
        (
            "listen:\n- address: ':1'\n  deny: [10.0.0.0/33]\n",
            "config file DIR/proxy.yaml, line 3, column 10: `10.0.0.0/33` has more than 32 bits after the slash; write a number from 0 to 32",
        ),
        (
            "listen:\n- address: ':1'\n  deny: 10.0.0.0/8\n",
            "config file DIR/proxy.yaml, line 3, column 9: this must be a list; write each item on its own line, after a dash",
        ),
        (
            "listen: [8443]\n",
            "config file DIR/proxy.yaml, line 1, column 10: `8443` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "trustedProxies: [proxy.example.com]\n",
            "config file DIR/proxy.yaml, line 1, column 18: `proxy.example.com` is not a range of IP addresses; write one such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7",
        ),
        (
            "zzz: 1\n",
            "config file DIR/proxy.yaml, line 1, column 1: unknown key `zzz`; possible keys: listen, trustedProxies, reusePort, workers, certificates, clusters, clustersFrom, limits, timeouts, log, admin, publish, hints",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c, addresses: ['10.0.0.1:1'], proxyUrl: 'http://b'}\n",
            "config file DIR/proxy.yaml, line 3, column 76: the value is given beside `addresses`, but the proxy resolves the host of `url`; remove one of the two",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c, proxyUrl: 'http://u:hidden@b:0'}\n",
            "config file DIR/proxy.yaml, line 3, column 49: the value has no valid host or port; write HOST:PORT after the `://`, with an IPv6 address in brackets, and special characters of a password as `%40`",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c, addresses: ['10.0.0.1']}\n",
            "config file DIR/proxy.yaml, line 3, column 51: `10.0.0.1` is not the address of an apiserver; write ADDRESS:PORT with an IP address, such as 10.0.0.1:6443",
        ),
        (
            "clusters:\n- name: a\n  passthrough: true\n  upstream: {url: 'https://a'}\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` has `passthrough` and no `hosts`; add the names that its clients ask for, such as `kubernetes`",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b, 192.0.2.1]\n  passthrough: true\n  upstream: {url: 'https://a'}\n",
            "config file DIR/proxy.yaml, line 3, column 14: cluster `a` has `passthrough` for an IP address, which no client asks for in TLS; write a name, such as `kubernetes`, and give it to clients as tls-server-name",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  passthrough: true\n  upstream: {url: 'https://a', name: b}\n",
            "config file DIR/proxy.yaml, line 5, column 38: cluster `a` has `passthrough` and `upstream.name`; remove `name`, because each client verifies the apiserver under the name that it asks for",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  passthrough: true\n  upstream: {url: 'https://a', host: client}\n",
            "config file DIR/proxy.yaml, line 5, column 38: cluster `a` has `passthrough` and `upstream.host`; remove `host`, because the proxy cannot change a request that it does not see",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  passthrough: true\n  upstream: {url: 'https://a'}\n  access: [{allow: {}}]\n",
            "config file DIR/proxy.yaml, line 6, column 11: cluster `a` has `passthrough`, so the proxy sees no request that `access` could judge; remove one of them",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  passthrough: true\n  upstream: {url: 'https://a'}\n  clientCertificates: {ca: c, frontProxy: {certificate: d, key: e}}\n",
            "config file DIR/proxy.yaml, line 6, column 23: cluster `a` has `passthrough` and `clientCertificates`; remove the section, because each client presents its certificate to the apiserver itself",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c}\n  clientCertificates: {ca: d}\n",
            "config file DIR/proxy.yaml, line 4, column 23: cluster `a` must name the owners of client certificates in exactly one way; give one of `frontProxy` and `impersonate` in `clientCertificates`",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c}\n  clientCertificates: {ca: d, impersonate: {tokenFile: t}, frontProxy: {certificate: b, key: e}}\n",
            "config file DIR/proxy.yaml, line 4, column 23: cluster `a` must name the owners of client certificates in exactly one way; give one of `frontProxy` and `impersonate` in `clientCertificates`",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://a', ca: c}\n  clientCertificates: {ca: d, frontProxy: {certificate: d, key: e}}\n",
            "config file DIR/proxy.yaml, line 4, column 23: cluster `a` has one file as `ca` and as `frontProxy.certificate`; give the CA that issues the certificates of users as `ca`",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  passthrough: true\n  upstream: {url: 'https://a/b'}\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` has `passthrough` and a URL with a path; remove the path, because the proxy cannot change a request that it does not see",
        ),
        (
            "clusters:\n- name: a\n  hosts: [b]\n  upstream: {url: 'https://a', ca: c}\n- name: d\n  hosts: [B.]\n  passthrough: true\n  upstream: {url: 'https://a'}\n",
            "config file DIR/proxy.yaml, line 6, column 11: host `b` is already listed for cluster `a`; remove one of the two",
        ),
        (
            "apiVersion: projectcontour.io/v1\nkind: HTTPProxy\n",
            "config file DIR/proxy.yaml, line 1, column 1: `apiVersion` is a key of Kubernetes objects, so this is not a configuration file of the proxy; give a kubeconfig with --kubeconfig, or translate an HTTPProxy, an Ingress or a route with `kube-tls-proxy translate`",
        ),
        (
            "kind: Config\n",
            "config file DIR/proxy.yaml, line 1, column 1: `kind` is a key of Kubernetes objects, so this is not a configuration file of the proxy; give a kubeconfig with --kubeconfig, or translate an HTTPProxy, an Ingress or a route with `kube-tls-proxy translate`",
        ),
        (
            GARBAGE,
            "config file DIR/proxy.yaml: the file contains PEM instead of YAML; check the path",
        ),
        (
            "limits:\n  conections: 3\n",
            "config file DIR/proxy.yaml, line 2, column 3: unknown key `conections`; did you mean `connections`?",
        ),
        (
            "limits:\n  connections: 600\nCLUSTER",
            "config file DIR/proxy.yaml, line 2, column 16: 600 connections need 1336 open files, but this process may open 1024; lower the number, or raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)",
        ),
        (
            "limits:\n  connections: 0\n",
            "config file DIR/proxy.yaml, line 2, column 16: 0 is out of range; write a value from 1 to 1000000",
        ),
        (
            "limits:\n  connections: -1\n",
            "config file DIR/proxy.yaml, line 2, column 16: the value is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "limits:\n  connections: many\n",
            "config file DIR/proxy.yaml, line 2, column 16: the value is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "limits:\n  headerBytes: 64kb\n",
            "config file DIR/proxy.yaml, line 2, column 16: the value is not a size; write a number of bytes with a unit, such as 64KiB or 1MiB",
        ),
        (
            "limits:\n  headerBytes: 1KiB\n",
            "config file DIR/proxy.yaml, line 2, column 16: 1KiB is out of range; write a value from 8KiB to 1MiB",
        ),
        (
            "limits:\n  uriBytes: 100000\n",
            "config file DIR/proxy.yaml, line 2, column 13: 100000 is out of range; write a value from 1KiB to 65534",
        ),
        (
            "timeouts: 5s\n",
            "config file DIR/proxy.yaml, line 1, column 11: expected keys with values; write each as `key: value` on its own line",
        ),
        (
            "timeouts:\n  drain: 25\n",
            "config file DIR/proxy.yaml, line 2, column 10: the value is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  drain: 1.5\n",
            "config file DIR/proxy.yaml, line 2, column 10: the value is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  handshake: 0s\n",
            "config file DIR/proxy.yaml, line 2, column 14: the duration must be longer than 0; write one such as 5s",
        ),
        (
            "timeouts:\n  handshake: 5 parsecs\n",
            "config file DIR/proxy.yaml, line 2, column 14: the value is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  handshake: ''\n",
            "config file DIR/proxy.yaml, line 2, column 14: the value is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "workers: two\n",
            "config file DIR/proxy.yaml, line 1, column 10: the value is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "workers: 0\n",
            "config file DIR/proxy.yaml, line 1, column 10: 0 is out of range; write a value from 1 to 1024",
        ),
        (
            "log:\n  format: xml\n",
            "config file DIR/proxy.yaml, line 2, column 11: the value is not a log format; write text or json",
        ),
        (
            "log:\n  filter: 'a=loud'\n",
            "config file DIR/proxy.yaml, line 2, column 11: `a=loud` is not a log filter; write a level (error, warn, info, debug, trace), or levels for modules, such as info,kube_tls_proxy=debug",
        ),
        (
            "log:\n  access: maybe\n",
            "config file DIR/proxy.yaml, line 2, column 11: this must be a boolean; write true or false",
        ),
        (
            "log: {access: true}\nlog: {access: false}\n",
            "config file DIR/proxy.yaml, line 2, column 1: `log` is given twice; remove one",
        ),
        (
            "certificates:\n- certificate: a\n",
            "config file DIR/proxy.yaml, line 2, column 3: `key` is missing; add it, with the same indentation as the other keys",
        ),
        (
            "certificates: [{acme: {domains: ['*.example.com']}}]\n",
            "config file DIR/proxy.yaml, line 1, column 34: a certificate by ACME has no wildcard here, because that needs a record in DNS; name each host, or let cert-manager or certbot write `certificate` and `key`",
        ),
        (
            "certificates: [{acme: {domains: []}}]\n",
            "config file DIR/proxy.yaml, line 1, column 33: `domains` is an empty list; add the host name that clients use, such as kube.example.com",
        ),
        (
            "certificates: [{acme: {domains: [a.test], email: ops}}]\n",
            "config file DIR/proxy.yaml, line 1, column 50: the value is not one email address; write it as name@example.com",
        ),
        (
            "certificates: [{acme: {domains: [a.test], email: 'a@b.test,c@d.test'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 50: the value is not one email address; write it as name@example.com",
        ),
        (
            "certificates: [{acme: {domains: [a.test], directory: 'http://ca.test/dir'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 54: the value is not the URL of an ACME directory; write https://HOST[:PORT]/PATH, without user name and password",
        ),
        (
            "certificates: [{acme: {domains: [a.test], directory: 'https://user:word@ca.test/dir'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 54: the value is not the URL of an ACME directory; write https://HOST[:PORT]/PATH, without user name and password",
        ),
        (
            "certificates: [{acme: {domains: [a.test], profile: 'a b'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 52: the value is not the name of a profile; write one that the CA offers, such as shortlived, with letters, digits, `-`, `_` and `.`",
        ),
        (
            "certificates: [{acme: {domains: [a.test], http01Listen: 80}}]\n",
            "config file DIR/proxy.yaml, line 1, column 57: `80` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "certificates: [{acme: {domains: [a.test], http01Listen: 'kube.example.com:80'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 57: `kube.example.com:80` is not an address to listen on; write ADDRESS:PORT with an IP address, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "certificates: [{acme: {domains: [a.test], http01Listen: ':0'}}]\n",
            "config file DIR/proxy.yaml, line 1, column 57: the port is 0, so the CA cannot reach it; write :80, or the port that port 80 is forwarded to",
        ),
        (
            "certificates: [{acme: {domains: [a.test], eab: {kid: 'a b', keyFile: k}}}]\n",
            "config file DIR/proxy.yaml, line 1, column 54: the value is not a key identifier; copy the one that the CA gave for external account binding, without spaces",
        ),
        (
            "certificates: [{certificate: a, key: b, acme: {domains: [a.test]}}]\n",
            "config file DIR/proxy.yaml, line 1, column 16: `acme` cannot be in one item with `certificate` and `key`; write two items, each after its own dash",
        ),
        (
            "certificates: [{acme: {domains: [a.test]}}, {acme: {domains: [b.test]}}]\n",
            "config file DIR/proxy.yaml, line 1, column 45: another certificate has the same `store`, and one would replace the other; give each its own folder, or put all `domains` into one",
        ),
        (
            "certificates: [{acme: {domain: [a.test]}}]\n",
            "config file DIR/proxy.yaml, line 1, column 24: unknown key `domain`; did you mean `domains`?",
        ),
        (
            "certificates: [{acme: {email: a@b.test}}]\n",
            "config file DIR/proxy.yaml, line 1, column 24: `domains` is missing; add it, with the same indentation as the other keys",
        ),
        (
            "certificates: [{acme: {domains: ['https://a.test']}}]\n",
            "config file DIR/proxy.yaml, line 1, column 34: `https://a.test` is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com",
        ),
        (
            "clusters:\n- hosts: [a]\n",
            "config file DIR/proxy.yaml, line 2, column 3: `name` is missing; add it, with the same indentation as the other keys",
        ),
        (
            "clusters:\n- name: ''\n",
            "config file DIR/proxy.yaml, line 2, column 3: the `name` of the cluster is empty; give it a short one for the logs",
        ),
        (
            "clusters:\n- name: a\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` must name its apiserver in exactly one way; give one of `upstream`, `kubeconfig` and `inCluster: true`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: true\n  kubeconfig: k\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` must name its apiserver in exactly one way; give one of `upstream`, `kubeconfig` and `inCluster: true`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: {discover: nodes}\n",
            "config file DIR/proxy.yaml, line 3, column 25: `nodes` is not a way to find apiservers; write `endpoints`, or remove `discover`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: {discovery: endpoints}\n",
            "config file DIR/proxy.yaml, line 3, column 15: unknown key `discovery`; did you mean `discover`?",
        ),
        (
            "clusters:\n- name: a\n  inCluster: {discover: endpoints}\n  kubeconfig: k\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` must name its apiserver in exactly one way; give one of `upstream`, `kubeconfig` and `inCluster: true`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: {discover: endpoints}\n",
            "config file DIR/proxy.yaml, line 2, column 3: this process does not run in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); run it in one, or give `upstream` or `kubeconfig`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: true\n",
            "config file DIR/proxy.yaml, line 2, column 3: this process does not run in a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set); run it in one, or give `upstream` or `kubeconfig`",
        ),
        (
            "clusters:\n- name: a\n  context: k\n  inCluster: true\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` has a `context` without a `kubeconfig`; add `kubeconfig`, or remove `context`",
        ),
        (
            "clusters:\n- name: a\n  kubeconfig: missing.conf\n",
            "kubeconfig DIR/missing.conf: no such file; check the path",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'http://10.0.0.1', ca: ca.crt}\n",
            "config file DIR/proxy.yaml, line 3, column 19: `http://10.0.0.1` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1'}\n",
            "config file DIR/proxy.yaml, line 3, column 13: `ca` is missing; add it, with the same indentation as the other keys",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1', ca: ''}\n",
            "config file DIR/proxy.yaml, line 3, column 43: the path is empty; name a file, or remove the key",
        ),
        (
            "clusters:\n- name: a\n  kubeconfig: ''\n",
            "config file DIR/proxy.yaml, line 3, column 15: the path is empty; name a file, or remove the key",
        ),
        (
            "certificates:\n- {certificate: '', key: a}\n",
            "config file DIR/proxy.yaml, line 2, column 17: the path is empty; name a file, or remove the key",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1', ca: missing.crt}\n",
            "CA DIR/missing.crt: no such file; check the path",
        ),
        (
            "clusters:\n- name: a\n  hosts: ['a.example:8443']\n  AT\n",
            "config file DIR/proxy.yaml, line 3, column 11: `a.example:8443` is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com",
        ),
        (
            "clusters:\n- name: a\n  hosts: [a.example]\n  AT\n- name: b\n  hosts:\n  - b.example\n  - A.example.\n  AT\n",
            "config file DIR/proxy.yaml, line 8, column 5: host `a.example` is already listed for cluster `a`; remove one of the two",
        ),
        (
            "clusters:\n- name: a\n  hosts: [a.example]\n  AT\n- name: b\n  AT\n",
            "config file DIR/proxy.yaml, line 5, column 3: cluster `b` has no `hosts`, and there are several clusters; add its public host names",
        ),
        (
            "clusters:\n- name: a\n  hosts: [a.example]\n  AT\n- name: a\n  hosts: [b.example]\n  AT\n",
            "config file DIR/proxy.yaml, line 5, column 3: cluster `a` has the name of another cluster; give each its own name",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1', ca: ca.crt, nmae: x}\n",
            "config file DIR/proxy.yaml, line 3, column 51: unknown key `nmae`; did you mean `name`?",
        ),
    ] {
        let at = "upstream: {url: 'https://10.0.0.1', ca: ca.crt}";
        let text = text
            .replace("CLUSTER", &format!("clusters:\n- name: a\n  {at}\n"))
            .replace("AT", at);
        fixture.scratch.write("proxy.yaml", &text);
        let line = format!("{CERT} --config DIR/proxy.yaml");
        differences.compare(
            &text,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    let good = "clusters:\n- {name: a, upstream: {url: 'https://10.0.0.1', ca: ca.crt}}\n";
    fixture.scratch.write("proxy.yaml", good);
    for (line, expected) in [
        ("CERT --config DIR/proxy.yaml", "it starts"),
        (
            "CERT UPSTREAM --config DIR/proxy.yaml",
            "--upstream and `clusters` in DIR/proxy.yaml both select the apiserver; remove one of them",
        ),
        (
            "CERT --host b --config DIR/proxy.yaml",
            "--host and `clusters` in DIR/proxy.yaml both select the apiserver; remove one of them",
        ),
        (
            "--config DIR/proxy.yaml",
            "no certificate is given; add --cert FILE and --key FILE, or --acme NAME to get one from a CA, or `certificates` in a --config file",
        ),
    ] {
        let line = line.replace("CERT", CERT).replace("UPSTREAM", UPSTREAM);
        differences.compare(
            &line,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    differences.assert_none();
}
