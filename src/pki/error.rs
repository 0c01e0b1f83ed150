//! Errors of certificate, key and CA files, in sentences that an operator can act on.
//!
//! The outer error names the file. The inner error says what is wrong with the file and, at its end, how to fix it.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    config::{ReadError, read_file},
    pki::{UnreadableCertificate, UtcDate},
    quote,
    text::error_chain,
};

/// A certificate, key or CA file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The certificate chain that the proxy presents.
    #[error("certificate {}", quote::path(file))]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PkiFileError>,
    },
    /// The private key of a certificate that the proxy presents.
    #[error("key {}", quote::path(file))]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PkiFileError>,
    },
    /// The CAs that an apiserver is verified against.
    #[error("CA {origin}")]
    Trust {
        /// The file, or the place in a kubeconfig.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: Box<PkiFileError>,
    },
    /// The certificates that the CA of clients has revoked.
    #[error("revocation list {}", quote::path(file))]
    Revocation {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<PkiFileError>,
    },
    /// A file that cannot be read, and where the configuration names it.
    #[error("{}, line {line}", quote::path(named_in))]
    Named {
        /// The configuration file or kubeconfig.
        named_in: PathBuf,
        /// The line in it, from 1.
        line: usize,
        /// The error of the file.
        #[source]
        source: Box<Self>,
    },
}

impl PkiError {
    /// A time at which the certificate is valid, if it was refused only for its dates.
    pub(crate) fn time_of_other_validity(&self) -> Option<SystemTime> {
        let Self::Certificate { source, .. } = self else {
            return None;
        };
        if let PkiFileError::Expired { on } = source.as_ref() {
            return Some(on.0);
        }
        if let PkiFileError::NotYetValid { from } = source.as_ref() {
            return Some(from.0);
        }
        None
    }

    /// This error, with the line of the configuration that names the file, if the file cannot be read. The path may be
    /// relative there, so the longest part of it that occurs counts.
    pub(crate) fn naming_place(self, sources: &[PathBuf]) -> Self {
        let (Self::Certificate { source, .. }
        | Self::Key { source, .. }
        | Self::Trust { source, .. }
        | Self::Revocation { source, .. }) = &self
        else {
            return self;
        };
        let PkiFileError::Read { file, .. } = source.as_ref() else {
            return self;
        };
        let texts: Vec<_> = sources
            .iter()
            .filter_map(|source| Some((source, read_file(source).ok()?)))
            .collect();
        let path = file.to_string_lossy();
        let starts = path.match_indices('/').map(|(at, _)| at.saturating_add(1));
        let parts = [0].into_iter().chain(starts);
        let found = parts.filter_map(|at| path.get(at..)).find_map(|part| {
            texts.iter().find_map(|(source, text)| {
                let text = String::from_utf8_lossy(text);
                let line = text.lines().position(|line| line.contains(part))?;
                Some(((*source).clone(), line.saturating_add(1)))
            })
        });
        match found {
            Some((named_in, line)) => Self::Named {
                named_in,
                line,
                source: Box::new(self),
            },
            None => self,
        }
    }
}

