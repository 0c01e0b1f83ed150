//! Sends requests to the ACME directory, each on a verified connection of its own.
//!
//! The responses come from another organization: their size, their time and the text that a log line repeats of them
//! are bounded.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, pending},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    config::{AcmeConfig, TrustSource},
    pki::{self, PkiError, TrustAnchors},
    text::error_chain,
};

/// Sends requests to a directory.
pub(super) struct DirectoryClient {
    tls: TlsConnector,
    retry_after: Arc<RetryAfter>,
}

/// The `Retry-After` of the last response that was an error.
#[derive(Debug, Default)]
pub(super) struct RetryAfter(Mutex<Option<Duration>>);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error("the URL {0} is not an https URL")]
    Url(String),
    #[error("the URL has no valid host")]
    Host(#[from] InvalidDnsNameError),
    #[error("cannot connect to {host}")]
    Connect {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection was closed before the response was complete")]
    Closed(#[from] hyper::Error),
    #[error("cannot read the response")]
    Body(#[source] Box<dyn Error + Send + Sync>),
    #[error("no response within {REQUEST_TIMEOUT:?}")]
    Timeout,
    #[error("the response is {0}")]
    Status(StatusCode),
}

impl DirectoryClient {
    /// A client that trusts only directories whose chain ends at `roots`.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub(super) fn new(
        roots: Arc<RootCertStore>,
        retry_after: Arc<RetryAfter>,
    ) -> Result<Self, rustls::Error> {
        let mut config = ClientConfig::builder_with_provider(pki::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            retry_after,
        })
    }
}

impl HttpClient for DirectoryClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let (tls, retry_after) = (self.tls.clone(), Arc::clone(&self.retry_after));
        Box::pin(async move {
            let exchanged = timeout(REQUEST_TIMEOUT, exchange(&tls, request)).await;
            let mut response = exchanged
                .unwrap_or(Err(DirectoryError::Timeout))
                .map_err(|error| instant_acme::Error::Other(Box::new(error)))?;
            let wait = limit_retry_after(response.headers_mut(), SystemTime::now());
            if is_error(response.status()) {
                retry_after.note(wait);
                // Without a problem document there is nothing that the library could read.
                if !is_problem(&response) {
                    let error = DirectoryError::Status(response.status());
                    return Err(instant_acme::Error::Other(Box::new(error)));
                }
            }
            Ok(response.map(Full::new).into())
        })
    }
}

/// Checks that the directory of `config` answers.
///
/// # Errors
///
/// Why it does not, in words.
pub(crate) async fn check(config: &AcmeConfig) -> Result<(), String> {
    let words = |error: &(dyn Error + 'static)| error_chain(error).to_string();
    let roots = roots(config).map_err(|error| words(&error))?;
    let client = DirectoryClient::new(roots, Arc::default()).map_err(|error| words(&error))?;
    let request = Request::get(&config.directory).body(BodyWrapper::default());
    let request = request.map_err(|error| words(&error))?;
    let exchanged = timeout(REQUEST_TIMEOUT, exchange(&client.tls, request)).await;
    let response = exchanged.unwrap_or(Err(DirectoryError::Timeout));
    let response = response.map_err(|error| words(&error))?;
    if response.status() != StatusCode::OK {
        return Err(words(&DirectoryError::Status(response.status())));
    }
    let directory: Option<Value> = serde_json::from_slice(response.body()).ok();
    let orders = directory.as_ref().and_then(|it| it.get("newOrder"));
    orders
        .map(|_url| ())
        .ok_or_else(|| NOT_A_DIRECTORY.to_owned())
}

/// The CAs that may have issued the certificate of the directory.
pub(super) fn roots(config: &AcmeConfig) -> Result<Arc<RootCertStore>, PkiError> {
    match &config.directory_ca {
        None => Ok(pki::public_roots()),
        Some(file) => {
            let source = TrustSource::File(file.clone());
            Ok(TrustAnchors::load(&source, SystemTime::now())?.roots())
        }
    }
}

impl RetryAfter {
    /// The time that the last error asked to wait, once.
    pub(super) fn take(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, wait: Option<Duration>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = wait;
    }
}

/// The wait that a response asks for, at most a day. A longer one is shortened in the field too, because the library
/// adds it to the time, which may overflow.
fn limit_retry_after(headers: &mut HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let asked = delay(value.trim(), now)?;
    if asked > MAX_RETRY_AFTER {
        let seconds = HeaderValue::from(MAX_RETRY_AFTER.as_secs());
        headers.insert(header::RETRY_AFTER, seconds);
    }
    Some(asked.min(MAX_RETRY_AFTER))
}

/// Seconds, or a date (RFC 9110 §10.2.3).
fn delay(value: &str, now: SystemTime) -> Option<Duration> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn is_problem<B>(response: &Response<B>) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"))
}

async fn exchange(
    tls: &TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Bytes>, DirectoryError> {
    let uri = request.uri();
    let (Some(authority), true) = (
        uri.authority().cloned(),
        uri.scheme() == Some(&Scheme::HTTPS),
    ) else {
        return Err(DirectoryError::Url(uri.to_string()));
    };
    // A request to an origin server has path and query only (RFC 9112 §3.2.1).
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let target = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
    *request.uri_mut() = target;
    if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let host = authority.host().trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned())?;
    let failed = |source| DirectoryError::Connect {
        host: authority.to_string(),
        source,
    };
    let port = authority.port_u16().unwrap_or(HTTPS_PORT);
    let tcp = TcpStream::connect((host, port)).await.map_err(failed)?;
    let stream = tls.connect(name, tcp).await.map_err(failed)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let response = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(DirectoryError::Body)?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    let connection = async {
        // The response has the error, or is complete.
        connection.await.ok();
        pending::<Infallible>().await
    };
    tokio::select! {
        response = response => response,
        never = connection => match never {},
    }
}

const NOT_A_DIRECTORY: &str = "the response is not an ACME directory";
const HTTPS_PORT: u16 = 443;
/// Asking a directory once a day harms it in no case.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// A chain has a few KiB.
const MAX_BODY: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date_of_at_most_a_day() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (given, passed, wait) in [
            ("120", "120", Some(120)),
            ("86400", "86400", Some(86_400)),
            // These would overflow the clock.
            ("18446744073709551615", "86400", Some(86_400)),
            ("99999999999999999999999", "86400", Some(86_400)),
            (IN_TWO_MINUTES, IN_TWO_MINUTES, Some(120)),
            (IN_THE_PAST, IN_THE_PAST, Some(0)),
            // It would put the renewal off beyond the end of the certificate.
            ("Fri, 31 Dec 9999 23:59:59 GMT", "86400", Some(86_400)),
            ("soon", "soon", None),
            ("-1", "-1", None),
            ("", "", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, given.parse().unwrap());
            let limited = limit_retry_after(&mut headers, now);
            assert_eq!(limited, wait.map(Duration::from_secs), "{given}");
            assert_eq!(headers[header::RETRY_AFTER], passed, "{given}");
        }
    }

    const IN_TWO_MINUTES: &str = "Sun, 06 Nov 1994 08:51:37 GMT";
    const IN_THE_PAST: &str = "Sun, 06 Nov 1994 08:00:00 GMT";
}
