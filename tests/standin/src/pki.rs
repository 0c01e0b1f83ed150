//! Temporary CAs and leaf certificates, made when the test runs: valid ones, and some with exactly one fault.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256,
    RevokedCertParams, date_time_ymd,
};
use rustls::{RootCertStore, crypto::CryptoProvider};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::TempDir;

/// A certificate authority, or an intermediate of one.
#[derive(Debug)]
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The intermediates from this issuer (included) to the root (not included), in this order. Empty for a root.
    below_root: Vec<CertificateDer<'static>>,
}

impl Ca {
    /// A root CA with this common name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let issuer =
            CertifiedIssuer::self_signed(ca_params(name), new_key()).expect("a CA can be made");
        Self {
            issuer,
            below_root: Vec::new(),
        }
    }

    /// An intermediate CA signed by this CA. The chains of its leaves contain it.
    #[must_use]
    pub fn intermediate(&self, name: &str) -> Self {
        self.signed(ca_params(name))
    }

    /// The same with this serial number, by which a revocation list names it.
    #[must_use]
    pub fn numbered_intermediate(&self, name: &str, number: u64) -> Self {
        let mut params = ca_params(name);
        params.serial_number = Some(number.into());
        self.signed(params)
    }

    fn signed(&self, params: CertificateParams) -> Self {
        let issuer = CertifiedIssuer::signed_by(params, new_key(), &self.issuer)
            .expect("an intermediate can be made");
        let mut below_root = vec![issuer.der().clone()];
        below_root.extend(self.below_root.iter().cloned());
        Self { issuer, below_root }
    }

    /// A valid server certificate for these DNS names and IP addresses.
    #[must_use]
    pub fn server(&self, names: &[&str]) -> Identity {
        self.leaf(names).build()
    }

    /// A valid client certificate, with user and groups where Kubernetes reads them (CN and O).
    #[must_use]
    pub fn client(&self, user: &str, groups: &[&str]) -> Identity {
        self.leaf(&[])
            .client_auth()
            .common_name(user)
            .organizations(groups)
            .build()
    }

    /// A builder for a leaf, for instance for one with a fault.
    ///
    /// # Panics
    ///
    /// When a name is neither an IP address nor ASCII text.
    #[must_use]
    pub fn leaf(&self, names: &[&str]) -> LeafBuilder<'_> {
        LeafBuilder {
            ca: self,
            params: leaf_params(names),
            key: None,
        }
    }

    /// A revocation list with these serial numbers, as PEM. The next one is due at `next`.
    ///
    /// # Panics
    ///
    /// When `next` is before 2020.
    #[must_use]
    pub fn revocation_list(&self, serials: &[u64], next: SystemTime) -> String {
        let since = date_time_ymd(2020, 1, 1);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: since,
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: since,
            next_update: next.into(),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list can be signed");
        list.pem().expect("a list has a PEM form")
    }

    /// The certificate of this issuer as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// The certificate of this issuer as DER.
    #[must_use]
    pub fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A store that trusts only this CA.
    ///
    /// # Panics
    ///
    /// Never: rustls accepts the certificates of rcgen.
    #[must_use]
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.der())
            .expect("rustls accepts a certificate of rcgen");
        roots
    }
}

/// A builder for a leaf. By default the leaf is valid from 2020 to 2090, for server authentication.
#[derive(Debug)]
pub struct LeafBuilder<'a> {
    ca: &'a Ca,
    params: CertificateParams,
    key: Option<KeyPair>,
}

