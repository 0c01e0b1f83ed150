//! As much of an apiserver as the load needs: a list, a watch that can be resumed at any version, an exec that
//! echoes, and time that passes as events.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use standin::{
    pki::Identity,
    upstream::{RequestBody, ResponseBody, Upstream, channel, empty, full},
};
use tokio::{
    io::{copy, split},
    sync::watch,
    task::JoinHandle,
    time::interval,
};

/// A running apiserver.
pub(crate) struct Apiserver {
    upstream: Upstream,
    events: Arc<Events>,
    clock: JoinHandle<()>,
}

/// Everything that ever happened: the event of version `n` is the `n`th.
struct Events {
    log: Mutex<Vec<String>>,
    latest: watch::Sender<usize>,
}

impl Apiserver {
    pub(crate) async fn start(identity: Identity) -> Self {
        let events = Arc::new(Events {
            log: Mutex::new(Vec::new()),
            latest: watch::Sender::new(0),
        });
        let answering = Arc::clone(&events);
        let upstream = Upstream::builder(identity)
            .http(move |request| answer(Arc::clone(&answering), request))
            .start()
            .await;
        let ticking = Arc::clone(&events);
        let clock = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_millis(400));
            loop {
                ticks.tick().await;
                ticking.add();
            }
        });
        Self {
            upstream,
            events,
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
        *self.events.latest.borrow()
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        self.clock.abort();
    }
}

impl Events {
    fn add(&self) {
        let mut log = self.log.lock().unwrap();
        let version = log.len() + 1;
        log.push(format!(
            "{{\"type\":\"ADDED\",\"object\":{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"event-{version}\",\"namespace\":\"default\",\"resourceVersion\":\"{version}\"}}}}}}\n"
        ));
        self.latest.send_replace(version);
    }
}

async fn answer(events: Arc<Events>, request: Request<RequestBody>) -> Response<ResponseBody> {
    let json = |body: ResponseBody| {
        let response = Response::builder().header(header::CONTENT_TYPE, "application/json");
        response.body(body).unwrap()
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    match request.uri().path() {
        "/api/v1/namespaces/default/configmaps" if query.contains("watch=true") => {
            let version = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("resourceVersion="));
            json(follow(events, version.unwrap().parse().unwrap()))
        }
        "/exec" => exec(request),
        _ => {
            drop(request.into_body().read().await);
            json(full("{\"ok\":true}"))
        }
    }
}

/// The events behind this version, for as long as somebody reads them.
fn follow(events: Arc<Events>, mut version: usize) -> ResponseBody {
    let (sender, body) = channel();
    tokio::spawn(async move {
        let mut latest = events.latest.subscribe();
        loop {
            let next = events.log.lock().unwrap().get(version).cloned();
            if let Some(event) = next {
                // In two pieces, so that the end of a piece is seldom the end of an event.
                let (one, other) = event.split_at(event.len() / 2);
                for piece in [one, other] {
                    if sender.send(piece.to_owned()).await.is_err() {
                        return;
                    }
                }
                version += 1;
                continue;
            }
            tokio::select! {
                changed = latest.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    body
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
