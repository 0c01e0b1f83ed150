//! Budgets of one client: requests, and responses that refuse a credential.
//!
//! Each 401, and each 403 to a request without a credential, takes a token from the bucket of its credential. While
//! that bucket is empty, the proxy itself refuses the credential with the status code of the apiserver. A 401 stays a
//! 401: kubectl then prints the right message, and client-go would repeat the request ten times after a 429. One
//! request passes per refilled token, so that the proxy soon serves a credential that becomes valid.
//!
//! Each client also has one bucket for the refusals of all its credentials, ten times as large. It stops a client that
//! guesses with a new credential each time. While this bucket is empty, requests with a credential that the apiserver
//! has accepted pass, and each connection has one attempt with an unknown credential. So a user behind the same NAT is
//! served even with a new token, and each guess costs the attacker a handshake. A request with an unknown credential
//! takes its token at once, because otherwise guesses at the same time would be free. It gets the token back unless
//! the credential is refused.
//!
//! The proxy stores a hash of each credential, with a random key of this process. No log and no page shows the hash.

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode, header, request::Parts};
use tokio::time::Instant;

use crate::{
    config::Limits,
    text::{WEBSOCKET_TOKEN, list_items},
    token_bucket::{TokenBucket, TokenBucketSize},
    upgrade_token::UpgradeToken,
};

/// What all clients have in common.
#[derive(Debug)]
pub(super) struct BudgetSizes {
    /// Refusals of one credential.
    credential: TokenBucketSize,
    /// Refusals of one client.
    all: TokenBucketSize,
    requests: Option<TokenBucketSize>,
    hash_key: RandomState,
}

/// The budgets of one client. A request of a client that was never refused reads one flag.
#[derive(Debug)]
pub(super) struct ClientBudget {
    /// Whether the requests of the client are checked.
    is_checked: AtomicBool,
    requests: Mutex<TokenBucket>,
    refusals: Mutex<Refusals>,
}

/// Credentials that the apiserver has refused or accepted, since the first one was refused.
#[derive(Debug)]
struct Refusals {
    all: TokenBucket,
    /// The most recently used credential is at the end.
    refused: Vec<RefusedCredential>,
    accepted: Vec<CredentialHash>,
    /// 401s that came before the requests were checked. The next credential that is refused pays for them.
    unattributed: u32,
    /// All 401s, for the status page.
    unauthorized: u64,
    keep_until: Instant,
}

#[derive(Debug)]
struct RefusedCredential {
    hash: CredentialHash,
    bucket: TokenBucket,
    status: StatusCode,
}

/// What one connection has tried.
#[derive(Default)]
pub(super) struct ConnectionCredentials {
    /// Whether it has used its one attempt with an unknown credential, which it has while the client's bucket for all
    /// refusals is empty.
    has_tried: AtomicBool,
    /// The hash of the credential that the apiserver has accepted last; 0 before that.
    accepted: AtomicU64,
}

/// A hash of the cluster and the credential of a request. Without a credential, its method and path take its part.
#[derive(Clone, Copy, PartialEq, Eq)]
struct CredentialHash(u64);

/// What the budgets know of a request that may pass.
#[derive(Debug, Clone, Copy)]
pub enum BudgetCheck {
    /// The request was not checked, because the apiserver has refused no credential of its client.
    Unchecked {
        /// Whether the request has a credential.
        has_credential: bool,
    },
    /// The request was checked.
    Checked(CheckedCredential),
}

/// The credential of a request that was checked.
#[derive(Debug, Clone, Copy)]
pub struct CheckedCredential {
    hash: CredentialHash,
    is_anonymous: bool,
    /// Whether the request has taken a token of the credential, because that was refused before.
    has_token: bool,
    /// Whether the request has taken a token of the client. It gets that back unless the credential is refused.
    has_client_token: bool,
}

/// Why a request may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttled {
    /// The apiserver has answered requests with this credential with this status code too often.
    Refused(StatusCode),
    /// The client tries too many credentials. Seconds until it may try another one.
    Guesses(u32),
    /// The client sends too many requests. Seconds until it may send another one.
    Requests(u32),
}

