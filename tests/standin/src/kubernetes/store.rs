//! The pods of the small cluster, and the events that change them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{
    clock::{age, rfc3339},
    query::Query,
    response::Refusal,
};

/// A pod, with the fields that kubectl uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// The number of restarts of its container.
    pub restarts: u32,
    /// When it was created.
    pub created: SystemTime,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    spec: Value,
    /// The version of its creation, which makes its uid unique.
    born: u64,
    version: u64,
}

impl Pod {
    /// A running pod, created now, in the namespace `default`.
    #[must_use]
    pub fn running(name: &str) -> Self {
        Self {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            phase: "Running".to_owned(),
            restarts: 0,
            created: SystemTime::now(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            spec: json!({ "nodeName": NODE, "containers": [{ "name": "main", "image": "standin" }] }),
            born: 0,
            version: 0,
        }
    }

    /// The same pod with one label more.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The same pod in another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// The same pod in another phase.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> Self {
        phase.clone_into(&mut self.phase);
        self
    }

    fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }

    /// A running pod as a client describes it.
    pub(super) fn from_object(namespace: &str, object: &Value) -> Result<Self, Refusal> {
        let Some(name) = object["metadata"]["name"].as_str() else {
            return Err(Refusal::bad_request(
                "the pod has no metadata.name".to_owned(),
            ));
        };
        let mut pod = Self::running(name).in_namespace(namespace);
        let containers = object["spec"]["containers"].as_array();
        let named = |container: &Value| {
            container["name"].is_string()
                && container["image"]
                    .as_str()
                    .is_some_and(|image| !image.is_empty())
        };
        if !containers
            .is_some_and(|containers| !containers.is_empty() && containers.iter().all(named))
        {
            let what = "spec.containers: each pod needs a container, with a name and an image";
            return Err(Refusal::invalid_pod(name, what));
        }
        pod.spec = object["spec"].clone();
        pod.spec["nodeName"] = NODE.into();
        pod.set_metadata(object)?;
        Ok(pod)
    }

    /// The same pod after a client changed its object. As in kube-apiserver, only labels, annotations and images may
    /// differ.
    pub(super) fn changed_to(&self, object: &Value) -> Result<Self, Refusal> {
        let version = &object["metadata"]["resourceVersion"];
        let is_current = version.as_str().and_then(|text| text.parse().ok()) == Some(self.version);
        if !version.is_null() && !is_current {
            let message = format!(
                "Operation cannot be fulfilled on pods {:?}: the object has been modified; please apply your changes to the \
                 latest version and try again",
                self.name
            );
            return Err(Refusal::new(StatusCode::CONFLICT, "Conflict", message));
        }
        if object["metadata"]["name"] != self.name.as_str() {
            return Err(Refusal::bad_request(
                "the name of the object does not match the name on the URL".to_owned(),
            ));
        }
        let mut spec = object["spec"].clone();
        if spec.is_object() && spec["nodeName"].is_null() {
            spec["nodeName"] = NODE.into();
        }
        if without_images(&spec) != without_images(&self.spec) {
            let what = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`";
            return Err(Refusal::invalid_pod(&self.name, what));
        }
        let mut changed = Self {
            spec,
            ..self.clone()
        };
        changed.set_metadata(object)?;
        Ok(changed)
    }

    fn set_metadata(&mut self, object: &Value) -> Result<(), Refusal> {
        for (key, map) in [
            ("labels", &mut self.labels),
            ("annotations", &mut self.annotations),
        ] {
            *map = match &object["metadata"][key] {
                Value::Null => BTreeMap::new(),
                given => serde_json::from_value(given.clone())
                    .map_err(|error| Refusal::bad_request(format!("metadata.{key}: {error}")))?,
            };
        }
        Ok(())
    }

    /// Refuses a request for a container that the pod does not have.
    pub(super) fn check_container(&self, query: &Query) -> Result<(), Refusal> {
        let wanted = query.first("container").unwrap_or_default();
        if wanted.is_empty()
            || self
                .containers()
                .iter()
                .any(|container| container["name"] == wanted)
        {
            return Ok(());
        }
        let message = format!("container {wanted} is not valid for pod {}", self.name);
        Err(Refusal::bad_request(message))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.phase == "Running"
    }

    pub(super) fn node(&self) -> &str {
        self.spec["nodeName"].as_str().unwrap_or_default()
    }

    /// Differs from that of an earlier pod with the same name.
    pub(super) fn uid(&self) -> String {
        format!("00000000-0000-4000-9000-{:012x}", self.born)
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({
            "name": self.name, "namespace": self.namespace, "uid": self.uid(),
            "resourceVersion": self.version.to_string(), "creationTimestamp": rfc3339(self.created),
        });
        for (key, map) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !map.is_empty() {
                metadata[key] = json!(map);
            }
        }
        metadata
    }

    /// The object as JSON.
    pub(super) fn object(&self) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": self.metadata(),
            "spec": self.spec,
            "status": {
                "phase": self.phase, "podIP": "192.0.2.1",
                "conditions": [{ "type": "Ready", "status": if self.is_ready() { "True" } else { "False" } }],
                "containerStatuses": self.containers().iter().map(|container| json!({
                    "name": container["name"], "ready": self.is_ready(), "restartCount": self.restarts,
                    "image": container["image"], "imageID": "",
                })).collect::<Vec<_>>(),
            },
        })
    }

    fn containers(&self) -> &[Value] {
        self.spec["containers"]
            .as_array()
            .map_or(&[], Vec::as_slice)
    }

    /// Its row in a table.
    pub(super) fn row(&self) -> Value {
        let containers = self.containers().len();
        let ready = format!(
            "{}/{containers}",
            if self.is_ready() { containers } else { 0 }
        );
        let status = if self.phase == "Succeeded" {
            "Completed"
        } else {
            &self.phase
        };
        json!({
            "cells": [self.name, ready, status, self.restarts.to_string(), age(self.created), "192.0.2.1", self.node()],
            "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": self.metadata() },
        })
    }
}

/// The one node.
const NODE: &str = "node-1";

/// A spec without the only field that an update may change.
fn without_images(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        if let Value::Object(container) = container {
            container.remove("image");
        }
    }
    spec
}

/// A table with these rows. `columns` are names and priorities; 0 means always shown.
pub(super) fn table(version: u64, columns: &[(&str, u8)], rows: &[Value]) -> Value {
    let columns: Vec<Value> = columns
        .iter()
        .map(|(name, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({ "name": name, "type": "string", "format": format, "description": "", "priority": priority })
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": { "resourceVersion": version.to_string() },
        "columnDefinitions": columns, "rows": rows,
    })
}

/// The columns of [`Pod::row`].
pub(super) const POD_COLUMNS: &[(&str, u8)] = &[
    ("Name", 0),
    ("Ready", 0),
    ("Status", 0),
    ("Restarts", 0),
    ("Age", 0),
    ("IP", 1),
    ("Node", 1),
];

/// A change of a pod.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// The pod before the change; `None` for a new one.
    pub(super) before: Option<Pod>,
    /// The pod after the change; the last state of a deleted one.
    pub(super) pod: Pod,
    pub(super) is_deletion: bool,
}

impl Event {
    /// What a watcher of the pods that `wanted` accepts must see: a pod that begins to match is new to it.
    pub(super) fn kind(&self, wanted: impl Fn(&Pod) -> bool) -> Option<&'static str> {
        let before = self.before.as_ref().is_some_and(&wanted);
        match (before, wanted(&self.pod) && !self.is_deletion) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct State {
    version: u64,
    pods: BTreeMap<(String, String), Pod>,
    /// Pods that are created again when a client deletes them, as those of a `StatefulSet` are.
    kept: Vec<Pod>,
}

impl Store {
    pub(super) fn new() -> Self {
        let state = State {
            version: 1_000,
            pods: BTreeMap::new(),
            kept: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            events: broadcast::Sender::new(1024),
        }
    }

    /// The pods of one namespace or of all, the version of this list, and the events after it.
    pub(super) fn pods(
        &self,
        namespace: Option<&str>,
    ) -> (u64, Vec<Pod>, broadcast::Receiver<Event>) {
        let state = self.lock();
        let here = state
            .pods
            .values()
            .filter(|pod| namespace.is_none_or(|name| name == pod.namespace));
        (
            state.version,
            here.cloned().collect(),
            self.events.subscribe(),
        )
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        let state = self.lock();
        state
            .pods
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    pub(super) fn has_namespace(&self, name: &str) -> bool {
        name == "default" || !self.pods(Some(name)).1.is_empty()
    }

    pub(super) fn apply(&self, pod: Pod) -> Pod {
        self.put(&mut self.lock(), pod)
    }

    /// Adds a pod that is created again when a client deletes it.
    pub(super) fn keep(&self, pod: Pod) {
        let mut state = self.lock();
        state.kept.push(pod.clone());
        self.put(&mut state, pod);
    }

    /// Adds a pod that must not exist.
    pub(super) fn create(&self, pod: Pod, is_dry_run: bool) -> Result<Pod, Refusal> {
        let mut state = self.lock();
        if state.pods.contains_key(&pod.key()) {
            let message = format!("pods {:?} already exists", pod.name);
            return Err(Refusal::new(StatusCode::CONFLICT, "AlreadyExists", message));
        }
        Ok(if is_dry_run {
            pod
        } else {
            self.put(&mut state, pod)
        })
    }

    /// Changes a pod that must exist.
    pub(super) fn update(
        &self,
        (namespace, name): (&str, &str),
        change: impl FnOnce(&Pod) -> Result<Pod, Refusal>,
        is_dry_run: bool,
    ) -> Result<Pod, Refusal> {
        let mut state = self.lock();
        let Some(before) = state.pods.get(&(namespace.to_owned(), name.to_owned())) else {
            return Err(Refusal::not_found("pods", name));
        };
        let after = change(before)?;
        let is_same = after == *before;
        Ok(if is_dry_run || is_same {
            after
        } else {
            self.put(&mut state, after)
        })
    }

    pub(super) fn delete(&self, namespace: &str, name: &str) -> Option<Pod> {
        let mut state = self.lock();
        let before = state
            .pods
            .remove(&(namespace.to_owned(), name.to_owned()))?;
        state.version += 1;
        let pod = Pod {
            version: state.version,
            ..before.clone()
        };
        self.publish(Some(before), pod.clone(), true);
        if let Some(successor) = state.kept.iter().find(|kept| kept.key() == pod.key()) {
            let created = SystemTime::now();
            let successor = Pod {
                created,
                ..successor.clone()
            };
            self.put(&mut state, successor);
        }
        Some(pod)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, state: &mut State, mut pod: Pod) -> Pod {
        state.version += 1;
        pod.version = state.version;
        let before = state.pods.get(&pod.key()).cloned();
        pod.born = before.as_ref().map_or(state.version, |before| before.born);
        state.pods.insert(pod.key(), pod.clone());
        self.publish(before, pod.clone(), false);
        pod
    }

    /// Called under the lock, so that a watcher that lists now sees the pod either in its list or in its events.
    fn publish(&self, before: Option<Pod>, pod: Pod, is_deletion: bool) {
        // Fails only if there is no watcher.
        drop(self.events.send(Event {
            before,
            pod,
            is_deletion,
        }));
    }
}
