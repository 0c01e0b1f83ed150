//! `HTTPProxy` of Contour.

use super::{
    FieldVerdict::{NotNeeded, NotPossible},
    Manifests, apiserver,
    draft::{Draft, DraftCluster, PemSource, ranges},
    limits,
    object::{ManifestField, ManifestObject},
};
use crate::config::ConfigError;

/// Translates an `HTTPProxy` with a virtual host. One without is a part of another, which includes it.
pub(super) fn translate<'a>(
    proxy: &'a ManifestObject,
    manifests: &'a Manifests,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    let spec = proxy.spec()?;
    let Some(host) = spec.get("virtualhost")? else {
        return Ok(());
    };
    let fqdn = host.need("fqdn")?;
    let mut cluster = DraftCluster::new(fqdn.clone());
    cluster.add_host(&fqdn)?;
    let tls = host.get("tls")?.ok_or_else(|| {
        host.error("`tls` is missing, so Contour serves this host without TLS; add `tls` with `secretName`, because the proxy serves only TLS")
    })?;
    let is_passthrough = switch(&tls, "passthrough")?;
    let tcp = spec.get_any(["tcpproxy", "tcpProxy"])?;
    match (tls.get("secretName")?, is_passthrough) {
        (Some(secret), false) => {
            let source = PemSource::named("Secret", &secret, "tls.crt")?;
            secret.used("`certificates`");
            draft.add_certificate(source);
        }
        (Some(secret), true) => {
            return Err(secret
                .error("a host with `passthrough` needs no `secretName`; remove one of the two"));
        }
        (None, true) if tcp.is_none() => {
            return Err(
                tls.error("`passthrough` needs `tcpproxy`; add it with the Service `kubernetes`")
            );
        }
        (None, true) => cluster.passthrough = true,
        (None, false) => {
            return Err(tls.error(
                "`secretName` is missing; name the Secret with the certificate of the host",
            ));
        }
    }
    for version in ["minimumProtocolVersion", "maximumProtocolVersion"] {
        if let Some(field) = tls.get(version)? {
            limits::tls_version(&field, version.starts_with("min"))?;
        }
    }
    if let Some(validation) = tls.get("clientValidation")? {
        client_validation(&validation, manifests, &mut cluster)?;
    }
    addresses(&host, &mut cluster)?;
    rate_limit(&host, draft)?;
    if let Some(tcp) = tcp {
        if let Some(routes) = spec.get("routes")? {
            routes.mark(
                NotPossible,
                "Contour does not look at routes beside `tcpproxy`; remove one of the two",
            );
        }
        tcp_proxy(&tcp, manifests, &mut cluster, 0)?;
    } else {
        let mut routes = Vec::new();
        collect_routes(&spec, manifests, &mut routes, 0)?;
        if routes.is_empty() {
            return Err(
                spec.error("it has no route; add one with the Service `kubernetes`, port 443")
            );
        }
        for route in routes {
            translate_route(&route, manifests, &mut cluster, draft)?;
        }
    }
    draft.add(cluster)
}

fn switch(field: &ManifestField<'_>, key: &str) -> Result<bool, ConfigError> {
    let Some(switch) = field.get(key)? else {
        return Ok(false);
    };
    let is_on = switch.boolean()?;
    if is_on {
        switch.used(format!("`{key}`"));
    } else {
        switch.mark(NotNeeded, "false is the default");
    }
    Ok(is_on)
}

/// The routes of an `HTTPProxy` and of those that it includes.
fn collect_routes<'a>(
    spec: &ManifestField<'a>,
    manifests: &'a Manifests,
    routes: &mut Vec<ManifestField<'a>>,
    depth: usize,
) -> Result<(), ConfigError> {
    routes.extend(spec.items_of("routes")?);
    for include in spec.items_of("includes")? {
        check_conditions(&include)?;
        let included = included(&include, manifests, depth)?;
        collect_routes(
            &included.spec()?,
            manifests,
            routes,
            depth.saturating_add(1),
        )?;
    }
    Ok(())
}

