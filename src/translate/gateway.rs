//! `HTTPRoute` and `TLSRoute` of the Gateway API, with the listeners and the `BackendTLSPolicy` that belong to them.

use super::{
    FieldVerdict::{NotNeeded, NotPossible},
    Manifests, apiserver,
    draft::{Draft, DraftCluster, PemSource},
    object::{ManifestField, ManifestObject},
};
use crate::config::ConfigError;

/// Translates an `HTTPRoute`.
pub(super) fn translate_http<'a>(
    route: &'a ManifestObject,
    manifests: &'a Manifests,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    let spec = route.spec()?;
    let mut cluster = DraftCluster::new(spec.clone());
    for rule in spec.need("rules")?.items()? {
        for found in rule.items_of("matches")? {
            check_match(&found)?;
        }
        for filter in rule.items_of("filters")? {
            let kind = filter.need("type")?;
            match kind.text()? {
                "RequestRedirect" | "URLRewrite" | "ExtensionRef" | "RequestMirror" | "ExternalAuth" => {
                    return Err(kind.error("this filter leads the request to another place, or decides about it; remove it, or leave the object with its Gateway"));
                }
                "CORS" => filter.mark(NotNeeded, "it is for browsers and has no effect on kubectl"),
                "RequestHeaderModifier" | "ResponseHeaderModifier" => filter.mark(NotPossible, "the proxy cannot change header fields; Kubernetes clients need none, remove the filter"),
                _ => return Err(kind.error("this filter is not known; remove it, or leave the object with its Gateway")),
            }
        }
        translate_backends(&rule, manifests, &mut cluster)?;
    }
    let listeners = listeners(&spec, manifests)?;
    for listener in &listeners {
        if listener.need("protocol")?.text()? == "HTTPS" {
            terminate(listener, manifests, &mut cluster, draft)?;
        }
    }
    hosts(&spec, &listeners, &mut cluster)?;
    if draft.certificates.is_empty() {
        cluster.lacks_certificate();
    }
    draft.add(cluster)
}

/// Translates a `TLSRoute`. It passes TLS through, unless its listener ends it.
pub(super) fn translate_tls<'a>(
    route: &'a ManifestObject,
    manifests: &'a Manifests,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    let spec = route.spec()?;
    let mut cluster = DraftCluster::new(spec.clone());
    let listeners = listeners(&spec, manifests)?;
    cluster.passthrough = true;
    for listener in &listeners {
        let tls = listener.get("tls")?;
        let mode = tls.map_or(Ok(None), |tls| tls.get("mode"))?;
        match mode.as_ref().map(ManifestField::text).transpose()? {
            Some("Terminate") => {
                cluster.passthrough = false;
                terminate(listener, manifests, &mut cluster, draft)?;
            }
            Some("Passthrough") | None => {
                listener.need("protocol")?.used("TLS is passed through");
                if let Some(mode) = mode {
                    mode.used("`passthrough`");
                }
            }
            Some(_) => {
                let mode = mode.unwrap_or_else(|| listener.clone());
                return Err(
                    mode.error("this is no mode of a listener; write Passthrough or Terminate")
                );
            }
        }
    }
    for rule in spec.need("rules")?.items()? {
        translate_backends(&rule, manifests, &mut cluster)?;
    }
    hosts(&spec, &listeners, &mut cluster)?;
    draft.add(cluster)
}

