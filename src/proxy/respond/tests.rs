//! Every error has its response, and no response reveals an address or a certificate name.

use std::{io, sync::Arc};

use http_body_util::BodyExt as _;

use super::*;
use crate::{hosts::UpstreamAddr, tls_error::ChainError, upstream::HttpError};

const NAME: &str = "secret.name.test";
const BAD_GATEWAY: u16 = 502;

/// One error of each kind, with causes that contain secrets.
fn upstream_errors() -> Vec<UpstreamError> {
    let endpoint = UpstreamAddr("192.0.2.66:6443".parse().unwrap());
    let cause = || io::Error::other(format!("{NAME} at 192.0.2.66"));
    let h2 = || h2::Error::from(h2::Reason::REFUSED_STREAM);
    vec![
        UpstreamError::NoEndpoint {
            name: NAME.to_owned(),
        },
        UpstreamError::NoSocket,
        UpstreamError::Connect {
            endpoint,
            source: cause(),
        },
        UpstreamError::ConnectTimeout { endpoint },
        UpstreamError::Verify {
            endpoint,
            source: Arc::new(cause()),
        },
        UpstreamError::Handshake {
            endpoint,
            source: cause(),
        },
        UpstreamError::Unsent {
            endpoint,
            source: HttpError::H2(h2()),
        },
        UpstreamError::Refused {
            endpoint,
            source: h2(),
        },
        UpstreamError::Lost {
            endpoint,
            source: HttpError::H2(h2()),
        },
        UpstreamError::Upload {
            source: UploadError::Reset,
        },
        UpstreamError::Upload {
            source: UploadError::TooSlow,
        },
        UpstreamError::UnsolicitedUpgrade,
        UpstreamError::Protocol {
            endpoint,
            reason: "nonsense",
        },
    ]
}

const REJECTIONS: [(Rejection, u16, &str); 26] = [
    (Rejection::Connect, 405, "MethodNotAllowed"),
    (
        Rejection::HeaderFields(7),
        431,
        "RequestHeaderFieldsTooLarge",
    ),
    (
        Rejection::HeaderBytes(7),
        431,
        "RequestHeaderFieldsTooLarge",
    ),
    (Rejection::Uri(7), 414, "RequestURITooLong"),
    (Rejection::NoHost, 400, "BadRequest"),
    (Rejection::BadHost, 400, "BadRequest"),
    (Rejection::HostMismatch, 400, "BadRequest"),
    (Rejection::NotOurs, 421, "MisdirectedRequest"),
    (Rejection::NoSuchPrefix, 421, "MisdirectedRequest"),
    (Rejection::Scheme, 400, "BadRequest"),
    (Rejection::Target, 400, "BadRequest"),
    (Rejection::TargetCharacter, 400, "BadRequest"),
    (Rejection::TransferEncoding, 400, "BadRequest"),
    (Rejection::AmbiguousLength, 400, "BadRequest"),
    (Rejection::Malformed, 400, "BadRequest"),
    (Rejection::Expectation, 417, "ExpectationFailed"),
    (Rejection::UpgradeWithBody, 400, "BadRequest"),
    (Rejection::UpgradeCheck, 400, "UpgradeCheck"),
    (
        Rejection::Certificate(CertificateRefusal::System),
        403,
        "Forbidden",
    ),
    (
        Rejection::Certificate(CertificateRefusal::Chain(ChainError::Expired)),
        401,
        "Unauthorized",
    ),
    (Rejection::CertificateOfOtherHost, 421, "MisdirectedRequest"),
    (Rejection::Impersonation, 403, "Forbidden"),
    (
        Rejection::Credential(CredentialError::RepeatedAuthorization),
        400,
        "BadRequest",
    ),
    (
        Rejection::Credential(CredentialError::RepeatedSubprotocol),
        400,
        "BadRequest",
    ),
    (
        Rejection::Credential(CredentialError::Claims),
        400,
        "BadRequest",
    ),
    (Rejection::AmbiguousPath, 400, "BadRequest"),
];

