//! Why a certificate, key or CA file cannot be used, in words that an operator can act on.
//!
//! The outer error says which file, the inner one what is wrong with it and, at its end, the mend.

use std::path::PathBuf;

use crate::{
    config::ReadError,
    pki::{UnreadableCertificate, UtcDate},
    quote,
};

/// Which file is at fault.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The certificate chain that we present.
    #[error("certificate {}", quote::path(file))]
    Certificate {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<Flaw>,
    },
    /// The private key of a certificate that we present.
    #[error("key {}", quote::path(file))]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<Flaw>,
    },
    /// The CAs that we trust an apiserver by.
    #[error("CA {origin}")]
    Trust {
        /// The file, or where in a kubeconfig the text stood.
        origin: String,
        /// What is wrong with it.
        #[source]
        source: Box<Flaw>,
    },
}

/// What is wrong with a file of certificates or keys, and the mend.
#[derive(Debug, thiserror::Error)]
pub enum Flaw {
    /// It cannot be read.
    #[error(transparent)]
    Read(ReadError),
    /// It has no bytes.
    #[error("is empty; {}", wanted.mend())]
    Empty {
        /// What should stand there.
        wanted: Wanted,
    },
    /// It has bytes, but no PEM block.
    #[error("holds no PEM block (`-----BEGIN …`); {}", wanted.mend())]
    NotPem {
        /// What should stand there.
        wanted: Wanted,
    },
    /// It is in the binary form.
    #[error("is in DER form; convert it with `openssl {} -inform der -in FILE -out NEW_FILE`", wanted.command())]
    Der {
        /// What should stand there.
        wanted: Wanted,
    },
    /// It holds certificates and key together, behind a password.
    #[error("is a PKCS#12 file; take what belongs here out of it with `openssl pkcs12 -in FILE {} -out NEW_FILE`", wanted.part())]
    Pkcs12 {
        /// What should stand there.
        wanted: Wanted,
    },
    /// It has PEM blocks, but none of the wanted kind.
    #[error("holds no {}; {}", wanted.noun(), wanted.mend())]
    Lacks {
        /// What should stand there.
        wanted: Wanted,
    },
    /// A PEM block of a kind that does not belong here.
    #[error("line {line} begins a {}, which does not belong here; {}", label.unwrap_or("PEM block of an unknown kind"), mend_kind(label.unwrap_or_default(), *wanted))]
    WrongKind {
        /// Line of its `BEGIN`, from 1.
        line: usize,
        /// Its label, such as `CERTIFICATE REQUEST`, if it is a known one.
        label: Option<&'static str>,
        /// What should stand there.
        wanted: Wanted,
    },
    /// A PEM block without its end or with bytes that are not base64.
    #[error("the PEM block that begins on line {line} is damaged; copy the file again, whole")]
    Damaged {
        /// Line of its `BEGIN`, from 1.
        line: usize,
    },
    /// A block whose text begins on the line of its `BEGIN`.
    #[error(
        "line {line} continues after `-----BEGIN {label}-----`, so the line breaks of the file are lost; copy it again, with its line breaks"
    )]
    LineBreaksLost {
        /// Line of its `BEGIN`, from 1.
        line: usize,
        /// Its label.
        label: &'static str,
    },
    /// An `END` and a `BEGIN` on one line: two files were joined, and the first had no final line break.
    #[error("line {line} ends one PEM block and begins another; put a line break between the two")]
    JoinedBlocks {
        /// The line, from 1.
        line: usize,
    },
    /// A `BEGIN` that is not at the start of its line, so that other programs do not see it.
    #[error("line {line} has other text before its `-----BEGIN`; put that at the start of a line")]
    BeginNotFirst {
        /// The line, from 1.
        line: usize,
    },
    /// An `END` without a `BEGIN`.
    #[error("the PEM block that ends on line {line} has no beginning; copy the file again, whole")]
    NoBegin {
        /// Line of the `END`, from 1.
        line: usize,
    },
    /// A private key behind a passphrase.
    #[error(
        "the private key on line {line} is encrypted and nobody is there to type its passphrase; \
         decrypt it with `openssl pkey -in FILE -out NEW_FILE` and protect the file instead"
    )]
    EncryptedKey {
        /// Line of its `BEGIN`, from 1.
        line: usize,
    },
    /// Two keys, of which only one can be meant.
    #[error("holds {count} private keys; keep the one that belongs to the certificate")]
    SeveralKeys {
        /// How many.
        count: usize,
    },
    /// A key of a kind that no TLS client accepts, or damaged DER.
    #[error(
        "the private key is damaged or of an unsupported kind; use ECDSA P-256 (or P-384, Ed25519, RSA from 2048 bits)"
    )]
    UnusableKey,
    /// Key and certificate are not a pair.
    #[error(
        "does not belong to the certificate {}; give the key that this certificate was issued for",
        quote::path(certificate)
    )]
    KeyMismatch {
        /// The certificate it was given with.
        certificate: PathBuf,
    },
    /// The key belongs to a later certificate of the chain.
    #[error(
        "its key belongs to certificate {position} of the file, so the server's own certificate is \
         not first; put it first, then each issuer in turn"
    )]
    LeafNotFirst {
        /// Position of the server's certificate in the file, from 1.
        position: usize,
    },
    /// A certificate that did not issue the one before it.
    #[error(
        "certificate {position} ({subject}) is not the issuer of certificate {} ({issuer}); put the \
         server's certificate first, then each issuer in turn, and nothing else",
        position.saturating_sub(1)
    )]
    ChainOrder {
        /// Position of the certificate that is out of place, from 1.
        position: usize,
        /// Its subject.
        subject: String,
        /// The issuer that the certificate before it names.
        issuer: String,
    },
    /// DER that is not a certificate.
    #[error("certificate {position} of the file is {cause}; replace it")]
    Unreadable {
        /// Position in the file, from 1.
        position: usize,
        /// What the parser said.
        cause: UnreadableCertificate,
    },
    /// A certificate that rustls does not take.
    #[error(
        "certificate {position} of the file ({subject}) is of a kind that TLS refuses, such as version 1; issue it again as version 3"
    )]
    Unusable {
        /// Position in the file, from 1.
        position: usize,
        /// Its subject.
        subject: String,
        /// What rustls said; not printed, for its text is a dump of types.
        cause: rustls::Error,
    },
    /// Too late.
    #[error("expired on {on}; renew it, and check the clock of this machine if that is wrong")]
    Expired {
        /// When.
        on: UtcDate,
    },
    /// Too early.
    #[error("is not valid before {from}; check the clock of this machine, or wait until then")]
    NotYetValid {
        /// When.
        from: UtcDate,
    },
    /// Every CA of the file is too old.
    #[error("every CA in it has expired, the last one on {on}; get the cluster's current CA")]
    AllExpired {
        /// When the last one did.
        on: UtcDate,
    },
    /// No name that a client could verify.
    #[error(
        "names no host: it has no DNS name or IP address as subjectAltName, and clients ignore the \
         common name; issue it again with the public host name as subjectAltName"
    )]
    NoNames,
    /// An extended key usage without `serverAuth`.
    #[error(
        "is not for TLS servers (its extended key usage lacks serverAuth); issue it again with that usage"
    )]
    NotForServers,
}

