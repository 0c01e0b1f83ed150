//! As much of an apiserver as the load needs: a list, a watch that can be resumed at any version, an exec that
//! echoes, and time that passes as objects that come, change and go.

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
    world: Arc<World>,
    clock: JoinHandle<()>,
}

/// What is, and everything that ever happened.
struct World {
    history: Mutex<History>,
    latest: watch::Sender<usize>,
    lists: AtomicUsize,
    watches: AtomicUsize,
}

#[derive(Default)]
struct History {
    /// The event of version `n` is the `n`th; a line each.
    events: Vec<String>,
    objects: BTreeMap<String, Value>,
}

impl Apiserver {
    pub(crate) async fn start(identity: Identity) -> Self {
        let world = Arc::new(World {
            history: Mutex::default(),
            latest: watch::Sender::new(0),
            lists: AtomicUsize::default(),
            watches: AtomicUsize::default(),
        });
        // Those who come first find something.
        (0..OBJECTS).for_each(|_| world.pass());
        let answering = Arc::clone(&world);
        let upstream = Upstream::builder(identity)
            .http(move |request| answer(Arc::clone(&answering), request))
            .start()
            .await;
        let ticking = Arc::clone(&world);
        let clock = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(400));
            loop {
                ticks.tick().await;
                ticking.pass();
            }
        });
        Self {
            upstream,
            world,
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
        *self.world.latest.borrow()
    }

    /// Lists and watches that were asked for so far.
    pub(crate) fn asked(&self) -> (usize, usize) {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (count(&self.world.lists), count(&self.world.watches))
    }

    /// From now on nothing happens any more.
    pub(crate) fn stop_time(&self) {
        self.clock.abort();
    }

    /// All objects by name, as a client reads them.
    pub(crate) fn objects(&self) -> BTreeMap<String, ConfigMap> {
        let history = self.world.history.lock().unwrap();
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

impl World {
    /// The next thing happens: an object comes or changes, or every third one goes.
    fn pass(&self) {
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

/// What is asked of a watch.
struct Watch {
    /// Events up to this one are known.
    version: usize,
    /// How long it may last.
    timeout: Duration,
    bookmarks: bool,
}

impl Watch {
    /// `None` when the query asks for a list.
    fn of(query: &str) -> Option<Self> {
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

async fn answer(world: Arc<World>, request: Request<RequestBody>) -> Response<ResponseBody> {
    let json = |body: ResponseBody| {
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        response.body(body).unwrap()
    };
    match request.uri().path() {
        "/api/v1/namespaces/default/configmaps" => {
            match Watch::of(request.uri().query().unwrap_or_default()) {
                Some(watch) => {
                    world.watches.fetch_add(1, Ordering::Relaxed);
                    json(follow(world, watch))
                }
                None => {
                    world.lists.fetch_add(1, Ordering::Relaxed);
                    json(full(world.list()))
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

/// The events after the known version, until the client stops reading or its time is over.
fn follow(world: Arc<World>, watch: Watch) -> ResponseBody {
    let (sender, body) = channel();
    tokio::spawn(async move {
        tokio::select! {
            // The client has gone or its time is over: no error to report.
            _gone = send_events(&sender, &world, &watch) => {}
            () = sender.closed() => {}
            () = sleep(watch.timeout) => {}
        }
    });
    body
}

async fn send_events(sender: &BodySender, world: &World, watch: &Watch) -> Result<(), Gone> {
    let mut latest = world.latest.subscribe();
    let mut version = watch.version;
    loop {
        let next = world.history.lock().unwrap().events.get(version).cloned();
        let Some(event) = next else {
            // The world outlives its watches, so this is a change.
            latest.changed().await.map_err(|_| Gone)?;
            continue;
        };
        version += 1;
        in_two(sender, &event).await?;
        if watch.bookmarks && version.is_multiple_of(EVENTS_PER_BOOKMARK) {
            let bookmark = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"resourceVersion": version.to_string()},
            });
            in_two(sender, &line("BOOKMARK", &bookmark)).await?;
        }
    }
}

/// So that the end of a piece is seldom the end of an event.
async fn in_two(sender: &BodySender, event: &str) -> Result<(), Gone> {
    let (one, other) = event.split_at(event.len() / 2);
    sender.send(one.to_owned()).await?;
    sender.send(other.to_owned()).await
}

/// Switches protocols and echoes.
fn exec(mut request: Request<RequestBody>) -> Response<ResponseBody> {
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(client) = upgraded.await {
            let (mut from, mut to) = split(TokioIo::new(client));
            // A client that is gone needs no echo.
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

/// Names that objects have, over and over.
const OBJECTS: usize = 10;
/// More often than a real one sends bookmarks, so that there are some between two restarts.
const EVENTS_PER_BOOKMARK: usize = 10;