impl Throttled {
    /// The setting of the limit.
    #[must_use]
    pub fn setting(self) -> &'static str {
        match self {
            Self::Refused(_) | Self::Guesses(_) => "limits.unauthorizedPerClient",
            Self::Requests(_) => "limits.requestsPerClient",
        }
    }
}

impl BudgetSizes {
    pub(super) fn new(limits: &Limits) -> Self {
        let credential = limits.unauthorized_per_client;
        Self {
            credential,
            all: TokenBucketSize {
                max_tokens: credential.max_tokens.saturating_mul(GUESSES_FACTOR),
                fill_interval: credential.fill_interval / GUESSES_FACTOR,
            },
            requests: limits.requests_per_client,
            hash_key: RandomState::new(),
        }
    }

    /// The sizes for other limits. Credentials keep their hashes.
    pub(super) fn resized(&self, limits: &Limits) -> Self {
        Self {
            hash_key: self.hash_key.clone(),
            ..Self::new(limits)
        }
    }

    fn credential_of(
        &self,
        cluster: &str,
        (request, certificate): RequestCredential<'_>,
    ) -> CheckedCredential {
        let mut hasher = self.hash_key.build_hasher();
        // A token that one cluster refuses may be valid for another one.
        hasher.write(cluster.as_bytes());
        hasher.write_u8(b'\n');
        let mut is_anonymous = true;
        let fields = certificate.is_none().then(|| credentials(request));
        if let Some(certificate) = certificate {
            is_anonymous = false;
            hasher.write(certificate.as_bytes());
        }
        for value in fields.into_iter().flatten() {
            is_anonymous = false;
            hasher.write(value.as_bytes());
            hasher.write_u8(b'\n');
        }
        if is_anonymous {
            hasher.write(request.method.as_str().as_bytes());
            hasher.write(request.uri.path().as_bytes());
        }
        CheckedCredential {
            hash: CredentialHash(hasher.finish()),
            is_anonymous,
            has_token: false,
            has_client_token: false,
        }
    }
}

impl ConnectionCredentials {
    fn has_accepted(&self, hash: CredentialHash) -> bool {
        self.accepted.load(Ordering::Relaxed) == hash.0
    }
}

impl fmt::Debug for ConnectionCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionCredentials")
    }
}

/// The head of a request, and the fingerprint of the client certificate that counts instead of its header fields.
type RequestCredential<'a> = (&'a Parts, Option<&'a str>);

/// Whether a header field authenticates the request.
pub(crate) fn has_credential(request: &Parts) -> bool {
    credentials(request).next().is_some()
}

/// The header fields with the tokens that the apiserver verifies before it serves the request. It ignores every other
/// credential: user name and password, a second `Authorization`, and a subprotocol of a request that is no upgrade. A
/// request with one of these is anonymous, and a response to it accepts nothing.
fn credentials(request: &Parts) -> impl Iterator<Item = &HeaderValue> {
    let is_bearer = |value: &&HeaderValue| {
        let mut words = value.as_bytes().split(|byte| *byte == b' ');
        let scheme = words.next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"bearer")
            && words.next().is_some_and(|token| !token.is_empty())
    };
    let has_token = |value: &&HeaderValue| {
        let mut items = list_items(value.as_bytes());
        let token = |item: &[u8]| {
            item.strip_prefix(WEBSOCKET_TOKEN.as_bytes())
                .map(<[u8]>::is_empty)
        };
        items.any(|item| token(item) == Some(false))
    };
    let headers = &request.headers;
    let authorization = headers.get(header::AUTHORIZATION).filter(is_bearer);
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let protocols = protocols.filter(has_token);
    let is_websocket = |_: &_| UpgradeToken::requested_by(request) == Some(UpgradeToken::WebSocket);
    authorization
        .into_iter()
        .chain(protocols.filter(is_websocket))
}

impl BudgetCheck {
    fn unchecked((request, certificate): RequestCredential<'_>) -> Self {
        let has_credential = certificate.is_some() || has_credential(request);
        Self::Unchecked { has_credential }
    }

    /// Whether this status code proves that the apiserver has accepted the credential. The apiserver and proxies
    /// before it send most others before they check it: `?timeout=x` gets a 400 whatever the token is.
    pub(super) fn is_accepted(self, status: StatusCode) -> bool {
        self.has_credential() && is_accepted(status)
    }

