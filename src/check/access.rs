//! Says which access rule decides about a request, with the code of `serve` and without network.

use std::net::IpAddr;

use http::{Method, Request, Uri, header, request::Parts};

use super::{Check, Message, Recorder, Section, Token};
use crate::{
    config::{ClusterConfig, Config},
    proxy::{AccessDecision, AccessRules, RequestAttributes, explain, request_attributes},
};

/// A request whose decision is wanted.
#[derive(Debug, Clone)]
pub struct AccessQuestion {
    method: Method,
    target: Uri,
    from: IpAddr,
    has_certificate: bool,
}

/// The text is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "--explain-access: the value is not a request; write METHOD PATH, such as 'GET /api/v1/namespaces/default/pods'"
)]
pub struct AccessQuestionError;

impl AccessQuestion {
    /// Reads `GET /api/v1/pods?watch=1`. `has_certificate` says whether the client has a certificate that the proxy
    /// verifies.
    ///
    /// # Errors
    ///
    /// When the text is not a method and a path.
    pub fn parse(
        text: &str,
        from: IpAddr,
        has_certificate: bool,
    ) -> Result<Self, AccessQuestionError> {
        let (method, target) = text.trim().split_once(' ').ok_or(AccessQuestionError)?;
        let method = Method::from_bytes(method.as_bytes()).map_err(|_| AccessQuestionError)?;
        let target: Uri = target.trim().parse().map_err(|_| AccessQuestionError)?;
        if !target.path().starts_with('/') || target.authority().is_some() {
            return Err(AccessQuestionError);
        }
        Ok(Self {
            method,
            target,
            from,
            has_certificate,
        })
    }

    fn head(&self, token: Option<&Token>) -> Parts {
        let mut request = Request::new(());
        (*request.method_mut(), *request.uri_mut()) = (self.method.clone(), self.target.clone());
        if let Some(token) = token {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, token.header.clone());
        }
        request.into_parts().0
    }
}

/// Records the decision of each cluster. A denial is a failed check, so that the exit code says it, too.
pub(super) fn check(
    question: &AccessQuestion,
    token: Option<&Token>,
    config: &Config,
    recorder: &mut Recorder<'_>,
) {
    let attributes = request_attributes(&question.method, &question.target);
    for cluster in &config.clusters {
        let title = format!(
            "{} in cluster {}, from {}",
            asked(&attributes, question),
            cluster.name,
            question.from
        );
        recorder.begin(Section::Local, Some(&cluster.name), &title);
        decide(question, token, cluster, recorder);
    }
}

fn decide(
    question: &AccessQuestion,
    token: Option<&Token>,
    cluster: &ClusterConfig,
    recorder: &mut Recorder<'_>,
) {
    if cluster.passthrough {
        return recorder.ok(
            Check::Access,
            "allowed: the connections of this cluster are passed through, so no rule applies",
        );
    }
    let Some(rules) = AccessRules::new(&cluster.name, &cluster.access) else {
        return recorder.ok(Check::Access, "allowed: the cluster has no access rules");
    };
    let head = question.head(token);
    // Without the section the proxy asks for no certificate.
    let has_certificate = question.has_certificate && cluster.client_certificates.is_some();
    match explain(&rules, &head, question.from, has_certificate) {
        Ok((AccessDecision::Allowed(rule), _)) => {
            recorder.ok(Check::Access, format!("allowed by rule {rule}"));
        }
        Ok((AccessDecision::Denied(rule), kind)) => {
            let kind = kind.map_or(String::new(), |kind| {
                format!(", for the credential of kind `{}`", kind.name())
            });
            let (text, fix) = match rule {
                Some(rule) => (
                    format!("denied by rule {rule}{kind}"),
                    format!(
                        "to allow it, put an `allow` rule for it before rule {rule}, or change that rule"
                    ),
                ),
                None => (
                    format!("denied, because no rule allows it{kind}"),
                    "to allow it, add an `allow` rule for it at the end".to_owned(),
                ),
            };
            recorder.failed(Check::Access, Message::new(text, fix));
        }
        Err(rejection) => {
            let text = format!("refused with 400 before a rule is asked: {rejection}");
            let fix = "for a path, write it without escapes, empty parts, `.`, `..` and `;`; for a token, get another one";
            recorder.failed(Check::Access, Message::new(text, fix));
        }
    }
}

/// What the request asks for, as the rules see it.
fn asked(attributes: &RequestAttributes, question: &AccessQuestion) -> String {
    let verb = &attributes.verb;
    if attributes.resource.is_empty() {
        return format!("`{verb}` of the path {}", question.target.path());
    }
    let parts = [
        &attributes.group,
        &attributes.resource,
        &attributes.subresource,
    ];
    let parts: Vec<&str> = parts
        .into_iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    let place = if attributes.namespace.is_empty() {
        String::new()
    } else {
        format!(" in namespace {}", attributes.namespace)
    };
    format!("`{verb}` of {}{place}", parts.join("/"))
}
