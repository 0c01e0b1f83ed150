//! What is known about the kinds and fields that the translation itself does not read: one row each, with the reason.
//!
//! A row for a field holds for everything below it. `[]` is any item of a list.

use super::{
    annotations,
    object::FieldVerdict::{self, NotKnown, NotNeeded, NotPossible, Used},
};

/// A verdict and its reason.
pub(super) type KnownField = (FieldVerdict, &'static str);

/// The verdict on a whole object whose kind is not translated; `None` if its fields have verdicts of their own.
pub(super) fn object(group: &str, kind: &str) -> Option<KnownField> {
    if kind.ends_with("List") {
        return None;
    }
    let found = OBJECTS
        .iter()
        .find(|(groups, kinds, _, _)| holds(groups, group) && holds(kinds, kind));
    match found {
        Some((_, _, verdict, reason)) => Some((*verdict, reason)),
        None if READ.contains(&(group, kind)) => None,
        None => Some((NotKnown, UNKNOWN_KIND)),
    }
}

/// Whether a name is one of those in `list`, which have blanks between them.
pub(super) fn holds(list: &str, name: &str) -> bool {
    list.split(' ').any(|one| one == name)
}

/// Why objects of a kind that publishes services cannot be translated at all.
pub(super) fn refusal(group: &str, kind: &str) -> Option<&'static str> {
    let found = REFUSED
        .iter()
        .find(|(groups, name, _)| holds(groups, group) && *name == kind);
    found.map(|(_, _, reason)| *reason)
}

/// The verdict on a field that the translation has not read. `pattern` is its path without the numbers of list items.
pub(super) fn field(kind: &str, pattern: &str) -> Option<KnownField> {
    let annotation = pattern
        .strip_prefix("metadata.annotations[\"")
        .and_then(|rest| rest.strip_suffix("\"]"));
    if let Some(name) = annotation {
        return annotations::note(name);
    }
    let kind = if kind.ends_with("List") { "List" } else { kind };
    let is_for = |of: &str| of.is_empty() || holds(of, kind);
    let mut rows = FIELDS.iter();
    rows.find(|(of, _, _, known)| is_for(of) && holds(known, pattern))
        .map(|(_, verdict, reason, _)| (*verdict, *reason))
}

const CONTOUR: &str = "projectcontour.io";
const NETWORKING: &str = "networking.k8s.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const ENVOY: &str = "gateway.envoyproxy.io";

/// The kinds of which the translation reads fields.
const READ: &[(&str, &str)] = &[
    (CONTOUR, "HTTPProxy"),
    (CONTOUR, "TLSCertificateDelegation"),
    (NETWORKING, "Ingress"),
    ("extensions", "Ingress"),
    (GATEWAY, "Gateway"),
    (GATEWAY, "ListenerSet"),
    ("gateway.networking.x-k8s.io", "XListenerSet"),
    (GATEWAY, "HTTPRoute"),
    (GATEWAY, "TLSRoute"),
    (GATEWAY, "BackendTLSPolicy"),
    ("", "Service"),
    ("", "Secret"),
    ("", "ConfigMap"),
];

/// Kinds that publish services and are not read: without them the result would lack what they publish. Groups have
/// blanks between them.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        GATEWAY,
        "GRPCRoute",
        "a GRPCRoute is for gRPC, which the apiserver does not speak; write an HTTPRoute for it, or remove this object",
    ),
    (
        GATEWAY,
        "TCPRoute",
        "a TCPRoute says no host, and the proxy chooses the apiserver by the host; write a TLSRoute with `hostnames`, or remove this object",
    ),
    (
        GATEWAY,
        "UDPRoute",
        "a UDPRoute is for UDP, which the apiserver does not speak; remove this object",
    ),
    (
        CONTOUR,
        "ContourConfiguration",
        "a ContourConfiguration is about Contour itself; remove this object, and read docs/from-contour.md for its settings",
    ),
    (
        "traefik.io traefik.containo.us",
        "IngressRoute",
        "an IngressRoute is not read; write an Ingress with the same host, or translate it by hand with docs/configuration.md",
    ),
    (
        "traefik.io traefik.containo.us",
        "IngressRouteTCP",
        "an IngressRouteTCP is not read; write an Ingress with `ssl-passthrough` and the same host, or translate it by hand with docs/configuration.md",
    ),
    (
        "networking.istio.io",
        "VirtualService",
        "a VirtualService is not read; write an HTTPRoute or a TLSRoute with the same hosts, or translate it by hand with docs/configuration.md",
    ),
    (
        "contour.heptio.com",
        "IngressRoute",
        "an IngressRoute is not read; write an HTTPProxy with the same host, which Contour reads since version 1.0",
    ),
    (
        "route.openshift.io",
        "Route",
        "a Route is not read; write an Ingress with the same host, or translate it by hand with docs/configuration.md",
    ),
];

