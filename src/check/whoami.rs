//! Checks who the owner of a client certificate is: for the apiserver itself, as the proxy names it there, and through
//! the running proxy. All must agree.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::{
    Check, Message, Plan, Recorder, apiserver::accept_json, http::CheckClient, recorder::escape,
    target::CheckTarget,
};
use crate::{
    hosts::UpstreamAddr,
    pki::{CertificateSubject, ClientIdentity, TokenFile},
    reload::{ClientMaterial, NamingMaterial},
    text::error_chain,
    upstream::{RemoteUser, UserNaming},
};

/// The user whom an apiserver finds in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct UserInfo {
    username: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct SelfSubjectReview {
    status: ReviewStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReviewStatus {
    user_info: UserInfo,
}

/// Asks the apiserver directly with the certificate of the user and, if the cluster uses client certificates, as the
/// proxy asks. Returns what the apiserver finds in the certificate.
pub(super) async fn direct(
    plan: &Plan,
    target: &CheckTarget,
    endpoint: UpstreamAddr,
    user: &ClientIdentity,
    clients: Option<&ClientMaterial>,
    recorder: &mut Recorder<'_>,
) -> Option<UserInfo> {
    recorder.waiting(
        Check::Whoami,
        "asking who the owner of the client certificate is",
    );
    let presenting = target.presenting(user);
    let direct = match review(client(plan, &presenting, endpoint), HeaderMap::new()).await {
        Ok(found) => found,
        Err(problem) => {
            let fix = "give a certificate of the CA in --client-ca-file of the apiserver";
            let text = format!("the apiserver does not accept the client certificate: {problem}");
            recorder.failed(Check::Whoami, Message::new(text, fix));
            return None;
        }
    };
    let Some(clients) = clients else {
        let text = format!("{} for the apiserver itself", direct.describe());
        recorder.ok(Check::Whoami, text);
        return Some(direct);
    };
    let chain = &user.certified_key().cert;
    let now = SystemTime::now();
    if let Err(refused) = clients.ca.verify(chain, now) {
        let text = format!("the proxy does not accept the client certificate: it {refused}");
        let fix = "give a valid certificate of `clientCertificates.ca`, or add the CA of this one to that file";
        recorder.failed(Check::Whoami, Message::new(text, fix));
        return Some(direct);
    }
    let subject = chain.first().map(CertificateSubject::from_der);
    let fields = match subject {
        Some(Ok(subject)) => RemoteUser::new(&subject).ok(),
        Some(Err(_)) | None => None,
    };
    let Some(fields) = fields else {
        let fix = "issue a certificate whose names have no blanks at their ends and no control characters";
        recorder.failed(
            Check::Whoami,
            Message::new("the certificate names no user", fix),
        );
        return Some(direct);
    };
    match &clients.naming {
        NamingMaterial::FrontProxy(identity) => {
            let presenting = target.presenting(identity);
            let client = client(plan, &presenting, endpoint);
            match review(client, fields.remote_fields()).await {
                Ok(found) => {
                    let how = "with the front-proxy certificate";
                    compare(&direct, &found, how, FRONT_PROXY_FIX, recorder);
                }
                Err(problem) => {
                    let text = format!(
                        "the apiserver does not accept the front-proxy certificate: {problem}"
                    );
                    recorder.failed(Check::Whoami, Message::new(text, FRONT_PROXY_FIX));
                }
            }
        }
        NamingMaterial::Token(token) => {
            match impersonated(client(plan, target, endpoint), token, &fields).await {
                Ok(found) => compare(&direct, &found, "by impersonation", TOKEN_FIX, recorder),
                Err(problem) => {
                    let text = format!("the token may not impersonate this user: {problem}");
                    recorder.failed(Check::Whoami, Message::new(text, TOKEN_FIX));
                }
            }
        }
    }
    Some(direct)
}

/// Asks the apiserver whether the token may impersonate, with an invented user: without the certificate of a user no
/// other is known. The user is in no group, because the role of the token should name the groups.
pub(super) async fn invented(
    plan: &Plan,
    target: &CheckTarget,
    endpoint: UpstreamAddr,
    token: &Arc<TokenFile>,
    recorder: &mut Recorder<'_>,
) {
    recorder.waiting(
        Check::Whoami,
        "asking whether the token may impersonate users",
    );
    let invented = CertificateSubject {
        user: INVENTED.to_owned(),
        groups: Vec::new(),
        uid: None,
        sha256: INVENTED.to_owned(),
    };
    let Ok(user) = RemoteUser::new(&invented) else {
        return;
    };
    match impersonated(client(plan, target, endpoint), token, &user).await {
        Ok(found) if found.username == INVENTED => {
            let text = "the token may impersonate users; the certificate of one (--client-cert) shows whether it may do so for its groups";
            recorder.ok(Check::Whoami, text);
        }
        Ok(found) => {
            let text = format!(
                "the impersonated user is {} for the apiserver",
                found.describe()
            );
            recorder.failed(Check::Whoami, Message::new(text, TOKEN_FIX));
        }
        // Its role may name the users.
        Err(problem) => {
            let text = format!("the token may not impersonate any user: {problem}");
            recorder.warning(Check::Whoami, Message::new(text, INVENTED_FIX));
        }
    }
}

/// Asks who an impersonated user is.
async fn impersonated(
    client: CheckClient<'_>,
    token: &Arc<TokenFile>,
    user: &RemoteUser,
) -> Result<UserInfo, String> {
    let naming = UserNaming::Impersonator(Arc::clone(token));
    let right = naming.right(SystemTime::now());
    let right = right.map_err(|error| error.to_string())?;
    let mut headers = HeaderMap::new();
    right.write(user, &mut headers);
    review(client, headers).await
}

/// Asks through the running proxy. `direct` is what each apiserver finds itself, if that is known.
pub(super) async fn through(
    plan: &Plan,
    target: &CheckTarget,
    endpoint: UpstreamAddr,
    user: &ClientIdentity,
    direct: &[UserInfo],
    recorder: &mut Recorder<'_>,
) {
    recorder.waiting(
        Check::Whoami,
        "asking who the owner of the client certificate is",
    );
    let presenting = target.presenting(user);
    match review(client(plan, &presenting, endpoint), HeaderMap::new()).await {
        // With several clusters it is not known which one the proxy has chosen.
        Ok(found) => match direct {
            [direct] => compare(direct, &found, "through the proxy", THROUGH_FIX, recorder),
            _ => recorder.ok(
                Check::Whoami,
                format!("{} through the proxy", found.describe()),
            ),
        },
        Err(problem) => {
            let text = format!("the client certificate is not accepted: {problem}");
            let fix = "check `clientCertificates` where the proxy runs, and whether a load balancer in front of it ends TLS";
            recorder.failed(Check::Whoami, Message::new(text, fix));
        }
    }
}

fn client<'a>(plan: &'a Plan, target: &'a CheckTarget, endpoint: UpstreamAddr) -> CheckClient<'a> {
    CheckClient {
        plan,
        target,
        endpoint,
        // Its user would be another one.
        token: None,
    }
}

/// Compares what the apiserver finds itself with what it is told.
fn compare(direct: &UserInfo, found: &UserInfo, how: &str, fix: &str, recorder: &mut Recorder<'_>) {
    let without_uid = UserInfo {
        uid: direct.uid.clone(),
        ..found.clone()
    };
    if direct == found {
        let text = format!("{} for the apiserver itself and {how}", direct.describe());
        recorder.ok(Check::Whoami, text);
    } else if *direct == without_uid {
        let text = format!("{} {how}, but without the user id", found.describe());
        let fix = "start the apiserver with --requestheader-uid-headers=X-Remote-Uid if something needs the id";
        recorder.warning(Check::Whoami, Message::new(text, fix));
    } else {
        let text = format!(
            "{} for the apiserver itself, but {} {how}",
            direct.describe(),
            found.describe()
        );
        recorder.failed(Check::Whoami, Message::new(text, fix));
    }
}

impl UserInfo {
    fn describe(&self) -> String {
        let groups = self.groups.join(", ");
        format!("{} ({})", escape(&self.username), escape(&groups))
    }
}

/// Asks the apiserver who sends this request.
async fn review(client: CheckClient<'_>, more: HeaderMap) -> Result<UserInfo, String> {
    let mut headers = accept_json();
    headers.extend(more);
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let response = client.post(REVIEWS, headers, REVIEW).await;
    let response = response.map_err(|error| error_chain(&error).to_string())?;
    if response.status != StatusCode::CREATED {
        return Err(response.describe());
    }
    let review: SelfSubjectReview = serde_json::from_slice(&response.body)
        .map_err(|_not_a_review| "the response is no SelfSubjectReview".to_owned())?;
    Ok(review.status.user_info)
}

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const REVIEW: &str = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
const FRONT_PROXY_FIX: &str = "check --requestheader-client-ca-file, --requestheader-allowed-names and the other --requestheader flags of the apiserver";
const TOKEN_FIX: &str =
    "check the token, and give its ServiceAccount the ClusterRole of docs/client-certificates.md";
const INVENTED_FIX: &str = "give its ServiceAccount the ClusterRole of docs/client-certificates.md; if that role names users, check with --client-cert and --client-key of one of them";
const THROUGH_FIX: &str =
    "check `clientCertificates` where the proxy runs, and the credential of the proxy there";
const INVENTED: &str = "kube-tls-proxy:check";
