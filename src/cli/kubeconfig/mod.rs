//! `kubeconfig`: writes a kubeconfig for clients that reach the proxy by its public name.
//!
//! The kubeconfig has no CA unless `--ca` gives one, and always `tls-server-name`: without any TLS setting, client-go
//! uses a transport that never notices a dead connection.

mod file;
mod source;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use clap::Args;
use serde_json::{Value, json};

use super::{
    messages::{WriteError, print},
    print_error,
};
use crate::{
    check::{Token, TokenError},
    config::{
        ConfigError, FileKind, SettingError, TrustSource, UpstreamUrl, check_path_flag, load_trust,
        load_yaml,
    },
    hosts::HostPattern,
    kubeconfig_document::{
        ForeignEntries, KubeconfigDocument, MergeError, entry_of, exec_user,
        has_client_certificate, has_credential, only_certificates, text_at, to_yaml,
    },
    pki::{PkiError, TrustAnchors},
    quote,
};
use file::{FileMode, OutputFile, WrittenFile};
use source::{CopiedContext, CopiedCredentials, INSTEAD};

/// Flags of `kube-tls-proxy kubeconfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct KubeconfigArgs {
    /// The public URL of the proxy.
    #[arg(
        long,
        value_name = "URL",
        help = "The public URL of the proxy: https://NAME[:PORT]"
    )]
    pub server: String,

    /// Copy names and token or plugin from this kubeconfig; certificates only with --direct
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Use this context of --from [default: its current-context]
    #[arg(long, value_name = "NAME", requires = "from")]
    pub context: Option<String>,

    /// For a passthrough host: copy the CA and every credential of --from
    #[arg(
        long,
        requires = "from",
        conflicts_with_all = ["token_file", "exec_command", "ca"]
    )]
    pub direct: bool,

    /// The passthrough host, a name in the apiserver's certificate [default: kubernetes]
    #[arg(long, value_name = "NAME", requires = "direct")]
    pub tls_server_name: Option<String>,

    /// Put the token in this file into the kubeconfig
    #[arg(long, value_name = "FILE", conflicts_with = "exec_command")]
    pub token_file: Option<PathBuf>,

    /// Let kubectl run this program to get a token, for example an OIDC login
    #[arg(long, value_name = "COMMAND")]
    pub exec_command: Option<String>,

    /// An argument of that program; repeat for more
    #[arg(
        long = "exec-arg",
        value_name = "ARGUMENT",
        requires = "exec_command",
        allow_hyphen_values = true
    )]
    pub exec_args: Vec<String>,

    /// An environment variable of that program; repeat for more
    #[arg(
        long = "exec-env",
        value_name = "NAME=VALUE",
        requires = "exec_command"
    )]
    pub exec_env: Vec<String>,

    /// Put the CA certificates in this file into the kubeconfig, if the proxy has a private CA
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// Default namespace of the context [default: as in --from]
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Name of cluster, user and context [default: as in --from, or the host of --server]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Write to this file, which only its owner can read, instead of stdout
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Add to the kubeconfig in --output and keep its other entries, but not its comments
    #[arg(long, requires = "output")]
    pub merge: bool,

    /// Overwrite FILE; with --merge, entries of other clusters. FILE.bak keeps the old file
    #[arg(long, requires = "output")]
    pub force: bool,
}

/// Why no kubeconfig was written.
#[derive(Debug, thiserror::Error)]
enum KubeconfigError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("{flag} is empty; give a name, or leave the flag out")]
    EmptyName { flag: &'static str },
    #[error(
        "--server: the URL ends with a path of the API, which kubectl adds itself; write https://NAME[:PORT]"
    )]
    ServerPath,
    #[error(
        "--exec-env: the value is not a variable; write its name, an equals sign and its value, such as AWS_PROFILE=prod"
    )]
    ExecEnv,
    #[error(
        "--server: the URL has a path, which cannot be added to requests that the proxy does not see; write https://NAME[:PORT]"
    )]
    DirectPath,
    #[error(
        "--tls-server-name: `{text}` is not a host name; write a passthrough host of the proxy that is in the apiserver's certificate, such as kubernetes"
    )]
    TlsServerName { text: String },
    #[error("--ca")]
    Ca(#[from] PkiError),
    #[error("the CA of the cluster in --from")]
    ClusterCa(#[source] PkiError),
    #[error(
        "{} exists already; name another file with --output, add to this one with --merge, or overwrite it with --force",
        quote::path(file)
    )]
    Exists { file: PathBuf },
    #[error("kubeconfig {}", quote::path(file))]
    Merge {
        file: PathBuf,
        #[source]
        source: MergeError,
    },
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot write to stdout")]
    Print(#[source] io::Error),
}