/// Kinds of which the whole object has one verdict. Groups and kinds have blanks between them.
const OBJECTS: &[(&str, &str, FieldVerdict, &str)] = &[
    (GATEWAY, "GatewayClass", NotNeeded, CONTROLLER),
    (
        GATEWAY,
        "ReferenceGrant",
        NotNeeded,
        "files are mounted into the pod; a Secret must be in the namespace of the proxy",
    ),
    (NETWORKING, "IngressClass", NotNeeded, CONTROLLER),
    (
        NETWORKING,
        "NetworkPolicy",
        NotNeeded,
        "config/kubernetes and the chart have one for the proxy",
    ),
    (
        "",
        "Namespace",
        NotNeeded,
        "the proxy has a namespace of its own",
    ),
    ("", "Endpoints", NotPossible, ADDRESSES),
    ("discovery.k8s.io", "EndpointSlice", NotPossible, ADDRESSES),
    (
        "cert-manager.io",
        "Certificate Issuer",
        NotNeeded,
        CERT_MANAGER,
    ),
    (
        "cert-manager.io",
        "ClusterIssuer",
        NotNeeded,
        "the Certificate for the proxy can name it",
    ),
    (
        "apps",
        "Deployment",
        NotNeeded,
        "config/kubernetes and the chart have the one of the proxy",
    ),
    (ENVOY, "EnvoyProxy", NotNeeded, "it is about Envoy itself"),
    (
        ENVOY,
        "BackendTrafficPolicy",
        NotPossible,
        "it is not read: the proxy needs no timeout and no retry; write limits per client as `limits`, see docs/configuration.md",
    ),
    (
        ENVOY,
        "ClientTrafficPolicy",
        NotPossible,
        "it is not read: write `proxyProtocol`, `trustedProxies` and `clientCertificates` by hand, see docs/configuration.md",
    ),
    (
        ENVOY,
        "SecurityPolicy",
        NotPossible,
        "it is not read, and it may restrict who can connect: write its addresses as `access` before you use the configuration, see docs/access.md",
    ),
    (
        "traefik.io traefik.containo.us",
        "Middleware",
        NotPossible,
        "it is not read, and it may restrict who can connect: write an `ipAllowList` as `access` before you use the configuration, see docs/access.md",
    ),
    (
        "traefik.io traefik.containo.us",
        "ServersTransport",
        NotPossible,
        "it is not read: write its root CAs as `ca` and its `serverName` as `name` of `upstream`; the apiserver is always verified",
    ),
];

const UNKNOWN_KIND: &str =
    "this kind of object is not read; check by hand whether it says anything about the apiserver";
pub(super) const CERT_MANAGER: &str = "let cert-manager write the Secret of the proxy instead: config/kubernetes/overlays/cert-manager, or `certificate` of the chart";
const ADDRESSES: &str =
    "addresses are not read; write those of the apiserver as `addresses` of `upstream`";
const IDENTITY: &str = "says what the object is";
pub(super) const CONTROLLER: &str = "it names the controller, which the proxy replaces";
pub(super) const NO_TIMEOUT: &str = "the proxy limits no request as a whole, because that would end every watch and `kubectl logs --follow`";
pub(super) const PROBES: &str = "the proxy probes /readyz of each apiserver";
pub(super) const RETRIES: &str =
    "the proxy sends a request again only if it provably was not processed";
pub(super) const BALANCING: &str = "each client keeps its own connection to one healthy apiserver";
pub(super) const HEADERS: &str =
    "the proxy cannot change header fields; Kubernetes clients need none, remove the field";
pub(super) const WEB: &str = "it is for browsers and has no effect on kubectl";
pub(super) const TOKENS: &str = "the proxy does not check tokens, the apiserver does; remove the field, and see `--oidc-issuer-url` or `--authentication-config` of the apiserver";
pub(super) const EXTERNAL: &str = "the proxy asks no other service about a request; write what it decides as `access` before you use the configuration, see docs/access.md";
pub(super) const PATHS: &str = "paths are part of the API and pass unchanged; remove the field";
pub(super) const CODE: &str = "it is configuration or code for another proxy; read what it does and write it by hand, see docs/configuration.md";
pub(super) const IDENTITY_OF_PROXY: &str = "the proxy shows no client certificate of its own for requests of others, because each client would get its rights; remove the field";
pub(super) const WEBSOCKETS: &str =
    "exec, attach, cp and port-forward always pass, over WebSocket and over SPDY";
