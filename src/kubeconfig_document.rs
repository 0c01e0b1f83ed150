//! The kubeconfig for clients of the proxy, on its own or merged into an existing one.
//!
//! Merging changes only the cluster, the user and the context of the document. Everything else in the file stays, in
//! its order, unknown keys included.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Map, Value, json};

use crate::{config::duplicate, quote};

/// The content of a kubeconfig.
#[derive(Debug)]
pub(crate) struct KubeconfigDocument {
    pub(crate) server: String,
    pub(crate) tls_server_name: String,
    pub(crate) cluster: String,
    pub(crate) user_name: String,
    pub(crate) context: String,
    pub(crate) namespace: Option<String>,
    /// The PEM text of the CAs that clients verify the proxy against; `None` for the public ones.
    pub(crate) ca: Option<String>,
    pub(crate) user: Value,
    /// More settings of the cluster, for the client.
    pub(crate) cluster_settings: Map<String, Value>,
}

/// Why a document cannot be merged into an existing file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    #[error("is not a kubeconfig; check the path")]
    NotAKubeconfig,
    #[error("`{key}` must be a list; check the path")]
    NotAList { key: &'static str },
    #[error(
        "two {key} have the name `{name}`, so kubectl refuses this file; rename or remove one of them"
    )]
    DuplicateName { key: &'static str, name: String },
    #[error(
        "{kind} `{name}` exists already and belongs to another cluster; choose another name with --name, or replace it with --force"
    )]
    Taken { kind: &'static str, name: String },
    #[error(
        "user `{name}` exists already and no context uses it; choose another name with --name, or use this user with --force"
    )]
    Unused { name: String },
}

/// What merging does with entries of the same name that this command did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForeignEntries {
    Keep,
    Replace,
}

impl KubeconfigDocument {
    /// The document on its own, in the format of client-go (`k8s.io/client-go/tools/clientcmd/api/v1`), with the keys
    /// in the order in which kubectl writes them.
    pub(crate) fn alone(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "clusters": [self.cluster_entry()],
            "contexts": [self.context_entry()],
            "current-context": self.context,
            "kind": "Config",
            "users": [self.user_entry()],
        })
    }

    /// Returns `existing` with the cluster, user and context of this document. An entry of the same name is updated and
    /// keeps what others added, such as a private CA. A foreign one is replaced. A user keeps its credentials if this
    /// document has none. `current-context` is set only if it is empty.
    ///
    /// # Errors
    ///
    /// [`MergeError`] when `existing` is not a kubeconfig, or when it has a foreign entry of the same name that must
    /// be kept.
    pub(crate) fn merged_into(
        &self,
        mut existing: Value,
        foreign: ForeignEntries,
    ) -> Result<Value, MergeError> {
        let is_config = match existing.get("kind") {
            Some(kind) => kind == "Config",
            None => LISTS.iter().any(|key| existing.get(key).is_some()),
        };
        if !is_config {
            return Err(MergeError::NotAKubeconfig);
        }
        let mut foreign_keys = Vec::new();
        for key in LISTS {
            let names = items(&existing, key).map(|item| text_at(item, "/name"));
            if let Some(name) = duplicate(names) {
                let name = quote::name(name);
                return Err(MergeError::DuplicateName { key, name });
            }
            match self.check_name(&existing, key) {
                Err(error) if foreign == ForeignEntries::Keep => return Err(error),
                // No other cluster uses this user, so its credentials can stay.
                Ok(()) | Err(MergeError::Unused { .. }) => {}
                Err(_foreign) => foreign_keys.push(key),
            }
        }
        for (key, entry) in [
            ("clusters", self.cluster_entry()),
            ("users", self.user_entry()),
            ("contexts", self.context_entry()),
        ] {
            let fields = existing.as_object_mut().ok_or(MergeError::NotAKubeconfig)?;
            let list = fields.entry(key).or_insert(Value::Null);
            if list.is_null() {
                *list = json!([]);
            }
            let list = list.as_array_mut().ok_or(MergeError::NotAList { key })?;
            let name = entry.get("name");
            match list.iter_mut().find(|old| old.get("name") == name) {
                Some(old) if foreign_keys.contains(&key) => *old = entry,
                Some(old) => {
                    let is_credential =
                        |user: &&Value| has_credential(user) || has_client_certificate(user);
                    if let Some(user) = entry.get("user").filter(is_credential) {
                        remove_credentials(old, user);
                    }
                    update(old, entry);
                }
                None => list.push(entry),
            }
        }
        if text_at(&existing, "/current-context").is_empty()
            && let Some(fields) = existing.as_object_mut()
        {
            fields.insert("current-context".into(), json!(self.context));
        }
        Ok(existing)
    }

    /// Checks that the entry of the same name in the list `key` is one of this command: the cluster has the same
    /// server, and user and context are used for that cluster only.
    fn check_name(&self, existing: &Value, key: &str) -> Result<(), MergeError> {
        let taken = |kind, name: &String| {
            let name = quote::name(name);
            Err(MergeError::Taken { kind, name })
        };
        let is_own = |context: &Value| {
            text_at(context, "/context/cluster") == self.cluster
                && text_at(context, "/context/user") == self.user_name
        };
        match key {
            "clusters" => match entry_of(existing, key, &self.cluster) {
                Some(cluster)
                    if text_at(cluster, "/cluster/server").trim_end_matches('/') != self.server =>
                {
                    taken("cluster", &self.cluster)
                }
                _ => Ok(()),
            },
            "contexts" => match entry_of(existing, key, &self.context) {
                Some(context) if !is_own(context) => taken("context", &self.context),
                _ => Ok(()),
            },
            _ if entry_of(existing, key, &self.user_name).is_none() => Ok(()),
            _ => {
                let mut uses = items(existing, "contexts")
                    .filter(|context| text_at(context, "/context/user") == self.user_name)
                    .peekable();
                if uses.peek().is_none() {
                    let name = quote::name(&self.user_name);
                    Err(MergeError::Unused { name })
                } else if uses.all(is_own) {
                    Ok(())
                } else {
                    taken("user", &self.user_name)
                }
            }
        }
    }

    fn cluster_entry(&self) -> Value {
        let mut cluster = self.cluster_settings.clone();
        if let Some(ca) = &self.ca {
            let ca = BASE64_STANDARD.encode(ca);
            cluster.insert("certificate-authority-data".into(), json!(ca));
        }
        cluster.insert("server".into(), json!(self.server));
        cluster.insert("tls-server-name".into(), json!(self.tls_server_name));
        json!({ "cluster": cluster, "name": self.cluster })
    }

    fn user_entry(&self) -> Value {
        json!({ "name": self.user_name, "user": self.user })
    }

    fn context_entry(&self) -> Value {
        let mut context = Map::new();
        context.insert("cluster".into(), json!(self.cluster));
        if let Some(namespace) = &self.namespace {
            context.insert("namespace".into(), json!(namespace));
        }
        context.insert("user".into(), json!(self.user_name));
        json!({ "context": context, "name": self.context })
    }
}

