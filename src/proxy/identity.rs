//! Decides which user a client certificate stands for.
//!
//! The decision is made for each request, against the files that are in use then. The certificate belongs to the
//! connection, and the host of a request decides its cluster, so a certificate counts only for the cluster under whose
//! name the client has presented it: an HTTP/2 client may send requests for another host on the same connection. Proof:
//! tests/it `certificate_never_counts_for_another_cluster`.
//!
//! The result is kept until a file changes or a certificate or revocation list expires, so that not every request
//! verifies signatures.

use std::{
    fmt,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::{Response, StatusCode, request::Parts};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{ClientConnection, Error, Rejection, Routes, hints, policy::Route};
use crate::{
    clients,
    pki::{CertSummary, CertificateSubject, ClientCa, RefusedChain, SubjectError},
    text::error_chain,
    tls_error::ChainError,
    upstream::{NamingRight, RefusedAuthorization, RemoteUser, UserNaming, is_impersonating},
};

/// How one cluster uses client certificates.
#[derive(Debug)]
pub struct ClientCertificates {
    /// A number of its own for each snapshot: results of an older one do not count.
    generation: u64,
    ca: Arc<ClientCa>,
    allows_system: bool,
    naming: UserNaming,
    /// For the handshakes in which a certificate is asked for.
    tls: Arc<ServerConfig>,
    /// Cancelled after another snapshot is in use.
    replaced: CancellationToken,
}

impl ClientCertificates {
    /// Certificates of `ca`, whose owners `naming` names to the apiserver. `replaced` is cancelled once these
    /// settings are no longer in use.
    #[must_use]
    pub fn new(
        ca: Arc<ClientCa>,
        naming: UserNaming,
        tls: Arc<ServerConfig>,
        replaced: CancellationToken,
    ) -> Self {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        Self {
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            ca,
            allows_system: false,
            naming,
            tls,
            replaced,
        }
    }

    /// The same; `allows_system` says whether users and groups may have names that begin with `system:`.
    #[must_use]
    pub fn allowing_system(self, allows_system: bool) -> Self {
        Self {
            allows_system,
            ..self
        }
    }

    /// The settings of the handshakes in which a certificate is asked for.
    #[must_use]
    pub fn tls(&self) -> &Arc<ServerConfig> {
        &self.tls
    }

    /// The credential of the proxy that the apiserver refuses, when it answers 401 to a user whom the proxy has
    /// verified.
    pub(super) fn refused_proxy(&self) -> ProxyCredential {
        match self.naming {
            UserNaming::FrontProxy(_) => ProxyCredential::FrontProxy,
            UserNaming::Impersonator(_) => ProxyCredential::Token,
        }
    }

    /// Tells a user whom the proxy has verified that the apiserver does not accept the proxy's credential.
    pub(super) fn answered<B>(
        &self,
        downstream: &ClientConnection,
        cluster: &str,
        response: &mut Response<B>,
    ) {
        if response.status() != StatusCode::UNAUTHORIZED {
            return;
        }
        // It is that of the proxy, about which the client is told nothing else.
        response.extensions_mut().remove::<RefusedAuthorization>();
        if downstream.settings.hints {
            hints::append(response, self.refused_proxy().reason());
        }
        let client = downstream.connected.client();
        let activity = downstream.connected.counters().activity();
        let Some(suppressed) = activity.admit_line(client.ip()) else {
            return;
        };
        macro_rules! log_line {
            ($message:literal) => {
                warn!(
                    cluster,
                    client.address = %client,
                    suppressed_lines = Some(suppressed).filter(|lines| *lines > 0),
                    $message
                )
            };
        }
        match self.naming {
            UserNaming::FrontProxy(_) => log_line!(
                "apiserver refuses the front-proxy certificate; check --requestheader-client-ca-file and --requestheader-allowed-names of the apiserver"
            ),
            UserNaming::Impersonator(_) => log_line!(
                "apiserver refuses the impersonation token; renew the file of clientCertificates.impersonate.tokenFile"
            ),
        }
    }

    /// Who the owner of this certificate is, and until when.
    fn user_of(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<(CertificateUser, SystemTime), CertificateRefusal> {
        let valid_until = self.ca.verify(chain, now)?;
        let leaf = chain.first().ok_or(SubjectError::Malformed)?;
        let subject = CertificateSubject::from_der(leaf)?;
        if subject.is_of_system() && !self.allows_system {
            return Err(CertificateRefusal::System);
        }
        let fields = RemoteUser::new(&subject).map_err(|_no_field| SubjectError::UnsafeName)?;
        Ok((CertificateUser { fields, subject }, valid_until))
    }
}

/// A credential of the proxy itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyCredential {
    /// The client certificate of a front proxy.
    FrontProxy,
    /// The token of an impersonator.
    Token,
}

impl ProxyCredential {
    /// Why users get a 401 for it, and who can fix that.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::FrontProxy => FRONT_PROXY_REFUSED,
            Self::Token => TOKEN_REFUSED,
        }
    }
}

