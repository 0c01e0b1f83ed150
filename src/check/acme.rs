//! Checks a certificate that comes from a CA by ACME, as far as the machine itself can see it. Makes no order, and
//! writes no file.

use std::{collections::BTreeSet, net::IpAddr};

use tokio::{net::lookup_host, time::timeout};

use super::{Check, Message, Plan, Recorder};
use crate::{
    acme,
    config::{AcmeConfig, Config},
    quote,
};

/// Records what stops the CA from issuing the certificate.
pub(super) async fn check(
    plan: &Plan,
    acme: &AcmeConfig,
    config: &Config,
    recorder: &mut Recorder<'_>,
) {
    match acme::check_store(&acme.store) {
        Ok(state) => recorder.ok(
            Check::Certificate,
            format!("the ACME store {} {state}", quote::path(&acme.store)),
        ),
        Err(error) => recorder.failed(Check::Certificate, Message::from_error(&error)),
    }
    check_challenge_port(plan, acme, config, recorder);
    if plan.offline {
        return recorder.skipped(
            &[Check::Certificate],
            "the ACME directory is not asked (--offline)",
        );
    }
    match acme::check_directory(acme).await {
        Ok(()) => {
            let text = format!("the ACME directory {} answers", acme.directory);
            recorder.ok(Check::Certificate, text);
        }
        Err(error) => recorder.failed(
            Check::Certificate,
            Message::new(
                format!("the ACME directory {}: {error}", acme.directory),
                "check the URL, DNS and the firewall for outgoing connections, and `directoryCa` if the CA is a private one",
            ),
        ),
    }
    for name in &acme.names {
        check_name(name, config, recorder).await;
    }
}

/// Checks the port that the CA connects to. Whether its connections arrive cannot be seen from here.
fn check_challenge_port(
    plan: &Plan,
    acme: &AcmeConfig,
    config: &Config,
    recorder: &mut Recorder<'_>,
) {
    let Some(address) = acme.http01_listen else {
        let mut addresses = config.listen.iter().map(|entry| entry.address);
        if !addresses.any(|address| address.port() == HTTPS_PORT) {
            let text = "the CA connects to port 443 to validate a name, and the proxy does not listen there";
            let fix = "add a listener on [::]:443, or have port 443 of the public address forwarded to this one";
            recorder.warning(Check::Listen, Message::new(text, fix));
        }
        return;
    };
    if address.port() != HTTP_PORT {
        let text = format!(
            "the CA connects to port 80 to validate a name, and `http01Listen` is {address}"
        );
        let fix = "listen on [::]:80, or have port 80 of the public address forwarded to this one";
        recorder.warning(Check::Listen, Message::new(text, fix));
    }
    if plan.offline {
        return;
    }
    match acme::check_http01(address) {
        Ok(()) => {
            let text = format!("{address} can be opened for the challenge http-01");
            recorder.ok(Check::Listen, text);
        }
        Err(error) => recorder.failed(Check::Listen, Message::from_error(&error)),
    }
}

/// Says that a CA will issue the certificate, if it has not.
pub(super) fn pending(acme: &AcmeConfig, recorder: &mut Recorder<'_>) {
    let names = acme.names.join(", ");
    let text = format!("{names}: no certificate yet; `serve` gets one by ACME");
    recorder.ok(Check::Certificate, text);
}

/// Checks that DNS leads from the name to an address. Whether that is this machine cannot be seen from here, because of
/// address translation.
async fn check_name(name: &str, config: &Config, recorder: &mut Recorder<'_>) {
    if name.parse::<IpAddr>().is_ok() {
        return;
    }
    let lookup = timeout(
        config.timeouts.upstream_connect,
        lookup_host((name, HTTPS_PORT)),
    );
    let found: BTreeSet<_> = match lookup.await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_string()).collect(),
        Ok(Err(_)) | Err(_) => BTreeSet::new(),
    };
    if found.is_empty() {
        let text = format!("{name} has no address in DNS, so the CA cannot validate it");
        let fix = "add an A or AAAA record with the public address of this machine";
        return recorder.failed(Check::Hosts, Message::new(text, fix));
    }
    let found = Vec::from_iter(found).join(", ");
    let text = format!("DNS leads from {name} to {found}, where the CA will look for this proxy");
    recorder.ok(Check::Hosts, text);
}

const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;
