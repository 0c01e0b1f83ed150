//! A small apiserver with the parts that the load needs: a list, a watch that a client can resume at any version,
//! an exec that echoes, and objects that are added, changed and removed while it runs.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};
use standin::{
    pki::Identity,
    upstream::{BodySender, Gone, RequestBody, ResponseBody, Upstream, channel, empty, full},
};
use tokio::{
    io::{copy, split},
    sync::watch,
    task::JoinHandle,
    time::{interval, sleep},
};

/// A running apiserver.
pub(crate) struct Apiserver {
    upstream: Upstream,
    store: Arc<Store>,
    clock: JoinHandle<()>,
}

/// The objects, and every event since the start.
struct Store {
    history: Mutex<History>,
    latest: watch::Sender<usize>,
    lists: AtomicUsize,
    watches: AtomicUsize,
}

#[derive(Default)]
struct History {
    /// One line per event. The event of version `n` is the `n`th.
    events: Vec<String>,
    objects: BTreeMap<String, Value>,
}

impl Apiserver {
    pub(crate) async fn start(identity: Identity) -> Self {
        let store = Arc::new(Store {
            history: Mutex::default(),
            latest: watch::Sender::new(0),
            lists: AtomicUsize::default(),
            watches: AtomicUsize::default(),
        });
        // The first clients must find some objects.
        (0..OBJECTS).for_each(|_| store.next_event());
        let serving = Arc::clone(&store);
        let upstream = Upstream::builder(identity)
            .http(move |request| respond(Arc::clone(&serving), request))
            .start()
            .await;
        let changing = Arc::clone(&store);
        let clock = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(400));
            loop {
                ticks.tick().await;
                changing.next_event();
            }
        });
        Self {
            upstream,
            store,
            clock,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.upstream.address()
    }

    /// Presents another certificate from now on.
    pub(crate) fn present(&self, identity: &Identity) {
        self.upstream.present(identity);
    }

    /// The version of the last event.
    pub(crate) fn version(&self) -> usize {
        *self.store.latest.borrow()
    }

    /// The numbers of lists and of watches that clients have requested.
    pub(crate) fn requested(&self) -> (usize, usize) {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (count(&self.store.lists), count(&self.store.watches))
    }

    /// Stops all further changes of objects.
    pub(crate) fn stop_changes(&self) {
        self.clock.abort();
    }

    /// All objects by name, as a client reads them.
    pub(crate) fn objects(&self) -> BTreeMap<String, ConfigMap> {
        let history = self.store.history.lock().unwrap();
        let objects = history.objects.iter().map(|(name, object)| {
            let object = serde_json::from_value(object.clone()).unwrap();
            (name.clone(), object)
        });
        objects.collect()
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        self.clock.abort();
    }
}

impl Store {
    /// Adds, changes or deletes the next object; every third time it deletes one.
    fn next_event(&self) {
        let mut history = self.history.lock().unwrap();
        let version = history.events.len() + 1;
        let name = format!("object-{}", version % OBJECTS);
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": version.to_string()},
            "data": {"round": (version / OBJECTS).to_string()},
        });
        let what = if !history.objects.contains_key(&name) {
            "ADDED"
        } else if (version / OBJECTS + version).is_multiple_of(3) {
            "DELETED"
        } else {
            "MODIFIED"
        };
        history.events.push(line(what, &object));
        if what == "DELETED" {
            history.objects.remove(&name);
        } else {
            history.objects.insert(name, object);
        }
        self.latest.send_replace(version);
    }

    fn list(&self) -> String {
        let history = self.history.lock().unwrap();
        let items: Vec<&Value> = history.objects.values().collect();
        let version = history.events.len().to_string();
        let metadata = json!({"resourceVersion": version});
        json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": metadata, "items": items})
            .to_string()
    }
}

fn line(what: &str, object: &Value) -> String {
    let mut line = json!({"type": what, "object": object}).to_string();
    line.push('\n');
    line
}

/// The parameters of a watch.
struct Watch {
    /// The client knows the events up to this version.
    version: usize,
    /// The longest time that it may last.
    timeout: Duration,
    bookmarks: bool,
}

impl Watch {
    /// `None` if the query is for a list.
    fn parse(query: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .find(|(found, _)| *found == name)
                .map(|(_, value)| value)
        };
        (value("watch") == Some("true")).then(|| Self {
            version: value("resourceVersion").unwrap().parse().unwrap(),
            timeout: value("timeoutSeconds").map_or(Duration::MAX, |seconds| {
                Duration::from_secs(seconds.parse().unwrap())
            }),
            bookmarks: value("allowWatchBookmarks") == Some("true"),
        })
    }
}

async fn respond(store: Arc<Store>, request: Request<RequestBody>) -> Response<ResponseBody> {
    let json = |body: ResponseBody| {
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        response.body(body).unwrap()
    };
    match request.uri().path() {
        "/api/v1/namespaces/default/configmaps" => {
            match Watch::parse(request.uri().query().unwrap_or_default()) {
                Some(watch) => {
                    store.watches.fetch_add(1, Ordering::Relaxed);
                    json(follow(store, watch))
                }
                None => {
                    store.lists.fetch_add(1, Ordering::Relaxed);
                    json(full(store.list()))
                }
            }
        }
        "/exec" => exec(request),
        _ => {
            drop(request.into_body().read().await);
            json(full("{\"ok\":true}"))
        }
    }
}

/// Sends the events after the known version, until the client stops reading or the timeout ends the watch.
fn follow(store: Arc<Store>, watch: Watch) -> ResponseBody {
    let (sender, body) = channel();
    tokio::spawn(async move {
        tokio::select! {
            // The client is gone, or the timeout has passed. Neither is an error.
            _gone = send_events(&sender, &store, &watch) => {}
            () = sender.closed() => {}
            () = sleep(watch.timeout) => {}
        }
    });
    body
}

async fn send_events(sender: &BodySender, store: &Store, watch: &Watch) -> Result<(), Gone> {
    let mut latest = store.latest.subscribe();
    let mut version = watch.version;
    loop {
        let next = store.history.lock().unwrap().events.get(version).cloned();
        let Some(event) = next else {
            // The store lives longer than its watches, so this waits for a change.
            latest.changed().await.map_err(|_| Gone)?;
            continue;
        };
        version += 1;
        send_in_two_pieces(sender, &event).await?;
        if watch.bookmarks && version.is_multiple_of(EVENTS_PER_BOOKMARK) {
            let bookmark = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"resourceVersion": version.to_string()},
            });
            send_in_two_pieces(sender, &line("BOOKMARK", &bookmark)).await?;
        }
    }
}

/// Sends an event in two pieces, so that the end of a piece is seldom the end of an event.
async fn send_in_two_pieces(sender: &BodySender, event: &str) -> Result<(), Gone> {
    let (one, other) = event.split_at(event.len() / 2);
    sender.send(one.to_owned()).await?;
    sender.send(other.to_owned()).await
}

/// Switches protocols and echoes the bytes of the client.
fn exec(mut request: Request<RequestBody>) -> Response<ResponseBody> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = upgraded.await {
            let (mut from, mut to) = split(TokioIo::new(client));
            // A failure means only that the client is gone.
            if copy(&mut from, &mut to).await.is_ok() {
                drop(tokio::io::AsyncWriteExt::shutdown(&mut to).await);
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "SPDY/3.1")
        .body(empty())
        .unwrap()
}

/// The number of object names, which are used again and again.
const OBJECTS: usize = 10;
/// More often than in a real apiserver, so that some bookmarks arrive between two restarts.
const EVENTS_PER_BOOKMARK: usize = 10;
