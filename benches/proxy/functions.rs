//! Steps of every request that are pure functions, without sockets.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput};
use http::{HeaderValue, Method, Uri};
use kube_tls_proxy::bench::{Counting, classify, requests as parse_requests, rewrite_request};

use crate::{client::kubectl_fields, harness::HOST};

/// Rewriting the header fields of `kubectl get` for the apiserver.
pub(crate) fn headers(criterion: &mut Criterion) {
    let fields = kubectl_fields();
    let client = HeaderValue::from_static("192.0.2.1");
    let mut group = criterion.benchmark_group("headers");
    group.throughput(Throughput::Elements(1));
    group.bench_function("kubectl", |bencher| {
        bencher.iter_batched_ref(
            || fields.clone(),
            |fields| {
                rewrite_request(fields, black_box(&client), black_box(HOST));
                // All fields except the hop-by-hop ones, and the three that the proxy adds.
                assert_eq!(fields.len(), 6 + 3);
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// The whole cost of metrics for a request that is not logged.
pub(crate) fn counting(criterion: &mut Criterion) {
    let target = Uri::from_static("/api/v1/namespaces/default/pods?limit=500");
    let requests = Counting::new(&target);
    let mut group = criterion.benchmark_group("metrics");
    group.throughput(Throughput::Elements(1));
    group.bench_function("request", |bencher| bencher.iter(|| requests.one()));
    group.finish();
}

/// Finding out what a request is, from its bytes and from its path.
pub(crate) fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parsing");
    let requests = REQUESTS.map(|(method, target, verb, resource)| {
        let target = Uri::from_static(target);
        (method, target, verb, resource)
    });
    group.throughput(Throughput::Elements(REQUESTS.len() as u64));
    group.bench_function("resource_and_verb", |bencher| {
        bencher.iter(|| {
            for (method, target, verb, resource) in &requests {
                let (is, of, _) = classify(black_box(method), black_box(target));
                assert_eq!((is, of.as_str()), (*verb, *resource));
            }
        });
    });

    let mut head = format!("GET /api/v1/pods?limit=500 HTTP/1.1\r\nHost: {HOST}\r\n");
    for (name, value) in &kubectl_fields() {
        head.push_str(name.as_str());
        head.push_str(": ");
        head.push_str(value.to_str().expect("ASCII"));
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    group.throughput(Throughput::Bytes(head.len() as u64));
    group.bench_function("http1_head", |bencher| {
        bencher.iter(|| assert_eq!(parse_requests(black_box(head.as_bytes())).len(), 1));
    });
    group.finish();
}

/// Requests of `kubectl` and controllers, with their verb and resource.
const REQUESTS: [(Method, &str, &str, &str); 8] = [
    (Method::GET, "/version", "get", ""),
    (Method::GET, "/apis/apps/v1", "get", ""),
    (
        Method::GET,
        "/api/v1/namespaces/default/pods?limit=500",
        "list",
        "pods",
    ),
    (
        Method::GET,
        "/api/v1/namespaces/default/pods/web-7d4b9c6f5-x2x8k",
        "get",
        "pods",
    ),
    (
        Method::GET,
        "/apis/apps/v1/deployments?allowWatchBookmarks=true&resourceVersion=12345&timeoutSeconds=423&watch=true",
        "watch",
        "deployments",
    ),
    (
        Method::PATCH,
        "/apis/apps/v1/namespaces/default/deployments/web?fieldManager=kubectl-rollout",
        "patch",
        "deployments",
    ),
    (
        Method::POST,
        "/api/v1/namespaces/default/pods/web-7d4b9c6f5-x2x8k/exec?command=sh&stdin=true&stdout=true&tty=true",
        "create",
        "pods/exec",
    ),
    (
        Method::GET,
        "/api/v1/namespaces/default/pods/web-7d4b9c6f5-x2x8k/log?follow=true",
        "get",
        "pods/log",
    ),
];