    /// Whether the request has a credential that the apiserver can read.
    #[must_use]
    pub fn has_credential(self) -> bool {
        match self {
            Self::Unchecked { has_credential } => has_credential,
            Self::Checked(credential) => !credential.is_anonymous,
        }
    }
}

fn is_accepted(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        // The apiserver answers the preflight request of a browser with 204 whatever the token is.
        101 | 200..=203 | 205..=399 | 403 | 404 | 409 | 410 | 422
    )
}

/// Whether this status code refuses the credential. A 403 to a request with a credential is about a permission.
fn is_refused(status: StatusCode, has_credential: bool) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN && !has_credential
}

impl ClientBudget {
    pub(super) fn new(sizes: &BudgetSizes) -> Self {
        let now = Instant::now();
        let full = TokenBucket::new(now);
        Self {
            is_checked: sizes.requests.is_some().into(),
            requests: Mutex::new(full),
            refusals: Mutex::new(Refusals {
                all: full,
                refused: Vec::new(),
                accepted: Vec::new(),
                unattributed: 0,
                unauthorized: 0,
                keep_until: now,
            }),
        }
    }

    /// Checks the requests of the client, which had no limit before.
    pub(super) fn check_from_now_on(&self) {
        self.is_checked.store(true, Ordering::Relaxed);
    }

    /// Decides whether a request may pass.
    #[inline]
    pub(super) fn check(
        &self,
        sizes: &ArcSwap<BudgetSizes>,
        connection: &ConnectionCredentials,
        cluster: &str,
        request: RequestCredential<'_>,
    ) -> Result<BudgetCheck, Throttled> {
        if self.is_checked.load(Ordering::Relaxed) {
            self.check_buckets(&sizes.load(), connection, cluster, request)
        } else {
            Ok(BudgetCheck::unchecked(request))
        }
    }

    fn check_buckets(
        &self,
        sizes: &BudgetSizes,
        connection: &ConnectionCredentials,
        cluster: &str,
        request: RequestCredential<'_>,
    ) -> Result<BudgetCheck, Throttled> {
        let now = Instant::now();
        if let Some(size) = &sizes.requests {
            let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = requests.take(size, now);
            taken.map_err(|wait| Throttled::Requests(seconds(wait)))?;
        }
        let mut refusals = self.refusals();
        if refusals.are_over(now) {
            refusals.forget();
            // Before the lock is released, so that a refusal at the same time sets it again.
            self.is_checked
                .store(sizes.requests.is_some(), Ordering::Relaxed);
            return Ok(BudgetCheck::unchecked(request));
        }
        // A head may have a megabyte, and other workers must not wait while it is hashed.
        drop(refusals);
        let mut credential = sizes.credential_of(cluster, request);
        // Other users of the same address cannot displace what the connection itself remembers.
        if connection.has_accepted(credential.hash) {
            return Ok(BudgetCheck::Checked(credential));
        }
        let mut refusals = self.refusals();
        if refusals.accepted.contains(&credential.hash) {
            return Ok(BudgetCheck::Checked(credential));
        }
        let mut known = refusals.refused.iter();
        let known = known.position(|known| known.hash == credential.hash);
        if let Some(mut known) = known.map(|at| refusals.refused.remove(at)) {
            credential.has_token = known.bucket.take(&sizes.credential, now).is_ok();
            let status = known.status;
            refusals.refused.push(known);
            if !credential.has_token {
                return Err(Throttled::Refused(status));
            }
            credential.has_client_token = refusals.all.take(&sizes.all, now).is_ok();
        } else {
            // Taken before the response is known, so that guesses at the same time are not free.
            let taken = refusals.all.take(&sizes.all, now);
            credential.has_client_token = taken.is_ok();
            if let Err(wait) = taken
                && connection.has_tried.swap(true, Ordering::Relaxed)
            {
                return Err(Throttled::Guesses(seconds(wait)));
            }
        }
        Ok(BudgetCheck::Checked(credential))
    }

    /// Notes the status code with which the apiserver has answered a request.
    #[inline]
    pub(super) fn answered(
        &self,
        sizes: &ArcSwap<BudgetSizes>,
        connection: &ConnectionCredentials,
        check: BudgetCheck,
        status: StatusCode,
    ) {
        match check {
            BudgetCheck::Unchecked { has_credential } => {
                if is_refused(status, has_credential) {
                    self.begin(&sizes.load(), status);
                }
            }
            BudgetCheck::Checked(credential) => {
                self.note(&sizes.load(), connection, credential, status)
            }
        }
    }

