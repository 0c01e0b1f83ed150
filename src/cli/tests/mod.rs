//! Every bad input and its complete error sentence.
//!
//! The sentences are part of the interface: read one as a new user would before you change it.

mod certificates;
mod files;
mod flags;
mod kubeconfigs;

use std::{ffi::OsString, io, num::NonZeroUsize, path::Path, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, KeyPair, SanType, date_time_ymd,
};

use standin::TempDir;

use super::{Cli, Command, StartBlock, messages::exit_code, parse_from, sentence};
use crate::{
    app::AppError,
    config::{
        self, ClusterConfig, ConnectionsBound, Environment, IdentityFiles, RequestHost, ServeArgs,
        TrustSource,
    },
    listen_error::{ListenError, ListenFlag},
    memory::MemoryLimit,
    pki::{
        Identity, TrustAnchors,
        tests::mint::{Ca, now, params_of_leaf},
    },
};

/// Does what `serve` does before it opens a socket.
fn start(line: &str, env: &Environment) -> Result<(), AppError> {
    let words = ["kube-tls-proxy", "serve"]
        .into_iter()
        .chain(line.split(' '));
    let cli = Cli::try_parse_from(words.filter(|word| !word.is_empty())).unwrap();
    let Command::Serve(args) = cli.command else {
        panic!("the line is one of serve");
    };
    let config = config::load(&args, env)?;
    for source in &config.identities {
        Identity::from_source(source, now())?;
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
        memory: MemoryLimit {
            bytes: 1 << 30,
            cgroup: None,
            own_cgroup: None,
        },
        has_kubeconfig: false,
        state_directory: None,
        unknown_variables: Vec::new(),
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

/// A directory with the files of a valid command line: tls.crt, tls.key, ca.crt, kubeconfig.
struct Fixture {
    scratch: TempDir,
    ca: Ca,
}

impl Fixture {
    fn new() -> Self {
        let scratch = TempDir::new();
        let ca = Ca::new("root");
        let leaf = ca.leaf(&["kube.example.com"]);
        scratch.write("tls.crt", leaf.pem);
        scratch.write("tls.key", leaf.key);
        scratch.write("ca.crt", ca.pem());
        Self { scratch, ca }
    }

    /// The error sentence for this command line, with `DIR` in place of the directory.
    fn sentence(&self, line: &str, env: &Environment) -> String {
        let dir = self.scratch.path().to_str().unwrap();
        match start(&line.replace("DIR", dir), env) {
            Ok(()) => "it starts".to_owned(),
            Err(error) => sentence(&error).replace(dir, "DIR"),
        }
    }
}

/// Collects differences, so that one run shows every sentence that changed.
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
fn valid_command_lines_are_accepted() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    for (line, env) in [
        (format!("{CERT} {UPSTREAM}"), outside_of_a_pod()),
        (CERT.to_owned(), in_a_pod(fixture.scratch.path())),
        // Templates produce empty values.
        (
            format!("{CERT} {UPSTREAM} --kubeconfig= --context= --workers= --listen="),
            outside_of_a_pod(),
        ),
        // No two addresses share a port.
        (
            format!(
                "{CERT} {UPSTREAM} --listen 127.0.0.1:1,[::1]:1,0.0.0.0:2,:3,127.0.0.1:0,127.0.0.1:0 --admin-listen 10.0.0.1:1"
            ),
            outside_of_a_pod(),
        ),
    ] {
        differences.compare(&line, fixture.sentence(&line, &env), "it starts");
    }
    differences.assert_none();
}

#[test]
fn exit_code_is_0_for_help_and_2_for_bad_usage() {
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
fn each_error_has_its_exit_code() {
    let code = |error: &AppError| format!("{:?}", exit_code(error));
    let config = config::load(&ServeArgs::default(), &outside_of_a_pod()).unwrap_err();
    let listen = AppError::Listen {
        address: "127.0.0.1:443".parse().unwrap(),
        source: ListenError::InUse(ListenFlag::Clients),
    };
    let run = AppError::Run {
        doing: "start worker 1".to_owned(),
        source: io::Error::from(io::ErrorKind::OutOfMemory),
    };
    let unusable = format!("{:?}", ExitCode::from(2));
    assert_eq!(code(&AppError::from(config)), unusable);
    assert_eq!(code(&listen), unusable);
    assert_eq!(code(&run), format!("{:?}", ExitCode::from(1)));
    assert_eq!(sentence(&run), "cannot start worker 1: out of memory");
}

#[test]
fn every_flag_has_a_variable_and_a_row_in_the_docs() {
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

/// `--help` and `-h` are the same. If one flag had a long text, clap would write a paragraph for every flag.
#[test]
fn help_has_one_line_per_flag_and_fits_a_terminal() {
    let command = Cli::command();
    for subcommand in command.get_subcommands() {
        let name = subcommand.get_name();
        let help = |flag| {
            let words = ["kube-tls-proxy", name, flag];
            Cli::try_parse_from(words).unwrap_err().to_string()
        };
        for line in help("--help").lines() {
            assert!(line.chars().count() <= 120, "{name}: {line}");
        }
        assert_eq!(help("--help"), help("-h"), "{name}");
    }
}

#[test]
fn start_block_lists_all_facts() {
    let scratch = TempDir::new();
    let ca = Ca::new("kubernetes");
    let public = Ca::new("R11").leaf(&["kube.example.com", "*.kube.example.com"]);
    let files = IdentityFiles {
        certificate: scratch.write("tls.crt", public.pem),
        key: scratch.write("tls.key", public.key),
    };
    let identity = Identity::load(&files, now()).unwrap();
    let cluster = |name: &str, host: &str, hosts: &[&str]| ClusterConfig {
        name: name.to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        upstream_host: host.to_owned(),
        upstream_port: 6443,
        url_place: String::new(),
        addresses: Vec::new(),
        discovery: None,
        path_prefix: "/k8s".to_owned(),
        expected_name: "kubernetes.default.svc".try_into().unwrap(),
        request_host: RequestHost::Client,
        file: None,
        public_prefix: None,
        passthrough: false,
        trust: TrustSource::Inline {
            pem: ca.pem().into_bytes(),
            origin: "here".to_owned(),
        },
        client_certificates: None,
        access: Vec::new(),
        outbound: None,
        publish: None,
    };
    let prod = cluster("prod", "10.0.0.1", &[]);
    let mut test = cluster("test", "fd00::1", &["test.example.com", "t.example.com"]);
    test.expected_name = "fd00::1".try_into().unwrap();
    test.outbound = Some("http://me:hidden@bastion:3128".parse().unwrap());
    let trust = TrustAnchors::load(&prod.trust, now()).unwrap();
    let block = StartBlock {
        listening: &[
            "127.0.0.1:43211".parse().unwrap(),
            "[::1]:1".parse().unwrap(),
        ],
        admin: Some("127.0.0.1:9090".parse().unwrap()),
        identities: &[&identity],
        clusters: &[(&prod, &trust), (&test, &trust)],
        namings: &[],
        workers: NonZeroUsize::new(2).unwrap(),
        connections: 354,
        decided_by: ConnectionsBound::OpenFiles(1024),
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
  upstream    test → https://[fd00::1]:6443/k8s through http://bastion:3128 as fd00::1 for test.example.com, t.example.com
  trusting    CN=kubernetes, SHA-256 {fingerprint} (prod)
  trusting    CN=kubernetes, SHA-256 {fingerprint} (test)
  workers     2
  connections 354 at most   (1024 open files)
  admin       http://127.0.0.1:9090/
",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(block.listening(), ["127.0.0.1:43211", "[::1]:1"]);
}

const DOCS: &str = include_str!("../../../docs/configuration.md");

const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

const CLUSTER: &str = "current-context: me
contexts: [{name: me, context: {cluster: c}}, {name: you, context: {cluster: d}}]
clusters:
- name: c
  cluster:";

fn pem(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Bytes, one for each character of the text.
fn latin1(text: &str) -> Vec<u8> {
    text.chars()
        .map(|char| u8::try_from(u32::from(char)).unwrap())
        .collect()
}
