//! The status page: one document, nothing from elsewhere, and a policy that lets nothing else run.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;

use super::server::typed;

/// The page and the policy that it is served under.
#[derive(Debug)]
pub(super) struct Page {
    html: Bytes,
    policy: Option<HeaderValue>,
}

impl Page {
    pub(super) fn new() -> Self {
        let html = HTML
            .replacen("/* style */", STYLE, 1)
            .replacen("/* script */", SCRIPT, 1);
        // The hashes are of what stands between the tags, so that not even a line added to the page by
        // somebody else would run.
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; \
             connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE),
        );
        Self {
            html: html.into(),
            policy: HeaderValue::try_from(policy).ok(),
        }
    }

    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let Some(policy) = self.policy.clone() else {
            return typed("text/plain; charset=utf-8", "the page has no policy\n");
        };
        let mut response = typed("text/html; charset=utf-8", self.html.clone());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        let none = HeaderValue::from_static("no-referrer");
        headers.insert(header::REFERRER_POLICY, none);
        response
    }
}

fn hash(text: &str) -> String {
    STANDARD.encode(digest(&SHA256, text.as_bytes()))
}

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_has_no_attribute_that_runs() {
        let page = Page::new();
        let html = String::from_utf8(page.html.to_vec()).unwrap();
        assert!(html.contains(&format!("<style>{STYLE}</style>")));
        assert!(html.contains(&format!("<script>{SCRIPT}</script>")));
        for text in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!html.contains(text), "{text}");
        }
        for attribute in [
            " onclick",
            " onload",
            " style=\"",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
        ] {
            assert!(!html.contains(attribute), "{attribute}");
        }
        let policy = page.policy.unwrap();
        let policy = policy.to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; script-src 'sha256-"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
