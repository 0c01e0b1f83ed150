//! Answers to the challenge `tls-alpn-01` of ACME (RFC 8737): a certificate for the name, which holds the proof.
//!
//! An answer is TLS settings of its own, which offer no protocol but `acme-tls/1`. A handshake with them can therefore
//! never lead to HTTP, and the settings for clients need not know of challenges.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::{
    ServerConfig,
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::PrivateKeyDer;

use super::provider;

/// The challenges that are waiting for the CA. Empty, except while an order is in progress.
#[derive(Debug, Default)]
pub struct AcmeChallenges {
    by_server_name: Mutex<HashMap<String, Arc<ServerConfig>>>,
}

/// Answers one challenge until dropped.
#[derive(Debug)]
pub struct ChallengeAnswer {
    challenges: Arc<AcmeChallenges>,
    server_name: String,
}

/// Why a challenge cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    /// No certificate can be made for the name.
    #[error("cannot make a certificate for the challenge")]
    Certificate(#[from] rcgen::Error),
    /// TLS refuses the certificate.
    #[error("cannot set up TLS for the challenge")]
    Tls(#[from] rustls::Error),
}

impl AcmeChallenges {
    /// Answers the challenge for `name`, a host name or an IP address, with the SHA-256 of the key authorization.
    ///
    /// # Errors
    ///
    /// When no certificate can be made for the name.
    pub fn answer(
        self: &Arc<Self>,
        name: &str,
        digest: &[u8; 32],
    ) -> Result<ChallengeAnswer, ChallengeError> {
        let server_name = server_name(name);
        let config = Arc::new(server_config(name, digest)?);
        let answers = self.by_server_name.lock();
        let mut answers = answers.unwrap_or_else(PoisonError::into_inner);
        answers.insert(server_name.clone(), config);
        Ok(ChallengeAnswer {
            challenges: Arc::clone(self),
            server_name,
        })
    }

    /// The TLS settings that answer the challenge for this server name.
    #[must_use]
    pub fn find(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        let server_name = server_name.to_ascii_lowercase();
        let answers = self.by_server_name.lock();
        let answers = answers.unwrap_or_else(PoisonError::into_inner);
        answers.get(&server_name).cloned()
    }
}

impl Drop for ChallengeAnswer {
    fn drop(&mut self) {
        let answers = self.challenges.by_server_name.lock();
        let mut answers = answers.unwrap_or_else(PoisonError::into_inner);
        answers.remove(&self.server_name);
    }
}

/// The name in the `ClientHello` of the CA: for an address that of its reverse lookup (RFC 8738 §6).
fn server_name(name: &str) -> String {
    match name.parse() {
        Ok(IpAddr::V4(address)) => {
            let [first, second, third, fourth] = address.octets();
            format!("{fourth}.{third}.{second}.{first}.in-addr.arpa")
        }
        Ok(IpAddr::V6(address)) => {
            let octets = address.octets().into_iter().rev();
            let nibbles = octets.map(|octet| format!("{:x}.{:x}.", octet & 0xf, octet >> 4));
            nibbles.collect::<String>() + "ip6.arpa"
        }
        Err(_no_address) => name.to_ascii_lowercase(),
    }
}

fn server_config(name: &str, digest: &[u8; 32]) -> Result<ServerConfig, ChallengeError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    let provider = provider();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let key = provider.key_provider.load_private_key(key)?;
    // Not checked: webpki refuses the critical extension that is the proof.
    let certificate = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The protocol of the challenge.
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_asked_for_by_its_reverse_name() {
        for (name, server_name) in [
            ("Kube.example.com", "kube.example.com"),
            ("192.0.2.1", "1.2.0.192.in-addr.arpa"),
            (
                "2001:db8::17",
                "7.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            assert_eq!(super::server_name(name), server_name);
        }
    }

    #[test]
    fn challenge_is_answered_until_it_is_dropped() {
        let challenges = Arc::<AcmeChallenges>::default();
        let answer = challenges.answer("kube.test", &[7; 32]).unwrap();
        let config = challenges.find("KUBE.test").unwrap();
        assert_eq!(config.alpn_protocols, [ACME_TLS]);
        assert!(challenges.find("other.test").is_none());
        drop(answer);
        assert!(challenges.find("kube.test").is_none());
    }
}