/// Prints or writes a kubeconfig and returns the exit code.
pub(super) fn kubeconfig(args: &KubeconfigArgs) -> ExitCode {
    match compose(args).and_then(|composed| output(args, composed)) {
        Ok(remarks) => {
            let mut stderr = io::stderr().lock();
            for remark in &remarks {
                drop(writeln!(stderr, "{remark}"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            print_error(&error);
            match error {
                KubeconfigError::Write(_) | KubeconfigError::Print(_) => ExitCode::from(1),
                KubeconfigError::Config(_)
                | KubeconfigError::Token(_)
                | KubeconfigError::EmptyName { .. }
                | KubeconfigError::ServerPath
                | KubeconfigError::ExecEnv
                | KubeconfigError::DirectPath
                | KubeconfigError::TlsServerName { .. }
                | KubeconfigError::Ca(_)
                | KubeconfigError::ClusterCa(_)
                | KubeconfigError::Exists { .. }
                | KubeconfigError::Merge { .. } => ExitCode::from(2),
            }
        }
    }
}

/// The kubeconfig and the remarks about it.
struct Composed {
    document: KubeconfigDocument,
    /// Whether a credential of the user of `--from` was left out. `remarks` says which one.
    lost_credential: bool,
    remarks: Vec<String>,
    /// Whether the apiserver itself sees the credential in the handshake.
    direct: bool,
}

fn compose(args: &KubeconfigArgs) -> Result<Composed, KubeconfigError> {
    for (flag, name) in [
        ("--name", &args.name),
        ("--namespace", &args.namespace),
        ("--tls-server-name", &args.tls_server_name),
    ] {
        if name.as_ref().is_some_and(String::is_empty) {
            return Err(KubeconfigError::EmptyName { flag });
        }
    }
    if let Some(file) = &args.output {
        check_path_flag("--output", file)?;
        // The command would create a file with this name.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        if let Some(found) = quote::pasted(&name) {
            let (flag, source) = ("--output", SettingError::NotAPath { found });
            return Err(ConfigError::Flag { flag, source }.into());
        }
    }
    let url: UpstreamUrl = args.server.parse().map_err(|source| ConfigError::Flag {
        flag: "--server",
        source,
    })?;
    let first = url.prefix.split('/').nth(1).unwrap_or_default();
    if API_PATHS.contains(&first) {
        return Err(KubeconfigError::ServerPath);
    }
    if args.direct && !url.prefix.is_empty() {
        return Err(KubeconfigError::DirectPath);
    }
    let copied = if args.direct {
        CopiedCredentials::All
    } else {
        CopiedCredentials::WithoutCertificates
    };
    let context = args.context.as_deref();
    let source = match &args.from {
        Some(file) => Some(CopiedContext::load(file, context, copied)?),
        None => None,
    };
    let ca = match (&args.ca, &args.from) {
        (Some(file), _) => Some(certificates(file)?),
        (None, Some(file)) if args.direct => Some(cluster_ca(file, context)?),
        (None, _) => None,
    };
    let tls_server_name = if args.direct {
        passthrough_host(args.tls_server_name.as_deref().unwrap_or("kubernetes"))?
    } else {
        url.name.to_str().into_owned()
    };
    let mut remarks = Vec::new();
    if !url.prefix.is_empty() {
        remarks.push(format!(
            "The proxy forwards the path {} to the apiserver. This works only if the apiserver is served under this path, as with Rancher.",
            quote::path(url.prefix.as_ref())
        ));
    }
    let user = user(args, source.as_ref(), &mut remarks)?;
    let or_host = |of_source: Option<&String>| {
        let of_source = of_source.filter(|name| !name.is_empty());
        let name = args.name.as_ref().or(of_source);
        name.unwrap_or(&url.host).clone()
    };
    let document = KubeconfigDocument {
        server: args.server.trim_end_matches('/').to_owned(),
        tls_server_name,
        cluster: or_host(source.as_ref().map(|source| &source.cluster)),
        user_name: or_host(source.as_ref().map(|source| &source.user_name)),
        context: or_host(source.as_ref().map(|source| &source.context)),
        namespace: args
            .namespace
            .clone()
            .or_else(|| source.as_ref()?.namespace.clone()),
        ca,
        user,
        cluster_settings: source
            .as_ref()
            .map(|source| source.cluster_settings.clone())
            .unwrap_or_default(),
    };
    let same_names = source.as_ref().and_then(|source| same_names(args, source));
    let lost_credential = source.as_ref().is_some_and(|source| source.lost_credential);
    remarks.extend(source.into_iter().flat_map(|source| source.remarks));
    remarks.extend(same_names);
    Ok(Composed {
        document,
        lost_credential,
        remarks,
        direct: args.direct,
    })
}

/// Returns the canonical spelling of a name that clients can send as SNI.
fn passthrough_host(text: &str) -> Result<String, KubeconfigError> {
    let host = text.parse::<HostPattern>().map(|host| host.to_string());
    host.ok()
        .filter(|host| !host.starts_with('*') && host.parse::<IpAddr>().is_err())
        .ok_or_else(|| KubeconfigError::TlsServerName {
            text: quote::value(text),
        })
}

/// Returns the certificates in `file`, and nothing else of it, after they were checked.
fn certificates(file: &Path) -> Result<String, KubeconfigError> {
    check_path_flag("--ca", file)?;
    let (_checked, text) = TrustAnchors::load_file(file, SystemTime::now())?;
    Ok(only_certificates(&text))
}

/// Returns the certificates of the cluster in the kubeconfig `file`, after they were checked.
fn cluster_ca(file: &Path, context: Option<&str>) -> Result<String, KubeconfigError> {
    let trust = load_trust(file, context)?;
    TrustAnchors::load(&trust, SystemTime::now()).map_err(KubeconfigError::ClusterCa)?;
    match trust {
        TrustSource::Inline { pem, .. } => Ok(only_certificates(&pem)),
        TrustSource::File(file) => certificates(&file),
        TrustSource::Clients => Ok(String::new()),
    }
}

/// Returns the remark about names that both kubeconfigs have. A merge in the same file refuses them.
fn same_names(args: &KubeconfigArgs, source: &CopiedContext) -> Option<String> {
    (args.name.is_none() && !args.merge).then(|| {
        format!(
            "The names are those of --from. If KUBECONFIG lists both files, kubectl takes cluster `{}` from the first one: choose other names with --name to use both.",
            quote::name(&source.cluster)
        )
    })
}

/// Returns the credential for the kubeconfig; flags override `--from`.
fn user(
    args: &KubeconfigArgs,
    source: Option<&CopiedContext>,
    remarks: &mut Vec<String>,
) -> Result<Value, KubeconfigError> {
    if let Some(file) = &args.token_file {
        let token = Token::load(file)?;
        remarks.extend(holds(args, "a token"));
        return Ok(json!({ "token": token.secret() }));
    }
    if let Some(command) = &args.exec_command {
        let mut user = exec_user(command, &args.exec_args);
        if !args.exec_env.is_empty()
            && let Some(Value::Object(exec)) = user.get_mut("exec")
        {
            exec.insert("env".to_owned(), exec_env(&args.exec_env)?);
        }
        return Ok(user);
    }
    let found = source.map_or_else(|| json!({}), |source| source.credentials.clone());
    if found.get("client-key-data").is_some() {
        remarks.extend(holds(args, "a private key"));
    } else if found.get("token").is_some() {
        remarks.extend(holds(args, "a token"));
    }
    Ok(found)
}

/// Returns the variables of an exec plugin.
fn exec_env(pairs: &[String]) -> Result<Value, KubeconfigError> {
    let pairs = pairs.iter().map(|pair| match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(json!({ "name": name, "value": value })),
        // The message has no value, because it may be a secret.
        Some(_) | None => Err(KubeconfigError::ExecEnv),
    });
    pairs.collect()
}

/// Returns the remarks about a user without a credential; none if `content` has a credential, perhaps one that a
/// merge kept.
fn missing_credential(content: &Value, composed: &Composed) -> Vec<String> {
    let entry = entry_of(content, "users", &composed.document.user_name);
    if entry
        .and_then(|entry| entry.get("user"))
        .is_some_and(|user| has_credential(user) || composed.direct && has_client_certificate(user))
    {
        return Vec::new();
    }
    let mut remarks = vec![
        "The kubeconfig has no credential yet: give one with --token-file or --exec-command, or add one later with `kubectl config set-credentials`."
            .to_owned(),
    ];
    if !composed.lost_credential {
        remarks.push(format!(
            "A client certificate cannot pass the proxy, which terminates TLS. A user with a client certificate needs {INSTEAD}."
        ));
    }
    remarks
}

/// Returns the remark about a secret on stdout. A file of `--output` is readable for its owner only.
fn holds(args: &KubeconfigArgs, secret: &str) -> Option<String> {
    args.output.is_none().then(|| {
        format!(
            "The kubeconfig contains {secret}. Make sure that only its owner can read it (`--output FILE` does this; a shell's `>` may not)."
        )
    })
}

/// Writes the kubeconfig to its file or to stdout, and returns the remarks about it.
fn output(args: &KubeconfigArgs, composed: Composed) -> Result<Vec<String>, KubeconfigError> {
    let document = &composed.document;
    let (content, written) = match &args.output {
        Some(file) => {
            let (content, written) = write(args, file, document)?;
            (content, Some(written))
        }
        None => {
            let content = document.alone();
            print(&to_yaml(&content)).map_err(KubeconfigError::Print)?;
            (content, None)
        }
    };
    let mut remarks = Vec::from_iter(written);
    remarks.extend(missing_credential(&content, &composed));
    remarks.extend(composed.remarks);
    Ok(remarks)
}

/// Writes or changes the file of `--output`, and returns its content and the remark about it.
fn write(
    args: &KubeconfigArgs,
    file: &Path,
    document: &KubeconfigDocument,
) -> Result<(Value, String), KubeconfigError> {
    let output = OutputFile::find(file)?;
    if output.exists() && !args.merge && !args.force {
        let file = file.to_owned();
        return Err(KubeconfigError::Exists { file });
    }
    let _lock = output.lock()?;
    let (content, mode, is_current) = if args.merge {
        let (content, is_current) = merged(args, &output, file, document)?;
        // A private key must not get the permissions of a file that others can read.
        let mode = if args.direct {
            FileMode::OwnerOnly
        } else {
            FileMode::Keep
        };
        (
            content,
            mode,
            is_current && !(args.direct && output.is_open_to_others()),
        )
    } else {
        (document.alone(), FileMode::OwnerOnly, false)
    };
    let path = quote::path(file);
    let (mut written, is_open, backup) = if is_current {
        (
            format!("{path} is up to date."),
            output.is_open_to_others(),
            None,
        )
    } else {
        let WrittenFile { is_open, backup } = output.write(&to_yaml(&content), mode)?;
        (format!("Wrote {path}."), is_open, backup)
    };
    written.push_str(if is_open {
        " Other users can read it; `chmod 600` changes that."
    } else {
        " Only its owner can read it."
    });
    if let Some(backup) = backup {
        let backup = quote::path(&backup);
        written.push_str(&if args.merge {
            format!(" Comments are not kept; the previous file is {backup}.")
        } else {
            format!(" The previous file is {backup}.")
        });
    }
    let current = text_at(&content, "/current-context");
    if current != document.context {
        let (current, context) = (quote::name(current), quote::name(&document.context));
        written.push_str(&format!(
            " The current context is still `{current}`: `kubectl config use-context {context}` changes that."
        ));
    }
    Ok((content, written))
}

/// Returns the kubeconfig in `output` with `document` merged into it, and whether that changes nothing.
fn merged(
    args: &KubeconfigArgs,
    output: &OutputFile,
    file: &Path,
    document: &KubeconfigDocument,
) -> Result<(Value, bool), KubeconfigError> {
    if output.is_empty() {
        return Ok((document.alone(), false));
    }
    let existing: Value = load_yaml(FileKind::Kubeconfig, file)?;
    let others = if args.force {
        ForeignEntries::Replace
    } else {
        ForeignEntries::Keep
    };
    document
        .merged_into(existing.clone(), others)
        .map(|merged| {
            let is_current = merged == existing;
            (merged, is_current)
        })
        .map_err(|source| KubeconfigError::Merge {
            file: file.to_owned(),
            source,
        })
}

/// The first segments of paths that an apiserver serves at its root.
const API_PATHS: [&str; 7] = [
    "api", "apis", "version", "openapi", "healthz", "livez", "readyz",
];