/// The owner of a client certificate that was verified.
#[derive(Debug)]
pub(super) struct CertificateUser {
    /// The fields that name the user to the apiserver.
    pub(super) fields: RemoteUser,
    subject: CertificateSubject,
}

impl CertificateUser {
    /// The user's name.
    pub(super) fn name(&self) -> &str {
        &self.subject.user
    }

    /// The SHA-256 of the certificate.
    pub(super) fn credential(&self) -> &str {
        &self.subject.sha256
    }
}

/// Why a client certificate does not count. The text holds no name, so that it can be sent to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRefusal {
    /// It cannot be verified.
    #[error("{}", phrase(*.0))]
    Chain(ChainError),
    /// It names no user.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// It names a user or group of Kubernetes itself.
    #[error(
        "names a user or group that begins with `system:`, which this proxy does not pass on (allowSystem)"
    )]
    System,
}

impl From<Box<RefusedChain>> for CertificateRefusal {
    fn from(refused: Box<RefusedChain>) -> Self {
        Self::Chain(refused.cause)
    }
}

/// The words of `tls_error` are about servers.
fn phrase(error: ChainError) -> &'static str {
    if error == ChainError::OtherPurpose {
        "is not for clients (its extended key usage lacks clientAuth)"
    } else if error == ChainError::CaForServer {
        "is a CA certificate, and those are not for clients"
    } else if error == ChainError::Untrusted {
        "is not signed by the CA that this proxy trusts for clients"
    } else {
        error.phrase()
    }
}

/// The certificate that a client has presented in the handshake. The client has proved that it has the key; nothing
/// else is verified yet.
pub struct PresentedCertificate {
    /// The name of the cluster for whose host it was asked.
    cluster: String,
    /// The leaf first.
    chain: Vec<CertificateDer<'static>>,
    routes: Box<dyn Fn() -> Arc<Routes> + Send + Sync>,
    verdict: Mutex<Option<Verdict>>,
    /// Notified when a request was sent as its owner.
    used: Notify,
}

/// The result of a verification.
struct Verdict {
    generation: u64,
    made: SystemTime,
    /// It is made again after this time.
    until: SystemTime,
    result: Result<Arc<CertificateUser>, CertificateRefusal>,
}

impl Verdict {
    fn counts(&self, generation: u64, now: SystemTime) -> bool {
        // The clock may have been set back.
        self.generation == generation && self.made <= now && now <= self.until
    }
}

impl fmt::Debug for PresentedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresentedCertificate")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl PresentedCertificate {
    /// A certificate that was presented for a host of `cluster`. `routes` returns those in use at the time of the call.
    #[must_use]
    pub fn new(
        cluster: &str,
        chain: Vec<CertificateDer<'static>>,
        routes: Box<dyn Fn() -> Arc<Routes> + Send + Sync>,
    ) -> Self {
        Self {
            cluster: cluster.to_owned(),
            chain,
            routes,
            verdict: Mutex::new(None),
            used: Notify::new(),
        }
    }

    /// The owner at `now`, and until when that needs no other check. `on_refusal` is called when a new check refuses
    /// the certificate.
    fn verify(
        &self,
        certificates: &ClientCertificates,
        now: SystemTime,
        on_refusal: impl FnOnce(CertificateRefusal),
    ) -> Result<(Arc<CertificateUser>, SystemTime), CertificateRefusal> {
        let mut verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (verdict.as_ref()).filter(|known| known.counts(certificates.generation, now));
        if let Some(known) = known {
            return known.result.clone().map(|user| (user, known.until));
        }
        let latest = now.checked_add(MAX_VERDICT_AGE).unwrap_or(now);
        let (result, until) = match certificates.user_of(&self.chain, now) {
            Ok((user, valid_until)) => (Ok(Arc::new(user)), valid_until.min(latest)),
            Err(refusal) => (Err(refusal), latest),
        };
        *verdict = Some(Verdict {
            generation: certificates.generation,
            made: now,
            until,
            result: result.clone(),
        });
        drop(verdict);
        result
            .inspect_err(|refusal| on_refusal(*refusal))
            .map(|user| (user, until))
    }

    /// Returns once a certificate that a request has used is no longer accepted: it has expired or is revoked, or the
    /// cluster does not use client certificates any more. Never returns before a request has used it.
    pub(crate) async fn ended(&self) {
        self.used.notified().await;
        // Another task of this connection may wait, too.
        self.used.notify_one();
        loop {
            let routes = (self.routes)();
            let Some(certificates) = routes.certificates_of(&self.cluster) else {
                return;
            };
            let now = SystemTime::now();
            let Ok((_, until)) = self.verify(certificates, now, |_| {}) else {
                return;
            };
            let replaced = certificates.replaced.clone().cancelled_owned();
            drop(routes);
            // One second more: at `until` itself the certificate is still valid.
            let left = until.duration_since(now).unwrap_or_default() + Duration::from_secs(1);
            tokio::select! {
                () = sleep(left) => {}
                () = replaced => {}
            }
        }
    }
}

