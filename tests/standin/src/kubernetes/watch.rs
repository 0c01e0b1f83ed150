//! Lists, watches and logs: the responses that are long or do not end.

use std::{
    str::FromStr,
    time::{Duration, SystemTime},
};

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};

use super::{
    clock::rfc3339,
    query::Query,
    response::{ApiResponse, Refusal, json as json_response, ok, text},
    selector::Selector,
    store::{Event, POD_COLUMNS, Pod, Store, table},
    websocket::{self, Reader, Received},
};
use crate::upstream::{BodySender, Gone, RequestBody, channel, empty, full};

/// Whether the client prefers a table to objects.
pub(super) fn wants_table(accept: &str) -> bool {
    accept.contains("as=Table")
}

/// The response to GET for a collection of pods, with or without `watch`.
pub(super) fn pods(
    store: &Store,
    namespace: Option<&str>,
    query: &Query,
    as_table: bool,
    bookmarks: Duration,
) -> Result<ApiResponse, Refusal> {
    let selector = Selector::from_query(query).map_err(Refusal::bad_request)?;
    let (version, mut pods, events) = store.pods(namespace);
    let wanted = {
        let namespace = namespace.map(str::to_owned);
        move |pod: &Pod| {
            namespace.as_ref().is_none_or(|name| *name == pod.namespace) && selector.matches(pod)
        }
    };
    pods.retain(&wanted);
    if !query.is_set("watch") {
        return Ok(ok(&list(version, &pods, as_table)));
    }
    let initial = query.is_set("sendInitialEvents");
    // A watch with a version follows a list. The stand-in keeps no history, so "after it" means "from now on".
    if !initial
        && query
            .first("resourceVersion")
            .is_some_and(|version| version != "0")
    {
        pods.clear();
    }
    let timeout = query
        .first("timeoutSeconds")
        .and_then(|seconds| seconds.parse().ok());
    let watch = Watch {
        version,
        pods,
        initial,
        as_table,
        bookmarks: query.is_set("allowWatchBookmarks").then_some(bookmarks),
        timeout: timeout.map(Duration::from_secs),
    };
    let (sender, body) = channel();
    tokio::spawn(watch.run(sender, events, wanted));
    let mut response = json_response(StatusCode::OK, &Value::Null);
    *response.body_mut() = body;
    Ok(response)
}

/// The response to a watch over WebSocket, which sends no events. As in kube-apiserver, the `Origin` field is required.
pub(super) fn over_websocket(request: Request<RequestBody>) -> ApiResponse {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.and_then(|key| key.to_str().ok());
    let (Some(key), true) = (key, request.headers().contains_key(header::ORIGIN)) else {
        return Response::builder()
            .status(StatusCode::FORBIDDEN)
            .body(empty())
            .expect("a status is valid");
    };
    let response = websocket::switched(key)
        .body(empty())
        .expect("an accept key is a valid header");
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let mut reader = Reader::new(TokioIo::new(upgraded));
            while let Ok(Received::Message(_) | Received::Ping(_)) = reader.next().await {}
        }
    });
    response
}

fn list(version: u64, pods: &[Pod], as_table: bool) -> Value {
    if as_table {
        return table(
            version,
            POD_COLUMNS,
            &pods.iter().map(Pod::row).collect::<Vec<_>>(),
        );
    }
    json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() },
        "items": pods.iter().map(Pod::object).collect::<Vec<_>>(),
    })
}

struct Watch {
    version: u64,
    pods: Vec<Pod>,
    initial: bool,
    as_table: bool,
    bookmarks: Option<Duration>,
    timeout: Option<Duration>,
}

