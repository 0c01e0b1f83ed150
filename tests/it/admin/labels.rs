//! Clients cannot create series, and labels contain no text of a client.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use standin::upstream::{RequestBody, ResponseBody, full};

use super::{Scrape, scrape, wait_for_numbers};
use crate::proxy::{HOST, World};

/// Text that must not appear in an exposition.
const CANARY: &str = "c4nary";

/// Responds with the status code in the query.
async fn coded(request: Request<RequestBody>) -> Response<ResponseBody> {
    let code = request.uri().query().and_then(|query| query.parse().ok());
    let mut response = Response::new(full("ok"));
    *response.status_mut() = StatusCode::from_u16(code.unwrap_or(200)).unwrap();
    response
}

fn series(scrape: &Scrape) -> usize {
    scrape.names().count()
}

#[tokio::test]
async fn hostile_requests_make_no_series() {
    let world = World::new();
    let upstream = world.apiserver().http(coded).start().await;
    let proxy = world.proxy(upstream.address()).admin().start();
    let client = proxy.client().http2().await;
    let send = async |method: &str, target: &str| {
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{HOST}{target}"))
            .header("user-agent", CANARY)
            .body(Bytes::new())
            .unwrap();
        drop(client.request(request).await);
    };
    // One request for each series that the hostile requests below count in.
    for (method, target) in [
        ("GET", "/api/v1/a"),
        ("C4NARY", "/api/v1/a"),
        ("GET", "/a"),
        ("GET", "/apis/a.example/v1/a"),
        ("GET", "/api/v1/pods/p/a"),
        ("GET", "/api/v1/pods?299"),
        ("GET", "/api/v1/pods?499"),
        ("GET", "/api/v1/pods?599"),
    ] {
        send(method, target).await;
    }
    let eighth = "requests_total{cluster=\"test\",verb=\"list\",resource=\"pods\",code=\"500\",protocol=\"h2\"}";
    let before = wait_for_numbers(proxy.admin(), &[(eighth, 1.0)]).await;

    for number in 0..100 {
        send("GET", &format!("/api/v1/{CANARY}-{number}")).await;
        send(
            &format!("C4NARY{number}"),
            &format!("/api/v1/{CANARY}-{number}"),
        )
        .await;
        send("GET", &format!("/{CANARY}-{number}/x")).await;
        send("GET", &format!("/apis/{CANARY}-{number}.example/v1/pods")).await;
        send("GET", &format!("/api/v1/pods/p/{CANARY}-{number}")).await;
        // None of these codes has a name.
        send("GET", &format!("/api/v1/pods?{}", 230 + number % 60)).await;
        send("GET", &format!("/api/v1/pods?{}", 460 + number % 30)).await;
        send("GET", &format!("/api/v1/pods?{}", 520 + number % 400)).await;
    }
    send("GET", "/version").await;
    let last = "requests_total{cluster=\"test\",verb=\"get\",resource=\"nonresource\",code=\"200\",protocol=\"h2\"}";
    let after = wait_for_numbers(proxy.admin(), &[(last, 102.0)]).await;
    assert_eq!(series(&after), series(&before), "{}", after.text);
    assert!(
        !after.text.to_ascii_lowercase().contains(CANARY),
        "{}",
        after.text
    );
    assert_eq!(series(&scrape(proxy.admin()).await), series(&before));
}
