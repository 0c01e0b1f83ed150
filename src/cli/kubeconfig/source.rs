//! Copies names and credentials from a kubeconfig, but never client certificates and passwords.

use std::path::{Path, absolute};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{ConfigError, Kubeconfig, NamedContext};

/// The parts of a context that are copied.
#[derive(Debug)]
pub(super) struct CopiedContext {
    pub(super) context: String,
    pub(super) cluster: String,
    pub(super) user_name: String,
    pub(super) namespace: Option<String>,
    /// The credentials that may be copied: token, token file, exec plugin, impersonation.
    pub(super) credentials: Value,
    pub(super) has_client_certificate: bool,
    pub(super) has_password: bool,
    pub(super) has_auth_provider: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<Map<String, Value>>,
}

impl CopiedContext {
    /// Reads the context `wanted` of `file`, or its current context.
    pub(super) fn load(file: &Path, wanted: Option<&str>) -> Result<Self, ConfigError> {
        let kubeconfig = Kubeconfig::<NamedUser>::load(file)?;
        let NamedContext { name, context } = kubeconfig.context(file, wanted)?;
        let user = kubeconfig
            .users
            .unwrap_or_default()
            .into_iter()
            .find(|entry| entry.name == context.user)
            .and_then(|entry| entry.user)
            .unwrap_or_default();
        Ok(Self {
            has_client_certificate: ["client-certificate", "client-certificate-data"]
                .iter()
                .any(|key| user.contains_key(*key)),
            has_password: user.contains_key("password"),
            has_auth_provider: user.contains_key("auth-provider"),
            credentials: credentials(&user, file),
            user_name: if context.user.is_empty() {
                context.cluster.clone()
            } else {
                context.user
            },
            context: name,
            cluster: context.cluster,
            namespace: context.namespace.filter(|namespace| !namespace.is_empty()),
        })
    }
}

/// Returns the keys that may be copied, with absolute paths.
fn credentials(user: &Map<String, Value>, file: &Path) -> Value {
    let mut kept = Map::new();
    for key in KEPT {
        if let Some(value) = user.get(key).filter(|value| !is_empty(value)) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(Value::String(path)) = kept.get_mut("tokenFile") {
        *path = absolute_path(path, file);
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

const KEPT: [&str; 7] = [
    "token",
    "tokenFile",
    "exec",
    "as",
    "as-uid",
    "as-groups",
    "as-user-extra",
];
