//! Where the certificates that the proxy presents come from: files, or a CA that issues them by ACME (RFC 8555).
//!
//! A value that only the CA would refuse costs an attempt of its rate limit, so everything that can be known is checked
//! here.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use http::Uri;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{
    ClusterConfig, ConfigError, Environment, IdentityFiles, ServeArgs, SettingError,
    config_file::{CertificateEntry, FilePath, Parsed, PublicHost},
    listen::ListenAddr,
    source::{ConfigSource, absolute_path, parse_flag},
};

/// Where one certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// Files that something else writes.
    Files(IdentityFiles),
    /// A CA that the proxy itself asks.
    Acme(AcmeConfig),
}

impl CertificateSource {
    /// The files, if it is files.
    #[must_use]
    pub fn files(&self) -> Option<&IdentityFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::Acme(_) => None,
        }
    }

    /// The settings of ACME, if it is ACME.
    #[must_use]
    pub fn acme(&self) -> Option<&AcmeConfig> {
        match self {
            Self::Acme(config) => Some(config),
            Self::Files(_) => None,
        }
    }
}

impl From<IdentityFiles> for CertificateSource {
    fn from(files: IdentityFiles) -> Self {
        Self::Files(files)
    }
}

/// One certificate that a CA issues by ACME.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeConfig {
    /// Host names and IP addresses, at least one.
    pub names: Vec<String>,
    /// The address for the account; `None` if the CA gets none.
    pub email: Option<String>,
    /// The URL of the directory, `https`.
    pub directory: String,
    /// PEM, the only CAs that may have issued the certificate of the directory; by default the public ones.
    pub directory_ca: Option<PathBuf>,
    /// The account at the CA that the ACME account belongs to.
    pub external_account: Option<ExternalAccount>,
    /// Where the CA validates names over HTTP (`http-01`); `None`: over TLS on the port for clients (`tls-alpn-01`).
    pub http01_listen: Option<SocketAddr>,
    /// The kind of certificate, for a CA that offers several.
    pub profile: Option<String>,
    /// The folder with account, key and certificate.
    pub store: PathBuf,
}

impl AcmeConfig {
    pub(crate) const CERTIFICATE_FILE: &str = "certificate.pem";

    /// The file in the store with the private key and the chain. In one file, a rename replaces both.
    #[must_use]
    pub fn certificate_file(&self) -> PathBuf {
        self.store.join(Self::CERTIFICATE_FILE)
    }
}

/// External account binding (RFC 8555 §7.3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalAccount {
    /// The key identifier that the CA gave.
    pub key_id: String,
    /// A file with the MAC key that the CA gave, in base64url.
    pub key_file: PathBuf,
}

/// An item of `certificates`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SourceEntry {
    certificate: Option<Parsed<FilePath>>,
    key: Option<Parsed<FilePath>>,
    acme: Option<Spanned<AcmeEntry>>,
}

/// The two forms of [`SourceEntry`] for the schema.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) enum SourceForms {
    /// Files that something else writes.
    Files(CertificateEntry),
    /// A CA that the proxy itself asks.
    Acme(Box<AcmeForm>),
}

/// A certificate that the proxy gets from a CA by ACME.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct AcmeForm {
    /// The CA and the names.
    acme: AcmeEntry,
}

/// A certificate that a CA issues by ACME, and renews. The proxy answers the challenge `tls-alpn-01` on port 443, or
/// `http-01` with `http01Listen`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct AcmeEntry {
    /// Host names and IP addresses of the certificate, without wildcards.
    #[schemars(with = "Vec<String>")]
    domains: Spanned<Vec<Spanned<Parsed<PublicHost>>>>,
    /// Address for the account, for messages of the CA.
    #[schemars(with = "Option<String>")]
    email: Option<Spanned<String>>,
    /// URL of the directory; by default that of Let's Encrypt. Its terms of service apply.
    #[schemars(with = "Option<String>", regex(pattern = "^https://"))]
    directory: Option<Spanned<String>>,
    /// PEM file with the only CAs that the directory is verified against; by default the public ones.
    #[schemars(with = "Option<String>")]
    directory_ca: Option<Parsed<FilePath>>,
    /// The account at the CA that new ACME accounts must be bound to, if it asks for one.
    eab: Option<ExternalAccountEntry>,
    /// ADDRESS:PORT, or :PORT: where the CA validates names over HTTP, in place of port 443. The CA connects to port
    /// 80.
    #[serde(rename = "http01Listen")]
    #[schemars(with = "Option<String>")]
    http01_listen: Option<Spanned<Parsed<ListenAddr>>>,
    /// The kind of certificate, such as `shortlived`, if the CA offers several.
    #[schemars(with = "Option<String>")]
    profile: Option<Spanned<String>>,
    /// Folder for account, key and certificate; by default that of systemd, or /var/lib/kube-tls-proxy.
    #[schemars(with = "Option<String>")]
    store: Option<Parsed<FilePath>>,
}

