//! `--long`: a watch must stay open. Only the library takes the time as a parameter, so most tests call it.

use std::time::{Duration, SystemTime};

use http::Response;
use kube_tls_proxy::{
    check::{Check, CheckOutcome, Finding, Plan, RESPONSE_TIMEOUT, Through, Token, run},
    config::TrustSource,
    pki::TrustAnchors,
};
use standin::{
    kubernetes::{Kubernetes, Pod},
    tcp::refused,
    upstream::{Upstream, channel},
};

use crate::world::{World, path};

/// The tests wait this long.
const SHORT: Duration = Duration::from_millis(400);
/// The tests never wait this long, only until the watch ends.
const LONG: Duration = Duration::from_secs(8);

/// Checks this server and returns the finding about its watch.
async fn watch(world: &World, upstream: &Upstream, token: &str, time: Duration) -> Finding {
    let ca = TrustSource::File(world.public_ca_file());
    let plan = Plan {
        config: None,
        through: Some(Through {
            url: "https://localhost".into(),
            host: "127.0.0.1".into(),
            port: upstream.address().port(),
            connect_to: None,
            prefix: String::new(),
            server_name: "localhost".try_into().unwrap(),
        }),
        client_trust: Some((
            "CA".into(),
            TrustAnchors::load(&ca, SystemTime::now()).unwrap(),
        )),
        question: None,
        offline: false,
        token: Some(Token::load(&world.dir.write("token", token)).unwrap()),
        client: None,
        watch: Some(time),
        response_timeout: RESPONSE_TIMEOUT,
    };
    let mut events = Vec::new();
    let report = run(&plan, &mut |event| events.push(format!("{event:?}"))).await;
    assert!(
        events
            .iter()
            .any(|event| event.contains("keeping a watch open for ")),
        "no event for the wait: {events:?}"
    );
    report
        .findings
        .into_iter()
        .find(|finding| finding.check == Check::Watch)
        .unwrap()
}

fn server(world: &World) -> standin::upstream::Builder {
    Upstream::builder(world.identity())
}

#[tokio::test]
async fn watch_that_stays_open_passes() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    cluster.apply(Pod::running("web-0"));
    let upstream = server(&world).kubernetes(&cluster).start().await;
    let start = tokio::time::Instant::now();
    let found = watch(&world, &upstream, "good", SHORT).await;
    assert_eq!(found.outcome, CheckOutcome::Ok, "{found:?}");
    assert_eq!(found.message, "a watch is still open after 400 ms");
    assert!(start.elapsed() >= SHORT);
    let watched = upstream
        .requests()
        .into_iter()
        .find(|request| request.target.contains("watch"));
    let target = watched.unwrap().target;
    assert!(
        target.starts_with("/api/v1/pods?watch=true&fieldSelector="),
        "{target}"
    );
}

#[tokio::test]
async fn watch_that_ends_early_or_is_aborted_fails() {
    for (regular, how) in [(true, "ended"), (false, "was aborted")] {
        let world = World::new();
        let cluster = Kubernetes::new();
        let upstream = server(&world)
            .http(move |request| {
                let cluster = cluster.clone();
                async move {
                    if !request.uri().query().unwrap_or_default().contains("watch") {
                        return cluster.respond(request).await;
                    }
                    let (events, body) = channel();
                    tokio::spawn(async move {
                        events.send("{}\n").await.unwrap();
                        if !regular {
                            events.abort().await;
                        }
                    });
                    Response::new(body)
                }
            })
            .start()
            .await;
        let found = watch(&world, &upstream, "any", LONG).await;
        assert_eq!(found.outcome, CheckOutcome::Failed, "{found:?}");
        assert!(
            found.message.starts_with(&format!("a watch {how} after ")),
            "{found:?}"
        );
        assert!(
            found.fix.as_ref().unwrap().contains(
                "raise the timeout of the load balancer or ingress in front of the proxy"
            ),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn token_that_may_not_watch_skips_the_watch() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    let upstream = server(&world).kubernetes(&cluster).start().await;
    let found = watch(&world, &upstream, "bad", LONG).await;
    assert_eq!(found.outcome, CheckOutcome::Skipped, "{found:?}");
    assert!(
        found.message.contains("the token may not watch pods"),
        "{found:?}"
    );
}

#[tokio::test]
async fn watch_is_skipped_without_token() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let result = world.check(upstream.address(), &["--long"]).await;
    assert_eq!(result.code, 0, "{}", result.stdout);
    assert_eq!(result.marked('–'), ["watch"]);
    assert!(result.of("watch")[0].message.contains("--token-file"));
    // The watch is listed as skipped even when an earlier check fails.
    let result = world.check(refused().await, &["--long"]).await;
    assert!(
        result
            .marked('–')
            .ends_with(&["upgrade".to_owned(), "watch".to_owned()])
    );
    // Without --long the watch is not mentioned.
    let token = world.dir.write("token", "any");
    let result = world
        .check(upstream.address(), &["--token-file", path(&token)])
        .await;
    let lines = result.lines();
    assert!(lines.iter().all(|line| line.check != "watch"), "{lines:?}");
}
