//! Every bad input and the whole sentence it is answered with.
//!
//! The sentences are part of the interface: read them as a stranger would before changing one.

use std::{ffi::OsString, io, num::NonZeroUsize, path::Path, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

use super::{Cli, CliError, Command, ListenFault, StartBlock, parse_from, sentence};
use crate::{
    config::{self, ClusterConfig, Environment, IdentityFiles, ServeArgs, TrustSource},
    pki::{
        Identity, TrustAnchors,
        mint::{Ca, now, params_of_leaf},
    },
    scratch::Scratch,
};

/// What `serve` does before it opens a socket.
fn start(line: &str, env: &Environment) -> Result<(), CliError> {
    let words = ["kube-tls-proxy", "serve"]
        .into_iter()
        .chain(line.split(' '));
    let cli = Cli::try_parse_from(words.filter(|word| !word.is_empty())).unwrap();
    let Command::Serve(args) = cli.command;
    let config = config::load(&args, env)?;
    for files in &config.identities {
        Identity::load(files, now())?;
    }
    for cluster in &config.clusters {
        TrustAnchors::load(&cluster.trust, now())?;
    }
    Ok(())
}

fn outside_of_a_pod() -> Environment {
    Environment {
        service_host: None,
        service_port: None,
        service_account: "/nowhere".into(),
        cpus: NonZeroUsize::MIN,
        open_files: 1024,
    }
}

fn in_a_pod(service_account: &Path) -> Environment {
    Environment {
        service_host: Some("fd00::1".to_owned()),
        service_port: Some("443".to_owned()),
        service_account: service_account.to_owned(),
        ..outside_of_a_pod()
    }
}

/// A directory with what a good command line names: tls.crt, tls.key, ca.crt, kubeconfig.
struct Fixture {
    scratch: Scratch,
    ca: Ca,
}

impl Fixture {
    fn new() -> Self {
        let scratch = Scratch::new();
        let ca = Ca::new("root");
        let leaf = ca.leaf(&["kube.example.com"]);
        scratch.file("tls.crt", leaf.pem);
        scratch.file("tls.key", leaf.key);
        scratch.file("ca.crt", ca.pem());
        Self { scratch, ca }
    }

    /// The sentence for this command line, in which `DIR` stands for the directory.
    fn sentence(&self, line: &str, env: &Environment) -> String {
        let dir = self.scratch.path().to_str().unwrap();
        match start(&line.replace("DIR", dir), env) {
            Ok(()) => "it starts".to_owned(),
            Err(error) => sentence(&error).replace(dir, "DIR"),
        }
    }
}

/// Collects what differs, so that one run shows every sentence that changed.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn compare(&mut self, case: &str, found: String, expected: &str) {
        if found != expected {
            self.0.push(format!(
                "{case}\n  expected: {expected}\n  found:    {found}"
            ));
        }
    }

    #[track_caller]
    fn assert_none(&self) {
        assert!(self.0.is_empty(), "\n{}", self.0.join("\n"));
    }
}

const CERT: &str = "--cert DIR/tls.crt --key DIR/tls.key";
const UPSTREAM: &str = "--upstream https://10.0.0.1:6443 --upstream-ca DIR/ca.crt";

#[test]
fn a_good_command_line_starts() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    for (line, env) in [
        (format!("{CERT} {UPSTREAM}"), outside_of_a_pod()),
        (CERT.to_owned(), in_a_pod(fixture.scratch.path())),
        // Templates leave empty values behind.
        (
            format!("{CERT} {UPSTREAM} --kubeconfig= --context= --workers= --listen="),
            outside_of_a_pod(),
        ),
    ] {
        differences.compare(&line, fixture.sentence(&line, &env), "it starts");
    }
    differences.assert_none();
}