/// External account binding.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExternalAccountEntry {
    /// The key identifier that the CA gave.
    #[schemars(with = "String")]
    kid: Spanned<String>,
    /// File with the MAC key that the CA gave, in base64url.
    #[schemars(with = "String")]
    key_file: Parsed<FilePath>,
}

/// The certificates of flags, or those of the file. Never empty.
pub(super) fn load(
    args: &ServeArgs,
    entries: Option<Vec<Spanned<SourceEntry>>>,
    source: &ConfigSource,
    env: &Environment,
) -> Result<Vec<CertificateSource>, ConfigError> {
    if args.certificates.len() != args.keys.len() {
        return Err(ConfigError::Whole(SettingError::UnevenPairs {
            certificates: args.certificates.len(),
            keys: args.keys.len(),
        }));
    }
    let pairs = args.certificates.iter().zip(&args.keys);
    let files = pairs.map(|(certificate, key)| IdentityFiles {
        certificate: absolute_path(certificate),
        key: absolute_path(key),
    });
    let mut sources: Vec<CertificateSource> = files.map(Into::into).collect();
    sources.extend(of_flags(args, env)?.map(CertificateSource::Acme));
    // Checked even if flags replace them: the file is wrong all the same.
    let mut in_file: Vec<CertificateSource> = Vec::new();
    for entry in entries.unwrap_or_default() {
        let at = entry.referenced;
        let one = of_entry(entry.value, at, source, env)?;
        let mut others = in_file.iter().filter_map(CertificateSource::acme);
        let has_same_store =
            |one: &AcmeConfig| others.any(|other: &AcmeConfig| other.store == one.store);
        if one.acme().is_some_and(has_same_store) {
            return Err(acme_error(source, at, SAME_STORE));
        }
        in_file.push(one);
    }
    if sources.is_empty() {
        sources = in_file;
    }
    if sources.is_empty() {
        return Err(ConfigError::Whole(SettingError::NoCertificate));
    }
    Ok(sources)
}

/// The ports for `http-01`, each once: certificates may share one.
pub(super) fn http01_ports(sources: &[CertificateSource]) -> Vec<SocketAddr> {
    let sections = sources.iter().filter_map(CertificateSource::acme);
    let mut ports: Vec<_> = sections.filter_map(|acme| acme.http01_listen).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// A warning for each name that no CA can validate, because the proxy passes its connections on.
pub(super) fn passed_names(
    sources: &[CertificateSource],
    clusters: &[ClusterConfig],
) -> Vec<String> {
    let validated = sources.iter().filter_map(CertificateSource::acme);
    let names = validated.filter(|acme| acme.http01_listen.is_none());
    let names = names.flat_map(|acme| &acme.names);
    let is_passed = |name: &&String| {
        let mut passed = clusters.iter().filter(|cluster| cluster.passthrough);
        passed.any(|cluster| cluster.hosts.contains(name))
    };
    let warning = |name: &String| {
        format!(
            "the CA cannot validate {name} for its certificate, because connections for this passthrough host go to the apiserver; \
             remove it from `domains` (--acme), remove `passthrough`, or set `http01Listen` (--acme-http01-listen)"
        )
    };
    names.filter(is_passed).map(warning).collect()
}

fn of_flags(args: &ServeArgs, env: &Environment) -> Result<Option<AcmeConfig>, ConfigError> {
    if args.acme.is_empty() {
        let others = [
            ("--acme-email", args.acme_email.is_some()),
            ("--acme-directory", args.acme_directory.is_some()),
            ("--acme-directory-ca", args.acme_directory_ca.is_some()),
            (HTTP01_FLAG, args.acme_http01_listen.is_some()),
            ("--acme-store", args.acme_store.is_some()),
        ];
        let alone = others.into_iter().find(|(_, is_given)| *is_given);
        return match alone {
            Some((flag, _)) => Err(ConfigError::Whole(SettingError::Needs {
                flag,
                needed: "--acme",
            })),
            None => Ok(None),
        };
    }
    let in_flag = |flag, problem| {
        let source = SettingError::Acme { problem };
        ConfigError::Flag { flag, source }
    };
    let mut names = Vec::new();
    for text in &args.acme {
        let host = parse_flag::<PublicHost>("--acme", text)?;
        add_name(&mut names, &host).map_err(|problem| in_flag("--acme", problem))?;
    }
    let text = |flag, given: &Option<String>, check: fn(&str) -> Result<(), &'static str>| {
        let checked = given.as_deref().map_or(Ok(()), check);
        checked.map_err(|problem| in_flag(flag, problem))?;
        Ok::<_, ConfigError>(given.clone())
    };
    let http01_listen = match &args.acme_http01_listen {
        Some(text) => {
            let address = parse_flag::<ListenAddr>(HTTP01_FLAG, text)?.0;
            check_http01(address).map_err(|problem| in_flag(HTTP01_FLAG, problem))?;
            Some(address)
        }
        None => None,
    };
    let store = args.acme_store.as_deref().map(absolute_path);
    Ok(Some(AcmeConfig {
        names,
        email: text("--acme-email", &args.acme_email, check_email)?,
        directory: text("--acme-directory", &args.acme_directory, check_directory)?
            .unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned()),
        directory_ca: args.acme_directory_ca.as_deref().map(absolute_path),
        external_account: None,
        http01_listen,
        profile: None,
        store: store.unwrap_or_else(|| default_store(env)),
    }))
}