impl Watch {
    async fn run(
        self,
        sender: BodySender,
        mut events: tokio::sync::broadcast::Receiver<Event>,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Result<(), Gone> {
        for pod in &self.pods {
            sender.send(self.line("ADDED", pod)).await?;
        }
        if self.initial {
            sender
                .send(self.bookmark(json!({ "k8s.io/initial-events-end": "true" })))
                .await?;
        }
        // A distant time means never. With it, neither timer needs a separate branch.
        let far = Duration::from_secs(86_400 * 365);
        let end = Instant::now() + self.timeout.unwrap_or(far);
        let period = self.bookmarks.unwrap_or(far);
        let mut bookmarks = interval_at(Instant::now() + period, period);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => if let Some(kind) = event.kind(&wanted) {
                        sender.send(self.line(kind, &event.pod)).await?;
                    },
                    // The client is too slow. The real apiserver ends such a watch too.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return Ok(()),
                },
                _ = bookmarks.tick() => sender.send(self.bookmark(json!({}))).await?,
                () = sleep_until(end) => return Ok(()),
                () = sender.closed() => return Ok(()),
            }
        }
    }

    fn line(&self, kind: &str, pod: &Pod) -> String {
        let object = if self.as_table {
            table(self.version, POD_COLUMNS, &[pod.row()])
        } else {
            pod.object()
        };
        json!({ "type": kind, "object": object }).to_string() + "\n"
    }

    fn bookmark(&self, annotations: Value) -> String {
        let metadata =
            json!({ "resourceVersion": self.version.to_string(), "annotations": annotations });
        let object = if self.as_table {
            let row = json!({
                "cells": [],
                "object": { "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata },
            });
            table(self.version, POD_COLUMNS, &[row])
        } else {
            json!({ "kind": "Pod", "apiVersion": "v1", "metadata": metadata })
        };
        json!({ "type": "BOOKMARK", "object": object }).to_string() + "\n"
    }
}

/// The number of lines in a log before a client follows it.
const OLD_LINES: usize = 5;

/// The response to GET for `log`: a few old lines and, with `follow`, a new line per interval.
pub(super) fn log(pod: &Pod, query: &Query, interval: Duration) -> Result<ApiResponse, Refusal> {
    pod.check_container(query)?;
    if query.is_set("previous") {
        return Err(Refusal::bad_request(format!(
            "previous terminated container in pod {:?} not found",
            pod.name
        )));
    }
    for key in ["sinceTime", "limitBytes"] {
        if query.first(key).is_some() {
            return Err(Refusal::bad_request(format!(
                "the stand-in does not support {key}; it supports follow, tailLines, sinceSeconds and timestamps"
            )));
        }
    }
    let tail: Option<usize> = number(query, "tailLines")?;
    let since = number(query, "sinceSeconds")?.map(Duration::from_secs);
    let (name, timestamps) = (pod.name.clone(), query.is_set("timestamps"));
    let line = move |number: usize, written: SystemTime| {
        let time = if timestamps {
            rfc3339(written) + " "
        } else {
            String::new()
        };
        format!("{time}{name}: line {number}\n")
    };
    // The old lines are as old as the pod.
    let is_too_old = since.is_some_and(|since| pod.created.elapsed().is_ok_and(|age| age > since));
    let shown = if is_too_old {
        0
    } else {
        tail.unwrap_or(OLD_LINES)
    };
    let old: String = (1..=OLD_LINES)
        .skip(OLD_LINES.saturating_sub(shown))
        .map(|number| line(number, pod.created))
        .collect();
    if !query.is_set("follow") {
        return Ok(text(full(old)));
    }
    let (sender, body) = channel();
    tokio::spawn(async move {
        if !old.is_empty() {
            sender.send(old).await?;
        }
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in OLD_LINES + 1.. {
            tokio::select! {
                _ = ticks.tick() => sender.send(line(number, SystemTime::now())).await?,
                () = sender.closed() => break,
            }
        }
        Ok::<(), Gone>(())
    });
    Ok(text(body))
}

fn number<T: FromStr>(query: &Query, key: &str) -> Result<Option<T>, Refusal> {
    let parse = |text: &str| {
        let number = text.parse();
        number.map_err(|_| Refusal::bad_request(format!("{key} is not a number: {text:?}")))
    };
    query.first(key).map(parse).transpose()
}
