//! The status page: one document that loads nothing else, with a policy that allows no other script.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::HeaderValue;

/// The page and its Content-Security-Policy.
#[derive(Debug)]
pub(super) struct StatusPage {
    html: Bytes,
    policy: Option<HeaderValue>,
}

impl StatusPage {
    pub(super) fn new() -> Self {
        let html = HTML
            .replacen("/* style */", STYLE, 1)
            .replacen("/* script */", SCRIPT, 1);
        // The policy allows the script by its hash, so that an injected script would not run.
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

    /// The document and its policy. `None` if the policy cannot be sent, without which the page is not served.
    pub(super) fn parts(&self) -> Option<(Bytes, HeaderValue)> {
        Some((self.html.clone(), self.policy.clone()?))
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
    fn page_loads_nothing_and_has_no_inline_handlers() {
        let page = StatusPage::new();
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