/// What is wrong with a file of certificates or keys, and how to fix it. Lines and positions count from 1.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "the message of each variant is its documentation"
)]
pub enum PkiFileError {
    #[error("{}", error_chain(error))]
    Read { file: PathBuf, error: ReadError },
    #[error("is empty; {}", expected.fix())]
    Empty { expected: ExpectedPem },
    #[error("contains no PEM block (`-----BEGIN …`); {}", expected.fix())]
    NotPem { expected: ExpectedPem },
    #[error("is in DER form; {}", expected.fix_for_der(file))]
    Der {
        expected: ExpectedPem,
        file: PathBuf,
    },
    #[error("is a PKCS#12 file; extract what belongs here with `openssl pkcs12 -in {} {} -out NEW_FILE`", quote::path(file), expected.part())]
    Pkcs12 {
        expected: ExpectedPem,
        file: PathBuf,
    },
    #[error(
        "is in UTF-16, as `>` of PowerShell writes it; save it as ASCII (`Out-File -Encoding ascii`)"
    )]
    Utf16,
    #[error(
        "line {line} has hyphens around BEGIN or END, but not exactly five on each side; write it as `-----BEGIN …-----` or `-----END …-----`"
    )]
    AlmostMarker { line: usize },
    #[error("contains no {}; {}", expected.noun(), expected.fix())]
    Lacks { expected: ExpectedPem },
    #[error("line {line}: a PEM block {} does not belong here; {}", label.map_or_else(|| "of an unknown kind".to_owned(), |label| format!("`{label}`")), fix_for_label(label.unwrap_or_default(), *expected))]
    WrongKind {
        line: usize,
        label: Option<&'static str>,
        expected: ExpectedPem,
    },
    #[error("the PEM block that begins on line {line} is damaged; copy the whole file again")]
    Damaged { line: usize },
    #[error(
        "line {line} continues after `-----BEGIN {label}-----`, so the line breaks of the file are lost; copy it again, with its line breaks"
    )]
    LineBreaksLost { line: usize, label: &'static str },
    #[error("line {line} ends one PEM block and begins another; put a line break between the two")]
    JoinedBlocks { line: usize },
    #[error("line {line} has text after `-----END`; remove it")]
    TextAfterEnd { line: usize },
    #[error(
        "line {line} has other text before its `-----BEGIN`; start a new line before `-----BEGIN`"
    )]
    BeginNotFirst { line: usize },
    #[error(
        "the PEM block that ends on line {line} has no `-----BEGIN`; copy the whole file again"
    )]
    NoBegin { line: usize },
    #[error(
        "the private key on line {line} is encrypted, and the proxy cannot ask for its passphrase; \
         decrypt it with `openssl pkey -in {} -out NEW_FILE` and restrict who can read the new file",
        quote::path(file)
    )]
    EncryptedKey { line: usize, file: PathBuf },
    #[error("contains {count} private keys; keep only the key of the certificate")]
    SeveralKeys { count: usize },
    #[error(
        "the private key is damaged or of an unsupported kind; use ECDSA P-256 (or P-384, Ed25519, RSA from 2048 bits)"
    )]
    UnusableKey,
    #[error(
        "does not match the certificate {}; give the key that this certificate was issued for",
        quote::path(certificate)
    )]
    KeyMismatch { certificate: PathBuf },
    #[error(
        "its key matches certificate {position} of the file, so the certificate of the server is \
         not first; put it first, and each issuer after the certificate that it issued"
    )]
    LeafNotFirst { position: usize },
    #[error(
        "certificate {position} ({subject}) is not the issuer of certificate {} ({issuer}); put the \
         certificate of the server first, each issuer after the certificate that it issued, and nothing else",
        position.saturating_sub(1)
    )]
    ChainOrder {
        position: usize,
        subject: String,
        issuer: String,
    },
    #[error("certificate {position} of the file is {cause}; replace it")]
    Unreadable {
        position: usize,
        cause: UnreadableCertificate,
    },
    #[error("certificate {position} of the file ({subject}) {problem}; {fix}")]
    Unusable {
        position: usize,
        subject: String,
        problem: String,
        fix: &'static str,
    },
    #[error(
        "certificate {position} of the file ({subject}) is no CA certificate (CA:FALSE), so it can verify no other; give the CA that issued it"
    )]
    NotACa { position: usize, subject: String },
    #[error(
        "expired on {on}; renew it, and if the date looks wrong, check the clock of this machine"
    )]
    Expired { on: UtcDate },
    #[error("is not valid before {from}; check the clock of this machine, or wait until then")]
    NotYetValid { from: UtcDate },
    #[error("every CA in it has expired, the last one on {on}; get the current CA of the cluster")]
    AllExpired { on: UtcDate },
    #[error(
        "names no host: it has no DNS name or IP address as subjectAltName, and clients ignore the \
         common name; issue a new one with the public host name as subjectAltName"
    )]
    NoNames,
    #[error(
        "is not for TLS servers (its extended key usage lacks serverAuth); issue a new one with that usage"
    )]
    NotForServers,
    #[error(
        "is not for TLS clients (its extended key usage lacks clientAuth); give one that is, such as front-proxy-client.crt of kubeadm for the proxy"
    )]
    NotForClients,
    #[error(
        "revocation list {position} of the file {problem}; give the complete list of the CA, such as `openssl ca -gencrl` writes it with `crl_extensions` in its configuration"
    )]
    UnusableList {
        position: usize,
        problem: &'static str,
    },
}

