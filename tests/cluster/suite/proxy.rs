//! The proxy under test, with a certificate of a temporary public CA.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use serde_json::Value;

use crate::fixture::Fixture;
use crate::process::Running;
use crate::suite::Server;

/// A running proxy in front of the fixture's apiserver.
#[derive(Debug)]
pub(crate) struct Proxy {
    running: Mutex<Running>,
    files: Files,
    flags: Vec<String>,
    listen: String,
}

impl Proxy {
    #[track_caller]
    pub(crate) fn start(fixture: &Fixture, config: &Value) -> Self {
        let files = write_certificates(fixture.scratch());
        let flags = config_flags(fixture, config, &[]);
        Self::launch(fixture, files, "127.0.0.1:0", flags)
    }

    /// One more proxy with the same certificate, on a port of its own, with this configuration and these flags in
    /// addition.
    #[track_caller]
    pub(crate) fn another(&self, fixture: &Fixture, config: &Value, flags: &[&str]) -> Self {
        let flags = config_flags(fixture, config, flags);
        Self::launch(fixture, self.files.clone(), "127.0.0.1:0", flags)
    }

    /// The same proxy once more, on the port of this one. Both need `--reuse-port`.
    #[track_caller]
    pub(crate) fn successor(&self, fixture: &Fixture) -> Self {
        let (files, flags) = (self.files.clone(), self.flags.clone());
        Self::launch(fixture, files, &self.listen, flags)
    }

    /// This proxy, as a client sees it that speaks to the proxy itself.
    pub(crate) fn server(&self) -> Server {
        Server {
            url: format!("https://localhost:{}", self.port()),
            ca: self.files.ca.display().to_string(),
            name: None,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        let port = self.listen.rsplit(':').next();
        port.unwrap().parse().unwrap()
    }

    /// Sends SIGTERM, waits for the end of the process, and returns its log. After 4 s the process is killed, which
    /// fails.
    #[track_caller]
    pub(crate) fn stop(self) -> String {
        let mut running = self.running.into_inner().unwrap();
        running.end_input();
        let deadline = Instant::now() + STOP_LIMIT;
        while !running.has_ended() && Instant::now() < deadline {
            running.try_line(Duration::from_millis(20));
        }
        // The log is read by another thread, which may need a moment.
        let mut log = running.stderr();
        while !log.contains("stopped") {
            assert!(
                Instant::now() < deadline,
                "the proxy did not stop by itself:\n{log}"
            );
            running.try_line(Duration::from_millis(20));
            log = running.stderr();
        }
        log
    }

    #[track_caller]
    fn launch(fixture: &Fixture, files: Files, listen: &str, flags: Vec<String>) -> Self {
        // This variable selects another build, or another proxy with the same flags.
        let program = env::var("PROXY_BIN")
            .unwrap_or_else(|_| env!("CARGO_BIN_EXE_kube-tls-proxy").to_owned());
        // `leash` stops the proxy with this process: a static is never dropped, and the proxy does not notice the end of
        // its parent.
        let mut command = fixture.client("leash");
        command
            .args(["--", &program, "serve", "--listen", listen])
            .arg("--cert")
            .arg(&files.certificate)
            .arg("--key")
            .arg(&files.key)
            .args(["--log-format", "text"])
            .args(&flags);
        let running = Running::start(command);
        let listen = listening_address(&running);
        Self {
            running: Mutex::new(running),
            files,
            flags,
            listen,
        }
    }

    /// The last lines of the proxy's log. They may belong to other cases too.
    pub(crate) fn end_of_log(&self) -> String {
        let log = self.running.lock().unwrap().stderr();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// Writes the configuration, and returns the flags for it and those in addition.
fn config_flags(fixture: &Fixture, config: &Value, flags: &[&str]) -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = fixture.scratch().join(format!("proxy-{number}.yaml"));
    fs::write(&file, config.to_string()).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let flags = config.iter().chain(flags);
    flags.map(|flag| (*flag).to_owned()).collect()
}

/// The address in the first log line of the form `listening <address>`.
#[track_caller]
fn listening_address(running: &Running) -> String {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let log = running.stderr();
        let found = log.lines().find_map(|line| {
            let (first, second) = line.trim().split_once(char::is_whitespace)?;
            let address = second.split_whitespace().next()?;
            (first == "listening" && address.contains(':')).then(|| address.to_owned())
        });
        if let Some(address) = found {
            return address;
        }
        assert!(
            Instant::now() < deadline,
            "the log of the proxy has no listening address:\n{log}"
        );
        // The proxy writes nothing to standard output, so this is a pause. It is shorter if the proxy
        // ends.
        running.try_line(Duration::from_millis(20));
    }
}

#[derive(Debug, Clone)]
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn write_certificates(directory: &Path) -> Files {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.distinguished_name
        .push(DnType::CommonName, "Temporary Public CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut leaf = CertificateParams::new(names).unwrap();
    leaf.distinguished_name
        .push(DnType::CommonName, "localhost");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = leaf.signed_by(&key, &issuer).unwrap();

    let files = Files {
        ca: directory.join("public-ca.crt"),
        certificate: directory.join("public.crt"),
        key: directory.join("public.key"),
    };
    fs::write(&files.ca, ca_certificate.pem()).unwrap();
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

const LOG_LINES: usize = 60;
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
