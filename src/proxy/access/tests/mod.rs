//! Access rules against requests: spellings of paths, and what each selector means.

mod paths;
mod selectors;

use http::Request;
use standin::TempDir;

use super::*;
use crate::config::{Environment, ServeArgs, load};

/// The rules of a configuration file.
fn rules(access: &str) -> AccessRules {
    let dir = TempDir::new();
    let text = format!(
        "certificates: [{{certificate: tls.crt, key: tls.key}}]\n\
         clusters:\n- name: prod\n  upstream: {{url: 'https://10.0.0.1', ca: ca.crt}}\n  access:\n{access}"
    );
    let args = ServeArgs {
        config: Some(dir.write("proxy.yaml", text)),
        ..ServeArgs::default()
    };
    let config = load(&args, &Environment::from_process()).unwrap();
    AccessRules::new("prod", &config.clusters[0].access).unwrap()
}

fn head(request: &str, fields: &[(&str, &str)]) -> Parts {
    let (method, target) = request.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// `open 2`, `rule 1`, `none`, or `400`.
fn decision(rules: &AccessRules, from: &str, request: &str, fields: &[(&str, &str)]) -> String {
    let decided = explain(rules, &head(request, fields), from.parse().unwrap(), false);
    match decided {
        Ok((AccessDecision::Allowed(rule), _)) => format!("open {rule}"),
        Ok((AccessDecision::Denied(Some(rule)), _)) => format!("rule {rule}"),
        Ok((AccessDecision::Denied(None), _)) => "none".to_owned(),
        Err(_) => "400".to_owned(),
    }
}

/// The decision about a request with an opaque token, from an address outside of every list.
fn outside(rules: &AccessRules, request: &str) -> String {
    decision(
        rules,
        "198.51.100.9",
        request,
        &[("authorization", "Bearer x")],
    )
}
