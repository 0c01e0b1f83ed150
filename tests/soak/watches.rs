//! Clients that watch without end: reflectors of kube-rs, and clients that check every line.

use std::{
    collections::BTreeMap,
    io::{Error, Result},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Config, ResourceExt as _,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use standin::client::{Client, Http1};
use tokio::{sync::watch, time::sleep};

use crate::{HOST, World, apiserver::Apiserver, load::Tally};

/// The stores of the reflectors.
#[derive(Default)]
pub(crate) struct Reflectors(Vec<reflector::Store<ConfigMap>>);

impl Reflectors {
    /// Adds a reflector. The returned future runs it until `stop`.
    pub(crate) fn reflect(
        &mut self,
        client: kube::Client,
        tally: Arc<Tally>,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (store, writer) = reflector::store();
        self.0.push(store);
        reflect(client, writer, tally, stop)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Waits until every store has exactly the objects of the apiserver. Objects must no longer change.
    pub(crate) async fn compare(&self, apiserver: &Apiserver, tally: &Tally) {
        let objects = apiserver.objects();
        let deadline = Instant::now() + Duration::from_secs(10);
        for (number, store) in self.0.iter().enumerate() {
            let known = || -> BTreeMap<String, ConfigMap> {
                let state = store.state().into_iter();
                state.map(|one| (one.name_any(), (*one).clone())).collect()
            };
            while known() != objects {
                if Instant::now() > deadline {
                    let known = known();
                    let wrong =
                        format!("reflector {number} has {known:?}, the apiserver {objects:?}");
                    tally.failed("a store", &wrong);
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

pub(crate) fn kube_client(world: &World, address: SocketAddr) -> kube::Client {
    let mut config = Config::new(format!("https://{address}").parse().unwrap());
    config.root_cert = Some(vec![world.public_ca.der().to_vec()]);
    config.tls_server_name = Some(HOST.to_owned());
    kube::Client::try_from(config).unwrap()
}

/// Counts the next event. Fails if a version is missing or repeated.
fn take_event(version: &mut usize, next: usize, tally: &Tally) {
    tally.event();
    if next != *version + 1 {
        tally.failed("a watch", &format!("event {next} after event {version}"));
    }
    *version = next;
}

/// Whether a reused connection was closed before the first byte of a response. Over HTTP/1.1 no server, not even a
/// restarting apiserver, can close a connection after a response without this race (RFC 9112 §9.5). client-go
/// retries the request itself; kube-rs first reports the error to its reflector.
fn is_reuse_race(error: &watcher::Error) -> bool {
    let watcher::Error::WatchStartFailed(error) = error else {
        return false;
    };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        }
        cause = error.source();
    }
    false
}

/// Runs a reflector of kube-rs. It lists once, and then watches again and again from the last version it saw. Every
/// other error that it reports is a failure, and so is a second list, which it needs if it lost its version.
async fn reflect(
    client: kube::Client,
    writer: reflector::store::Writer<ConfigMap>,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    let configmaps: Api<ConfigMap> = Api::namespaced(client, "default");
    let events = watcher(configmaps, watcher::Config::default()).default_backoff();
    let mut events = reflector(writer, events).boxed();
    let mut version = None;
    let mut lists = 0;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = stop.changed() => return,
        };
        match event {
            Some(Ok(watcher::Event::Apply(one) | watcher::Event::Delete(one))) => {
                let next = one.resource_version().unwrap().parse().unwrap();
                // The client does not know the version of the list, so the first event after the list sets it.
                take_event(version.get_or_insert(next - 1), next, &tally);
            }
            Some(Ok(watcher::Event::Init)) => {
                lists += 1;
                if lists > 1 {
                    tally.failed("a reflector", &"it listed again");
                }
            }
            Some(Ok(watcher::Event::InitApply(_) | watcher::Event::InitDone)) => {}
            Some(Err(error)) if is_reuse_race(&error) => tally.reflector_retry(),
            Some(Err(error)) => tally.failed("a reflector", &format!("{error:?}")),
            None => return tally.failed("a reflector", &"it ended"),
        }
    }
}

fn watch_target(version: usize) -> String {
    format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={version}")
}

/// The bytes of an event that is not complete yet.
#[derive(Default)]
struct Line(Vec<u8>);

impl Line {
    fn take(&mut self, bytes: &[u8], version: &mut usize, tally: &Tally) {
        self.0.extend_from_slice(bytes);
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.0.drain(..=end).collect();
            let event: serde_json::Value = serde_json::from_slice(&line).unwrap();
            let next = event["object"]["metadata"]["resourceVersion"].as_str();
            take_event(version, next.unwrap().parse().unwrap(), tally);
        }
    }

    fn end(&self, tally: &Tally) {
        if !self.0.is_empty() {
            tally.failed("a watch", &"it ended within a line");
        }
    }
}

/// Detects what kube-rs tolerates: a missing last chunk, and an incomplete event.
pub(crate) async fn watch_http1(
    client: Client,
    mut version: usize,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let following = follow_http1(&client, &mut version, &tally);
        let ended = tokio::select! {
            ended = following => ended,
            _ = stop.changed() => return,
        };
        if let Err(error) = ended {
            tally.failed("a watch over HTTP/1.1", &error);
        }
    }
}

async fn follow_http1(client: &Client, version: &mut usize, tally: &Tally) -> Result<()> {
    let mut connection = Http1::new(client.connect().await?);
    let target = watch_target(*version);
    connection
        .try_send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await?;
    let head = connection.head().await?;
    if head.status != 200 {
        return Err(Error::other(format!("{head:?}")));
    }
    let mut line = Line::default();
    loop {
        let chunk = connection.chunk().await?;
        if chunk.is_empty() {
            line.end(tally);
            return Ok(());
        }
        line.take(&chunk, version, tally);
    }
}

/// The same over HTTP/2, with a separate connection.
pub(crate) async fn watch_http2(
    client: Client,
    mut version: usize,
    tally: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    while !*stop.borrow() {
        let following = follow_http2(&client, &mut version, &tally);
        let ended = tokio::select! {
            ended = following => ended,
            _ = stop.changed() => return,
        };
        if let Err(error) = ended {
            tally.failed("a watch over HTTP/2", &error);
        }
    }
}

async fn follow_http2(
    client: &Client,
    version: &mut usize,
    tally: &Tally,
) -> std::result::Result<(), h2::Error> {
    let connection = client.http2().await;
    let url = format!("https://{HOST}{}", watch_target(*version));
    let mut body = connection.open(&url).await?.into_body();
    let mut line = Line::default();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        line.take(&data, version, tally);
    }
    line.end(tally);
    Ok(())
}
