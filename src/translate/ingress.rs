//! Ingress, and the annotations of ingress-nginx, HAProxy, Traefik and Contour on it.

use std::time::Duration;

use super::{
    FieldVerdict::{NotNeeded, NotPossible},
    Manifests, annotations, apiserver,
    draft::{Draft, DraftCluster, PemSource, ranges},
    limits,
    object::{ManifestField, ManifestObject},
};
use crate::{
    config::{ConfigError, duration},
    quote,
};

/// Translates an Ingress: one cluster for all of its hosts.
pub(super) fn translate<'a>(
    ingress: &'a ManifestObject,
    manifests: &'a Manifests,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    let spec = ingress.spec()?;
    let mut cluster = DraftCluster::new(spec.clone());
    let mut has_secret = false;
    let rules = spec.items_of("rules")?;
    let hosts = spec.items_of("tls")?;
    for rule in &rules {
        translate_rule(rule, manifests, &mut cluster)?;
    }
    let backend = spec.get_any(["defaultBackend", "backend"])?;
    if let Some(backend) = &backend {
        translate_backend(backend, manifests, &mut cluster)?;
    }
    if rules.is_empty() && backend.is_none() {
        return Err(spec.error("it has neither `rules` nor `defaultBackend`; add a rule with the Service `kubernetes`, port 443"));
    }
    let mut burst = Burst {
        requests: None,
        seconds: 1,
        multiplier: 5,
    };
    for (name, field) in ingress.annotations()? {
        if let Some((_, suffix)) = annotations::controller(name) {
            annotation(suffix, &field, manifests, &mut cluster, &mut burst, draft)?;
        }
    }
    if let Some((field, number)) = burst.requests.take() {
        let burst_size = number
            .div_ceil(burst.seconds)
            .saturating_mul(burst.multiplier);
        limits::requests(draft, &field, number, burst.seconds, burst_size)?;
    }
    for entry in &hosts {
        for host in entry.items_of("hosts")? {
            let is_known = cluster.hosts.iter().any(|(known, _)| {
                host.text()
                    .is_ok_and(|text| text.eq_ignore_ascii_case(known))
            });
            if is_known || cluster.hosts.is_empty() {
                host.text()?;
                host.used("a name in the certificate");
            } else {
                host.mark(NotNeeded, "no rule has this host");
            }
        }
        if let Some(secret) = entry.get("secretName")? {
            if cluster.passthrough {
                secret.mark(
                    NotNeeded,
                    "TLS is passed through: the certificate is that of the apiserver",
                );
                continue;
            }
            has_secret = true;
            draft.add_certificate(PemSource::named("Secret", &secret, "tls.crt")?);
            secret.used("`certificates`");
        }
    }
    if !cluster.passthrough && !has_secret {
        cluster.lacks_certificate();
    }
    check_client_certificates(&cluster)?;
    draft.add(cluster)
}

fn check_client_certificates(cluster: &DraftCluster<'_>) -> Result<(), ConfigError> {
    if cluster.passthrough && cluster.client_ca.is_some() {
        return Err(cluster.field.error("TLS is passed through, so the controller cannot have checked client certificates; remove `ssl-passthrough` or `auth-tls-secret`"));
    }
    Ok(())
}

fn translate_rule<'a>(
    rule: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    if let Some(host) = rule.get("host")? {
        cluster.add_host(&host)?;
    }
    let Some(http) = rule.get("http")? else {
        return Ok(());
    };
    for entry in http.need("paths")?.items()? {
        let kind = entry.text_or("pathType", "Prefix")?;
        if let Some(path) = entry.get("path")? {
            // `/*` is how controllers of cloud providers write a prefix.
            if !matches!(path.text()?, "/" | "/*") {
                return Err(super::other_path(&path));
            }
            if kind == "Exact" {
                return Err(path.error(
                    "`Exact` leads only the path `/` to the apiserver; write `pathType: Prefix`",
                ));
            }
            path.used("all paths lead to the apiserver");
        }
        translate_backend(&entry.need("backend")?, manifests, cluster)?;
    }
    Ok(())
}