/// What a PEM file should hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The server's certificate and its issuers.
    Chain,
    /// One private key.
    Key,
    /// CA certificates.
    Anchors,
}

impl Wanted {
    const fn noun(self) -> &'static str {
        match self {
            Self::Chain | Self::Anchors => "certificate",
            Self::Key => "private key",
        }
    }

    const fn command(self) -> &'static str {
        match self {
            Self::Chain | Self::Anchors => "x509",
            Self::Key => "pkey",
        }
    }

    const fn part(self) -> &'static str {
        match self {
            Self::Chain => "-nokeys",
            Self::Key => "-nocerts -nodes",
            Self::Anchors => "-nokeys -cacerts",
        }
    }

    const fn mend(self) -> &'static str {
        match self {
            Self::Chain => "put the server's certificate and its issuers there as PEM",
            Self::Key => "put the private key of the certificate there as PEM",
            Self::Anchors => "put the cluster's CA certificate there as PEM",
        }
    }
}

fn mend_kind(label: &str, wanted: Wanted) -> &'static str {
    let key = label.ends_with("PRIVATE KEY");
    let request = label.ends_with("CERTIFICATE REQUEST");
    match wanted {
        Wanted::Chain if key => {
            "keep the key in a file of its own, and check that certificate and key are not swapped"
        }
        Wanted::Chain if request => {
            "give the certificate that the issuer returned for this request"
        }
        Wanted::Chain => "keep only the server's certificate and its issuers",
        Wanted::Key if label.ends_with("CERTIFICATE") => {
            "keep only the private key, and check that certificate and key are not swapped"
        }
        Wanted::Key => "keep only the private key",
        Wanted::Anchors if key => {
            "keep only CA certificates, and treat that key as leaked if others can read this file"
        }
        Wanted::Anchors => "keep only CA certificates",
    }
}
