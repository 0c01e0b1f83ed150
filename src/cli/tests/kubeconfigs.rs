//! Kubeconfigs and pods that are refused.

use super::*;

#[test]
fn bad_kubeconfigs() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // CLUSTER is replaced by a kubeconfig without the fields of its current cluster.
    for (text, expected) in [
        (
            "",
            "kubeconfig DIR/kubeconfig: the file is empty; check the path",
        ),
        (
            "a: [",
            "kubeconfig DIR/kubeconfig, line 1, column 4: unclosed bracket '['; fix the YAML there",
        ),
        (
            "users:\n- name: a\n  user: {token: \"secret\n",
            "kubeconfig DIR/kubeconfig, line 3, column 17: unclosed quote; fix the YAML there",
        ),
        (
            "apiVersion: v1\nkind: Config\nusers: []\n",
            "kubeconfig DIR/kubeconfig: the file has no contexts; check the path",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1', ca: ca.crt}\n",
            "kubeconfig DIR/kubeconfig: the file has no contexts; check the path",
        ),
        (
            "contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: no current-context is set; choose a context with --context, one of: a, b",
        ),
        (
            "current-context: me\ncontexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: there is no context `me`; choose one of: a, b",
        ),
        (
            "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: context `a` names cluster `c`, which the file does not have; choose another context, or fix the file",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1'}",
            "kubeconfig DIR/kubeconfig: cluster `c` has no certificate-authority; add its CA, because public CAs are not trusted for an apiserver",
        ),
        (
            "CLUSTER {certificate-authority: ca.crt}",
            "kubeconfig DIR/kubeconfig: cluster `c` has no server; add its URL",
        ),
        (
            "CLUSTER {server: 'http://10.0.0.1', certificate-authority: ca.crt}",
            "kubeconfig DIR/kubeconfig: server of cluster `c`: `http://10.0.0.1` is not an https URL; tokens go over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', insecure-skip-tls-verify: true}",
            "kubeconfig DIR/kubeconfig: cluster `c` sets insecure-skip-tls-verify: true. Without verification any server could pose as the apiserver and read every token; remove that line and give the CA as certificate-authority",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt, proxy-url: 'socks4://u:hidden@x'}",
            "kubeconfig DIR/kubeconfig: proxy-url of cluster `c`: the value is not the URL of a proxy; write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if the proxy wants them",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: missing.crt}",
            "CA DIR/missing.crt: no such file; check the path",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: '%%'}",
            "kubeconfig DIR/kubeconfig: cluster `c` has certificate-authority-data that is not base64; copy the whole value again (`kubectl config view --raw` prints it)",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: DATA+OMITTED}",
            "kubeconfig DIR/kubeconfig: cluster `c` has `DATA+OMITTED` in place of its certificate-authority-data; write the kubeconfig again with `kubectl config view --raw`",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: '-----BEGIN CERTIFICATE-----'}",
            "kubeconfig DIR/kubeconfig: cluster `c` has PEM text in its certificate-authority-data; base64 of that text belongs there, or write the text to a file and name that in certificate-authority",
        ),
        // base64 of base64 of `-----BEGIN CERTIFICATE-----`.
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: 'TFMwdExTMUNSVWRKVGlCRFJWSlVTVVpKUTBGVVJTMHRMUzB0'}",
            "kubeconfig DIR/kubeconfig: cluster `c` has certificate-authority-data that is encoded in base64 twice; decode the value once",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: 'aGVsbG8='}",
            "CA of cluster `c` in kubeconfig DIR/kubeconfig: contains no PEM block (`-----BEGIN …`); put the base64 of the PEM file of the CA there (`kubectl config view --raw` prints it)",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: 'MIIBAAA='}",
            "CA of cluster `c` in kubeconfig DIR/kubeconfig: is in DER form; put the base64 of the PEM file of the CA there (`kubectl config view --raw` prints it)",
        ),
        (
            "current-context: ''\ncontexts: [{name: '', context: {user: u}}]\n",
            "kubeconfig DIR/kubeconfig: context `` names no cluster; add its `cluster`, or choose another context",
        ),
        (
            "contexts: [{context: {cluster: c}}]\ncurrent-context: a\n",
            "kubeconfig DIR/kubeconfig: there is no context `a`; no context of the file has a name, so give it one",
        ),
        (
            "contexts: [~]\n",
            "kubeconfig DIR/kubeconfig: no current-context is set; give a context a `name`, and set current-context to it",
        ),
        (
            "contexts: [{name: a}, {name: b}, {name: a, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: two contexts have the name `a`, so kubectl refuses this file too; rename or remove one of them",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt}\nusers: [{name: u}, {name: u}]\n",
            "kubeconfig DIR/kubeconfig: two users have the name `u`, so kubectl refuses this file too; rename or remove one of them",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt}\n---\ncurrent-context: other\n",
            "kubeconfig DIR/kubeconfig, line 7, column 1: a second YAML document begins here, but only the first one is used; remove one of them",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt, tls-server-name: 'a b'}",
            "kubeconfig DIR/kubeconfig: tls-server-name of cluster `c`: `a b` is neither a DNS name nor an IP address; write one such as kubernetes.default.svc",
        ),
    ] {
        let text = text.replace("CLUSTER", CLUSTER);
        fixture.scratch.write("kubeconfig", &text);
        let line = format!("{CERT} --kubeconfig DIR/kubeconfig");
        differences.compare(
            &text,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    let good = format!("{CLUSTER} {{server: 'https://10.0.0.1', certificate-authority: ca.crt}}");
    fixture.scratch.write("kubeconfig", good);
    for (line, expected) in [
        ("CERT --kubeconfig DIR/kubeconfig", "it starts"),
        (
            "CERT --kubeconfig DIR/kubeconfig --context absent",
            "kubeconfig DIR/kubeconfig: there is no context `absent`; choose one of: me, you",
        ),
        (
            "CERT --kubeconfig DIR/kubeconfig --context you",
            "kubeconfig DIR/kubeconfig: context `you` names cluster `d`, which the file does not have; choose another context, or fix the file",
        ),
    ] {
        let line = line.replace("CERT", CERT);
        differences.compare(
            &line,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    differences.assert_none();
}

#[test]
fn bad_pods() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let pod = in_a_pod(fixture.scratch.path());
    for (env, expected) in [
        (
            Environment {
                service_port: None,
                ..pod.clone()
            },
            "the pod's environment: KUBERNETES_SERVICE_PORT is not set, but KUBERNETES_SERVICE_HOST is; set both or neither",
        ),
        (
            Environment {
                service_host: None,
                ..pod.clone()
            },
            "the pod's environment: KUBERNETES_SERVICE_HOST is not set, but KUBERNETES_SERVICE_PORT is; set both or neither",
        ),
        (
            Environment {
                service_host: Some("a b".into()),
                ..pod.clone()
            },
            "the pod's environment: `a b` in KUBERNETES_SERVICE_HOST is not valid; it must be an IP address or host name",
        ),
        (
            Environment {
                service_port: Some("https".into()),
                ..pod
            },
            "the pod's environment: `https` in KUBERNETES_SERVICE_PORT is not valid; it must be a port from 1 to 65535",
        ),
        (
            in_a_pod(Path::new("/nowhere")),
            "the pod's service account: there is no CA at /nowhere/ca.crt; mount the ConfigMap kube-root-ca.crt there, as config/kubernetes does, or name the apiserver with --upstream and its CA with --upstream-ca",
        ),
    ] {
        differences.compare(&format!("{env:?}"), fixture.sentence(CERT, &env), expected);
    }
    differences.assert_none();
}
