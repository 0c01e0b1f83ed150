//! The user that a client certificate names, read where kube-apiserver reads it: the common name is the user, and each
//! organization is a group.
//!
//! A name that a header field cannot carry unchanged is refused: a parser removes blanks at the ends of a field, so
//! that `admin ` would become `admin`.

use rustls_pki_types::CertificateDer;
use x509_cert::{
    attr::AttributeTypeAndValue,
    certificate::CertificateInner,
    der::{Decode as _, Tag, Tagged as _, oid::ObjectIdentifier},
};

use super::summary::{AnySerial, sha256};

/// Who the owner of a client certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSubject {
    /// The common name.
    pub user: String,
    /// The organizations, in their order.
    pub groups: Vec<String>,
    /// The unique id, if the certificate has one.
    pub uid: Option<String>,
    /// SHA-256 of the DER, lower-case hex.
    pub sha256: String,
}

/// Why a certificate names no user. The text is the rest of a sentence that begins with "the certificate".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// It cannot be read.
    #[error("is malformed")]
    Malformed,
    /// There is no common name.
    #[error("names no user: its subject has no common name (CN)")]
    NoUser,
    /// kube-apiserver refuses several ids, too.
    #[error("has more than one user id (1.3.6.1.4.1.57683.2)")]
    SeveralIds,
    /// A name or group with a blank at an end or a control character, or without any character.
    #[error(
        "has a name (CN) or group (O) that is empty, begins or ends with a blank, or has a control character"
    )]
    UnsafeName,
    /// A text of another type than UTF-8 or ASCII.
    #[error("has a name (CN) or group (O) that is neither UTF-8 nor ASCII")]
    Encoding,
}

impl CertificateSubject {
    /// Reads the subject of a certificate.
    ///
    /// # Errors
    ///
    /// [`SubjectError`] says why the certificate names no user.
    pub fn from_der(der: &CertificateDer<'_>) -> Result<Self, SubjectError> {
        let certificate = CertificateInner::<AnySerial>::from_der(der)
            .map_err(|_unreadable| SubjectError::Malformed)?;
        let (mut user, mut groups, mut uid) = (None, Vec::new(), None);
        let names = certificate.tbs_certificate().subject().as_ref().as_ref();
        for attribute in names.iter().flat_map(|name| name.as_ref().iter()) {
            if attribute.oid == COMMON_NAME {
                // Of several the last one counts, as in Go.
                user = Some(text(attribute)?);
            } else if attribute.oid == ORGANIZATION {
                groups.push(text(attribute)?);
            } else if attribute.oid == USER_ID && uid.replace(text(attribute)?).is_some() {
                return Err(SubjectError::SeveralIds);
            }
        }
        Ok(Self {
            user: user.ok_or(SubjectError::NoUser)?,
            groups,
            uid,
            sha256: sha256(der),
        })
    }

    /// Whether the user or a group has a name that Kubernetes reserves for itself.
    #[must_use]
    pub fn is_of_system(&self) -> bool {
        let mut names = [&self.user].into_iter().chain(&self.groups);
        names.any(|name| name.starts_with("system:"))
    }
}

/// The text of an attribute, if a header field carries it unchanged.
fn text(attribute: &AttributeTypeAndValue) -> Result<String, SubjectError> {
    let bytes = attribute.value.value();
    let tag = attribute.value.tag();
    let is_of_ascii = matches!(tag, Tag::PrintableString | Tag::Ia5String);
    let is_known = tag == Tag::Utf8String || is_of_ascii && bytes.is_ascii();
    let text = str::from_utf8(bytes).ok().filter(|_| is_known);
    let text = text.ok_or(SubjectError::Encoding)?;
    let is_unsafe = text.is_empty() || text.trim() != text || text.chars().any(char::is_control);
    if is_unsafe {
        return Err(SubjectError::UnsafeName);
    }
    Ok(text.to_owned())
}

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
/// Registered by Kubernetes.
const USER_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57683.2");

#[cfg(test)]
mod tests {
    use standin::pki::Ca;

    use super::*;

    #[test]
    fn last_common_name_and_all_organizations_count() {
        let ca = Ca::new("users");
        let leaf = ca.leaf(&[]).common_name("jane").organizations(&["b", "a"]);
        let leaf = leaf.attribute(&[2, 5, 4, 11], "unit");
        let leaf = leaf.attribute(&[2, 5, 4, 3], "joe").build();
        let subject = CertificateSubject::from_der(&leaf.chain[0]).unwrap();
        assert_eq!(subject.user, "joe");
        assert_eq!(subject.groups, ["b", "a"]);
        assert_eq!((subject.uid, subject.sha256.len()), (None, 64));
        assert_eq!(
            CertificateSubject::from_der(&CertificateDer::from(vec![1, 2, 3])),
            Err(SubjectError::Malformed)
        );
    }

    #[test]
    fn names_of_system_are_found_in_user_and_groups() {
        let ca = Ca::new("users");
        for (user, groups, is_of_system) in [
            ("jane", &["developers"][..], false),
            ("jane", &["developers", "system:masters"], true),
            ("system:admin", &[], true),
            ("System:admin", &["a system:masters"], false),
        ] {
            let leaf = ca.client(user, groups);
            let subject = CertificateSubject::from_der(&leaf.chain[0]).unwrap();
            assert_eq!(subject.is_of_system(), is_of_system, "{user} {groups:?}");
        }
    }
}