    /// Begins to check the requests of the client.
    fn begin(&self, sizes: &BudgetSizes, status: StatusCode) {
        let now = Instant::now();
        let mut refusals = self.refusals();
        refusals.keep_until = now + sizes.credential.fill_interval;
        // A request without a credential guesses none, so its 403 takes no token here.
        if status == StatusCode::UNAUTHORIZED {
            refusals.unauthorized = refusals.unauthorized.saturating_add(1);
            refusals.all.take(&sizes.all, now).ok();
            refusals.unattributed = refusals.unattributed.saturating_add(1);
        }
        self.is_checked.store(true, Ordering::Relaxed);
    }

    fn note(
        &self,
        sizes: &BudgetSizes,
        connection: &ConnectionCredentials,
        credential: CheckedCredential,
        status: StatusCode,
    ) {
        let now = Instant::now();
        let mut refusals = self.refusals();
        if is_refused(status, !credential.is_anonymous) {
            if status == StatusCode::UNAUTHORIZED {
                refusals.unauthorized = refusals.unauthorized.saturating_add(1);
            }
            if connection.has_accepted(credential.hash) {
                connection.accepted.store(0, Ordering::Relaxed);
            }
            if !credential.has_client_token {
                refusals.all.take(&sizes.all, now).ok();
            }
            refusals.refuse(&sizes.credential, credential, status, now);
            return;
        }
        if credential.has_client_token {
            refusals.all.put_back(&sizes.all);
        }
        if is_accepted(status) {
            connection
                .accepted
                .store(credential.hash.0, Ordering::Relaxed);
            refusals.accept(credential);
        }
    }

    /// How many responses were 401.
    pub(super) fn unauthorized(&self) -> u64 {
        self.refusals().unauthorized
    }

    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the budget must outlive the connections of the client.
    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        if !self.is_checked.load(Ordering::Relaxed) {
            return false;
        }
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = self.refusals();
        !requests.is_full(now) || !refusals.are_over(now)
    }
}

impl Refusals {
    /// Whether all buckets are full again.
    fn are_over(&self, now: Instant) -> bool {
        let mut buckets = self.refused.iter().map(|known| known.bucket);
        now >= self.keep_until && self.all.is_full(now) && buckets.all(|bucket| bucket.is_full(now))
    }

    fn forget(&mut self) {
        (self.refused, self.accepted) = (Vec::new(), Vec::new());
        self.unattributed = 0;
    }

    fn refuse(
        &mut self,
        size: &TokenBucketSize,
        credential: CheckedCredential,
        status: StatusCode,
        now: Instant,
    ) {
        let hash = credential.hash;
        self.accepted.retain(|accepted| *accepted != hash);
        let known = self.refused.iter().position(|known| known.hash == hash);
        let mut bucket = match known.map(|at| self.refused.remove(at)) {
            Some(known) => known.bucket,
            None => TokenBucket::new(now),
        };
        let mut owed = u32::from(!credential.has_token);
        if status == StatusCode::UNAUTHORIZED {
            owed += std::mem::take(&mut self.unattributed);
        }
        for _ in 0..owed {
            if bucket.take(size, now).is_err() {
                break;
            }
        }
        push_bounded(
            &mut self.refused,
            RefusedCredential {
                hash,
                bucket,
                status,
            },
            MAX_REFUSED,
        );
    }

    fn accept(&mut self, credential: CheckedCredential) {
        let hash = credential.hash;
        self.refused.retain(|known| known.hash != hash);
        // The paths that are open to all are many, and would displace the credentials.
        if !credential.is_anonymous && self.accepted.last() != Some(&hash) {
            self.accepted.retain(|accepted| *accepted != hash);
            push_bounded(&mut self.accepted, hash, MAX_ACCEPTED);
        }
    }
}

/// Adds an item at the end, and removes the first one if there are more than `max`.
fn push_bounded<T>(items: &mut Vec<T>, item: T, max: usize) {
    if items.len() >= max {
        items.remove(0);
    }
    items.push(item);
}

impl fmt::Debug for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialHash")
    }
}