fn of_entry(
    entry: SourceEntry,
    at: Location,
    source: &ConfigSource,
    env: &Environment,
) -> Result<CertificateSource, ConfigError> {
    let missing = |key| source.error_at_location(at, SettingError::MissingKey { key });
    let path = |file: Parsed<FilePath>| source.path(&file.0.0);
    match entry {
        SourceEntry {
            certificate: None,
            key: None,
            acme: Some(section),
        } => Ok(CertificateSource::Acme(of_section(
            section.value,
            source,
            env,
        )?)),
        SourceEntry { acme: Some(_), .. } => Err(acme_error(source, at, TWO_SOURCES)),
        SourceEntry {
            certificate: None, ..
        } => Err(missing("certificate")),
        SourceEntry { key: None, .. } => Err(missing("key")),
        SourceEntry {
            certificate: Some(certificate),
            key: Some(key),
            acme: None,
        } => Ok(CertificateSource::Files(IdentityFiles {
            certificate: path(certificate),
            key: path(key),
        })),
    }
}

fn of_section(
    section: AcmeEntry,
    source: &ConfigSource,
    env: &Environment,
) -> Result<AcmeConfig, ConfigError> {
    let mut names = Vec::new();
    for host in &section.domains.value {
        add_name(&mut names, &host.value.0)
            .map_err(|problem| acme_error(source, host.referenced, problem))?;
    }
    if names.is_empty() {
        return Err(acme_error(source, section.domains.referenced, NO_NAMES));
    }
    let checked = |given: Option<Spanned<String>>, check: fn(&str) -> Result<(), &'static str>| {
        if let Some(text) = &given {
            check(&text.value).map_err(|problem| acme_error(source, text.referenced, problem))?;
        }
        Ok::<_, ConfigError>(given.map(|text| text.value))
    };
    let path = |file: Parsed<FilePath>| source.path(&file.0.0);
    let external_account = match section.eab {
        Some(entry) => Some(ExternalAccount {
            key_id: checked(Some(entry.kid), check_key_id)?.unwrap_or_default(),
            key_file: path(entry.key_file),
        }),
        None => None,
    };
    let http01_listen = match section.http01_listen {
        Some(listen) => {
            let address = listen.value.0.0;
            check_http01(address)
                .map_err(|problem| acme_error(source, listen.referenced, problem))?;
            Some(address)
        }
        None => None,
    };
    let directory = checked(section.directory, check_directory)?;
    Ok(AcmeConfig {
        names,
        email: checked(section.email, check_email)?,
        directory: directory.unwrap_or_else(|| DEFAULT_DIRECTORY.to_owned()),
        directory_ca: section.directory_ca.map(path),
        external_account,
        http01_listen,
        profile: checked(section.profile, check_profile)?,
        store: section.store.map_or_else(|| default_store(env), path),
    })
}

