//! One order: prove the control of each name, send a request for a certificate, and store what the CA issues.
//!
//! The key and the URL of the order are stored before the CA is asked to issue. A process that is killed then finds the
//! certificate at its next start, and does not use up the rate limit of the CA with another order.

use std::{
    error::Error as StdError,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType,
    ExternalAccountKey, Identifier, NewAccount, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde::{Deserialize, Serialize};

use super::{
    directory::{DirectoryClient, RetryAfter, roots},
    http01::{Http01Answer, Http01Answers, Http01PortError},
    store::{Store, StoreError},
};
use crate::{
    config::{AcmeConfig, ExternalAccount, ReadError, read_file},
    pki::{AcmeChallenges, ChallengeAnswer, ChallengeError, Identity, PkiError},
    quote,
    text::error_chain,
};

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// A request failed, or the CA has refused it.
    #[error("{}", in_words(.0))]
    Acme(#[from] instant_acme::Error),
    /// The CA has tried to validate the name, and failed.
    #[error("the CA cannot validate {name}: {problem}")]
    Invalid { name: String, problem: String },
    #[error(
        "the CA does not offer the challenge {challenge} for {name}; {}",
        other_challenge(challenge)
    )]
    NoChallenge {
        name: String,
        challenge: &'static str,
    },
    #[error("the order is {0:?}")]
    Status(OrderStatus),
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    #[error(transparent)]
    Port(#[from] Http01PortError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the CA has issued a certificate that cannot be used")]
    Unusable(#[source] PkiError),
    #[error("the certificate that the CA has issued is not valid for {name}")]
    NameMissing { name: String },
    #[error("cannot make a key and a request for a certificate")]
    Request(#[from] rcgen::Error),
    #[error(transparent)]
    DirectoryCa(PkiError),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error(
        "{} of the store is damaged ({source}); remove it, and the proxy makes a new one",
        quote::path(file.as_ref())
    )]
    Damaged {
        file: String,
        source: serde_json::Error,
    },
    #[error("`keyFile` of external account binding")]
    AccountKeyFile(#[source] ReadError),
    #[error(
        "`keyFile` of external account binding is not a key in base64url; write the one that the CA gave into it, and nothing else"
    )]
    AccountKey,
}

/// The key of an order that the CA is about to complete.
#[derive(Serialize, Deserialize)]
struct OrderInProgress {
    directory: String,
    url: String,
    key: String,
}

/// The account at one CA, and what its orders need.
pub(super) struct Orders<'a> {
    pub(super) config: &'a AcmeConfig,
    pub(super) store: &'a Store,
    pub(super) challenges: &'a Arc<AcmeChallenges>,
    http01: &'a Arc<Http01Answers>,
    account: Account,
}

impl<'a> Orders<'a> {
    /// Reads the directory and restores the account, or makes one.
    pub(super) async fn open(
        config: &'a AcmeConfig,
        store: &'a Store,
        challenges: &'a Arc<AcmeChallenges>,
        http01: &'a Arc<Http01Answers>,
        retry_after: &Arc<RetryAfter>,
    ) -> Result<Self, OrderError> {
        let roots = roots(config).map_err(OrderError::DirectoryCa)?;
        let client = || {
            let client = DirectoryClient::new(Arc::clone(&roots), Arc::clone(retry_after))?;
            Ok::<_, OrderError>(Account::builder_with_http(Box::new(client)))
        };
        let file = account_file(config);
        if let Some(bytes) = store.read(&file)? {
            let credentials: AccountCredentials =
                serde_json::from_slice(&bytes).map_err(|source| OrderError::Damaged {
                    file: file.clone(),
                    source,
                })?;
            return Ok(Self {
                config,
                store,
                challenges,
                http01,
                account: client()?.from_credentials(credentials).await?,
            });
        }
        let contact = config.email.as_ref().map(|email| format!("mailto:{email}"));
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let external = config.external_account.as_ref();
        let external = external.map(external_key).transpose()?;
        let directory = config.directory.clone();
        let (account, credentials) = client()?.create(&new, directory, external.as_ref()).await?;
        let bytes = serde_json::to_vec(&credentials);
        store.write(&file, &bytes.map_err(instant_acme::Error::from)?)?;
        Ok(Self {
            config,
            store,
            challenges,
            http01,
            account,
        })
    }

