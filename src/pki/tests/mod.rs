//! How certificates, keys and CAs are read; the messages of refusals are in `cli::tests`.

pub(crate) mod mint;

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{DnType, DnValue, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use rustls::{NamedGroup, SignatureAlgorithm};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use standin::TempDir;

use super::{CertSummary, Identity, PkiError, PkiFileError, TimeLeft, TrustAnchors, provider};
use crate::config::{IdentityFiles, TrustSource};
use mint::{Ca, Leaf, common_name, now, params_of_leaf};

fn identity(certificate: &str, key: &str) -> Result<Identity, PkiFileError> {
    let scratch = TempDir::new();
    let files = IdentityFiles {
        certificate: scratch.write("tls.crt", certificate),
        key: scratch.write("tls.key", key),
    };
    Identity::load(&files, now()).map_err(|error| match error {
        PkiError::Certificate { source, .. } | PkiError::Key { source, .. } => *source,
        PkiError::Trust { .. } | PkiError::Revocation { .. } | PkiError::Named { .. } => {
            panic!("an identity has no anchors")
        }
    })
}

fn trust(pem: &str) -> Result<TrustAnchors, PkiError> {
    let source = TrustSource::Inline {
        pem: pem.as_bytes().to_vec(),
        origin: "here".to_owned(),
    };
    TrustAnchors::load(&source, now())
}

fn summary(pem: &str) -> CertSummary {
    CertSummary::from_der(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

#[test]
fn chain_and_key_are_read() {
    let root = Ca::new("root");
    let middle = root.intermediate("middle");
    let Leaf { pem, key } = middle.leaf(&["Kube.Example.com", "*.example.com", "10.0.0.1", "::1"]);
    let identity = identity(&format!("{pem}{}{}", middle.pem(), root.pem()), &key).unwrap();
    assert_eq!(
        identity.names(),
        ["kube.example.com", "*.example.com", "10.0.0.1", "::1"]
    );
    assert_eq!(identity.certified_key().cert.len(), 3);
    assert!(identity.certified_key().keys_match().is_ok());
    assert_eq!(identity.summary().issuer, "CN=middle");
    assert_eq!(
        identity.not_after(),
        now() + Duration::from_secs(61 * 86_400)
    );
    assert!(identity.warnings(now()).is_empty());
}

#[test]
fn common_key_types_are_read() {
    let ca = Ca::new("root");
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        let leaf = ca.issue_for(&params_of_leaf(&["a.example"]), &pair);
        assert!(identity(&leaf.pem, &leaf.key).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn sec1_key_with_ec_parameters_is_read() {
    let pair = KeyPair::generate().unwrap();
    let leaf = Ca::new("root").issue_for(&params_of_leaf(&["a.example"]), &pair);
    // PKCS#8 ends with an octet string that holds the SEC1 key, here of 109 bytes.
    let pkcs8 = pair.serialize_der();
    let (_, sec1) = pkcs8.split_at(pkcs8.len() - 109);
    assert_eq!(sec1[0], 0x30);
    let key = format!(
        "-----BEGIN EC PARAMETERS-----\r\nBggqhkjOPQMBBw==\r\n-----END EC PARAMETERS-----\r\n\
         -----BEGIN EC PRIVATE KEY-----\r\n{}\r\n-----END EC PRIVATE KEY-----\r\n",
        BASE64_STANDARD.encode(sec1)
    );
    let identity = identity(&leaf.pem, &key).unwrap();
    assert_eq!(
        identity.certified_key().key.algorithm(),
        SignatureAlgorithm::ECDSA
    );
}

#[test]
fn rsa_key_and_near_expiry_give_warnings() {
    let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
    let leaf = Ca::new("root").issue_for(&params_of_leaf(&["a.example"]), &pair);
    let identity = identity(&leaf.pem, &leaf.key).unwrap();
    let fourteen_days_before = now() + Duration::from_secs((61 - 14) * 86_400);
    assert_eq!(identity.warnings(fourteen_days_before).len(), 1);
    let warnings = identity.warnings(fourteen_days_before + Duration::from_secs(1));
    assert_eq!(
        warnings,
        [
            "the certificate for a.example expires in 13 days, on 2027-01-24T00:00:00Z; renew it",
            "the key for a.example is RSA, which makes each handshake several times more \
             expensive for the proxy; prefer ECDSA P-256",
        ]
    );
}

#[test]
fn last_two_days_are_written_in_hours() {
    let leaf = Ca::new("root").leaf(&["a.example"]);
    let identity = identity(&leaf.pem, &leaf.key).unwrap();
    let left = Duration::from_secs(36 * 60 * 60);
    let warnings = identity.warnings(identity.not_after() - left);
    let begin = "the certificate for a.example expires in 36 hours, on ";
    assert!(warnings[0].starts_with(begin), "{warnings:?}");
}

#[test]
fn expired_issuer_in_chain_gives_warning() {
    let root = Ca::expired("root");
    let Leaf { pem, key } = root.leaf(&["a.example"]);
    let identity = identity(&format!("{pem}{}", root.pem()), &key).unwrap();
    assert_eq!(
        identity.warnings(now()),
        [
            "the chain for a.example holds CN=root, which expired on 2025-01-01T00:00:00Z; fetch the \
          chain again"
        ]
    );
}

#[test]
fn common_name_does_not_count_as_name() {
    let ca = Ca::new("root");
    let mut params = params_of_leaf(&["san.example"]);
    params.distinguished_name = common_name("cn.example");
    let leaf = ca.issue(&params);
    let with_san = identity(&leaf.pem, &leaf.key).unwrap();
    assert_eq!(with_san.names(), ["san.example"]);
    params.subject_alt_names.clear();
    let leaf = ca.issue(&params);
    assert!(matches!(
        identity(&leaf.pem, &leaf.key),
        Err(PkiFileError::NoNames)
    ));
}

#[test]
fn unmatchable_san_does_not_count_as_name() {
    let leaf = Ca::new("root").leaf(&["a.example\n", "*.*.example", "b.example"]);
    assert_eq!(
        identity(&leaf.pem, &leaf.key).unwrap().names(),
        ["b.example"]
    );
}

#[test]
fn wildcard_covers_exactly_one_label() {
    let leaf = Ca::new("root").leaf(&["a.example", "*.b.example"]);
    let identity = identity(&leaf.pem, &leaf.key).unwrap();
    for host in ["a.example", "x.b.example", "*.b.example"] {
        assert!(identity.covers(host), "{host}");
    }
    for host in [
        "b.example",
        ".b.example",
        "x.y.b.example",
        "xb.example",
        "*.a.example",
        "",
    ] {
        assert!(!identity.covers(host), "{host}");
    }
}

#[test]
fn debug_text_of_identity_has_no_key() {
    let leaf = Ca::new("root").leaf(&["a.example"]);
    let text = format!("{:?}", identity(&leaf.pem, &leaf.key).unwrap());
    assert!(
        text.contains("<redacted>") && !text.contains("PrivateKey"),
        "{text}"
    );
}

#[test]
fn only_the_cas_of_the_file_are_trusted() {
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let text = format!("# our CAs\n{}\n{}", first.pem(), second.pem());
    let anchors = trust(&text).unwrap();
    let subjects: Vec<_> = anchors.summaries().iter().map(|ca| &ca.subject).collect();
    assert_eq!(subjects, ["CN=first", "CN=second"]);
    assert_eq!(anchors.roots().len(), 2);
    assert!(anchors.warnings().is_empty());
}

#[test]
fn malformed_certificate_block_is_refused() {
    let ca = Ca::new("first").pem();
    let odd = ca.replace(
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE----- odd",
    );
    for text in [
        format!("{ca}{odd}"),
        format!("{odd}{ca}"),
        ca.replace('\n', "\n "),
    ] {
        let error = trust(&text).unwrap_err();
        let PkiError::Trust { source, .. } = error else {
            panic!("{error:?}");
        };
        assert!(
            matches!(
                *source,
                PkiFileError::Damaged { .. } | PkiFileError::LineBreaksLost { .. }
            ),
            "{source:?}\n{text}"
        );
    }
}

/// Windows editors put one at the start of a file.
#[test]
fn byte_order_mark_does_not_hide_the_first_block() {
    let (first, second) = (Ca::new("first"), Ca::new("second"));
    let anchors = trust(&format!("\u{feff}{}{}", first.pem(), second.pem())).unwrap();
    assert_eq!(anchors.roots().len(), 2);
    let Leaf { pem, key } = first.leaf(&["a.example"]);
    let identity = identity(&format!("\u{feff}{pem}"), &format!("\u{feff}{key}")).unwrap();
    assert_eq!(identity.names(), ["a.example"]);
}

#[test]
fn version_1_root_is_trusted() {
    let anchors = trust(include_str!("testdata/v1-root.crt")).unwrap();
    assert_eq!(anchors.roots().len(), 1);
    assert_eq!(anchors.summaries()[0].subject, "CN=old root");
}

#[test]
fn expired_ca_is_skipped_with_a_warning() {
    let text = format!("{}{}", Ca::expired("old").pem(), Ca::new("new").pem());
    let anchors = trust(&text).unwrap();
    assert_eq!(anchors.roots().len(), 1);
    assert_eq!(anchors.summaries()[0].subject, "CN=new");
    assert_eq!(
        anchors.warnings(),
        [
            "the CA CN=old expired on 2025-01-01T00:00:00Z and is not trusted; remove it from the file"
        ]
    );
}

/// Go and OpenSSL use the rest of the file too.
#[test]
fn odd_ca_is_left_out_while_another_one_is_left() {
    let good = Ca::new("good");
    let leaf = good.leaf(&["kubernetes"]).pem;
    let short = include_str!("testdata/rsa-1024-ca.crt");
    // A year that a certificate cannot have. The signature does not matter.
    let first_year = {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2060, 1, 1);
        params.not_after = rcgen::date_time_ymd(2070, 1, 1);
        let mut der = params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .to_vec();
        let year = der.windows(5).position(|part| part == b"20600").unwrap();
        der[year..year + 4].copy_from_slice(b"0001");
        let body = BASE64_STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    };
    let odd = [
        (
            &*leaf,
            "certificate 2 of the file (CN=server) is no CA certificate (CA:FALSE)",
        ),
        (
            short,
            "certificate 2 of the file (CN=short) has an RSA key of 1024 bits",
        ),
        (
            &*first_year,
            "certificate 2 of the file is not an X.509 certificate",
        ),
    ];
    for (odd, warning) in odd {
        let anchors = trust(&format!("{}{odd}", good.pem())).unwrap();
        assert_eq!(anchors.roots().len(), 1);
        assert_eq!(anchors.summaries()[0].subject, "CN=good");
        let [found] = anchors.warnings() else {
            panic!("{:?}", anchors.warnings());
        };
        let begin = format!("CA of here, a part is not trusted: {warning}");
        assert!(found.starts_with(&begin), "{found}");
        assert!(trust(odd).is_err(), "nothing is left");
    }
}

#[test]
fn last_ca_that_expires_soon_gives_a_warning() {
    let ca = |end| {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = common_name("soon");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = end;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    };
    let soon = ca(rcgen::date_time_ymd(2026, 12, 20));
    let anchors = trust(&soon).unwrap();
    assert_eq!(
        anchors.warnings(),
        [
            "the last CA of the cluster, CN=soon, expires in 26 days, on 2026-12-20T00:00:00Z; add the next CA of the cluster to the file"
        ]
    );
    let later = ca(rcgen::date_time_ymd(2026, 12, 25));
    assert_eq!(
        trust(&later).unwrap().warnings().len(),
        0,
        "31 days are enough"
    );
    let both = trust(&format!("{soon}{}", Ca::new("next").pem())).unwrap();
    assert_eq!(both.warnings().len(), 0, "the next CA is there");
}

#[test]
fn ca_with_a_serial_number_of_40_bytes_is_trusted() {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.serial_number = Some(vec![0x7f; 40].into());
    let ca = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let anchors = trust(&ca.pem()).unwrap();
    assert_eq!(anchors.roots().len(), 1);
    assert!(anchors.warnings().is_empty());
}

/// Word processors make dashes of hyphens. A decoder would skip the block.
#[test]
fn pem_block_with_dashes_for_hyphens_is_refused() {
    let (first, second) = (Ca::new("first").pem(), Ca::new("second").pem());
    for (from, to) in [
        ("-----", "—----"),
        ("-----", "–----"),
        ("-----BEGIN", "-----begin"),
        ("-----BEGIN", "- ----BEGIN"),
    ] {
        let text = format!("{first}{}", second.replace(from, to));
        let PkiError::Trust { source, .. } = trust(&text).unwrap_err() else {
            panic!("{text}");
        };
        assert!(
            matches!(*source, PkiFileError::AlmostMarker { line: 11 }),
            "{source:?}\n{text}"
        );
    }
    // These are comments, as openssl writes them.
    let text = format!("--- our CAs: the begin and the end ---\nsubject=/CN=BEGIN\n{first}");
    assert_eq!(trust(&text).unwrap().roots().len(), 1);
}

#[test]
fn byte_order_mark_within_a_joined_file_is_skipped() {
    let (first, second) = (Ca::new("first").pem(), Ca::new("second").pem());
    let anchors = trust(&format!("{first}\u{feff}{second}")).unwrap();
    assert_eq!(anchors.roots().len(), 2);
}

#[test]
fn certificate_of_a_week_warns_in_its_last_third() {
    let mut leaf = summary(&Ca::new("root").leaf(&["a.example"]).pem);
    const DAY: Duration = Duration::from_secs(86_400);
    leaf.not_after = now();
    leaf.not_before = now() - 6 * DAY;
    assert!(!leaf.expires_soon(now() - 2 * DAY));
    assert!(leaf.expires_soon(now() - 2 * DAY + Duration::from_secs(1)));
}

#[test]
fn chains_that_clients_reject_give_a_warning() {
    let root = Ca::new("root");
    let warning = |pem: &str, key: &str| identity(pem, key).unwrap().client_warning(now());
    let leaf = root.leaf(&["a.example"]);
    assert_eq!(
        warning(&leaf.pem, &leaf.key),
        None,
        "a private CA is a valid choice"
    );
    let pair = KeyPair::generate().unwrap();
    let own = params_of_leaf(&["a.example"]).self_signed(&pair).unwrap();
    let found = warning(&own.pem(), &pair.serialize_pem()).unwrap();
    assert!(
        found.starts_with("the certificate for a.example is self-signed"),
        "{found}"
    );
    let mut params = params_of_leaf(&["a.example"]);
    // The policy of public CAs that says: domain validated.
    let policy = vec![
        0x30, 0x0a, 0x30, 0x08, 0x06, 0x06, 0x67, 0x81, 0x0c, 0x01, 0x02, 0x01,
    ];
    let policy = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 32], policy);
    params.custom_extensions.push(policy);
    let leaf = root.issue(&params);
    let found = warning(&leaf.pem, &leaf.key).unwrap();
    assert!(
        found.starts_with(
            "the chain for a.example is incomplete, so clients reject it: CN=root issued its last"
        ),
        "{found}"
    );
}

#[test]
fn fingerprint_has_openssl_format() {
    let summary = summary(include_str!("testdata/v1-root.crt"));
    assert_eq!(
        summary.fingerprint().to_string(),
        include_str!("testdata/v1-root.sha256").trim()
    );
    assert_eq!(summary.sha256.len(), 64);
}

#[test]
fn summary_is_one_line() {
    let ca = Ca::new("root");
    let summary = summary(&ca.leaf(&["a.example", "10.0.0.1"]).pem);
    let line = summary.to_string();
    assert!(
        line.starts_with(
            "CN=server (issued by CN=root, for a.example, 10.0.0.1, valid 2026-01-01T00:00:00Z to \
             2027-01-24T00:00:00Z, SHA-256 "
        ),
        "{line}"
    );
}

#[test]
fn hostile_names_are_escaped() {
    let ca = Ca::new("root");
    let mut params = params_of_leaf(&["a.example"]);
    let hostile = format!("\u{1b}[2J\r\n\u{202e}\u{0}{}", "x".repeat(10_000));
    params
        .distinguished_name
        .push(DnType::CommonName, DnValue::Utf8String(hostile));
    let shown = summary(&ca.issue(&params).pem).to_string();
    assert!(!shown.chars().any(char::is_control), "{shown}");
    assert!(!shown.contains('\u{202e}'), "{shown}");
    assert!(shown.len() < 1_000, "{}", shown.len());
}

#[test]
fn damaged_certificate_does_not_panic() {
    let ca = Ca::new("root");
    let pem = ca.leaf(&["a.example", "10.0.0.1"]).pem;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut read = 0;
    for position in 0..der.len() {
        let cut = CertificateDer::from(der[..position].to_vec());
        assert!(CertSummary::from_der(&cut).is_err(), "cut at {position}");
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = der.to_vec();
            bytes[position] ^= flip;
            read += usize::from(CertSummary::from_der(&bytes.into()).is_ok());
        }
    }
    // Most of a certificate is key and signature, which the summary does not read.
    assert!(read > der.len(), "{read} of {}", der.len());
}

#[test]
fn post_quantum_hybrid_is_preferred() {
    let groups: Vec<_> = provider()
        .kx_groups
        .iter()
        .map(|group| group.name())
        .collect();
    assert_eq!(
        groups,
        [
            NamedGroup::X25519MLKEM768,
            NamedGroup::X25519,
            NamedGroup::secp256r1,
            NamedGroup::secp384r1,
        ]
    );
}

#[test]
fn client_that_trusts_the_root_accepts_the_chain() {
    use rustls::client::{WebPkiServerVerifier, danger::ServerCertVerifier};
    let root = Ca::new("root");
    let middle = root.intermediate("middle");
    let Leaf { pem, key } = middle.leaf(&["a.example"]);
    let identity = identity(&format!("{pem}{}", middle.pem()), &key).unwrap();
    let verify = |anchors: &TrustAnchors| {
        let verifier = WebPkiServerVerifier::builder_with_provider(anchors.roots(), provider())
            .build()
            .unwrap();
        let chain = identity.certified_key();
        let (leaf, rest) = chain.cert.split_first().unwrap();
        let time = rustls_pki_types::UnixTime::since_unix_epoch(
            now().duration_since(std::time::UNIX_EPOCH).unwrap(),
        );
        verifier
            .verify_server_cert(leaf, rest, &"a.example".try_into().unwrap(), &[], time)
            .is_ok()
    };
    assert!(verify(&trust(&root.pem()).unwrap()));
    assert!(!verify(&trust(&Ca::new("root").pem()).unwrap()));
}

#[test]
fn time_left_is_in_hours_below_two_days() {
    let hour = Duration::from_secs(60 * 60);
    for (left, words) in [
        (hour / 2, "less than an hour"),
        (hour, "1 hour"),
        (hour * 47, "47 hours"),
        (hour * 48, "2 days"),
        (hour * 24 * 61, "61 days"),
    ] {
        assert_eq!(TimeLeft(left).to_string(), words);
    }
}