fn acme_error(source: &ConfigSource, at: Location, problem: &'static str) -> ConfigError {
    source.error_at_location(at, SettingError::Acme { problem })
}

/// The folder that systemd gives the service, or the same one without systemd.
fn default_store(env: &Environment) -> PathBuf {
    let given = env.state_directory.as_deref();
    given.unwrap_or_else(|| Path::new(DEFAULT_STORE)).to_owned()
}

/// Adds a name of the certificate, once.
fn add_name(names: &mut Vec<String>, host: &PublicHost) -> Result<(), &'static str> {
    let name = host.0.to_string();
    if name.starts_with('*') {
        return Err(WILDCARD);
    }
    if !names.contains(&name) {
        names.push(name);
    }
    if names.len() > MAX_NAMES {
        return Err(TOO_MANY_NAMES);
    }
    Ok(())
}

fn check_email(text: &str) -> Result<(), &'static str> {
    let is_plain = |char: char| char.is_ascii_graphic() && !matches!(char, ',' | '?' | ':' | '<');
    let parts = text.split_once('@');
    let has_parts = parts.is_some_and(|(user, host)| !user.is_empty() && host.contains('.'));
    let is_one = text.matches('@').count() == 1 && text.len() <= MAX_TEXT;
    (has_parts && is_one && text.chars().all(is_plain))
        .then_some(())
        .ok_or(NOT_AN_EMAIL)
}

fn check_directory(text: &str) -> Result<(), &'static str> {
    let uri: Option<Uri> = text.parse().ok();
    let is_url = uri.is_some_and(|uri| {
        let authority = uri.authority().map_or("@", |authority| authority.as_str());
        uri.scheme_str() == Some("https") && !authority.contains('@')
    });
    is_url.then_some(()).ok_or(NOT_A_DIRECTORY)
}

fn check_http01(address: SocketAddr) -> Result<(), &'static str> {
    (address.port() != 0).then_some(()).ok_or(NO_PORT)
}

fn check_profile(text: &str) -> Result<(), &'static str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_name = (1..=MAX_TEXT).contains(&text.len()) && text.bytes().all(is_plain);
    is_name.then_some(()).ok_or(NOT_A_PROFILE)
}

fn check_key_id(text: &str) -> Result<(), &'static str> {
    let is_plain = text.chars().all(|char| char.is_ascii_graphic());
    let is_id = (1..=MAX_TEXT).contains(&text.len()) && is_plain;
    is_id.then_some(()).ok_or(NOT_A_KEY_ID)
}

const HTTP01_FLAG: &str = "--acme-http01-listen";
/// The production directory of Let's Encrypt.
const DEFAULT_DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// `StateDirectory=` of the systemd unit.
const DEFAULT_STORE: &str = "/var/lib/kube-tls-proxy";
/// Public CAs take no more names per certificate.
const MAX_NAMES: usize = 100;
const MAX_TEXT: usize = 254;
const WILDCARD: &str = "a certificate by ACME has no wildcard here, because that needs a record in DNS; name each host, or let cert-manager or certbot write `certificate` and `key`";
const TOO_MANY_NAMES: &str = "a certificate has at most 100 names; move the rest to a second certificate with its own `store`";
const NO_NAMES: &str =
    "`domains` is an empty list; add the host name that clients use, such as kube.example.com";
const NOT_AN_EMAIL: &str = "the value is not one email address; write it as name@example.com";
const NOT_A_DIRECTORY: &str = "the value is not the URL of an ACME directory; write https://HOST[:PORT]/PATH, without user name and password";
const NO_PORT: &str =
    "the port is 0, so the CA cannot reach it; write :80, or the port that port 80 is forwarded to";
const NOT_A_PROFILE: &str = "the value is not the name of a profile; write one that the CA offers, such as shortlived, with letters, digits, `-`, `_` and `.`";
const NOT_A_KEY_ID: &str = "the value is not a key identifier; copy the one that the CA gave for external account binding, without spaces";
const TWO_SOURCES: &str = "`acme` cannot be in one item with `certificate` and `key`; write two items, each after its own dash";
const SAME_STORE: &str = "another certificate has the same `store`, and one would replace the other; give each its own folder, or put all `domains` into one";