fn included<'a>(
    include: &ManifestField<'a>,
    manifests: &'a Manifests,
    depth: usize,
) -> Result<&'a ManifestObject, ConfigError> {
    let name = include.need("name")?;
    if depth >= MAX_INCLUDES {
        return Err(
            include.error("HTTPProxies include each other without end; remove this include")
        );
    }
    let found = manifests.find(
        "projectcontour.io",
        "HTTPProxy",
        include.namespace()?,
        name.object_name()?,
    );
    let found = found.ok_or_else(|| {
        include.error("this HTTPProxy is not in the files; add the file that has it")
    })?;
    include.used_keys(&["name", "namespace"], "the routes of another HTTPProxy")?;
    Ok(found)
}

/// Refuses conditions that more than one apiserver could share a host with.
fn check_conditions(field: &ManifestField<'_>) -> Result<(), ConfigError> {
    for condition in field.items_of("conditions")? {
        for (key, value) in condition.entries()? {
            match key {
                "prefix" | "exact" | "regex" => {
                    if (key, value.text()?) != ("prefix", "/") {
                        return Err(super::other_path(&value));
                    }
                    value.used("all paths lead to the apiserver");
                }
                "header" | "queryParameter" => {
                    return Err(value.error(
                        "the proxy chooses the apiserver by the host alone; remove this condition",
                    ));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn translate_route<'a>(
    route: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
    draft: &mut Draft<'a>,
) -> Result<(), ConfigError> {
    check_conditions(route)?;
    for key in ["requestRedirectPolicy", "directResponsePolicy"] {
        if let Some(policy) = route.get(key)? {
            return Err(policy.error("this route does not lead to an apiserver; remove it, or leave the object with Contour"));
        }
    }
    addresses(route, cluster)?;
    rate_limit(route, draft)?;
    let services = route.items_of("services")?;
    if services.is_empty() {
        return Err(route.error("`services` is missing; add the Service `kubernetes`, port 443"));
    }
    for service in services {
        if let Some(mirror) = service.get("mirror")?
            && mirror.boolean()?
        {
            service.mark(
                NotPossible,
                "a copy of a request would carry its token to another service; remove this service",
            );
            continue;
        }
        backend(&service, manifests, cluster)?;
    }
    Ok(())
}

fn tcp_proxy<'a>(
    tcp: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
    depth: usize,
) -> Result<(), ConfigError> {
    if let Some(include) = tcp.get_any(["include", "includes"])? {
        let included = included(&include, manifests, depth)?;
        let inner = included.spec()?.need("tcpproxy")?;
        return tcp_proxy(&inner, manifests, cluster, depth.saturating_add(1));
    }
    let services = tcp.need("services")?.items()?;
    for service in &services {
        backend(service, manifests, cluster)?;
    }
    Ok(())
}

/// One entry of `services`.
fn backend<'a>(
    service: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    let name = service.need("name")?;
    let port = service.need("port")?;
    let place = apiserver::place(manifests, &service.object.namespace, &name, Some(&port))?;
    cluster.lead_to(place, &name)?;
    if let Some(protocol) = service.get("protocol")? {
        match protocol.text()? {
            "tls" | "h2" => protocol.used("the proxy speaks TLS with the apiserver, and the version of HTTP that the client speaks"),
            _ => protocol.mark(NotNeeded, "the proxy speaks TLS with the apiserver, because tokens never go over plain TCP"),
        }
    }
    let Some(validation) = service.get("validation")? else {
        return Ok(());
    };
    if cluster.passthrough {
        validation.mark(
            NotNeeded,
            "TLS is passed through: each client verifies the apiserver itself",
        );
        return Ok(());
    }
    if let Some(secret) = validation.get("caSecret")? {
        let ca = PemSource::named("Secret", &secret, "ca.crt")?;
        cluster.verify_with(ca, &secret)?;
    }
    if let Some(name) = validation.get("subjectName")? {
        cluster.expect_name(&name)?;
    }
    for name in validation.items_of("subjectNames")? {
        cluster.expect_name(&name)?;
    }
    Ok(())
}

fn client_validation<'a>(
    validation: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    if cluster.passthrough {
        validation.mark(
            NotNeeded,
            "TLS is passed through: each client presents its certificate to the apiserver itself",
        );
        return Ok(());
    }
    if let Some(skip) = validation.get("skipClientCertValidation")? {
        if skip.boolean()? {
            return Err(skip.error("a certificate that is not verified names no user; remove the field, and give `caSecret`"));
        }
        skip.mark(NotNeeded, "false is the default");
    }
    let secret = validation.need("caSecret")?;
    let ca = PemSource::named("Secret", &secret, "ca.crt")?;
    super::client_ca(ca, &secret, manifests, cluster)?;
    if let Some(secret) = validation.get("crlSecret")? {
        let crl = PemSource::named("Secret", &secret, "crl.pem")?;
        secret.used(format!("`crl`, from {crl}"));
        cluster.client_crl = Some(crl);
    }
    Ok(())
}

/// `ipAllowPolicy` and `ipDenyPolicy`. Those of a route replace those of the host.
fn addresses<'a>(
    field: &ManifestField<'a>,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    let names = [
        ("ipAllowPolicy", "ipDenyPolicy"),
        ("ipAllowFilterPolicy", "ipDenyFilterPolicy"),
    ];
    for (allow, deny) in names {
        let (allow, deny) = (field.get(allow)?, field.get(deny)?);
        if let (Some(_), Some(deny)) = (&allow, &deny) {
            return Err(deny.error("Contour accepts only one of `ipAllowPolicy` and `ipDenyPolicy`; remove one of the two"));
        }
        for (list, is_allow) in [(allow, true), (deny, false)] {
            let Some(list) = list else { continue };
            let mut found = Vec::new();
            for entry in list.items()? {
                let cidr = entry.need("cidr")?;
                found.extend(ranges(&cidr, cidr.text()?)?);
                cidr.used(if is_allow {
                    "allowed clients"
                } else {
                    "denied clients"
                });
                match entry.get("source")? {
                    Some(source) if source.text()? == "Peer" => source.used("the address of the connection; with `trustedProxies` or `proxyProtocol` the proxy looks at the client that they name"),
                    Some(source) => source.mark(NotPossible, "a client behind a load balancer counts only with `trustedProxies` or `proxyProtocol`; set one of them, see docs/access.md"),
                    None => {}
                }
            }
            if found.is_empty() {
                return Err(list.error("the list is empty, which could mean all or none; add an entry, or remove the field"));
            }
            (cluster.allow, cluster.deny) = if is_allow {
                (found, Vec::new())
            } else {
                (Vec::new(), found)
            };
        }
    }
    Ok(())
}

/// `rateLimitPolicy.local`. Contour counts all clients together, the proxy each client for itself.
fn rate_limit<'a>(field: &ManifestField<'a>, draft: &mut Draft<'a>) -> Result<(), ConfigError> {
    let Some(policy) = field.get("rateLimitPolicy")? else {
        return Ok(());
    };
    let Some(local) = policy.get("local")? else {
        return Ok(());
    };
    let (requests, unit) = (local.need("requests")?, local.need("unit")?);
    let seconds = match unit.text()? {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        _ => return Err(unit.error("this is no unit of Contour; write second, minute or hour")),
    };
    let burst = local.get("burst")?;
    let more = burst.as_ref().map_or(Ok(0), ManifestField::number)?;
    let number = requests.number()?;
    limits::requests(
        draft,
        &requests,
        number,
        seconds,
        number.saturating_add(more),
    )?;
    unit.used("`limits.requestsPerClient`");
    if let Some(burst) = burst {
        burst.used("`limits.requestsPerClient`");
    }
    Ok(())
}

/// Contour itself allows fewer.
const MAX_INCLUDES: usize = 16;