/// For `Retry-After`, which has whole seconds: rounded up.
fn seconds(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
}

/// How many times as many refusals all credentials of a client may have together.
const GUESSES_FACTOR: u32 = 10;
/// Refused credentials that are known of one client. With more, the bucket of the client acts.
const MAX_REFUSED: usize = 16;
/// Accepted credentials that are known of one client, while its requests are checked. A client needs 1 KiB at most.
const MAX_ACCEPTED: usize = 64;

#[cfg(test)]
mod tests {
    use http::Request;
    use tokio::time::advance;

    use super::*;

    const COUNT: u32 = 4;
    const PER: Duration = Duration::from_secs(60);

    struct World {
        sizes: ArcSwap<BudgetSizes>,
        budget: ClientBudget,
    }

    impl World {
        fn new() -> Self {
            let sizes = BudgetSizes::new(&Limits {
                unauthorized_per_client: TokenBucketSize::new(COUNT, PER),
                ..Limits::default()
            });
            let budget = ClientBudget::new(&sizes);
            let sizes = ArcSwap::from_pointee(sizes);
            Self { sizes, budget }
        }

        /// One request on a connection of its own. Returns the status code of the apiserver or of the proxy, and
        /// whether the apiserver has seen the request.
        fn request(&self, credential: &str, answer: u16) -> (u16, bool) {
            self.request_on(&ConnectionCredentials::default(), credential, answer)
        }

        fn request_on(
            &self,
            on: &ConnectionCredentials,
            credential: &str,
            answer: u16,
        ) -> (u16, bool) {
            match self.check(on, "main", credential) {
                Ok(check) => {
                    let status = StatusCode::from_u16(answer).unwrap();
                    self.budget.answered(&self.sizes, on, check, status);
                    (answer, true)
                }
                Err(Throttled::Refused(status)) => (status.as_u16(), false),
                Err(Throttled::Guesses(_) | Throttled::Requests(_)) => (429, false),
            }
        }