/// What a PEM file should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedPem {
    /// The certificate of the server and its issuers.
    Chain,
    /// One private key.
    Key,
    /// CA certificates.
    Anchors,
    /// CA certificates in `certificate-authority-data` of a kubeconfig.
    InlineAnchors,
    /// Certificate revocation lists.
    RevocationLists,
}

impl PkiFileError {
    pub(super) fn read(file: &Path, error: ReadError) -> Self {
        let file = file.to_owned();
        Self::Read { file, error }
    }

    /// This error, with the path in the commands of its fix.
    pub(super) fn of_file(mut self, path: &Path) -> Self {
        if let Self::Der { file, .. }
        | Self::Pkcs12 { file, .. }
        | Self::EncryptedKey { file, .. } = &mut self
        {
            path.clone_into(file);
        }
        self
    }
}

impl ExpectedPem {
    const fn noun(self) -> &'static str {
        match self {
            Self::Chain | Self::Anchors | Self::InlineAnchors => "certificate",
            Self::Key => "private key",
            Self::RevocationLists => "certificate revocation list",
        }
    }

    fn fix_for_der(self, file: &Path) -> String {
        let command = match self {
            Self::Chain | Self::Anchors => "x509",
            Self::Key => "pkey",
            Self::RevocationLists => "crl",
            Self::InlineAnchors => return self.fix().to_owned(),
        };
        format!(
            "convert it with `openssl {command} -inform der -in {} -out NEW_FILE`",
            quote::path(file)
        )
    }

    const fn part(self) -> &'static str {
        match self {
            Self::Chain => "-nokeys",
            Self::Key => "-nocerts -nodes",
            Self::Anchors | Self::InlineAnchors | Self::RevocationLists => "-nokeys -cacerts",
        }
    }

    const fn fix(self) -> &'static str {
        match self {
            Self::Chain => "put the certificate of the server and its issuers there as PEM",
            Self::Key => "put the private key of the certificate there as PEM",
            Self::Anchors => "put the CA certificate of the cluster there as PEM",
            Self::InlineAnchors => {
                "put the base64 of the PEM file of the CA there (`kubectl config view --raw` prints it)"
            }
            Self::RevocationLists => {
                "put the certificate revocation list of the CA of clients there as PEM"
            }
        }
    }
}

fn fix_for_label(label: &str, expected: ExpectedPem) -> &'static str {
    let key = label.ends_with("PRIVATE KEY");
    let request = label.ends_with("CERTIFICATE REQUEST");
    match expected {
        ExpectedPem::Chain if key => {
            "keep the key in a file of its own, and check that certificate and key are not swapped"
        }
        ExpectedPem::Chain if request => {
            "give the certificate that the issuer returned for this request"
        }
        ExpectedPem::Chain => "keep only the certificate of the server and its issuers",
        ExpectedPem::Key if label.ends_with("CERTIFICATE") => {
            "keep only the private key, and check that certificate and key are not swapped"
        }
        ExpectedPem::Key => "keep only the private key",
        ExpectedPem::Anchors | ExpectedPem::InlineAnchors if key => {
            "keep only CA certificates, and treat that key as leaked if others can read this file"
        }
        ExpectedPem::RevocationLists => "keep only certificate revocation lists",
        ExpectedPem::Anchors | ExpectedPem::InlineAnchors => "keep only CA certificates",
    }
}