impl LeafBuilder<'_> {
    /// Valid until 2021.
    #[must_use]
    pub fn expired(mut self) -> Self {
        self.params.not_after = date_time_ymd(2021, 1, 1);
        self
    }

    /// Valid from 2089 on.
    #[must_use]
    pub fn not_yet_valid(mut self) -> Self {
        self.params.not_before = date_time_ymd(2089, 1, 1);
        self
    }

    /// Valid until this time, rounded down to a second.
    #[must_use]
    pub fn valid_until(mut self, end: SystemTime) -> Self {
        self.params.not_after = end.into();
        self
    }

    /// Valid for client authentication only.
    #[must_use]
    pub fn client_auth(mut self) -> Self {
        self.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self
    }

    /// With the "domain validated" policy (2.23.140.1.2.1), as a public CA issues it.
    #[must_use]
    pub fn publicly_issued(mut self) -> Self {
        let policies = [
            0x30, 0x0a, 0x30, 0x08, 0x06, 0x06, 0x67, 0x81, 0x0c, 0x01, 0x02, 0x01,
        ];
        self.params
            .custom_extensions
            .push(CustomExtension::from_oid_content(
                &[2, 5, 29, 32],
                policies.to_vec(),
            ));
        self
    }

    /// Sets the CN of the subject.
    #[must_use]
    pub fn common_name(mut self, name: &str) -> Self {
        self.params
            .distinguished_name
            .push(DnType::CommonName, name);
        self
    }

    /// Leaves the subject empty. Without this it has a CN.
    #[must_use]
    pub fn nameless(mut self) -> Self {
        self.params.distinguished_name = DistinguishedName::new();
        self
    }

    /// Sets the O values of the subject.
    ///
    /// # Panics
    ///
    /// With more than two names: rcgen keeps one value per attribute type, and it has two types for O.
    #[must_use]
    pub fn organizations(mut self, names: &[&str]) -> Self {
        assert!(names.len() <= 2, "rcgen can write at most two O values");
        let kinds = [
            DnType::OrganizationName,
            DnType::CustomDnType(vec![2, 5, 4, 10]),
        ];
        for (kind, name) in kinds.into_iter().zip(names) {
            self.params.distinguished_name.push(kind, *name);
        }
        self
    }

    /// Adds an attribute to the subject, with the number of its type. A text is written as UTF-8.
    #[must_use]
    pub fn attribute(mut self, kind: &[u64], value: impl Into<DnValue>) -> Self {
        let kind = DnType::CustomDnType(kind.to_vec());
        self.params.distinguished_name.push(kind, value);
        self
    }

    /// Without an extended key usage, or with none but these.
    #[must_use]
    pub fn usages(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = usages.to_vec();
        self
    }

    /// Sets the serial number, by which a revocation list names the leaf.
    #[must_use]
    pub fn serial(mut self, number: u64) -> Self {
        self.params.serial_number = Some(number.into());
        self
    }

    /// Uses an RSA key of 2048 bits instead of P-256.
    ///
    /// # Panics
    ///
    /// When the crypto provider cannot generate the key.
    #[must_use]
    pub fn rsa(mut self) -> Self {
        self.key = Some(KeyPair::generate_for(&PKCS_RSA_SHA256).expect("an RSA key can be made"));
        self
    }

    /// Signs the leaf.
    ///
    /// # Panics
    ///
    /// When rcgen rejects the settings.
    #[must_use]
    pub fn build(self) -> Identity {
        let key = self.key.unwrap_or_else(new_key);
        let leaf = self
            .params
            .signed_by(&key, &self.ca.issuer)
            .expect("the leaf can be signed");
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.ca.below_root.iter().cloned());
        Identity::new(chain, &key)
    }
}

/// A certificate chain, leaf first, and its key.
#[derive(Debug)]
pub struct Identity {
    /// DER, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    key_pem: String,
}

impl Identity {
    fn new(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Self {
        Self {
            chain,
            key: key.serialize_der(),
            key_pem: key.serialize_pem(),
        }
    }

    /// A leaf that signed itself and is not a CA.
    ///
    /// # Panics
    ///
    /// When a name is neither an IP address nor ASCII text.
    #[must_use]
    pub fn self_signed(names: &[&str]) -> Self {
        let key = new_key();
        let leaf = leaf_params(names)
            .self_signed(&key)
            .expect("a leaf can sign itself");
        Self::new(vec![leaf.der().clone()], &key)
    }

    /// The same chain with a key that does not belong to it.
    #[must_use]
    pub fn with_wrong_key(&self) -> Self {
        Self::new(self.chain.clone(), &new_key())
    }

    /// The same leaf and key without the intermediates.
    #[must_use]
    pub fn without_intermediates(&self) -> Self {
        Self {
            chain: self.chain.iter().take(1).cloned().collect(),
            key: self.key.clone(),
            key_pem: self.key_pem.clone(),
        }
    }

    /// The chain as PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|cert| pem("CERTIFICATE", cert))
            .collect()
    }

    /// The key as PEM (PKCS#8).
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The key in the type of rustls.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    /// Writes `<name>.crt` and `<name>.key` and returns their paths.
    pub fn write(&self, dir: &TempDir, name: &str) -> (PathBuf, PathBuf) {
        (
            dir.write(&format!("{name}.crt"), self.chain_pem()),
            dir.write(&format!("{name}.key"), &self.key_pem),
        )
    }
}

/// The crypto provider that the whole stand-in uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a P-256 key can be made")
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = dated(CertificateParams::default());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params =
        dated(CertificateParams::new(names).expect("names are DNS names or IP addresses"));
    params
        .distinguished_name
        .push(DnType::CommonName, "standin");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

fn dated(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut lines = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        lines.push_str(&String::from_utf8_lossy(line));
        lines.push('\n');
    }
    lines.push_str(&format!("-----END {label}-----\n"));
    lines
}