/// The entry called `name` of the list under `key`.
pub(crate) fn entry_of<'a>(content: &'a Value, key: &str, name: &str) -> Option<&'a Value> {
    items(content, key).find(|item| text_at(item, "/name") == name)
}

/// The text at a JSON pointer; empty if there is none.
pub(crate) fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_default()
}

/// The `user` of an entry that gets its token from a program.
pub(crate) fn exec_user(command: &str, args: &[String]) -> Value {
    json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": command,
        "args": args,
        "interactiveMode": "IfAvailable",
    }})
}

/// The certificates in a PEM text, and nothing else of it.
pub(crate) fn only_certificates(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut kept = String::new();
    let mut is_inside = false;
    for line in text.lines().map(str::trim_end) {
        is_inside |= line.ends_with("-----BEGIN CERTIFICATE-----");
        if is_inside {
            kept.push_str(line.trim_start_matches('\u{feff}'));
            kept.push('\n');
        }
        is_inside &= line != "-----END CERTIFICATE-----";
    }
    kept
}

/// Whether the `user` of an entry can authenticate to an apiserver through the proxy.
pub(crate) fn has_credential(user: &Value) -> bool {
    ["token", "tokenFile", "exec", "username", "auth-provider"]
        .iter()
        .any(|key| user.get(key).is_some_and(|value| !value.is_null()))
}

/// Whether the `user` of an entry can authenticate to an apiserver in a TLS handshake.
pub(crate) fn has_client_certificate(user: &Value) -> bool {
    CLIENT_CERTIFICATE
        .iter()
        .any(|key| user.get(key).is_some_and(|value| !value.is_null()))
}

/// The document as YAML in the layout of kubectl.
///
/// # Panics
///
/// Never: a JSON value has no part that YAML lacks.
pub(crate) fn to_yaml(document: &Value) -> String {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(document, options)
        .expect("every JSON value can be written as YAML")
}

fn items<'a>(content: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    content
        .get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// Sets the keys of `new`, at every level, and keeps all others.
fn update(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                update(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

/// Removes the credentials of the old entry, because two kinds must not be mixed. A key that `user` also has keeps
/// its place but loses its value.
fn remove_credentials(old: &mut Value, user: &Value) {
    if let Some(old) = old.get_mut("user").and_then(Value::as_object_mut) {
        old.retain(|key, value| {
            let is_credential = CREDENTIALS.contains(&key.as_str());
            if is_credential {
                *value = Value::Null;
            }
            !is_credential || user.get(key).is_some()
        });
    }
}

/// The keys of a user for its client certificate.
pub(crate) const CLIENT_CERTIFICATE: [&str; 2] = ["client-certificate", "client-certificate-data"];
/// The keys of a user that authenticate it.
const CREDENTIALS: [&str; 10] = [
    "token",
    "tokenFile",
    "exec",
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
    "username",
    "password",
    "auth-provider",
];
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];