        fn check(
            &self,
            on: &ConnectionCredentials,
            cluster: &str,
            credential: &str,
        ) -> Result<BudgetCheck, Throttled> {
            let request = match credential.strip_prefix("anonymous ") {
                Some(path) => Request::get(path),
                None => Request::get("/").header(header::AUTHORIZATION, credential),
            };
            let (head, ()) = request.body(()).unwrap().into_parts();
            self.budget.check(&self.sizes, on, cluster, (&head, None))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credential_gets_its_own_answer_from_the_proxy() {
        let world = World::new();
        let seen = (0..100).filter(|_| {
            let (status, is_seen) = world.request("Bearer bad", 401);
            assert_eq!(status, 401);
            is_seen
        });
        assert_eq!(seen.count(), COUNT as usize);
        assert_eq!(world.request("Bearer other", 200), (200, true));
        assert_eq!(world.request("Bearer bad", 401), (401, false));
    }

    /// A token that is not valid yet, or that the apiserver could not verify for a moment.
    #[tokio::test(start_paused = true)]
    async fn credential_that_becomes_valid_is_served_after_a_refill() {
        let world = World::new();
        for _ in 0..10 {
            world.request("Bearer late", 401);
        }
        assert_eq!(world.request("Bearer late", 200), (401, false));
        advance(PER / COUNT).await;
        for _ in 0..100 {
            assert_eq!(world.request("Bearer late", 200), (200, true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_cost_a_connection_each() {
        let world = World::new();
        let connection = ConnectionCredentials::default();
        assert_eq!(world.request("Bearer known", 200), (200, true));
        let guesses = |on: &ConnectionCredentials, from: u32| {
            let mut guesses = from..from + 1000;
            let seen = guesses
                .by_ref()
                .filter(|guess| world.request_on(on, &format!("Bearer {guess}"), 401).1);
            seen.count()
        };
        world.request("Bearer 0", 401);
        assert_eq!(world.request("Bearer good", 200), (200, true));
        let seen = guesses(&connection, 1);
        assert_eq!(seen, (COUNT * GUESSES_FACTOR) as usize);
        // A connection that was quiet until now has one guess.
        assert_eq!(guesses(&ConnectionCredentials::default(), 2000), 1);
        assert_eq!(
            world.request_on(&connection, "Bearer good", 200),
            (200, true)
        );
        assert_eq!(world.request("Bearer new", 200), (200, true));
        assert_eq!(
            world.request_on(&connection, "Bearer new", 200),
            (200, true)
        );
        assert_eq!(
            world.request_on(&connection, "Bearer never seen", 200),
            (429, false)
        );
    }

    /// Health checks without a credential come from the same load balancer as all else.
    #[tokio::test(start_paused = true)]
    async fn paths_that_are_open_to_all_stay_open() {
        let world = World::new();
        let seen = (0..100).filter(|_| world.request("anonymous /secrets", 403).1);
        assert_eq!(seen.count(), 1 + COUNT as usize);
        assert_eq!(world.request("anonymous /livez", 200), (200, true));
        assert_eq!(world.request("anonymous /secrets", 403), (403, false));
        // To the apiserver this is no credential.
        let seen = (0..100).filter(|_| world.request("Token x", 403).1);
        assert_eq!(seen.count(), COUNT as usize);
    }

    /// A user without permission is no attacker.
    #[tokio::test(start_paused = true)]
    async fn forbidden_requests_with_a_credential_do_not_count() {
        let world = World::new();
        for _ in 0..1000 {
            assert_eq!(world.request("Bearer user", 403), (403, true));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_not_checked_once_all_buckets_are_full() {
        let world = World::new();
        for _ in 0..10 {
            world.request("Bearer bad", 401);
        }
        assert!(world.budget.is_in_use(Instant::now()));
        advance(PER).await;
        assert!(!world.budget.is_in_use(Instant::now()));
        world.request("Bearer good", 200);
        assert!(!world.budget.is_checked.load(Ordering::Relaxed));
        let refusals = world.budget.refusals.lock().unwrap();
        assert_eq!((refusals.refused.len(), refusals.accepted.len()), (0, 0));
    }

    /// The same token may be valid for one cluster only.
    #[tokio::test(start_paused = true)]
    async fn refusal_by_one_cluster_leaves_the_others_alone() {
        let world = World::new();
        for _ in 0..10 {
            world.request("Bearer x", 401);
            world.request("anonymous /", 403);
        }
        let on = ConnectionCredentials::default();
        for credential in ["Bearer x", "anonymous /"] {
            assert!(world.check(&on, "main", credential).is_err());
            assert!(world.check(&on, "second", credential).is_ok());
        }
    }

    /// The apiserver sends these before it looks at the token.
    #[tokio::test(start_paused = true)]
    async fn status_before_authentication_accepts_no_credential() {
        let world = World::new();
        world.request("Bearer bad", 401);
        for status in [
            204, 400, 405, 408, 411, 413, 414, 415, 417, 429, 431, 500, 503,
        ] {
            world.request(&format!("Bearer {status}"), status);
        }
        world.request("anonymous /livez", 200);
        assert!(world.budget.refusals.lock().unwrap().accepted.is_empty());
        for status in [101, 200, 302, 403, 404, 409, 410, 422] {
            world.request(&format!("Bearer {status}"), status);
        }
        let accepted = world.budget.refusals.lock().unwrap().accepted.len();
        assert_eq!(accepted, 8);
    }

    /// Otherwise any client could have its connection and its guesses treated as those of a user, with a credential
    /// that the apiserver ignores and a path that is open to all.
    #[test]
    fn credential_that_the_apiserver_ignores_is_none() {
        let has_credential = |lines: &str| {
            let mut request = Request::get("/version");
            for line in lines.lines() {
                let (name, value) = line.split_once(": ").unwrap();
                request = request.header(name, value);
            }
            let (head, ()) = request.body(()).unwrap().into_parts();
            let check = BudgetCheck::unchecked((&head, None));
            assert_eq!(check.is_accepted(StatusCode::OK), check.has_credential());
            check.has_credential()
        };
        let protocol =
            "sec-websocket-protocol: v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.dA";
        let upgrade = "upgrade: WebSocket\nconnection: keep-alive, Upgrade";
        for lines in [
            "authorization: Bearer t",
            "authorization: bearer t more",
            "authorization: Bearer t\nauthorization: Basic eDp5",
            &format!("{upgrade}\n{protocol}"),
            &format!("{upgrade}\n{protocol}\nauthorization: Basic eDp5"),
        ] {
            assert!(has_credential(lines), "{lines}");
        }
        for lines in [
            "x: y",
            "authorization: Basic eDp5",
            "authorization: Bearer",
            "authorization: Bearer  t",
            "authorization: Bearer\tt",
            "authorization: Basic eDp5\nauthorization: Bearer t",
            protocol,
            &format!("upgrade: websocket\n{protocol}"),
            &format!("{upgrade}\nupgrade: websocket\n{protocol}"),
            &format!("upgrade: SPDY/3.1\nconnection: upgrade\n{protocol}"),
            &format!("{upgrade}\n{}", protocol.trim_end_matches("dA")),
            &format!(
                "{upgrade}\n{}",
                protocol.replace("base64url", "x-base64url")
            ),
        ] {
            assert!(!has_credential(lines), "{lines}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_at_the_same_time_are_not_free() {
        let world = World::new();
        world.request("Bearer bad", 401);
        let on = ConnectionCredentials::default();
        let mut checks = Vec::new();
        for guess in 0..1000 {
            checks.extend(world.check(&on, "main", &format!("Bearer {guess}")));
        }
        assert_eq!(checks.len(), (COUNT * GUESSES_FACTOR) as usize);
        for check in checks.drain(1..) {
            world
                .budget
                .answered(&world.sizes, &on, check, StatusCode::OK);
        }
        // All but one have their token back, and the connection has used its one guess.
        for guess in 0..1000 {
            checks.extend(world.check(&on, "main", &format!("Bearer more {guess}")));
        }
        assert_eq!(checks.len() - 1, (COUNT * GUESSES_FACTOR) as usize - 2);
    }

    /// Other users of the same address have many valid tokens.
    #[tokio::test(start_paused = true)]
    async fn connection_remembers_its_accepted_credential() {
        let world = World::new();
        world.request("Bearer bad", 401);
        let on = ConnectionCredentials::default();
        assert_eq!(world.request_on(&on, "Bearer mine", 200), (200, true));
        for other in 0..1000 {
            world.request(&format!("Bearer good {other}"), 200);
            world.request(&format!("Bearer guess {other}"), 401);
        }
        // The one attempt of the connection.
        assert!(world.request_on(&on, "Bearer typo", 401).1);
        for _ in 0..10 {
            assert_eq!(world.request_on(&on, "Bearer mine", 200), (200, true));
        }
        for _ in 0..10 {
            world.request_on(&on, "Bearer mine", 401);
        }
        assert_eq!(world.request_on(&on, "Bearer mine", 200), (401, false));
        assert!(!format!("{on:?}").contains(char::is_numeric));
    }

    /// A guesser empties the bucket of the client. That must not stop a token that becomes valid.
    #[tokio::test(start_paused = true)]
    async fn refused_credential_needs_only_its_own_bucket() {
        let world = World::new();
        world.request("Bearer late", 401);
        for other in 0..1000 {
            world.request(&format!("Bearer guess {other}"), 401);
            // These are more guesses than the refill allows.
            if other % 12 == 11 {
                assert!(world.request("Bearer late", 401).1);
                advance(PER / COUNT).await;
            }
        }
    }

    /// A user without permission costs no one a check.
    #[tokio::test(start_paused = true)]
    async fn forbidden_request_with_a_credential_begins_no_check() {
        let world = World::new();
        world.request("Bearer user", 403);
        assert!(!world.budget.is_checked.load(Ordering::Relaxed));
        world.request("anonymous /secrets", 403);
        assert!(world.budget.is_checked.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_of_a_client_are_bounded() {
        let world = World::new();
        world.request("Bearer first", 401);
        for credential in 0..1000 {
            world.request(&format!("Bearer bad {credential}"), 401);
            world.request(&format!("Bearer good {credential}"), 200);
        }
        let refusals = world.budget.refusals.lock().unwrap();
        assert_eq!(refusals.refused.len(), MAX_REFUSED);
        assert_eq!(refusals.accepted.len(), MAX_ACCEPTED);
        assert!(!format!("{refusals:?}").contains("Bearer"));
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (millis, whole) in [(400, 1), (1000, 1), (1001, 2)] {
            assert_eq!(seconds(Duration::from_millis(millis)), whole);
        }
    }
}