fn all_errors() -> Vec<Error> {
    let rejections = REJECTIONS
        .iter()
        .map(|(rejection, ..)| Error::from(*rejection));
    let others = [
        Error::UnexpectedProtocol,
        Error::RedirectedUpgrade,
        Error::Naming(NamingError::FrontProxyExpired),
        Error::Naming(NamingError::NoToken),
    ];
    let upstream = upstream_errors().into_iter().map(Error::from);
    rejections.chain(others).chain(upstream).collect()
}

async fn parsed(error: &Error) -> (http::response::Parts, serde_json::Value) {
    let (head, body) = respond(error, &RequestId::new(), Reader::Api).into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head, serde_json::from_slice(&body).unwrap())
}

#[test]
fn body_is_status_that_client_go_reads() {
    let id = RequestId::new();
    let status: serde_json::Value =
        serde_json::from_str(&rejected(Rejection::Uri(9)).json(&id)).unwrap();
    assert_eq!(
        status,
        serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "kube-tls-proxy: path and query are longer than 9 bytes; the limit is limits.uriBytes",
            "reason": "RequestURITooLong",
            "details": {"causes": [{"reason": "RequestID", "message": id.to_string()}]},
            "code": 414,
        })
    );
}

#[tokio::test]
async fn every_error_becomes_status_with_its_code() {
    for error in all_errors() {
        let (head, status) = parsed(&error).await;
        assert_eq!(
            head.headers[header::CONTENT_TYPE],
            "application/json",
            "{error:?}"
        );
        assert_eq!(head.headers[header::CACHE_CONTROL], "no-cache, private");
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["apiVersion"], "v1");
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["code"], head.status.as_u16(), "{error:?}");
        assert!(head.status.is_client_error() || head.status.is_server_error());
        assert!(!status["reason"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn no_message_names_address_or_certificate() {
    for error in all_errors() {
        let (_, status) = parsed(&error).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("kube-tls-proxy: "), "{message}");
        for secret in [NAME, "192.0.2.66", "6443", "nonsense", "h2"] {
            assert!(!message.contains(secret), "{secret} in {message}");
        }
    }
}

/// client-go repeats a request of any method on `Retry-After`, so a request that the apiserver may have
/// processed gets none.
#[tokio::test]
async fn only_unprocessed_request_gets_retry_after() {
    let mut with = 0;
    for error in upstream_errors() {
        let unprocessed = error.is_unprocessed();
        let verify = matches!(error, UpstreamError::Verify { .. });
        let error = Error::from(error);
        let (head, _) = parsed(&error).await;
        let retry = head.headers.get(header::RETRY_AFTER);
        assert_eq!(retry.is_some(), unprocessed && !verify, "{error:?}");
        if let Some(retry) = retry {
            with += 1;
            assert_eq!(retry, "1", "client-go reads whole seconds only");
            assert_eq!(head.status, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
    assert_eq!(with, 7);
    for error in all_errors() {
        let (head, _) = parsed(&error).await;
        let must_not_repeat = matches!(error, Error::Rejected(_) | Error::Naming(_));
        if head.status.as_u16() == BAD_GATEWAY || must_not_repeat {
            assert_eq!(head.headers.get(header::RETRY_AFTER), None, "{error:?}");
        }
    }
}

/// client-go prints the text only with these status codes.
#[tokio::test]
async fn discovery_error_is_text_with_status_that_kubectl_shows() {
    for error in all_errors() {
        let (_, json) = parsed(&error).await;
        for reader in [Reader::Discovery, Reader::Kubectl] {
            let (head, body) = respond(&error, &RequestId::new(), reader).into_parts();
            let text = body.collect().await.unwrap().to_bytes();
            assert_eq!(text, json["message"].as_str().unwrap(), "{error:?}");
            assert_eq!(head.headers[header::CONTENT_TYPE], "text/plain");
            let shown = match json["code"].as_u64().unwrap() {
                421 => 403,
                503 => 502,
                same => same,
            };
            assert_eq!(u64::from(head.status.as_u16()), shown, "{error:?}");
        }
    }
}

/// kubectl would wait for a minute; a controller may start while the apiserver restarts.
#[test]
fn only_kubectl_gets_discovery_error_without_retry_after() {
    let retry_after = |error: &Error, reader| {
        let headers = respond(error, &RequestId::new(), reader)
            .into_parts()
            .0
            .headers;
        headers.get(header::RETRY_AFTER).cloned()
    };
    for error in upstream_errors().into_iter().map(Error::from) {
        let api = retry_after(&error, Reader::Api);
        assert_eq!(retry_after(&error, Reader::Discovery), api, "{error:?}");
        assert_eq!(retry_after(&error, Reader::Kubectl), None, "{error:?}");
    }
    // It protects the proxy, and is short.
    let throttled = Rejection::Throttled(Throttled::Requests(3)).into();
    assert_eq!(retry_after(&throttled, Reader::Kubectl).unwrap(), "3");
}

#[test]
fn discovery_paths_are_recognized() {
    let reader = |method: &str, target: &str, kubectl: bool| {
        let mut request = Request::builder().method(method).uri(target);
        if kubectl {
            request = request.header("Kubectl-Command", "kubectl get");
        }
        Reader::from_request(&request.body(()).unwrap())
    };
    for target in [
        "/api",
        "/apis?timeout=32s",
        "https://kube.test/version",
        "/openapi/v2",
        "/openapi/v3/apis/apps/v1?hash=1",
    ] {
        assert_eq!(reader("GET", target, false), Reader::Discovery, "{target}");
        assert_eq!(reader("GET", target, true), Reader::Kubectl, "{target}");
        assert_eq!(reader("POST", target, true), Reader::Api, "{target}");
    }
    // client-go reads a `Status` in the responses to these.
    for target in [
        "/",
        "/api/v1",
        "/apis/apps/v1",
        "/api/v1/pods",
        "/versions",
        "/openapi",
    ] {
        assert_eq!(reader("GET", target, true), Reader::Api, "{target}");
    }
}

#[test]
fn rejection_has_code_and_reason() {
    for (rejection, code, reason) in REJECTIONS {
        let status = rejected(rejection);
        assert_eq!(
            (status.code.as_u16(), status.reason),
            (code, reason),
            "{rejection:?}"
        );
    }
}

#[test]
fn message_names_limit_as_in_configuration() {
    for (rejection, setting) in [
        (Rejection::HeaderFields(77), "limits.headerFields"),
        (Rejection::HeaderBytes(77), "limits.headerBytes"),
        (Rejection::Uri(77), "limits.uriBytes"),
    ] {
        let message = rejected(rejection).message;
        assert!(
            message.contains("77") && message.ends_with(setting),
            "{message}"
        );
    }
}

#[test]
fn upstream_error_has_code() {
    let codes: Vec<u16> = upstream_errors()
        .into_iter()
        .map(|error| error_status(&Error::from(error)).code.as_u16())
        .collect();
    let unavailable = [503; 8];
    assert_eq!(
        codes,
        [
            &unavailable[..],
            &[BAD_GATEWAY, 400, 408, BAD_GATEWAY, BAD_GATEWAY]
        ]
        .concat()
    );
    for error in [Error::UnexpectedProtocol, Error::RedirectedUpgrade] {
        assert_eq!(error_status(&error).code.as_u16(), BAD_GATEWAY);
    }
}

#[tokio::test]
async fn method_not_allowed_lists_allowed_methods() {
    let (head, _) = parsed(&Rejection::Connect.into()).await;
    let allow = head.headers[header::ALLOW].to_str().unwrap();
    assert!(allow.split(", ").any(|method| method == "PATCH") && !allow.contains("CONNECT"));
}