#[test]
fn bad_flags() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // BOTH stands for a good certificate and a good upstream.
    for (line, expected) in [
        (
            "UPSTREAM",
            "there is no certificate to present; give --cert FILE and --key FILE, or `certificates` in a --config file",
        ),
        (
            "CERT",
            "there is no apiserver to forward to; give --upstream URL with --upstream-ca FILE, or --kubeconfig FILE (or `clusters` in a --config file), or run in a pod with its service account mounted",
        ),
        (
            "--cert DIR/tls.crt UPSTREAM",
            "--cert and --key come in pairs, and there are 1 and 0 of them; give one --key for each --cert, in the same order",
        ),
        (
            "--key DIR/tls.key UPSTREAM",
            "--cert and --key come in pairs, and there are 0 and 1 of them; give one --key for each --cert, in the same order",
        ),
        (
            "BOTH --listen localhost:8443",
            "--listen: `localhost:8443` is not an address to listen on; write ADDRESS:PORT, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "BOTH --host https://kube.example.com",
            "--host: `https://kube.example.com` is not a host name; write it without scheme, port and path, such as kube.example.com or *.example.com",
        ),
        (
            "BOTH --workers many",
            "--workers: `many` is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "BOTH --workers 0",
            "--workers: 0 is out of range; choose from 1 to 1024",
        ),
        (
            "BOTH --drain-timeout 25",
            "--drain-timeout: `25` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "BOTH --drain-timeout 9000h",
            "--drain-timeout: `9000h` is longer than a year; write a shorter duration",
        ),
        (
            "BOTH --log-format xml",
            "--log-format: `xml` is not a log format; write text or json",
        ),
        (
            "BOTH --log-level info,a=loud",
            "--log-level: `info,a=loud` is not a log filter; write a level, or levels for modules, such as info or info,kube_tls_proxy=debug",
        ),
        (
            "BOTH --upstream-name not_a/name",
            "--upstream-name: `not_a/name` is not a name or address that a certificate can carry; write one such as kubernetes.default.svc",
        ),
        (
            "BOTH --kubeconfig DIR/kubeconfig",
            "--upstream and --kubeconfig exclude each other; keep the one you mean",
        ),
        (
            "BOTH --context prod",
            "--context goes with --kubeconfig, which is missing; add it, or remove --context",
        ),
        (
            "CERT --upstream https://10.0.0.1",
            "--upstream goes with --upstream-ca, which is missing; add it, or remove --upstream",
        ),
        (
            "CERT --upstream-ca DIR/ca.crt",
            "--upstream-ca goes with --upstream, which is missing; add it, or remove --upstream-ca",
        ),
        (
            "BOTH --config DIR/missing.yaml",
            "config file DIR/missing.yaml: no such file; check the path",
        ),
        (
            "CERT --kubeconfig DIR",
            "kubeconfig DIR: is a directory; name a file in it",
        ),
        (
            "--cert DIR/missing.crt --key DIR/tls.key UPSTREAM",
            "certificate DIR/missing.crt: no such file; check the path",
        ),
        (
            "--cert DIR/tls.crt --key DIR/missing.key UPSTREAM",
            "key DIR/missing.key: no such file; check the path",
        ),
        (
            "CERT --upstream https://10.0.0.1 --upstream-ca DIR/missing.crt",
            "CA DIR/missing.crt: no such file; check the path",
        ),
    ] {
        let line = line
            .replace("BOTH", "CERT UPSTREAM")
            .replace("CERT", CERT)
            .replace("UPSTREAM", UPSTREAM);
        differences.compare(
            &line,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    differences.assert_none();
}

#[test]
fn bad_upstream_urls() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    for (url, expected) in [
        (
            "http://10.0.0.1:6443",
            "--upstream: `http://10.0.0.1:6443` is not an https URL; the apiserver is reached over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "10.0.0.1:6443",
            "--upstream: `10.0.0.1:6443` is not an https URL; the apiserver is reached over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "https://me:secret@10.0.0.1",
            "--upstream: the URL carries a user name or password; remove everything before the `@`, since each client sends its own credentials",
        ),
        (
            "me:secret@10.0.0.1",
            "--upstream: the URL carries a user name or password; remove everything before the `@`, since each client sends its own credentials",
        ),
        (
            "https://10.0.0.1/?a=b",
            "--upstream: `https://10.0.0.1/?a=b` has a query or fragment; remove everything from the `?` or `#` on",
        ),
        (
            "https://10.0.0.1/#top",
            "--upstream: `https://10.0.0.1/#top` has a query or fragment; remove everything from the `?` or `#` on",
        ),
        (
            "https://",
            "--upstream: `https://` has no usable host; write https://HOST:PORT, an IPv6 address in brackets",
        ),
        (
            "https://10.0.0.256",
            "--upstream: `https://10.0.0.256` has no usable host; write https://HOST:PORT, an IPv6 address in brackets",
        ),
        (
            "https://fd00::1:6443",
            "--upstream: `https://fd00::1:6443` has no usable host; write https://HOST:PORT, an IPv6 address in brackets",
        ),
        (
            "https://10.0.0.1:0",
            "--upstream: `https://10.0.0.1:0` has no usable port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://10.0.0.1:65536",
            "--upstream: `https://10.0.0.1:65536` has no usable port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://10.0.0.1:+1",
            "--upstream: `https://10.0.0.1:+1` has no usable port; write a number from 1 to 65535 after the colon",
        ),
        (
            "https://10.0.0.1/a/../b",
            "--upstream: `https://10.0.0.1/a/../b` has a path that cannot stand before others; write /PREFIX of plain segments, without `..`, `//` or spaces",
        ),
        (
            "https://10.0.0.1/a//b",
            "--upstream: `https://10.0.0.1/a//b` has a path that cannot stand before others; write /PREFIX of plain segments, without `..`, `//` or spaces",
        ),
    ] {
        let line = format!("{CERT} --upstream-ca DIR/ca.crt --upstream {url}");
        differences.compare(url, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_certificates() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let ca = &fixture.ca;
    let leaf = ca.leaf(&["kube.example.com"]);
    let key = || leaf.key.clone();
    let middle = ca.intermediate("middle");
    let below = middle.leaf(&["kube.example.com"]);
    let issue = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params_of_leaf(&["kube.example.com"]);
        change(&mut params);
        ca.issue(&params)
    };
    let expired = issue(&|params| params.not_after = date_time_ymd(2026, 11, 1));
    let early = issue(&|params| params.not_before = date_time_ymd(2026, 12, 1));
    let unnamed = issue(&|params| params.subject_alt_names.clear());
    let client = issue(&|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let request = params_of_leaf(&["kube.example.com"])
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap();
    for (case, crt, key, expected) in [
        (
            "leaf last",
            format!("{}{}", middle.pem(), below.pem),
            below.key.clone(),
            "certificate DIR/bad.crt: its key belongs to certificate 2 of the file, so the server's own certificate is not first; put it first, then each issuer in turn",
        ),
        (
            "order",
            format!("{}{}{}", below.pem, ca.pem(), middle.pem()),
            below.key,
            "certificate DIR/bad.crt: certificate 2 (CN=root) is not the issuer of certificate 1 (CN=middle); put the server's certificate first, then each issuer in turn, and nothing else",
        ),
        (
            "expired",
            expired.pem,
            expired.key,
            "certificate DIR/bad.crt: expired on 2026-11-01T00:00:00Z; renew it, and check the clock of this machine if that is wrong",
        ),
        (
            "early",
            early.pem,
            early.key,
            "certificate DIR/bad.crt: is not valid before 2026-12-01T00:00:00Z; check the clock of this machine, or wait until then",
        ),
        (
            "unnamed",
            unnamed.pem,
            unnamed.key,
            "certificate DIR/bad.crt: names no host: it has no DNS name or IP address as subjectAltName, and clients ignore the common name; issue it again with the public host name as subjectAltName",
        ),
        (
            "client",
            client.pem,
            client.key,
            "certificate DIR/bad.crt: is not for TLS servers (its extended key usage lacks serverAuth); issue it again with that usage",
        ),
        (
            "swapped",
            key(),
            leaf.pem.clone(),
            "certificate DIR/bad.crt: line 1 begins a PRIVATE KEY, which does not belong here; keep the key in a file of its own, and check that certificate and key are not swapped",
        ),
        (
            "combined",
            format!("{}{}", leaf.pem, leaf.key),
            key(),
            "certificate DIR/bad.crt: line 11 begins a PRIVATE KEY, which does not belong here; keep the key in a file of its own, and check that certificate and key are not swapped",
        ),
        (
            "csr",
            request.pem().unwrap(),
            key(),
            "certificate DIR/bad.crt: line 1 begins a CERTIFICATE REQUEST, which does not belong here; give the certificate that the issuer returned for this request",
        ),
        (
            "garbage",
            GARBAGE.to_owned(),
            key(),
            "certificate DIR/bad.crt: certificate 1 of the file is not an X.509 certificate (unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1); replace it",
        ),
        (
            "cut",
            leaf.pem[..100].to_owned(),
            key(),
            "certificate DIR/bad.crt: the PEM block that begins on line 1 is damaged; copy the file again, whole",
        ),
        (
            "not base64",
            leaf.pem.replace("MII", "!!!"),
            key(),
            "certificate DIR/bad.crt: the PEM block that begins on line 1 is damaged; copy the file again, whole",
        ),
        (
            "empty",
            String::new(),
            key(),
            "certificate DIR/bad.crt: is empty; put the server's certificate and its issuers there as PEM",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            key(),
            "certificate DIR/bad.crt: is in DER form; convert it with `openssl x509 -inform der -in FILE -out NEW_FILE`",
        ),
        (
            "parameters",
            pem("DH PARAMETERS", "AAAA"),
            key(),
            "certificate DIR/bad.crt: holds no certificate; put the server's certificate and its issuers there as PEM",
        ),
        (
            "version 1",
            include_str!("../pki/testdata/v1-root.crt").to_owned(),
            key(),
            "certificate DIR/bad.crt: certificate 1 of the file (CN=old root) is of a kind that TLS refuses, such as version 1; issue it again as version 3",
        ),
    ] {
        fixture.scratch.file("bad.crt", latin1(&crt));
        fixture.scratch.file("bad.key", key);
        let line = format!("{UPSTREAM} --cert DIR/bad.crt --key DIR/bad.key");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_keys() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let leaf = fixture.ca.leaf(&["kube.example.com"]);
    let other = fixture.ca.leaf(&["kube.example.com"]);
    let public = KeyPair::generate().unwrap().public_key_pem();
    for (case, key, expected) in [
        (
            "of another",
            other.key.clone(),
            "key DIR/bad.key: does not belong to the certificate DIR/bad.crt; give the key that this certificate was issued for",
        ),
        (
            "certificate",
            leaf.pem.clone(),
            "key DIR/bad.key: line 1 begins a CERTIFICATE, which does not belong here; keep only the private key, and check that certificate and key are not swapped",
        ),
        (
            "empty",
            "\n".to_owned(),
            "key DIR/bad.key: is empty; put the private key of the certificate there as PEM",
        ),
        (
            "text",
            "secret".to_owned(),
            "key DIR/bad.key: holds no PEM block (`-----BEGIN …`); put the private key of the certificate there as PEM",
        ),
        (
            "encrypted",
            pem("ENCRYPTED PRIVATE KEY", "AAAA"),
            "key DIR/bad.key: the private key on line 1 is encrypted and nobody is there to type its passphrase; decrypt it with `openssl pkey -in FILE -out NEW_FILE` and protect the file instead",
        ),
        (
            "encrypted, old form",
            pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"),
            "key DIR/bad.key: the private key on line 1 is encrypted and nobody is there to type its passphrase; decrypt it with `openssl pkey -in FILE -out NEW_FILE` and protect the file instead",
        ),
        (
            "two",
            format!("{}{}", leaf.key, other.key),
            "key DIR/bad.key: holds 2 private keys; keep the one that belongs to the certificate",
        ),
        (
            "damaged",
            pem("PRIVATE KEY", "AAAA"),
            "key DIR/bad.key: the private key is damaged or of an unsupported kind; use ECDSA P-256 (or P-384, Ed25519, RSA from 2048 bits)",
        ),
        (
            "cut",
            leaf.key[..80].to_owned(),
            "key DIR/bad.key: the PEM block that begins on line 1 is damaged; copy the file again, whole",
        ),
        (
            "public",
            public,
            "key DIR/bad.key: line 1 begins a PUBLIC KEY, which does not belong here; keep only the private key",
        ),
        (
            "only parameters",
            pem("EC PARAMETERS", "AAAA"),
            "key DIR/bad.key: holds no private key; put the private key of the certificate there as PEM",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            "key DIR/bad.key: is in DER form; convert it with `openssl pkey -inform der -in FILE -out NEW_FILE`",
        ),
    ] {
        fixture.scratch.file("bad.crt", &leaf.pem);
        fixture.scratch.file("bad.key", latin1(&key));
        let line = format!("{UPSTREAM} --cert DIR/bad.crt --key DIR/bad.key");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_cluster_cas() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let ca = &fixture.ca;
    let expired = format!("{}{}", Ca::expired("old").pem(), Ca::expired("older").pem());
    for (case, text, expected) in [
        (
            "empty",
            String::new(),
            "CA DIR/bad-ca.crt: is empty; put the cluster's CA certificate there as PEM",
        ),
        (
            "text",
            "hello".to_owned(),
            "CA DIR/bad-ca.crt: holds no PEM block (`-----BEGIN …`); put the cluster's CA certificate there as PEM",
        ),
        (
            "key",
            ca.key(),
            "CA DIR/bad-ca.crt: line 1 begins a PRIVATE KEY, which does not belong here; keep only CA certificates, and treat that key as leaked if others can read this file",
        ),
        (
            "ca and key",
            format!("{}{}", ca.pem(), ca.key()),
            "CA DIR/bad-ca.crt: line 11 begins a PRIVATE KEY, which does not belong here; keep only CA certificates, and treat that key as leaked if others can read this file",
        ),
        (
            "expired",
            expired,
            "CA DIR/bad-ca.crt: every CA in it has expired, the last one on 2025-01-01T00:00:00Z; get the cluster's current CA",
        ),
        (
            "garbage",
            format!("{}{GARBAGE}", ca.pem()),
            "CA DIR/bad-ca.crt: certificate 2 of the file is not an X.509 certificate (unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1); replace it",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            "CA DIR/bad-ca.crt: is in DER form; convert it with `openssl x509 -inform der -in FILE -out NEW_FILE`",
        ),
    ] {
        fixture.scratch.file("bad-ca.crt", latin1(&text));
        let line = format!("{CERT} --upstream https://10.0.0.1 --upstream-ca DIR/bad-ca.crt");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_config_files() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // CLUSTER stands for a whole good cluster, AT for where one is.
    for (text, expected) in [
        (
            "",
            "config file DIR/proxy.yaml: is empty; check that it is the file that was meant",
        ),
        (
            "listen: [\n",
            "config file DIR/proxy.yaml, line 1, column 9: unclosed bracket '['; mend the YAML there",
        ),
        (
            "- a\n",
            "config file DIR/proxy.yaml, line 1, column 1: keys belong here; write each as `key: value` on a line of its own",
        ),
        (
            "listen: 5\nCLUSTER",
            "config file DIR/proxy.yaml, line 1, column 9: a list belongs here; write each item on a line of its own, after a dash",
        ),
        (
            "listen: []\nCLUSTER",
            "config file DIR/proxy.yaml, line 1, column 9: `listen` is an empty list; name an address or remove the key",
        ),
        (
            "listen: [a]\n",
            "config file DIR/proxy.yaml, line 1, column 10: `a` is not an address to listen on; write ADDRESS:PORT, such as [::]:8443 or 127.0.0.1:8443",
        ),
        (
            "lisen: ['[::]:1']\n",
            "config file DIR/proxy.yaml, line 1, column 1: unknown key `lisen`; did you mean `listen`?",
        ),
        (
            "zzz: 1\n",
            "config file DIR/proxy.yaml, line 1, column 1: unknown key `zzz`; keys that may stand here: listen, workers, certificates, clusters, limits, timeouts, log",
        ),
        (
            "limits:\n  conections: 3\n",
            "config file DIR/proxy.yaml, line 2, column 3: unknown key `conections`; did you mean `connections`?",
        ),
        (
            "limits:\n  connections: 600\nCLUSTER",
            "config file DIR/proxy.yaml, line 2, column 16: 600 connections need 1200 open files and this process may open 1024; lower the number, or raise the limit (`ulimit -n`, LimitNOFILE= in a systemd unit)",
        ),
        (
            "limits:\n  connections: 0\n",
            "config file DIR/proxy.yaml, line 2, column 16: 0 is out of range; choose from 1 to 1000000",
        ),
        (
            "limits:\n  connections: -1\n",
            "config file DIR/proxy.yaml, line 2, column 16: `-1` is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "limits:\n  connections: many\n",
            "config file DIR/proxy.yaml, line 2, column 16: `many` is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "limits:\n  headerBytes: 64kb\n",
            "config file DIR/proxy.yaml, line 2, column 16: `64kb` is not a size; write a number of bytes with a unit, such as 64KiB or 1MiB",
        ),
        (
            "limits:\n  headerBytes: 1KiB\n",
            "config file DIR/proxy.yaml, line 2, column 16: 1KiB is out of range; choose from 8KiB to 1MiB",
        ),
        (
            "limits:\n  uriBytes: 100000\n",
            "config file DIR/proxy.yaml, line 2, column 13: 100000 is out of range; choose from 1KiB to 65534",
        ),
        (
            "timeouts: 5s\n",
            "config file DIR/proxy.yaml, line 1, column 11: keys belong here; write each as `key: value` on a line of its own",
        ),
        (
            "timeouts:\n  drain: 25\n",
            "config file DIR/proxy.yaml, line 2, column 10: `25` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  drain: 1.5\n",
            "config file DIR/proxy.yaml, line 2, column 10: `1.5` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  handshake: 0s\n",
            "config file DIR/proxy.yaml, line 2, column 14: 0 would give up before anything could happen; write a longer duration, such as 5s",
        ),
        (
            "timeouts:\n  handshake: 5 parsecs\n",
            "config file DIR/proxy.yaml, line 2, column 14: `5 parsecs` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "timeouts:\n  handshake: ''\n",
            "config file DIR/proxy.yaml, line 2, column 14: `` is not a duration; write numbers with units, such as 500ms, 5s, 10m or 1h30m",
        ),
        (
            "workers: two\n",
            "config file DIR/proxy.yaml, line 1, column 10: `two` is not a whole number; write one without sign, unit or quotes",
        ),
        (
            "workers: 0\n",
            "config file DIR/proxy.yaml, line 1, column 10: 0 is out of range; choose from 1 to 1024",
        ),
        (
            "log:\n  format: xml\n",
            "config file DIR/proxy.yaml, line 2, column 11: `xml` is not a log format; write text or json",
        ),
        (
            "log:\n  filter: 'a=loud'\n",
            "config file DIR/proxy.yaml, line 2, column 11: `a=loud` is not a log filter; write a level, or levels for modules, such as info or info,kube_tls_proxy=debug",
        ),
        (
            "log:\n  access: maybe\n",
            "config file DIR/proxy.yaml, line 2, column 11: true or false belongs here; write one of them",
        ),
        (
            "log: {access: true}\nlog: {access: false}\n",
            "config file DIR/proxy.yaml, line 2, column 1: `log` is given twice; remove one",
        ),
        (
            "certificates:\n- certificate: a\n",
            "config file DIR/proxy.yaml, line 2, column 3: `key` is missing; add it",
        ),
        (
            "clusters:\n- hosts: [a]\n",
            "config file DIR/proxy.yaml, line 2, column 3: `name` is missing; add it",
        ),
        (
            "clusters:\n- name: ''\n",
            "config file DIR/proxy.yaml, line 2, column 3: a cluster has an empty `name`; give it a short one for the logs",
        ),
        (
            "clusters:\n- name: a\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` must say once where its apiserver is; give exactly one of `upstream`, `kubeconfig` and `inCluster: true`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: true\n  kubeconfig: k\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` must say once where its apiserver is; give exactly one of `upstream`, `kubeconfig` and `inCluster: true`",
        ),
        (
            "clusters:\n- name: a\n  inCluster: true\n",
            "config file DIR/proxy.yaml, line 2, column 3: this process is not in a pod, for KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set; run it in one, or say where the apiserver is",
        ),
        (
            "clusters:\n- name: a\n  context: k\n  inCluster: true\n",
            "config file DIR/proxy.yaml, line 2, column 3: cluster `a` has a `context` without a `kubeconfig`; add the one or remove the other",
        ),
        (
            "clusters:\n- name: a\n  kubeconfig: missing.conf\n",
            "kubeconfig DIR/missing.conf: no such file; check the path",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'http://10.0.0.1', ca: ca.crt}\n",
            "config file DIR/proxy.yaml, line 3, column 19: `http://10.0.0.1` is not an https URL; the apiserver is reached over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "clusters:\n- name: a\n  upstream: {url: 'https://10.0.0.1'}\n",
            "config file DIR/proxy.yaml, line 3, column 14: `ca` is missing; add it",
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
            "config file DIR/proxy.yaml, line 8, column 5: host `a.example` is listed for cluster `a` already; remove one of the two",
        ),
        (
            "clusters:\n- name: a\n  hosts: [a.example]\n  AT\n- name: b\n  AT\n",
            "config file DIR/proxy.yaml, line 5, column 3: there is more than one cluster and `b` has no `hosts`; add the public host names that lead to it",
        ),
        (
            "clusters:\n- name: a\n  hosts: [a.example]\n  AT\n- name: a\n  hosts: [b.example]\n  AT\n",
            "config file DIR/proxy.yaml, line 5, column 3: there is another cluster `a` already; give each a name of its own",
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
        fixture.scratch.file("proxy.yaml", &text);
        let line = format!("{CERT} --config DIR/proxy.yaml");
        differences.compare(
            &text,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    let good = "clusters:\n- {name: a, upstream: {url: 'https://10.0.0.1', ca: ca.crt}}\n";
    fixture.scratch.file("proxy.yaml", good);
    for (line, expected) in [
        ("CERT --config DIR/proxy.yaml", "it starts"),
        (
            "CERT UPSTREAM --config DIR/proxy.yaml",
            "--upstream and `clusters` in DIR/proxy.yaml both say which apiserver serves whom; remove one of them",
        ),
        (
            "CERT --host b --config DIR/proxy.yaml",
            "--host and `clusters` in DIR/proxy.yaml both say which apiserver serves whom; remove one of them",
        ),
        (
            "--config DIR/proxy.yaml",
            "there is no certificate to present; give --cert FILE and --key FILE, or `certificates` in a --config file",
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

#[test]
fn bad_kubeconfigs() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    // CLUSTER stands for all but the fields of the current cluster.
    for (text, expected) in [
        (
            "",
            "kubeconfig DIR/kubeconfig: is empty; check that it is the file that was meant",
        ),
        (
            "a: [",
            "kubeconfig DIR/kubeconfig, line 1, column 4: unclosed bracket '['; mend the YAML there",
        ),
        (
            "users:\n- name: a\n  user: {token: \"secret\n",
            "kubeconfig DIR/kubeconfig, line 3, column 17: unclosed quote; mend the YAML there",
        ),
        (
            "apiVersion: v1\nkind: Config\nusers: []\n",
            "kubeconfig DIR/kubeconfig: has no contexts; check that it is the file that was meant",
        ),
        (
            "contexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: has no current-context; name the context with --context, one of: a, b",
        ),
        (
            "current-context: me\ncontexts: [{name: a, context: {cluster: c}}, {name: b, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: there is no context `me`; choose one of: a, b",
        ),
        (
            "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]\n",
            "kubeconfig DIR/kubeconfig: context `a` names cluster `c`, which is not in it; choose another context or mend the file",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1'}",
            "kubeconfig DIR/kubeconfig: cluster `c` has no certificate-authority; add its CA, since the public CAs are not trusted for an apiserver",
        ),
        (
            "CLUSTER {certificate-authority: ca.crt}",
            "kubeconfig DIR/kubeconfig: cluster `c` has no server; add its URL",
        ),
        (
            "CLUSTER {server: 'http://10.0.0.1', certificate-authority: ca.crt}",
            "kubeconfig DIR/kubeconfig: server of cluster `c`: `http://10.0.0.1` is not an https URL; the apiserver is reached over verified TLS only, so write https://HOST:PORT",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', insecure-skip-tls-verify: true}",
            "kubeconfig DIR/kubeconfig: cluster `c` sets insecure-skip-tls-verify: true, and an apiserver that is not verified could be anyone reading every token; remove that line and give its CA as certificate-authority",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt, proxy-url: 'socks5://x'}",
            "kubeconfig DIR/kubeconfig: cluster `c` is reached through proxy-url, which is not supported; run this proxy where it reaches the apiserver directly",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: missing.crt}",
            "CA DIR/missing.crt: no such file; check the path",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: '%%'}",
            "kubeconfig DIR/kubeconfig: certificate-authority-data of cluster `c` is not base64; copy it again, whole",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority-data: 'aGVsbG8='}",
            "CA of cluster `c` in kubeconfig DIR/kubeconfig: holds no PEM block (`-----BEGIN …`); put the cluster's CA certificate there as PEM",
        ),
        (
            "CLUSTER {server: 'https://10.0.0.1', certificate-authority: ca.crt, tls-server-name: 'a b'}",
            "kubeconfig DIR/kubeconfig: tls-server-name of cluster `c`: `a b` is not a name or address that a certificate can carry; write one such as kubernetes.default.svc",
        ),
    ] {
        let text = text.replace("CLUSTER", CLUSTER);
        fixture.scratch.file("kubeconfig", &text);
        let line = format!("{CERT} --kubeconfig DIR/kubeconfig");
        differences.compare(
            &text,
            fixture.sentence(&line, &outside_of_a_pod()),
            expected,
        );
    }
    let good = format!("{CLUSTER} {{server: 'https://10.0.0.1', certificate-authority: ca.crt}}");
    fixture.scratch.file("kubeconfig", good);
    for (line, expected) in [
        ("CERT --kubeconfig DIR/kubeconfig", "it starts"),
        (
            "CERT --kubeconfig DIR/kubeconfig --context nobody",
            "kubeconfig DIR/kubeconfig: there is no context `nobody`; choose one of: me, you",
        ),
        (
            "CERT --kubeconfig DIR/kubeconfig --context you",
            "kubeconfig DIR/kubeconfig: context `you` names cluster `d`, which is not in it; choose another context or mend the file",
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
            "the pod's service account: KUBERNETES_SERVICE_PORT is not set, but KUBERNETES_SERVICE_HOST is; set both or neither",
        ),
        (
            Environment {
                service_host: None,
                ..pod.clone()
            },
            "the pod's service account: KUBERNETES_SERVICE_HOST is not set, but KUBERNETES_SERVICE_PORT is; set both or neither",
        ),
        (
            Environment {
                service_host: Some("a b".into()),
                ..pod.clone()
            },
            "the pod's service account: KUBERNETES_SERVICE_HOST `a b` is not usable; it must be an IP address or host name",
        ),
        (
            Environment {
                service_port: Some("https".into()),
                ..pod
            },
            "the pod's service account: KUBERNETES_SERVICE_PORT `https` is not usable; it must be a port from 1 to 65535",
        ),
        (
            in_a_pod(Path::new("/nowhere")),
            "the pod's service account: there is no CA at /nowhere/ca.crt; mount the service account (automountServiceAccountToken: true), or say where the apiserver and its CA are",
        ),
    ] {
        differences.compare(&format!("{env:?}"), fixture.sentence(CERT, &env), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_addresses() {
    let mut differences = Differences::default();
    for (kind, expected) in [
        (
            io::ErrorKind::AddrInUse,
            "cannot listen on 127.0.0.1:443: another process uses this port; stop it or choose another with --listen",
        ),
        (
            io::ErrorKind::PermissionDenied,
            "cannot listen on 127.0.0.1:443: permission denied; choose a port from 1024 with --listen, or grant CAP_NET_BIND_SERVICE",
        ),
        (
            io::ErrorKind::AddrNotAvailable,
            "cannot listen on 127.0.0.1:443: this machine has no such address; choose one of its own with --listen",
        ),
        (
            io::ErrorKind::OutOfMemory,
            "cannot listen on 127.0.0.1:443: the operating system refuses: out of memory",
        ),
    ] {
        let error = CliError::Listen {
            address: "127.0.0.1:443".parse().unwrap(),
            source: ListenFault::from(io::Error::from(kind)),
        };
        differences.compare(&kind.to_string(), sentence(&error), expected);
    }
    differences.assert_none();
}

#[test]
fn tells_help_from_an_unusable_command_line_by_the_exit_code() {
    let code = |line: &str| {
        let words = line.split(' ').map(OsString::from);
        format!("{:?}", parse_from(words).err())
    };
    let done = format!("{:?}", Some(ExitCode::SUCCESS));
    let unusable = format!("{:?}", Some(ExitCode::from(2)));
    assert_eq!(code("kube-tls-proxy --help"), done);
    assert_eq!(code("kube-tls-proxy serve --help"), done);
    assert_eq!(code("kube-tls-proxy --version"), done);
    assert_eq!(code("kube-tls-proxy"), unusable);
    assert_eq!(code("kube-tls-proxy serve --lisen x"), unusable);
    assert_eq!(code("kube-tls-proxy serve --cert"), unusable);
    assert_eq!(code("kube-tls-proxy serve"), "None");
}

#[test]
fn every_failure_has_its_exit_code() {
    let code = |error: &CliError| format!("{:?}", error.exit_code());
    let config = config::load(&ServeArgs::default(), &outside_of_a_pod()).unwrap_err();
    let listen = CliError::Listen {
        address: "127.0.0.1:443".parse().unwrap(),
        source: ListenFault::InUse,
    };
    let run = CliError::Run {
        doing: "start worker 1".to_owned(),
        source: io::Error::from(io::ErrorKind::OutOfMemory),
    };
    let unusable = format!("{:?}", ExitCode::from(2));
    assert_eq!(code(&CliError::from(config)), unusable);
    assert_eq!(code(&listen), unusable);
    assert_eq!(code(&run), format!("{:?}", ExitCode::from(1)));
    assert_eq!(sentence(&run), "start worker 1: out of memory");
}

#[test]
fn every_flag_has_its_environment_variable_and_its_line_in_the_docs() {
    let command = Cli::command();
    let serve = command.find_subcommand("serve").unwrap();
    let mut flags = 0;
    for flag in serve.get_arguments().filter(|flag| flag.get_id() != "help") {
        let name = flag.get_long().unwrap();
        let variable = format!("KUBE_TLS_PROXY_{}", name.to_uppercase().replace('-', "_"));
        let found = flag.get_env().unwrap_or_default().to_str().unwrap();
        assert_eq!(found, variable, "--{name}");
        assert!(flag.get_help_heading().is_some(), "--{name}");
        assert!(DOCS.contains(&format!("| `--{name}")), "--{name}");
        assert!(DOCS.contains(&format!("| `{variable}` |")), "{variable}");
        flags += 1;
    }
    assert!(flags >= 15, "{flags}");
}

#[test]
fn help_fits_a_terminal() {
    let mut command = Cli::command();
    let help = command
        .find_subcommand_mut("serve")
        .unwrap()
        .render_long_help();
    for line in help.to_string().lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

#[test]
fn the_start_is_told_in_one_block() {
    let scratch = Scratch::new();
    let ca = Ca::new("kubernetes");
    let public = Ca::new("R11").leaf(&["kube.example.com", "*.kube.example.com"]);
    let files = IdentityFiles {
        certificate: scratch.file("tls.crt", public.pem),
        key: scratch.file("tls.key", public.key),
    };
    let identity = Identity::load(&files, now()).unwrap();
    let cluster = |name: &str, host: &str, hosts: &[&str]| ClusterConfig {
        name: name.to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        upstream_host: host.to_owned(),
        upstream_port: 6443,
        path_prefix: "/k8s".to_owned(),
        expected_name: "kubernetes.default.svc".try_into().unwrap(),
        trust: TrustSource::Inline {
            pem: ca.pem().into_bytes(),
            origin: "here".to_owned(),
        },
    };
    let prod = cluster("prod", "10.0.0.1", &[]);
    let mut test = cluster("test", "fd00::1", &["test.example.com", "t.example.com"]);
    test.expected_name = "fd00::1".try_into().unwrap();
    let trust = TrustAnchors::load(&prod.trust, now()).unwrap();
    let block = StartBlock {
        listening: &[
            "127.0.0.1:43211".parse().unwrap(),
            "[::1]:1".parse().unwrap(),
        ],
        identities: &[&identity],
        clusters: &[(&prod, &trust), (&test, &trust)],
        workers: NonZeroUsize::new(2).unwrap(),
        now: now(),
    };
    let fingerprint = trust.summaries()[0].fingerprint();
    assert_eq!(
        block.to_string(),
        format!(
            "kube-tls-proxy {}
  listening   127.0.0.1:43211
  listening   [::1]:1
  serving     kube.example.com, *.kube.example.com   (61 days left, issued by CN=R11)
  upstream    prod → https://10.0.0.1:6443/k8s as kubernetes.default.svc
  upstream    test → https://[fd00::1]:6443/k8s as fd00::1 for test.example.com, t.example.com
  trusting    CN=kubernetes, SHA-256 {fingerprint} (prod)
  trusting    CN=kubernetes, SHA-256 {fingerprint} (test)
  workers     2
",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(block.listening(), ["127.0.0.1:43211", "[::1]:1"]);
}

const DOCS: &str = include_str!("../../docs/configuration.md");
const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const CLUSTER: &str = "current-context: me
contexts: [{name: me, context: {cluster: c}}, {name: you, context: {cluster: d}}]
clusters:
- name: c
  cluster:";

fn pem(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Text whose characters stand for bytes.
fn latin1(text: &str) -> Vec<u8> {
    text.chars()
        .map(|char| u8::try_from(u32::from(char)).unwrap())
        .collect()
}
