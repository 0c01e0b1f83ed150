//! The apiserver of a case: it has kube-apiserver's limits and its answers to bad credentials, and counts who asked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use standin::{
    pki::Identity,
    upstream::{Builder, RequestBody, ResponseBody, Upstream, channel, full},
};
use tokio::{
    sync::watch,
    time::{interval, sleep},
};

/// The tokens that the apiserver accepts.
pub(crate) const VICTIM_TOKEN: &str = "victim";
pub(crate) const ATTACKER_TOKEN: &str = "attacker";

/// Bytes of `/list`.
pub(crate) const LIST: usize = 4 << 20;
const SMALL: usize = 1024;
/// The time between two events of every watch.
const EVENT: Duration = Duration::from_millis(50);

/// What reached the apiserver.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Requests of the attacker, with its token, a wrong one or none.
    attacker: AtomicUsize,
    /// How many of them ran at once, now and at most.
    running: AtomicUsize,
    most_running: AtomicUsize,
    /// Bytes of request bodies.
    uploaded: AtomicUsize,
}

impl Counts {
    pub(crate) fn attacker(&self) -> usize {
        self.attacker.load(Ordering::Relaxed)
    }

    pub(crate) fn most_running(&self) -> usize {
        self.most_running.load(Ordering::Relaxed)
    }

    pub(crate) fn uploaded(&self) -> usize {
        self.uploaded.load(Ordering::Relaxed)
    }
}

/// A request of the attacker that runs.
struct Running(Arc<Counts>);

impl Running {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.attacker.fetch_add(1, Ordering::Relaxed);
        let running = counts.running.fetch_add(1, Ordering::Relaxed) + 1;
        counts.most_running.fetch_max(running, Ordering::Relaxed);
        Self(Arc::clone(counts))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The number of the last event. Every watch gets each event after the one with which it began.
pub(crate) type Clock = Arc<watch::Sender<u64>>;

/// An apiserver, not yet started.
pub(crate) fn builder(identity: Identity, counts: &Arc<Counts>, clock: &Clock) -> Builder {
    let (counts, clock) = (Arc::clone(counts), Arc::clone(clock));
    let list = Bytes::from(vec![b'x'; LIST]);
    Upstream::builder(identity)
        .only_counts()
        .http(move |request| {
            respond(
                Arc::clone(&counts),
                Arc::clone(&clock),
                list.clone(),
                request,
            )
        })
}

/// Adds events until it is dropped.
pub(crate) async fn tick(clock: Clock) {
    let mut ticks = interval(EVENT);
    loop {
        ticks.tick().await;
        clock.send_modify(|last| *last += 1);
    }
}

async fn respond(
    counts: Arc<Counts>,
    clock: Clock,
    list: Bytes,
    request: Request<RequestBody>,
) -> Response<ResponseBody> {
    let token = request.headers().get(header::AUTHORIZATION);
    let token = token.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let is_victim = token == Some(VICTIM_TOKEN);
    let path = request.uri().path().to_owned();
    // The proxy itself asks `/readyz`.
    let is_attacker = !is_victim && path != "/readyz";
    let running = is_attacker.then(|| Running::new(&counts));
    let is_public = matches!(path.as_str(), "/livez" | "/readyz" | "/version");
    // kube-apiserver ends an HTTP/2 connection after a request that it could not authenticate, also after an anonymous
    // one that it answers (UnauthenticatedHTTP2DOSMitigation).
    let ends = token.is_none() || !matches!(token, Some(VICTIM_TOKEN | ATTACKER_TOKEN));
    let mut response = if ends && !is_public {
        let mut response = Response::new(full(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#,
        ));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response
    } else {
        match path.as_str() {
            "/watch" => Response::new(follow(&clock)),
            "/list" => Response::new(full(list)),
            "/never" => std::future::pending().await,
            "/quiet" => Response::new(quiet()),
            "/early" => {
                let mut response = Response::new(full("too large"));
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                response
            }
            "/upload" => {
                let mut body = request.into_body();
                while let Some(Ok(frame)) = body.frame().await {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    counts.uploaded.fetch_add(bytes, Ordering::Relaxed);
                }
                Response::new(full("ok"))
            }
            "/slow" => {
                sleep(EVENT).await;
                Response::new(full("ok"))
            }
            _ => Response::new(full(vec![b'x'; SMALL])),
        }
    };
    if ends {
        let close = http::HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    // Until the response is complete or the client has gone.
    if let Some(running) = running {
        response = response.map(|body| {
            body.map_frame(move |frame| {
                let _ = &running;
                frame
            })
            .boxed_unsync()
        });
    }
    response
}

/// A watch without an event.
fn quiet() -> ResponseBody {
    let (sender, body) = channel();
    tokio::spawn(async move { sender.closed().await });
    body
}

/// A watch: one line per event, from the next one on.
fn follow(clock: &Clock) -> ResponseBody {
    let (sender, body) = channel();
    let mut latest = clock.subscribe();
    let mut sent = *latest.borrow();
    tokio::spawn(async move {
        loop {
            let last = tokio::select! {
                changed = latest.wait_for(|last| *last > sent) => match changed {
                    Ok(last) => *last,
                    Err(_) => return,
                },
                () = sender.closed() => return,
            };
            while sent < last {
                sent += 1;
                if sender.send(event(sent)).await.is_err() {
                    return;
                }
            }
        }
    });
    body
}

fn event(number: u64) -> String {
    format!(
        "{{\"type\":\"MODIFIED\",\"object\":{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\
         \"metadata\":{{\"name\":\"one\",\"resourceVersion\":\"{number}\"}}}}}}\n"
    )
}

/// The number of an event.
pub(crate) fn number(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("\"resourceVersion\":\"")?;
    rest.split('"').next()?.parse().ok()
}
