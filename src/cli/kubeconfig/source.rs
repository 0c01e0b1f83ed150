//! Takes names and credentials out of a kubeconfig, without its client certificates and passwords.

use std::path::{Path, absolute};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::{ConfigError, Kubeconfig, NamedContext};

/// One context of a kubeconfig.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) context: String,
    pub(super) cluster: String,
    pub(super) user_name: String,
    pub(super) namespace: Option<String>,
    /// What may be handed on: token, token file, exec plugin, impersonation.
    pub(super) credentials: Value,
    pub(super) has_client_certificate: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<Map<String, Value>>,
}

impl Source {
    /// The context `wanted` of `file`, or its current one.
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

/// The keys that may be handed on, with paths that do not depend on where the file is.
fn credentials(user: &Map<String, Value>, file: &Path) -> Value {
    let mut kept = Map::new();
    for key in KEPT {
        if let Some(value) = user.get(key).filter(|value| !is_nothing(value)) {
            kept.insert(key.to_owned(), value.clone());
        }
    }
    if let Some(Value::String(path)) = kept.get_mut("tokenFile") {
        *path = complete(path, file);
    }
    let command = kept
        .get_mut("exec")
        .and_then(|exec| exec.get_mut("command"));
    // client-go takes a command with a slash in it to begin at the directory of the kubeconfig, and
    // looks up any other one in PATH.
    if let Some(Value::String(command)) = command
        && command.contains('/')
    {
        *command = complete(command, file);
    }
    Value::Object(kept)
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

fn complete(path: &str, file: &Path) -> String {
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