/// Returns once the certificate of a connection ends; see [`PresentedCertificate::ended`].
pub(crate) async fn certificate_ended(certificate: Option<&PresentedCertificate>) {
    match certificate {
        // On the heap, because few connections have one.
        Some(certificate) => Box::pin(certificate.ended()).await,
        None => pending().await,
    }
}

/// Returns the user as whom a request goes to the apiserver, with the right to say so, or `None` if the request speaks
/// for itself, with or without a token. kube-apiserver decides in the same way: a valid certificate counts more than a
/// token, and one that is not valid does not break a token.
///
/// # Errors
///
/// The certificate is not accepted and the request has no token, or the proxy cannot pass the user on, or the request
/// names another user while the proxy itself impersonates.
pub(super) fn authenticate<'a>(
    route: &'a Route,
    downstream: &ClientConnection,
    head: &Parts,
) -> Result<Option<(Arc<CertificateUser>, NamingRight<'a>)>, Error> {
    let (Some(certificates), Some(presented)) = (&route.certificates, &downstream.certificate)
    else {
        return Ok(None);
    };
    let now = SystemTime::now();
    let result = if presented.cluster == route.cluster.name() {
        let report = |refusal| log_refusal(downstream, presented, refusal);
        let verified = presented.verify(certificates, now, report);
        verified.map_err(Rejection::Certificate)
    } else {
        Err(Rejection::CertificateOfOtherHost)
    };
    match result {
        Ok((user, _)) => {
            let impersonates = matches!(certificates.naming, UserNaming::Impersonator(_));
            // The apiserver would ask whether the proxy may do that, and not whether the user may.
            if impersonates && is_impersonating(&head.headers) {
                return Err(Rejection::Impersonation.into());
            }
            let right = certificates.naming.right(now)?;
            presented.used.notify_one();
            Ok(Some((user, right)))
        }
        Err(_) if clients::has_credential(head) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

/// The client learns only the reason, so the log names the certificate.
fn log_refusal(
    downstream: &ClientConnection,
    presented: &PresentedCertificate,
    refusal: CertificateRefusal,
) {
    let client = downstream.connected.client();
    let activity = downstream.connected.counters().activity();
    let Some(suppressed) = activity.admit_line(client.ip()) else {
        return;
    };
    let summary = presented.chain.first();
    let summary = summary.map(CertSummary::from_der);
    info!(
        cluster = presented.cluster,
        client.address = %client,
        tls.client.subject = summary.as_ref().map(|read| match read {
            Ok(summary) => summary.to_string(),
            Err(error) => error_chain(error).to_string(),
        }),
        reason = %refusal,
        suppressed_lines = Some(suppressed).filter(|lines| *lines > 0),
        "client certificate refused"
    );
}

/// Fuzz target: `bytes` are a certificate. Whatever they are, each name in a field for the apiserver is one that no
/// parser reads differently.
pub(super) fn fuzz(bytes: &[u8]) {
    let der = CertificateDer::from_slice(bytes);
    if let Ok(summary) = CertSummary::from_der(&der) {
        assert!(!summary.to_string().contains(char::is_control));
    }
    let Ok(subject) = CertificateSubject::from_der(&der) else {
        return;
    };
    let fields = RemoteUser::new(&subject).expect("a safe name is a valid field value");
    for value in fields.remote_fields().values() {
        let text = str::from_utf8(value.as_bytes()).expect("a safe name is UTF-8");
        assert!(!text.is_empty() && text.trim() == text && !text.contains(char::is_control));
    }
}

const FRONT_PROXY_REFUSED: &str = "the apiserver does not accept the front-proxy certificate of this proxy; ask its operator to fix that, or use a token";
const TOKEN_REFUSED: &str = "the apiserver does not accept the impersonation token of this proxy; ask its operator to fix that, or use a token of your own";
/// A verdict is made again after this time, because the clock may have been corrected.
const MAX_VERDICT_AGE: Duration = Duration::from_secs(30);