fn translate_backend<'a>(
    backend: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    if let Some(resource) = backend.get("resource")? {
        return Err(
            resource.error("a resource is no apiserver; name the Service `kubernetes`, port 443")
        );
    }
    let namespace = &backend.object.namespace;
    // `serviceName` is how `v1beta1` wrote it, until Kubernetes 1.22.
    let (name, port) = match backend.get("serviceName")? {
        Some(name) => (name, backend.get("servicePort")?),
        None => {
            let service = backend.need("service")?;
            let port = service.get("port")?;
            let port = port.map_or(Ok(None), |port| port.get_any(["number", "name"]))?;
            (service.need("name")?, port)
        }
    };
    let place = apiserver::place(manifests, namespace, &name, port.as_ref())?;
    cluster.lead_to(place, &name)
}

/// A limit of requests, of which one annotation has the number and another the burst.
struct Burst<'a> {
    requests: Option<(ManifestField<'a>, u64)>,
    /// The seconds in which that many requests may come.
    seconds: u64,
    multiplier: u64,
}

/// Translates an annotation with this name after its prefix. A name that is not here gets the verdict of the table in
/// `annotations.rs`.
fn annotation<'a>(
    name: &str,
    field: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
    burst: &mut Burst<'a>,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    match name {
        "backend-protocol" => protocol(field),
        "secure-backends" | "server-ssl" => {
            is_on(field)?;
            field.used("the proxy speaks only TLS with the apiserver");
            Ok(())
        }
        "ssl-passthrough" => {
            if is_on(field)? {
                cluster.passthrough = true;
                field.used("`passthrough`");
            } else {
                field.mark(NotNeeded, "false is the default");
            }
            Ok(())
        }
        "whitelist-source-range" | "allowlist-source-range" | "whitelist" | "allow-list" => {
            if !cluster.allow.is_empty() {
                return Err(field.error("another annotation lists the allowed clients too; remove one of the two"));
            }
            cluster.allow = ranges(field, field.text()?)?;
            field.used("allowed clients");
            Ok(())
        }
        "denylist-source-range" | "blacklist-source-range" | "blacklist" | "deny-list" => {
            cluster.deny.extend(ranges(field, field.text()?)?);
            field.used("denied clients");
            Ok(())
        }
        "proxy-ssl-secret" | "server-ca" | "secure-verify-ca-secret" => {
            let ca = PemSource::named("Secret", field, "ca.crt")?;
            cluster.verify_with(ca, field)?;
            if name == "proxy-ssl-secret" {
                field.used("`ca`, from the key ca.crt of this Secret; its tls.crt and tls.key are not used, because each client would get their rights");
            }
            Ok(())
        }
        "proxy-ssl-name" | "secure-verify-hostname" | "server-sni" => cluster.expect_name(field),
        "proxy-ssl-verify" => {
            if is_on(field)? {
                field.used("the apiserver is always verified");
            } else {
                field.mark(NotPossible, "the apiserver is always verified, or an impostor could read every token; remove the annotation");
            }
            Ok(())
        }
        "insecure-skip-verify" | "service.insecureskipverify" => {
            field.mark(NotPossible, "the apiserver is always verified, or an impostor could read every token; remove the annotation");
            Ok(())
        }
        "auth-tls-secret" | "client-ca" => {
            let ca = PemSource::named("Secret", field, "ca.crt")?;
            super::client_ca(ca, field, manifests, cluster)
        }
        "auth-tls-verify-client" => verify_client(field),
        "auth-tls-strict" => {
            field.mark(NotNeeded, "a certificate that cannot be checked does not count");
            Ok(())
        }
        "server-alias" => {
            for host in field.text()?.split(',').map(str::trim).filter(|host| !host.is_empty()) {
                if host.starts_with('~') {
                    return Err(field.error("a regular expression is not a host; write each host"));
                }
                cluster.add_host_text(field, host)?;
            }
            Ok(())
        }
        "limit-rps" | "rate-limit-requests" => remember(field, burst),
        "limit-rpm" => {
            if burst.requests.is_none() {
                burst.seconds = 60;
            }
            remember(field, burst)
        }
        "rate-limit-period" => {
            burst.seconds = seconds(field)?;
            field.used("`limits.requestsPerClient`");
            Ok(())
        }
        "limit-burst-multiplier" => {
            burst.multiplier = number(field)?.max(1);
            field.used("`limits.requestsPerClient`");
            Ok(())
        }
        "limit-connections" => limits::connections(draft, field, number(field)?),
        "tls-minimum-protocol-version" => limits::tls_version(field, true),
        "tls-maximum-protocol-version" => limits::tls_version(field, false),
        "canary" | "permanent-redirect" | "temporal-redirect" | "default-backend" | "request-redirect" => {
            Err(field.error("this leads requests to another place than the apiserver; remove the annotation, or leave the object with its ingress"))
        }
        _ => Ok(()),
    }
}