fn check_match(found: &ManifestField<'_>) -> Result<(), ConfigError> {
    for (key, value) in found.entries()? {
        match key {
            "path" => {
                let kind = value.text_or("type", "PathPrefix")?;
                if (kind, value.text_or("value", "/")?) != ("PathPrefix", "/") {
                    let path = value.get("value")?;
                    return Err(super::other_path(&path.unwrap_or(value)));
                }
                value.used_keys(&["type", "value"], "all paths lead to the apiserver")?;
            }
            "headers" | "queryParams" | "method" => {
                return Err(value.error(
                    "the proxy chooses the apiserver by the host alone; remove this match",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn translate_backends<'a>(
    rule: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    let backends = rule.items_of("backendRefs")?;
    if backends.is_empty() {
        return Err(rule.error("`backendRefs` is missing; add the Service `kubernetes`, port 443"));
    }
    for backend in backends {
        if backend.text_or("kind", "Service")? != "Service" {
            let field = backend.get("kind")?.unwrap_or(backend);
            return Err(field.error(
                "only a Service can be an apiserver; name the Service `kubernetes`, port 443",
            ));
        }
        let name = backend.need("name")?;
        let port = backend.get("port")?;
        let namespace = backend.namespace()?;
        backend.used_keys(&["namespace"], "the namespace of the Service")?;
        let place = apiserver::place(manifests, namespace, &name, port.as_ref())?;
        cluster.lead_to(place, &name)?;
        for policy in manifests.all("gateway.networking.k8s.io", "BackendTLSPolicy") {
            if policy.namespace == namespace && !cluster.passthrough {
                backend_policy(policy, name.object_name()?, cluster)?;
            }
        }
    }
    Ok(())
}

/// How a `BackendTLSPolicy` says that this Service is verified.
fn backend_policy<'a>(
    policy: &'a ManifestObject,
    service: &str,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    let spec = policy.spec()?;
    let mut is_target = false;
    for target in spec.need("targetRefs")?.items()? {
        if target.need("kind")?.text()? == "Service" && target.need("name")?.text()? == service {
            is_target = true;
            target.used_keys(
                &["group", "kind", "name", "sectionName"],
                "says for which Service it is",
            )?;
        }
    }
    if !is_target {
        return Ok(());
    }
    let validation = spec.need("validation")?;
    for reference in validation.items_of("caCertificateRefs")? {
        let (ca, name) = ca_of(&reference)?;
        cluster.verify_with(ca, &name)?;
    }
    if let Some(public) = validation.get("wellKnownCACertificates")? {
        public.mark(
            NotPossible,
            "no public CA issues the certificate of an apiserver; the CA of the cluster is used",
        );
    }
    // With `subjectAltNames` the certificate must have one of these, and `hostname` is only for SNI.
    let names = validation.items_of("subjectAltNames")?;
    for name in &names {
        match name.need("type")?.text()? {
            "Hostname" => {
                cluster.expect_name(&name.need("hostname")?)?;
                name.need("type")?.used("`name`");
            }
            _ => name.mark(NotPossible, "the name in the certificate of an apiserver is a DNS name or an IP address; write its DNS name"),
        }
    }
    let hostname = validation.need("hostname")?;
    if names.is_empty() {
        cluster.expect_name(&hostname)
    } else {
        hostname.mark(NotNeeded, "`subjectAltNames` says the name");
        Ok(())
    }
}

/// The listeners of the Gateways and `ListenerSets` in the files that the route names.
fn listeners<'a>(
    spec: &ManifestField<'a>,
    manifests: &'a Manifests,
) -> Result<Vec<ManifestField<'a>>, ConfigError> {
    let mut found = Vec::new();
    for parent in spec.items_of("parentRefs")? {
        let kind = parent.text_or("kind", "Gateway")?;
        let name = parent.need("name")?.object_name()?;
        let namespace = parent.namespace()?;
        let section = parent.get("sectionName")?;
        let section = section.as_ref().map(ManifestField::text).transpose()?;
        let port = parent.get("port")?;
        let port = port.as_ref().map(ManifestField::number).transpose()?;
        let Some(gateway) = manifests.find_gateway(kind, namespace, name) else {
            continue;
        };
        let mut is_found = false;
        for listener in gateway.spec()?.need("listeners")?.items()? {
            let has_name = match section {
                Some(section) => listener.need("name")?.text()? == section,
                None => true,
            };
            let has_port = match port {
                Some(port) => listener.need("port")?.number()? == port,
                None => true,
            };
            if has_name && has_port {
                is_found = true;
                found.push(listener);
            }
        }
        if !is_found {
            return Err(parent.error(format!(
                "{} has no such listener; write the name of one as `sectionName`",
                gateway.title()
            )));
        }
    }
    Ok(found)
}

/// A listener that ends TLS: its certificates, and the CA of its clients.
fn terminate<'a>(
    listener: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    listener.need("protocol")?.used("the proxy serves TLS");
    let tls = listener.need("tls")?;
    if let Some(mode) = tls.get("mode")? {
        mode.used("the proxy ends TLS");
    }
    for reference in tls.items_of("certificateRefs")? {
        let namespace = reference.namespace()?;
        let name = reference.need("name")?.object_name()?;
        draft.add_certificate(PemSource::new("Secret", namespace, name, "tls.crt"));
        reference.used_keys(&["group", "kind", "name", "namespace"], "`certificates`")?;
    }
    let Some(validation) = tls.get("frontendValidation")? else {
        return Ok(());
    };
    for reference in validation.need("caCertificateRefs")?.items()? {
        let (ca, name) = ca_of(&reference)?;
        super::client_ca(ca, &name, manifests, cluster)?;
    }
    Ok(())
}

/// The CA that a reference names, and the field with the name.
fn ca_of<'a>(reference: &ManifestField<'a>) -> Result<(PemSource, ManifestField<'a>), ConfigError> {
    let kind = match reference.text_or("kind", "ConfigMap")? {
        "ConfigMap" => "ConfigMap",
        "Secret" => "Secret",
        _ => {
            return Err(
                reference.error("a CA comes from a ConfigMap or a Secret; name one of them")
            );
        }
    };
    let name = reference.need("name")?;
    let ca = PemSource::new(kind, reference.namespace()?, name.object_name()?, "ca.crt");
    reference.used_keys(&["group", "kind", "namespace"], "says what has the CA")?;
    Ok((ca, name))
}

/// The hosts of the route; if it has none, those of its listeners.
fn hosts<'a>(
    spec: &ManifestField<'a>,
    listeners: &[ManifestField<'a>],
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    let names = spec.items_of("hostnames")?;
    for name in &names {
        cluster.add_host(name)?;
    }
    for listener in listeners {
        if let Some(host) = listener.get("hostname")? {
            if names.is_empty() {
                cluster.add_host(&host)?;
            } else {
                host.mark(NotNeeded, "the route says its hosts");
            }
        }
    }
    Ok(())
}
