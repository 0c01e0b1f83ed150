//! Checks whether the pod's token may read the addresses of the apiservers, and whether each of them can be reached.

use std::{path::Path, time::Duration};

use http::StatusCode;

use super::{
    Check, Message, Plan, Recorder, apiserver, dial,
    http::{CheckClient, RequestError},
    target::CheckTarget,
};
use crate::{
    hosts::UpstreamAddr,
    quote,
    upstream::{DiscoveryError, Offer, ReadSlice},
};

/// Asks at `endpoint`, as the proxy does. Without an answer the proxy uses the address of the Service, so a refusal is
/// a warning.
pub(super) async fn check(
    plan: &Plan,
    target: &CheckTarget,
    endpoint: UpstreamAddr,
    token: &Path,
    recorder: &mut Recorder<'_>,
) {
    recorder.waiting(
        Check::Discovery,
        "asking for the addresses of the apiservers",
    );
    let client = CheckClient {
        plan,
        target,
        endpoint,
        token: None,
    };
    let (list, watch) = (ReadSlice::list(), ReadSlice::watch("", WATCH_TIME));
    let found = match ask(client, &list, token).await {
        Ok((StatusCode::OK, body)) => ReadSlice::addresses(&body).map_err(Problem::Refused),
        Ok((status, body)) => Err(list.refused(status, &body).into()),
        Err(problem) => Err(problem),
    };
    let watched = match (&found, ask(client, &watch, token).await) {
        (Err(_), _) | (_, Ok((StatusCode::OK, _))) => Ok(()),
        (_, Ok((status, body))) => Err(watch.refused(status, &body).into()),
        (_, Err(problem)) => Err(problem),
    };
    match (found, watched) {
        (Ok(found), Ok(())) => {
            let addresses: Vec<_> = found.iter().map(ToString::to_string).collect();
            let text = format!(
                "the token in {} may read the EndpointSlice default/kubernetes, which names {}",
                quote::path(token),
                addresses.join(", ")
            );
            recorder.ok(Check::Discovery, text);
            let target = CheckTarget {
                addresses: found,
                ..target.clone()
            };
            dial::check(&target, recorder).await;
        }
        (Err(Problem::Refused(error)), _) | (_, Err(Problem::Refused(error))) => {
            recorder.warning(Check::Discovery, Message::from_error(&error));
        }
        (Err(Problem::Request(error)), _) | (_, Err(Problem::Request(error))) => {
            apiserver::no_response(client, Check::Discovery, SLICE_NAME, &error, recorder);
        }
    }
}

/// Why the addresses are not known.
enum Problem {
    Request(RequestError),
    Refused(DiscoveryError),
}

impl From<DiscoveryError> for Problem {
    fn from(error: DiscoveryError) -> Self {
        Self::Refused(error)
    }
}

/// Returns the status and the body.
async fn ask(
    client: CheckClient<'_>,
    request: &ReadSlice,
    token: &Path,
) -> Result<(StatusCode, bytes::Bytes), Problem> {
    let headers = request.headers(token)?;
    let response = client.get(&request.target, Offer::Http1, headers).await;
    let response = response.map_err(Problem::Request)?;
    Ok((response.status, response.body))
}

const SLICE_NAME: &str = "the EndpointSlice default/kubernetes";
/// After this time the apiserver ends the watch, which shows only that the token may watch.
const WATCH_TIME: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Request, Response};
    use standin::{
        TempDir,
        pki::Ca,
        upstream::{RequestBody, ResponseBody, Upstream, full},
    };

    use super::super::target::TargetRole;
    use super::*;
    use crate::{
        check::{CheckOutcome, RESPONSE_TIMEOUT},
        config::Timeouts,
        upstream::ClientTls,
    };

    const NAME: &str = "kubernetes.default.svc";

    /// The first finding for an apiserver that lets the token do this, and names itself at this port.
    async fn finding(
        rights: &'static [&'static str],
        token: &str,
    ) -> (CheckOutcome, String, String) {
        let (ca, dir) = (Ca::new("cluster"), TempDir::new());
        let respond = move |request: Request<RequestBody>| async move {
            let query = request.uri().query().unwrap_or_default();
            let verb = if query.contains("watch=1") {
                "watch"
            } else {
                "list"
            };
            let is_known = request.headers()["authorization"] == "Bearer good";
            let (status, body) = match (is_known, rights.contains(&verb)) {
                (false, _) => (
                    401,
                    r#"{"kind": "Status", "message": "Unauthorized"}"#.to_owned(),
                ),
                (true, false) => (
                    403,
                    r#"{"kind": "Status", "message": "no right"}"#.to_owned(),
                ),
                (true, true) => (200, SLICE.to_owned()),
            };
            let mut response: Response<ResponseBody> = Response::new(full(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        };
        let upstream = Upstream::builder(ca.server(&[NAME]))
            .http(respond)
            .start()
            .await;
        let target = CheckTarget {
            role: TargetRole::Apiserver,
            host: "127.0.0.1".into(),
            port: upstream.address().port(),
            addresses: Vec::new(),
            outbound: None,
            tls: ClientTls::new(Arc::new(ca.roots()), NAME.try_into().unwrap()).unwrap(),
            prefix: String::new(),
            authority: NAME.into(),
            trusted: "the CA".into(),
            anchors: Vec::new(),
            url: "the URL".into(),
            timeouts: Timeouts::default(),
        };
        let plan = Plan {
            config: None,
            through: None,
            client_trust: None,
            question: None,
            offline: false,
            token: None,
            client: None,
            watch: None,
            response_timeout: RESPONSE_TIMEOUT,
        };
        let file = dir.write("token", token);
        let mut ignore = |_: crate::check::Event<'_>| {};
        let mut recorder = Recorder::new(&mut ignore);
        let endpoint = UpstreamAddr(upstream.address());
        check(&plan, &target, endpoint, &file, &mut recorder).await;
        let findings = recorder.into_report().findings;
        let first = findings.first().unwrap();
        assert_eq!(first.check, Check::Discovery);
        let dials = findings.iter().any(|one| one.check == Check::Tcp);
        assert_eq!(
            dials,
            first.outcome == CheckOutcome::Ok,
            "each address is dialled"
        );
        (
            first.outcome,
            first.message.clone(),
            first.fix.clone().unwrap_or_default(),
        )
    }

    const SLICE: &str = r#"{"metadata": {"resourceVersion": "1"}, "items": [{"addressType": "IPv4",
        "endpoints": [{"addresses": ["127.0.0.1"]}], "ports": [{"name": "https", "port": 1}]}]}"#;

    #[tokio::test]
    async fn missing_right_is_named_with_its_fix() {
        let (outcome, message, _) = finding(&["list", "watch"], "good").await;
        assert_eq!(outcome, CheckOutcome::Ok, "{message}");
        assert!(
            message.ends_with("default/kubernetes, which names 127.0.0.1:1"),
            "{message}"
        );
        for (rights, token, words, remedy) in [
            (
                &["watch"][..],
                "good",
                "let the pod list",
                "create the Role",
            ),
            (&["list"], "good", "let the pod watch", "create the Role"),
            (
                &["list", "watch"],
                "bad",
                "rejects the token",
                "mount a token",
            ),
            (
                &["list", "watch"],
                "",
                "cannot be used: it is empty",
                "write the token",
            ),
        ] {
            let (outcome, message, fix) = finding(rights, token).await;
            assert_eq!(outcome, CheckOutcome::Warning, "{message}");
            assert!(
                message.contains(words) && fix.contains(remedy),
                "{message} → {fix}"
            );
        }
    }
}
