//! The pods of the small cluster, and the events that change them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::clock::{age, rfc3339};

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
            version: 0,
        }
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

    fn is_ready(&self) -> bool {
        self.phase == "Running"
    }

    fn metadata(&self) -> Value {
        json!({
            "name": self.name, "namespace": self.namespace, "uid": format!("uid-{}", self.name),
            "resourceVersion": self.version.to_string(), "creationTimestamp": rfc3339(self.created),
        })
    }

    /// The object as JSON.
    pub(super) fn object(&self) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": self.metadata(),
            "spec": { "nodeName": "node-1", "containers": [{ "name": "main", "image": "standin" }] },
            "status": {
                "phase": self.phase, "podIP": "192.0.2.1",
                "conditions": [{ "type": "Ready", "status": if self.is_ready() { "True" } else { "False" } }],
                "containerStatuses": [{
                    "name": "main", "ready": self.is_ready(), "restartCount": self.restarts,
                    "image": "standin", "imageID": "",
                }],
            },
        })
    }

    /// Its row in a table.
    pub(super) fn row(&self) -> Value {
        let ready = if self.is_ready() { "1/1" } else { "0/1" };
        let status = if self.phase == "Succeeded" {
            "Completed"
        } else {
            &self.phase
        };
        json!({
            "cells": [self.name, ready, status, self.restarts.to_string(), age(self.created), "192.0.2.1", "node-1"],
            "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": self.metadata() },
        })
    }
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
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) kind: &'static str,
    pub(super) pod: Pod,
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
}

impl Store {
    pub(super) fn new() -> Self {
        let state = State {
            version: 1_000,
            pods: BTreeMap::new(),
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
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .pods
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    pub(super) fn apply(&self, mut pod: Pod) -> Pod {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.version += 1;
        pod.version = state.version;
        let before = state
            .pods
            .insert((pod.namespace.clone(), pod.name.clone()), pod.clone());
        let kind = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        // Sent under the lock, so that a watcher that lists now sees the pod either in its list or in its
        // events. Fails only if there is no watcher.
        drop(self.events.send(Event {
            kind,
            pod: pod.clone(),
        }));
        pod
    }

    pub(super) fn delete(&self, namespace: &str, name: &str) -> Option<Pod> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = state
            .pods
            .remove(&(namespace.to_owned(), name.to_owned()))?;
        state.version += 1;
        let pod = Pod {
            version: state.version,
            ..pod
        };
        // As in `apply`.
        drop(self.events.send(Event {
            kind: "DELETED",
            pod: pod.clone(),
        }));
        Some(pod)
    }
}
