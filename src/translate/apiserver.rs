//! Finds out which apiserver a backend leads to, and refuses a backend that is none.
//!
//! The apiserver of the cluster is the Service `kubernetes` in `default`. Another Service may be an apiserver too (a
//! virtual cluster, a hosted control plane): its port must be one of an apiserver, and `draft.rs` asks for its CA, or
//! with passthrough for port 6443.

use super::{
    Manifests,
    draft::{APISERVER_NAMES, ApiserverPlace},
    object::ManifestField,
};
use crate::{config::ConfigError, hosts::HostPattern, quote};

/// The apiserver that the Service of this name leads to. `port` may be a number or the name of a port.
pub(super) fn place(
    manifests: &Manifests,
    namespace: &str,
    service: &ManifestField<'_>,
    port: Option<&ManifestField<'_>>,
) -> Result<ApiserverPlace, ConfigError> {
    let name = service.object_name()?;
    let found = manifests.find("", "Service", namespace, name);
    let number = match port {
        Some(port) if port.is_text() => {
            port_number(port, found.map(|found| found.spec()).transpose()?)?
        }
        Some(port) => port.number()?,
        None => return Err(service.error("its port is missing; add 443")),
    };
    if ![443, 6443].contains(&number) {
        return Err(port.unwrap_or(service).error(format!(
            "port {number} of Service {namespace}/{name} is not the port of an apiserver, which is 443 or 6443; name the Service `kubernetes` in `default` with port 443, or leave the object with its ingress"
        )));
    }
    if let Some(port) = port {
        port.used("the port of the apiserver");
    }
    if (namespace, name) == ("default", "kubernetes") {
        service.used("the apiserver of the cluster that the proxy runs in");
        return Ok(ApiserverPlace::Own);
    }
    let alias = match found {
        Some(found) => found.spec()?.get("externalName")?,
        None => None,
    };
    let host = match alias {
        Some(alias) => {
            let text = alias.text()?.trim_end_matches('.');
            if text.parse::<HostPattern>().is_err() || text.contains('*') {
                let text = quote::value(text);
                return Err(alias.error(format!(
                    "`{text}` is not a host name; write the one of the apiserver"
                )));
            }
            if APISERVER_NAMES.contains(&text) {
                alias.used("the apiserver of the cluster that the proxy runs in");
                service.used("another name of the apiserver of the cluster");
                return Ok(ApiserverPlace::Own);
            }
            alias.used("the host in `url`");
            text.to_owned()
        }
        None => format!("{name}.{namespace}.svc"),
    };
    service.used("`url`: check that this Service is an apiserver, as that of a virtual cluster is");
    Ok(ApiserverPlace::Host { host, port: number })
}

/// The number of a port that is given by name. Every `kubernetes` Service calls it `https`.
fn port_number(
    port: &ManifestField<'_>,
    spec: Option<ManifestField<'_>>,
) -> Result<u64, ConfigError> {
    let wanted = port.text()?;
    let ports = spec.map_or(Ok(Vec::new()), |spec| spec.items_of("ports"))?;
    for one in ports {
        if let Some(name) = one.get("name")?
            && name.text()? == wanted
        {
            let number = one.need("port")?;
            number.used("the port of the apiserver");
            name.used("the backend names it");
            return number.number();
        }
    }
    match wanted {
        "https" | "443" => Ok(443),
        "6443" => Ok(6443),
        _ => {
            let wanted = quote::value(wanted);
            Err(port.error(format!("`{wanted}` is not the port of an apiserver; write 443 or `https`, or add the Service with this port to the files")))
        }
    }
}
