//! `--long`: whether a watch stays open. The time is a parameter of the library; the command line has but
//! one.

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

/// Waited for in full.
const SHORT: Duration = Duration::from_millis(400);
/// Never waited for in full, only until the watch ends.
const LONG: Duration = Duration::from_secs(8);

/// What is found about a watch at this server.
async fn watch(world: &World, upstream: &Upstream, token: &str, time: Duration) -> Finding {
    let ca = TrustSource::File(world.public_ca_file());
    let plan = Plan {
        config: None,
        through: Some(Through {
            url: "https://localhost".into(),
            host: "127.0.0.1".into(),
            port: upstream.address().port(),
            prefix: String::new(),
            server_name: "localhost".try_into().unwrap(),
        }),
        client_trust: Some((
            "CA".into(),
            TrustAnchors::load(&ca, SystemTime::now()).unwrap(),
        )),
        token: Some(Token::load(&world.dir.write("token", token)).unwrap()),
        watch: Some(time),
        response_timeout: RESPONSE_TIMEOUT,
    };
    let mut told = Vec::new();
    let report = run(&plan, &mut |event| told.push(format!("{event:?}"))).await;
    assert!(
        told.iter()
            .any(|event| event.contains("whether a watch stays open for ")),
        "the wait is told: {told:?}"
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
async fn a_watch_that_stays_open_is_well() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    cluster.apply(Pod::running("web-0"));
    let upstream = server(&world).kubernetes(&cluster).start().await;
    let begun = tokio::time::Instant::now();
    let found = watch(&world, &upstream, "good", SHORT).await;
    assert_eq!(found.outcome, CheckOutcome::Ok, "{found:?}");
    assert_eq!(found.message, "a watch is still open after 400 ms");
    assert!(begun.elapsed() >= SHORT);
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
async fn a_watch_that_is_cut_or_ends_early_is_named() {
    for (in_order, how) in [(true, "ended"), (false, "cut")] {
        let world = World::new();
        let cluster = Kubernetes::new();
        let upstream = server(&world)
            .http(move |request| {
                let cluster = cluster.clone();
                async move {
                    if !request.uri().query().unwrap_or_default().contains("watch") {
                        return cluster.answer(request).await;
                    }
                    let (events, body) = channel();
                    tokio::spawn(async move {
                        events.send("{}\n").await.unwrap();
                        if !in_order {
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
            found
                .message
                .starts_with(&format!("a watch is {how} after ")),
            "{found:?}"
        );
        assert!(
            found
                .fix
                .as_ref()
                .unwrap()
                .contains("raise the timeout of what stands before the proxy"),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn a_token_that_may_watch_nothing_is_said() {
    let world = World::new();
    let cluster = Kubernetes::new().token("good", "jane", &[]);
    let upstream = server(&world).kubernetes(&cluster).start().await;
    let found = watch(&world, &upstream, "bad", LONG).await;
    assert_eq!(found.outcome, CheckOutcome::Skipped, "{found:?}");
    assert!(
        found.message.contains("the token may watch no pods"),
        "{found:?}"
    );
}

#[tokio::test]
async fn without_a_token_no_watch_is_tried() {
    let world = World::new();
    let upstream = world.apiserver().start().await;
    let ended = world.check(upstream.address(), &["--long"]).await;
    assert_eq!(ended.code, 0, "{}", ended.stdout);
    assert_eq!(ended.marked('–'), ["watch"]);
    assert!(ended.of("watch")[0].what.contains("--token-file"));
    // Nor is it forgotten when nothing came so far.
    let ended = world.check(refused().await, &["--long"]).await;
    assert!(
        ended
            .marked('–')
            .ends_with(&["upgrade".to_owned(), "watch".to_owned()])
    );
    // And without --long it is not spoken of.
    let token = world.dir.write("token", "any");
    let ended = world
        .check(upstream.address(), &["--token-file", path(&token)])
        .await;
    assert!(!ended.stdout.contains("watch"), "{}", ended.stdout);
}