    /// When the CA wants the certificate to be renewed: the two ends of a window, and how long that answer is good.
    pub(super) async fn renewal_window(
        &self,
        id: &CertificateIdentifier<'_>,
    ) -> Result<(SystemTime, SystemTime, Duration), OrderError> {
        let (info, again) = self.account.renewal_info(id).await?;
        let window = info.suggested_window;
        Ok((window.start.into(), window.end.into(), again))
    }

    /// Gets a certificate and stores it. `replaces` is the one in use, for a CA that wants to know.
    pub(super) async fn obtain(
        &self,
        replaces: Option<CertificateIdentifier<'_>>,
    ) -> Result<(), OrderError> {
        if self.resume().await? {
            return Ok(());
        }
        let mut order = match self.order(replaces.clone()).await {
            Err(OrderError::Acme(error)) if is(&error, "accountDoesNotExist") => {
                self.store.remove(&account_file(self.config))?;
                return Err(error.into());
            }
            // An order before this one has replaced it, but its certificate was lost.
            Err(OrderError::Acme(error)) if replaces.is_some() && is(&error, "alreadyReplaced") => {
                self.order(None).await?
            }
            order => order?,
        };
        let answers = self.answer_challenges(&mut order).await?;
        let status = order.poll_ready(&POLLING).await;
        let refused = invalid(&mut order).await;
        match (status, refused) {
            (_, Some(refused)) => return Err(refused),
            (Ok(OrderStatus::Ready), None) => {}
            (Ok(status), None) => return Err(OrderError::Status(status)),
            (Err(error), None) => return Err(error.into()),
        }
        drop(answers);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(self.config.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        let in_progress = OrderInProgress {
            directory: self.config.directory.clone(),
            url: order.url().to_owned(),
            key: key.serialize_pem(),
        };
        let bytes = serde_json::to_vec(&in_progress).map_err(instant_acme::Error::from)?;
        self.store.write(ORDER_FILE, &bytes)?;
        order.finalize_csr(request.der()).await?;
        self.finish(&mut order, &in_progress.key).await
    }

    async fn order(
        &self,
        replaces: Option<CertificateIdentifier<'_>>,
    ) -> Result<Order, OrderError> {
        let names = self.config.names.iter();
        let identifiers: Vec<_> = names.map(|name| identifier(name)).collect();
        let mut new = NewOrder::new(&identifiers);
        if let Some(profile) = &self.config.profile {
            new = new.profile(profile);
        }
        if let Some(replaces) = replaces {
            new = new.replaces(replaces);
        }
        Ok(self.account.new_order(&new).await?)
    }

    /// Stores the certificate of an order that an earlier process has sent. Returns whether there was one. An order
    /// that the CA does not complete is forgotten; any other error leaves it for the next attempt.
    async fn resume(&self) -> Result<bool, OrderError> {
        let Some(bytes) = self.store.read(ORDER_FILE)? else {
            return Ok(false);
        };
        match serde_json::from_slice::<OrderInProgress>(&bytes) {
            Ok(order) if order.directory == self.config.directory => {
                match self.complete(&order).await {
                    Ok(is_complete) if is_complete => return Ok(true),
                    Ok(_)
                    | Err(
                        OrderError::Acme(instant_acme::Error::Api(_))
                        | OrderError::Unusable(_)
                        | OrderError::NameMissing { .. },
                    ) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(_) | Err(_) => {}
        }
        self.store.remove(ORDER_FILE)?;
        Ok(false)
    }

    async fn complete(&self, order: &OrderInProgress) -> Result<bool, OrderError> {
        let mut found = self.account.order(order.url.clone()).await?;
        match found.state().status {
            OrderStatus::Valid | OrderStatus::Processing => {
                self.finish(&mut found, &order.key).await?;
                Ok(true)
            }
            OrderStatus::Pending | OrderStatus::Ready | OrderStatus::Invalid => Ok(false),
        }
    }

    /// Answers the challenge of each name without a recent validation, and tells the CA. Tries only one kind of
    /// challenge, because a CA allows few failed attempts per hour.
    async fn answer_challenges(
        &self,
        order: &mut Order,
    ) -> Result<(Vec<ChallengeAnswer>, Vec<Http01Answer>), OrderError> {
        let (mut in_tls, mut in_http) = (Vec::new(), Vec::new());
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let name = authorization.identifier().to_string();
            let (kind, label) = match self.config.http01_listen {
                Some(_) => (ChallengeType::Http01, HTTP_01),
                None => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
            };
            let Some(mut challenge) = authorization.challenge(kind) else {
                return Err(OrderError::NoChallenge {
                    name: quote::name(&name),
                    challenge: label,
                });
            };
            let proof = challenge.key_authorization();
            if let Some(address) = self.config.http01_listen {
                let (token, proof) = (&challenge.token, proof.as_str());
                in_http.push(self.http01.answer(address, token, proof).await?);
            } else {
                let digest = proof.digest();
                let digest = digest.as_ref().try_into();
                let digest = digest.map_err(|_| instant_acme::Error::Crypto)?;
                in_tls.push(self.challenges.answer(&name, digest)?);
            }
            challenge.set_ready().await?;
        }
        Ok((in_tls, in_http))
    }

    /// Waits for the certificate, checks and stores it.
    async fn finish(&self, order: &mut Order, key: &str) -> Result<(), OrderError> {
        let chain = order.poll_certificate(&POLLING).await?;
        let text = format!("{}\n{chain}", key.trim_end());
        let file = self.config.certificate_file();
        let identity = Identity::from_key_and_chain(text.as_bytes(), &file, SystemTime::now())
            .map_err(OrderError::Unusable)?;
        if let Some(name) = self.config.names.iter().find(|name| !identity.covers(name)) {
            let name = name.clone();
            return Err(OrderError::NameMissing { name });
        }
        self.store
            .write(AcmeConfig::CERTIFICATE_FILE, text.as_bytes())?;
        self.store.remove(ORDER_FILE)?;
        Ok(())
    }
}

/// Why the CA has refused a name, in its own words.
async fn invalid(order: &mut Order) -> Option<OrderError> {
    if order.state().status != OrderStatus::Invalid {
        return None;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization.ok()?;
        authorization.refresh().await.ok()?;
        let mut challenges = authorization.challenges.iter();
        if let Some(problem) = challenges.find_map(|challenge| challenge.error.as_ref()) {
            return Some(OrderError::Invalid {
                name: quote::name(&authorization.identifier().to_string()),
                problem: problem_text(problem),
            });
        }
    }
    None
}

fn identifier(name: &str) -> Identifier {
    name.parse().map_or_else(
        |_no_address| Identifier::Dns(name.to_owned()),
        Identifier::Ip,
    )
}

/// The account of each directory has its own file, so that a try with another CA loses none.
fn account_file(config: &AcmeConfig) -> String {
    let safe = |char: char| {
        if char.is_ascii_alphanumeric() {
            char
        } else {
            '-'
        }
    };
    let directory = config.directory.trim_start_matches("https://");
    let directory: String = directory.chars().take(MAX_FILE_NAME).map(safe).collect();
    format!("account-{directory}.json")
}

fn external_key(account: &ExternalAccount) -> Result<ExternalAccountKey, OrderError> {
    let text = read_file(&account.key_file).map_err(OrderError::AccountKeyFile)?;
    let key = BASE64URL.decode(text.trim_ascii());
    let key = key.map_err(|_| OrderError::AccountKey)?;
    if key.is_empty() {
        return Err(OrderError::AccountKey);
    }
    Ok(ExternalAccountKey::new(account.key_id.clone(), &key))
}

/// Whether the CA has refused a request for this reason (RFC 8555 §6.7).
fn is(error: &instant_acme::Error, kind: &str) -> bool {
    let instant_acme::Error::Api(problem) = error else {
        return false;
    };
    let found = problem.r#type.as_deref().unwrap_or_default();
    found.strip_prefix("urn:ietf:params:acme:error:") == Some(kind)
}

fn in_words(error: &instant_acme::Error) -> String {
    if let instant_acme::Error::Api(problem) = error {
        return format!("the CA refuses: {}", problem_text(problem));
    }
    if let instant_acme::Error::Other(error) = error {
        let error: &(dyn StdError + 'static) = &**error;
        return error_chain(error).to_string();
    }
    error.to_string()
}

fn other_challenge(challenge: &str) -> &'static str {
    if challenge == HTTP_01 {
        "remove `http01Listen` to use tls-alpn-01"
    } else {
        "set `http01Listen` to use http-01"
    }
}

/// The words of the CA, with those about each name.
fn problem_text(problem: &Problem) -> String {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    let kind = kind.trim_start_matches("urn:ietf:params:acme:error:");
    let mut text = problem.detail.clone().unwrap_or_default();
    for part in &problem.subproblems {
        text = format!("{text}; {part}");
    }
    format!("{text} ({kind})")
}

const ORDER_FILE: &str = "order.json";
const HTTP_01: &str = "http-01";
const MAX_FILE_NAME: usize = 100;
/// The key of a CA comes with or without padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// How often, and for how long, the state of an order is asked for.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(90));