fn protocol(field: &ManifestField<'_>) -> Result<(), ConfigError> {
    match field.text()?.to_ascii_uppercase().as_str() {
        "HTTPS" | "H1-SSL" | "H2-SSL" | "AUTO_HTTP" => {
            field.used("the proxy speaks TLS with the apiserver")
        }
        "HTTP" | "H1" | "H2" => field.mark(
            NotNeeded,
            "the proxy speaks TLS with the apiserver, because tokens never go over plain TCP",
        ),
        _ => {
            return Err(field.error("the apiserver speaks neither gRPC nor FastCGI; write HTTPS"));
        }
    }
    Ok(())
}

fn verify_client(field: &ManifestField<'_>) -> Result<(), ConfigError> {
    match field.text()? {
        "on" => field.mark(NotPossible, "the client certificate is always optional, and a client without one needs a token; a rule `allow: {credentials: [certificate]}` in `access` admits only certificates"),
        "optional" => field.used("`clientCertificates`"),
        "off" => field.mark(NotNeeded, "without `auth-tls-secret` no certificate is asked for"),
        "optional_no_ca" => {
            return Err(field.error("a certificate that is not verified names no user; write optional, and give `auth-tls-secret`"));
        }
        other => {
            let other = quote::value(other);
            return Err(field.error(format!("`{other}` is not a value of this annotation; write on, optional or off")));
        }
    }
    Ok(())
}

fn remember<'a>(field: &ManifestField<'a>, burst: &mut Burst<'a>) -> Result<(), ConfigError> {
    if burst.requests.is_some() {
        field.mark(
            NotPossible,
            "another annotation sets `limits.requestsPerClient`; choose one value",
        );
        return Ok(());
    }
    burst.requests = Some((field.clone(), number(field)?));
    Ok(())
}

/// The whole seconds in an annotation such as `10s` or `1m`.
fn seconds(field: &ManifestField<'_>) -> Result<u64, ConfigError> {
    let text = field.text()?;
    let whole = |time: &Duration| !time.is_zero() && time.subsec_nanos() == 0;
    let time = duration(text).ok().filter(whole).ok_or_else(|| {
        let text = quote::value(text);
        field.error(format!(
            "`{text}` is not a whole number of seconds from 1s; write a time such as 10s or 1m"
        ))
    })?;
    Ok(time.as_secs())
}

/// The number in an annotation, which is always text.
fn number(field: &ManifestField<'_>) -> Result<u64, ConfigError> {
    let text = field.text()?;
    text.parse().map_err(|_no_number| {
        let text = quote::value(text);
        field.error(format!(
            "`{text}` is not a whole number; write one in quotes"
        ))
    })
}

/// The switch in an annotation, which is always text.
fn is_on(field: &ManifestField<'_>) -> Result<bool, ConfigError> {
    match field.text()?.to_ascii_lowercase().as_str() {
        "true" | "on" => Ok(true),
        "false" | "off" => Ok(false),
        other => {
            let other = quote::value(other);
            Err(field.error(format!(
                "`{other}` is neither \"true\" nor \"false\"; write one of them, in quotes"
            )))
        }
    }
}
