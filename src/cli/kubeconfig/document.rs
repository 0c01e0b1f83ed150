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
    #[error("`{key}`: a list belongs here; check the path")]
    NotAList { key: &'static str },
    #[error(
        "{kind} `{name}` exists already and belongs to another cluster; choose another name with --name, or replace it with --force"
    )]
    Taken { kind: &'static str, name: String },
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

    /// Returns `existing` with the cluster, user and context of this document. A user of the
    /// same name is replaced; a cluster or context of the same name is updated, or replaced if it is foreign. `current-context` is set only if it is empty.
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
        if foreign == ForeignEntries::Keep {
            self.check_names(&existing)?;
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
                // Of a cluster or context of its own it keeps what others added, such as a private CA. Credentials must not
                // be mixed.
                Some(old) if foreign == ForeignEntries::Keep && key != "users" => {
                    old.update(entry);
                }
                Some(old) => *old = entry,
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

    /// Checks that entries of the same names are those of this command: the cluster has the same server, and user and
    /// context are used for that cluster only.
    fn check_names(&self, existing: &Yaml) -> Result<(), MergeError> {
        let taken = |kind, name: &String| {
            let name = quote::value(name);
            Err(MergeError::Taken { kind, name })
        };
        if let Some(cluster) = existing.entry_of("clusters", &self.cluster)
            && cluster.text_at("cluster", "server").trim_end_matches('/') != self.server
        {
            return taken("cluster", &self.cluster);
        }
        let is_own = |context: &&Yaml| {
            context.text_at("context", "cluster") == self.cluster
                && context.text_at("context", "user") == self.user_name
        };
        if let Some(context) = existing.entry_of("contexts", &self.context)
            && !is_own(&context)
        {
            return taken("context", &self.context);
        }
        if existing.entry_of("users", &self.user_name).is_some() {
            let mut uses = existing
                .items("contexts")
                .iter()
                .filter(|context| context.text_at("context", "user") == self.user_name)
                .peekable();
            if uses.peek().is_none() || !uses.all(|context| is_own(&context)) {
                return taken("user", &self.user_name);
            }
        }
        Ok(())
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

const LISTS: [&str; 3] = ["clusters", "users", "contexts"];
