//! The kubeconfig of this command, on its own or merged into an existing one.
//!
//! Merging changes only the cluster, the user and the context of this command. Everything else in the file stays, in its
//! order, unknown keys included.

use serde_json::{Map, Value, json};

use super::yaml::Yaml;
use crate::quote;

/// The content of a kubeconfig.
#[derive(Debug)]
pub(super) struct KubeconfigDocument {
    pub(super) server: String,
    pub(super) tls_server_name: String,
    pub(super) cluster: String,
    pub(super) user_name: String,
    pub(super) context: String,
    pub(super) namespace: Option<String>,
    pub(super) user: Value,
}

/// Why a document cannot be merged into an existing file.
#[derive(Debug, thiserror::Error)]
pub(super) enum MergeError {
    #[error("is not a kubeconfig; check the path")]
    NotAKubeconfig,
    #[error("`{key}` must be a list; check the path")]
    NotAList { key: &'static str },
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
pub(super) enum ForeignEntries {
    Keep,
    Replace,
}

impl KubeconfigDocument {
    /// The document on its own, in the format of client-go (`k8s.io/client-go/tools/clientcmd/api/v1`).
    pub(super) fn alone(&self) -> Yaml {
        Yaml::from(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.context,
            "clusters": [self.cluster_entry()],
            "users": [self.user_entry()],
            "contexts": [self.context_entry()],
        }))
    }

    /// Returns `existing` with the cluster, user and context of this document. An entry of the same name is updated and
    /// keeps what others added, such as a private CA. A foreign one is replaced. A user keeps its credentials if this
    /// document has none. `current-context` is set only if it is empty.
    ///
    /// # Errors
    ///
    /// [`MergeError`] when `existing` is not a kubeconfig, or when it has a foreign entry of the same name that must be kept.
    pub(super) fn merged_into(
        &self,
        mut existing: Yaml,
        foreign: ForeignEntries,
    ) -> Result<Yaml, MergeError> {
        let is_config = match existing.get("kind") {
            Some(kind) => kind.as_text() == Some("Config"),
            None => LISTS.iter().any(|key| existing.get(key).is_some()),
        };
        if !is_config {
            return Err(MergeError::NotAKubeconfig);
        }
        let mut foreign_keys = Vec::new();
        for key in ["clusters", "contexts", "users"] {
            match self.check_name(&existing, key) {
                Err(error) if foreign == ForeignEntries::Keep => return Err(error),
                // The user is no other cluster's, so that its credentials can stay.
                Ok(()) | Err(MergeError::Unused { .. }) => {}
                Err(_foreign) => foreign_keys.push(key),
            }
        }
        for (key, entry) in [
            ("clusters", self.cluster_entry()),
            ("users", self.user_entry()),
            ("contexts", self.context_entry()),
        ] {
            let entry = Yaml::from(entry);
            let list = existing
                .entry(key)
                .and_then(Yaml::list_or_empty)
                .ok_or(MergeError::NotAList { key })?;
            let name = entry.name();
            match list.iter_mut().find(|old| old.name() == name) {
                Some(old) if foreign_keys.contains(&key) => *old = entry,
                Some(old) => {
                    if let Some(user) = entry.get("user").filter(|user| has_credential(user)) {
                        // Two kinds of credentials must not be mixed.
                        old.remove_in("user", &CREDENTIALS, user);
                    }
                    old.update(entry);
                }
                None => list.push(entry),
            }
        }
        if existing.text_of("current-context").is_empty()
            && let Some(current) = existing.entry("current-context")
        {
            *current = Yaml::Text(self.context.clone());
        }
        Ok(existing)
    }

    /// Checks that the entry of the same name in the list `key` is one of this command: the cluster has the same server,
    /// and user and context are used for that cluster only.
    fn check_name(&self, existing: &Yaml, key: &str) -> Result<(), MergeError> {
        let taken = |kind, name: &String| {
            let name = quote::name(name);
            Err(MergeError::Taken { kind, name })
        };
        let is_own = |context: &&Yaml| {
            context.text_at("context", "cluster") == self.cluster
                && context.text_at("context", "user") == self.user_name
        };
        match key {
            "clusters" => match existing.entry_of(key, &self.cluster) {
                Some(cluster)
                    if cluster.text_at("cluster", "server").trim_end_matches('/')
                        != self.server =>
                {
                    taken("cluster", &self.cluster)
                }
                _ => Ok(()),
            },
            "contexts" => match existing.entry_of(key, &self.context) {
                Some(context) if !is_own(&context) => taken("context", &self.context),
                _ => Ok(()),
            },
            _ if existing.entry_of(key, &self.user_name).is_none() => Ok(()),
            _ => {
                let mut uses = existing
                    .items("contexts")
                    .iter()
                    .filter(|context| context.text_at("context", "user") == self.user_name)
                    .peekable();
                if uses.peek().is_none() {
                    let name = quote::name(&self.user_name);
                    Err(MergeError::Unused { name })
                } else if uses.all(|context| is_own(&context)) {
                    Ok(())
                } else {
                    taken("user", &self.user_name)
                }
            }
        }
    }

    fn cluster_entry(&self) -> Value {
        json!({
            "name": self.cluster,
            "cluster": { "server": self.server, "tls-server-name": self.tls_server_name },
        })
    }

    fn user_entry(&self) -> Value {
        json!({ "name": self.user_name, "user": self.user })
    }

    fn context_entry(&self) -> Value {
        let mut context = Map::new();
        context.insert("cluster".into(), json!(self.cluster));
        context.insert("user".into(), json!(self.user_name));
        if let Some(namespace) = &self.namespace {
            context.insert("namespace".into(), json!(namespace));
        }
        json!({ "name": self.context, "context": context })
    }
}

/// Whether the `user` of an entry can authenticate to an apiserver through the proxy.
pub(super) fn has_credential(user: &Yaml) -> bool {
    ["token", "tokenFile", "exec", "username", "auth-provider"]
        .iter()
        .any(|key| user.get(key).is_some_and(|value| *value != Yaml::Null))
}

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
