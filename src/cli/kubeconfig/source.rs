//! Copies names, credentials and settings from a kubeconfig, but never passwords, and client certificates only for a
//! passthrough host.
//!
//! Everything that is not copied, and that a client would miss, has a remark.

use std::path::{Path, absolute};

use serde_json::{Map, Value};

use crate::{
    config::{ConfigError, Kubeconfig, NamedContext},
    kubeconfig_document::CLIENT_CERTIFICATE,
    quote,
};

/// The parts of a context that are copied.
#[derive(Debug)]
pub(super) struct CopiedContext {
    pub(super) context: String,
    pub(super) cluster: String,
    pub(super) user_name: String,
    pub(super) namespace: Option<String>,
    /// The settings of the cluster that do not depend on the server.
    pub(super) cluster_settings: Map<String, Value>,
    /// The credentials that may be copied: token, token file, exec plugin, impersonation, perhaps a client certificate.
    pub(super) credentials: Value,
    /// Whether a credential of the user was left out. `remarks` says which one.
    pub(super) lost_credential: bool,
    /// What was left out, as sentences.
    pub(super) remarks: Vec<String>,
}

/// Which credentials are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopiedCredentials {
    /// Those that pass a proxy that terminates TLS.
    WithoutCertificates,
    /// Client certificates too.
    All,
}

impl CopiedContext {
    /// Reads the context `wanted` of `file`, or its current context.
    pub(super) fn load(
        file: &Path,
        wanted: Option<&str>,
        copied: CopiedCredentials,
    ) -> Result<Self, ConfigError> {
        let kubeconfig = Kubeconfig::<Map<String, Value>, Map<String, Value>>::load(file)?;
        let NamedContext { name, context } = kubeconfig.context(file, wanted)?;
        let user = kubeconfig.user(&context.user).cloned().unwrap_or_default();
        let cluster = kubeconfig.cluster(&context.cluster);
        let cluster = cluster.cloned().unwrap_or_default();
        let mut remarks = Vec::new();
        let is_set =
            |map: &Map<String, Value>, key| map.get(key).is_some_and(|value| !is_empty(value));
        let user_name = quote::name(&context.user);
        let credentials = credentials(&user, file, copied);
        if credentials.get("token").is_none() && is_set(&user, "token") {
            remarks.push(format!(
                "The token of user `{user_name}` is missing, because `kubectl config view` wrote {REDACTED} in its place. Write the file again with `kubectl config view --raw`."
            ));
        }
        if is_set(&user, "username") || is_set(&user, "password") {
            remarks.push(format!(
                "User name and password of user `{user_name}` were left out, because no supported version of Kubernetes accepts them. That user needs {INSTEAD}."
            ));
        }
        if is_set(&user, "auth-provider") {
            remarks.push(format!(
                "The auth-provider of user `{user_name}` was left out, because a copy would refresh the same login twice. Give an exec plugin with --exec-command, for example `kubectl oidc-login`."
            ));
        }
        let has_client_certificate = CLIENT_CERTIFICATE.iter().any(|key| is_set(&user, key));
        if copied == CopiedCredentials::All {
            if CERTIFICATE_KEYS.iter().any(|key| {
                let omitted = |value: &Value| *value == OMITTED || *value == REDACTED;
                user.get(*key).is_some_and(omitted)
            }) {
                remarks.push(format!(
                    "The client certificate or key of user `{user_name}` is missing, because `kubectl config view` wrote {OMITTED} in its place. Write the file again with `kubectl config view --raw`."
                ));
            }
        } else if has_client_certificate {
            remarks.push(format!(
                "The client certificate of user `{user_name}` was left out, because it cannot pass a proxy that terminates TLS. That user needs {INSTEAD}."
            ));
        }
        let lost_credential = !remarks.is_empty();
        if is_set(&cluster, "proxy-url") {
            remarks.push(format!(
                "The proxy-url of cluster `{}` was left out, because it was for the old server. If clients need a proxy for the new one too, set it with `kubectl config set-cluster`.",
                quote::name(&context.cluster)
            ));
        }
        let extensions = extensions(&cluster);
        let lost: Vec<_> = extensions
            .iter()
            .filter_map(|extension| extension.get("name").and_then(Value::as_str))
            .filter(|name| *name != EXEC_EXTENSION)
            .map(|name| format!("`{}`", quote::name(name)))
            .collect();
        if !lost.is_empty() {
            remarks.push(format!(
                "These extensions of cluster `{}` were left out: {}.",
                quote::name(&context.cluster),
                lost.join(", ")
            ));
        }
        Ok(Self {
            credentials,
            cluster_settings: cluster_settings(&cluster, extensions),
            user_name: if context.user.is_empty() {
                context.cluster.clone()
            } else {
                context.user
            },
            context: name,
            cluster: context.cluster,
            namespace: Some(context.namespace).filter(|namespace| !namespace.is_empty()),
            lost_credential,
            remarks,
        })
    }
}

