//! The kubeconfig that is made, as data.

use serde_json::{Map, Value, json};

/// Everything that goes into it.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) server: String,
    pub(super) tls_server_name: String,
    pub(super) cluster: String,
    pub(super) user_name: String,
    pub(super) context: String,
    pub(super) namespace: Option<String>,
    pub(super) user: Value,
}

impl Document {
    /// The shape that client-go reads (`k8s.io/client-go/tools/clientcmd/api/v1`).
    pub(super) fn value(&self) -> Value {
        let mut context = Map::new();
        context.insert("cluster".into(), json!(self.cluster));
        context.insert("user".into(), json!(self.user_name));
        if let Some(namespace) = &self.namespace {
            context.insert("namespace".into(), json!(namespace));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.context,
            "clusters": [{
                "name": self.cluster,
                "cluster": { "server": self.server, "tls-server-name": self.tls_server_name },
            }],
            "users": [{ "name": self.user_name, "user": self.user }],
            "contexts": [{ "name": self.context, "context": context }],
        })
    }
}