pub(super) const TOO_MANY: &str = "the response is 429 with `Retry-After`, which client-go obeys";
pub(super) const NO_CERTIFICATE: &str =
    "the client certificate is always optional; a client without one needs a token";
pub(super) const STATUS: &str = "the controller wrote it";
pub(super) const MIRROR: &str =
    "a copy of a request would carry its token to another service; remove the field";

/// Fields by kind. Kinds and fields have blanks between them; an empty kind means every kind.
const FIELDS: &[(&str, FieldVerdict, &str, &str)] = &[
    (
        "",
        Used,
        IDENTITY,
        "apiVersion kind metadata.name metadata.namespace",
    ),
    (
        "",
        NotNeeded,
        "no object selects the configuration",
        "metadata.labels",
    ),
    (
        "",
        NotNeeded,
        STATUS,
        "metadata.uid metadata.resourceVersion metadata.generation metadata.creationTimestamp \
         metadata.managedFields metadata.ownerReferences metadata.finalizers metadata.selfLink \
         metadata.generateName status metadata.deletionTimestamp",
    ),
    ("", Used, "each item is an object of its own", "items"),
    ("List", NotNeeded, STATUS, "metadata"),
    (
        "HTTPProxy Ingress",
        NotNeeded,
        CONTROLLER,
        "spec.ingressClassName",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        "clients without a server name get the first certificate",
        "spec.virtualhost.tls.enableFallbackCertificate",
    ),
    (
        "HTTPProxy",
        NotPossible,
        EXTERNAL,
        "spec.virtualhost.authorization spec.routes[].authPolicy",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        WEB,
        "spec.virtualhost.corsPolicy spec.routes[].cookieRewritePolicies \
         spec.routes[].services[].cookieRewritePolicies",
    ),
    (
        "HTTPProxy",
        NotPossible,
        "limits hold for one process of the proxy; set `limits.requestsPerClient`",
        "spec.virtualhost.rateLimitPolicy.global spec.routes[].rateLimitPolicy.global",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        TOO_MANY,
        "spec.virtualhost.rateLimitPolicy.local.responseStatusCode \
         spec.routes[].rateLimitPolicy.local.responseStatusCode",
    ),
    (
        "HTTPProxy",
        NotPossible,
        HEADERS,
        "spec.virtualhost.rateLimitPolicy.local.responseHeadersToAdd \
         spec.routes[].requestHeadersPolicy spec.routes[].responseHeadersPolicy \
         spec.routes[].rateLimitPolicy.local.responseHeadersToAdd \
         spec.routes[].services[].requestHeadersPolicy spec.routes[].services[].responseHeadersPolicy",
    ),
    (
        "HTTPProxy",
        NotPossible,
        TOKENS,
        "spec.virtualhost.jwtProviders spec.routes[].jwtVerificationPolicy",
    ),
    (
        "HTTPProxy",
        NotPossible,
        "the list of each CA in the chain is checked; give the lists of all of them in one file, or remove the field",
        "spec.virtualhost.tls.clientValidation.crlOnlyVerifyLeafCert",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        "the apiserver does not read X-Forwarded-Client-Cert",
        "spec.virtualhost.tls.clientValidation.forwardClientCertificate",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        NO_CERTIFICATE,
        "spec.virtualhost.tls.clientValidation.optionalClientCertificate",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        NO_TIMEOUT,
        "spec.routes[].timeoutPolicy",
    ),
    ("HTTPProxy", NotNeeded, RETRIES, "spec.routes[].retryPolicy"),
    (
        "HTTPProxy",
        NotNeeded,
        PROBES,
        "spec.routes[].healthCheckPolicy spec.routes[].services[].healthPort \
         spec.tcpproxy.healthCheckPolicy spec.tcpproxy.services[].healthPort",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        BALANCING,
        "spec.routes[].loadBalancerPolicy spec.routes[].services[].weight \
         spec.routes[].services[].slowStartPolicy spec.tcpproxy.loadBalancerPolicy \
         spec.tcpproxy.services[].weight",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        WEBSOCKETS,
        "spec.routes[].enableWebsockets",
    ),
    (
        "HTTPProxy",
        NotPossible,
        "the proxy does not serve plain HTTP, where a token would be readable; remove the field",
        "spec.routes[].permitInsecure",
    ),
    (
        "HTTPProxy",
        NotPossible,
        PATHS,
        "spec.routes[].pathRewritePolicy",
    ),
    (
        "HTTPProxy",
        NotNeeded,
        "the apiserver sends no redirect that a proxy has to follow",
        "spec.routes[].internalRedirectPolicy",
    ),
    (
        "HTTPProxy",
        NotPossible,
        MIRROR,
        "spec.routes[].services[].mirror",
    ),
    (
        "TLSCertificateDelegation",
        NotNeeded,
        "a pod mounts only Secrets of its own namespace; let cert-manager write a second Secret there, or copy it",
        "spec",
    ),
    ("Gateway", NotNeeded, CONTROLLER, "spec.gatewayClassName"),
    (
        "Gateway",
        NotNeeded,
        "the Service of the proxy has the address",
        "spec.addresses",
    ),
    (
        "Gateway",
        NotNeeded,
        "set labels and annotations of the Service in the chart: `service.annotations`",
        "spec.infrastructure",
    ),
    (
        "Gateway",
        NotNeeded,
        "all listeners come from these files",
        "spec.allowedListeners",
    ),
    (
        "Gateway",
        NotPossible,
        IDENTITY_OF_PROXY,
        "spec.backendTLS.clientCertificateRef spec.tls.backend.clientCertificateRef",
    ),
    (
        "ListenerSet XListenerSet",
        NotNeeded,
        "the proxy has no Gateway object",
        "spec.parentRef",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        Used,
        "routes name it",
        "spec.listeners[].name",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        NotNeeded,
        "the proxy listens on 8443, and its Service on 443",
        "spec.listeners[].port",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        NotNeeded,
        "all routes come from these files",
        "spec.listeners[].allowedRoutes",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        NotPossible,
        CODE,
        "spec.listeners[].tls.options",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        NotNeeded,
        "no route to an apiserver uses it",
        "spec.listeners[].hostname",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        NotNeeded,
        "no route to an apiserver uses this listener",
        "spec.listeners[].protocol spec.listeners[].tls.mode spec.listeners[].tls.certificateRefs \
         spec.listeners[].tls.frontendValidation",
    ),
    (
        "HTTPRoute TLSRoute",
        Used,
        "says which object has the listeners",
        "spec.parentRefs[].group spec.parentRefs[].kind spec.parentRefs[].namespace \
         spec.parentRefs[].name",
    ),
    (
        "HTTPRoute TLSRoute",
        Used,
        "says which listener it is",
        "spec.parentRefs[].sectionName spec.parentRefs[].port",
    ),
    (
        "HTTPRoute TLSRoute",
        NotNeeded,
        "the proxy has no Gateway object",
        "spec.useDefaultGateways",
    ),
    (
        "HTTPRoute TLSRoute",
        NotNeeded,
        "the proxy has one rule for each host",
        "spec.rules[].name",
    ),
    (
        "HTTPRoute TLSRoute",
        Used,
        "the backend is a Service",
        "spec.rules[].backendRefs[].group spec.rules[].backendRefs[].kind",
    ),
    (
        "HTTPRoute TLSRoute",
        NotNeeded,
        BALANCING,
        "spec.rules[].backendRefs[].weight",
    ),
    ("HTTPRoute", NotNeeded, NO_TIMEOUT, "spec.rules[].timeouts"),
    ("HTTPRoute", NotNeeded, RETRIES, "spec.rules[].retry"),
    (
        "HTTPRoute",
        NotNeeded,
        BALANCING,
        "spec.rules[].sessionPersistence",
    ),
    ("BackendTLSPolicy", NotPossible, CODE, "spec.options"),
    (
        "BackendTLSPolicy",
        NotNeeded,
        "no route leads to its Service",
        "spec.targetRefs[].group spec.targetRefs[].kind spec.targetRefs[].name \
         spec.targetRefs[].sectionName spec.validation.hostname spec.validation.caCertificateRefs \
         spec.validation.wellKnownCACertificates spec.validation.subjectAltNames",
    ),
    ("Service", NotNeeded, "the Service stays as it is", "spec"),
    (
        "Secret ConfigMap",
        NotNeeded,
        "only the keys count",
        "type immutable",
    ),
    (
        "Secret ConfigMap",
        NotNeeded,
        "no object that is translated names this key",
        "data stringData binaryData",
    ),
    (
        "Ingress",
        Used,
        "only `Prefix` leads all paths to the apiserver",
        "spec.rules[].http.paths[].pathType",
    ),
    (
        "HTTPRoute TLSRoute",
        NotPossible,
        HEADERS,
        "spec.rules[].backendRefs[].filters",
    ),
];