fn extensions(cluster: &Map<String, Value>) -> Vec<Value> {
    let list = cluster.get("extensions").and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

/// Returns the settings of the cluster that are for the client and not for the server. client-go gives the exec
/// plugin of a user the extension of its cluster with this name.
fn cluster_settings(
    cluster: &Map<String, Value>,
    mut extensions: Vec<Value>,
) -> Map<String, Value> {
    let mut kept = Map::new();
    if let Some(value) = cluster
        .get("disable-compression")
        .filter(|value| !is_empty(value))
    {
        kept.insert("disable-compression".to_owned(), value.clone());
    }
    extensions.retain(|extension| {
        extension
            .get("name")
            .is_some_and(|name| name == EXEC_EXTENSION)
    });
    if !extensions.is_empty() {
        kept.insert("extensions".to_owned(), extensions.into());
    }
    kept
}

/// Returns the keys that may be copied, with absolute paths.
fn credentials(user: &Map<String, Value>, file: &Path, copied: CopiedCredentials) -> Value {
    let mut kept = Map::new();
    let certificate = match copied {
        CopiedCredentials::All => CERTIFICATE_KEYS.as_slice(),
        CopiedCredentials::WithoutCertificates => &[],
    };
    for key in KEPT.iter().chain(certificate) {
        let value = user.get(*key).filter(|value| !is_empty(value));
        if let Some(value) = value.filter(|value| *value != REDACTED && *value != OMITTED) {
            kept.insert((*key).to_owned(), value.clone());
        }
    }
    for key in ["tokenFile", "client-certificate", "client-key"] {
        if let Some(Value::String(path)) = kept.get_mut(key) {
            *path = absolute_path(path, file);
        }
    }
    let command = kept
        .get_mut("exec")
        .and_then(|exec| exec.get_mut("command"));
    // client-go resolves a command that has a slash relative to the directory of the kubeconfig, and looks up any
    // other command in PATH.
    if let Some(Value::String(command)) = command
        && command.contains('/')
    {
        *command = absolute_path(command, file);
    }
    Value::Object(kept)
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

fn absolute_path(path: &str, file: &Path) -> String {
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let path = folder.join(path);
    absolute(&path)
        .unwrap_or(path)
        .to_string_lossy()
        .into_owned()
}

/// What a user needs whose credential cannot pass the proxy.
pub(super) const INSTEAD: &str = "a token: from a service account (`kubectl create token NAME`), or from your OIDC issuer through --exec-command";
/// The name of the extension that an exec plugin with `provideClusterInfo` gets.
const EXEC_EXTENSION: &str = "client.authentication.k8s.io/exec";
const CERTIFICATE_KEYS: [&str; 4] = [
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
];
/// What `kubectl config view` prints in place of certificates and keys.
const OMITTED: &str = "DATA+OMITTED";
/// What `kubectl config view` prints in place of a token.
const REDACTED: &str = "REDACTED";
const KEPT: [&str; 7] = [
    "token",
    "tokenFile",
    "exec",
    "as",
    "as-uid",
    "as-groups",
    "as-user-extra",
];
