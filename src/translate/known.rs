//! What is known about the kinds and fields that the translation itself does not read: one row each, with the reason.
//!
//! A row for a field holds for everything below it. `[]` is any item of a list.

use super::object::FieldVerdict::{self, NotKnown, NotNeeded, NotPossible, Used};

/// A verdict and its reason.
pub(super) type KnownField = (FieldVerdict, &'static str);

/// The verdict on a whole object of a kind that no configuration comes from; `None` for a kind whose fields count.
pub(super) fn object(group: &str, kind: &str) -> Option<KnownField> {
    if kind.ends_with("List") {
        return None;
    }
    let found = OBJECTS
        .iter()
        .find(|(of, name, _, _)| *of == group && *name == kind);
    match found {
        Some((_, _, verdict, reason)) => Some((*verdict, reason)),
        None if READ.contains(&(group, kind)) => None,
        None => Some((NotKnown, UNKNOWN_KIND)),
    }
}

/// Why objects of a kind that publishes services cannot be translated at all.
pub(super) fn refusal(group: &str, kind: &str) -> Option<&'static str> {
    let found = REFUSED
        .iter()
        .find(|(of, name, _)| *of == group && *name == kind);
    found.map(|(_, _, reason)| *reason)
}

/// The verdict on a field that the translation has not read. `pattern` is its path without the numbers of list items.
pub(super) fn field(kind: &str, pattern: &str) -> Option<KnownField> {
    let annotation = pattern
        .strip_prefix("metadata.annotations[\"")
        .and_then(|rest| rest.strip_suffix("\"]"));
    if let Some(name) = annotation {
        return annotation_note(name);
    }
    let kind = if kind.ends_with("List") { "List" } else { kind };
    let is_for = |of: &str| of.is_empty() || of.split(' ').any(|one| one == kind);
    let mut rows = FIELDS.iter();
    rows.find(|(of, known, _, _)| *known == pattern && is_for(of))
        .map(|(_, _, verdict, reason)| (*verdict, *reason))
}

fn annotation_note(name: &str) -> Option<KnownField> {
    if let Some((_, suffix)) = controller(name)
        && let Some((_, verdict, reason)) =
            ANNOTATIONS.iter().find(|(known, _, _)| *known == suffix)
    {
        return Some((*verdict, reason));
    }
    let found = OTHER_ANNOTATIONS
        .iter()
        .find(|(prefix, _, _)| name.starts_with(prefix));
    found.map(|(_, verdict, reason)| (*verdict, *reason))
}

/// The prefix of an ingress controller's annotation, and its own name.
pub(super) fn controller(annotation: &str) -> Option<(&str, &str)> {
    let (prefix, suffix) = annotation.split_once('/')?;
    CONTROLLERS.contains(&prefix).then_some((prefix, suffix))
}

/// Prefixes of annotations. The controllers took many names from each other, and a name means the same everywhere.
const CONTROLLERS: [&str; 7] = [
    "nginx.ingress.kubernetes.io",
    "ingress.kubernetes.io",
    "haproxy-ingress.github.io",
    "haproxy.org",
    "haproxy.com",
    "traefik.ingress.kubernetes.io",
    "projectcontour.io",
];

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

/// Kinds that publish services and are not read: without them the result would lack what they publish.
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
        "traefik.io",
        "IngressRoute",
        "an IngressRoute is not read; write an Ingress with the same host, or translate it by hand with docs/configuration.md",
    ),
    (
        "traefik.containo.us",
        "IngressRoute",
        "an IngressRoute is not read; write an Ingress with the same host, or translate it by hand with docs/configuration.md",
    ),
    (
        "traefik.io",
        "IngressRouteTCP",
        "an IngressRouteTCP is not read; write an Ingress with `ssl-passthrough` and the same host, or translate it by hand with docs/configuration.md",
    ),
    (
        "traefik.containo.us",
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

/// Kinds of which the whole object has one verdict.
const OBJECTS: &[(&str, &str, FieldVerdict, &str)] = &[
    (
        GATEWAY,
        "GatewayClass",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
    (
        GATEWAY,
        "ReferenceGrant",
        NotNeeded,
        "files are mounted into the pod; a Secret must be in the namespace of the proxy",
    ),
    (
        NETWORKING,
        "IngressClass",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
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
    (
        "",
        "Endpoints",
        NotPossible,
        "addresses are not read; write those of the apiserver as `addresses` of `upstream`",
    ),
    (
        "discovery.k8s.io",
        "EndpointSlice",
        NotPossible,
        "addresses are not read; write those of the apiserver as `addresses` of `upstream`",
    ),
    ("cert-manager.io", "Certificate", NotNeeded, CERT_MANAGER),
    ("cert-manager.io", "Issuer", NotNeeded, CERT_MANAGER),
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
        "it is not read: the proxy needs no time-out and no retry; write limits per client as `limits`, see docs/configuration.md",
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
        "traefik.io",
        "Middleware",
        NotPossible,
        "it is not read, and it may restrict who can connect: write an `ipAllowList` as `access` before you use the configuration, see docs/access.md",
    ),
    (
        "traefik.io",
        "ServersTransport",
        NotPossible,
        "it is not read: write its root CAs as `ca` and its `serverName` as `name` of `upstream`; the apiserver is always verified",
    ),
];

const UNKNOWN_KIND: &str =
    "this kind of object is not read; check by hand whether it says anything about the apiserver";
const CERT_MANAGER: &str = "let cert-manager write the Secret of the proxy instead: config/kubernetes/overlays/cert-manager, or `certificate` of the chart";
const IDENTITY: &str = "says what the object is";
const NO_TIMEOUT: &str =
    "a request may take as long as it takes, or every watch and `kubectl logs --follow` would end";
const PROBES: &str = "the proxy probes /readyz of each apiserver";
const RETRIES: &str = "the proxy sends a request again only if it provably was not processed";
const BALANCING: &str = "each client keeps its own connection to one healthy apiserver";
const REDIRECT: &str = "the proxy does not listen on port 80, where a token would be readable";
const BODIES: &str = "bodies pass as they come, without a buffer and without a limit";
const HEADERS: &str =
    "the proxy cannot change header fields; Kubernetes clients need none, remove the field";
const WEB: &str = "it is for browsers and has no effect on kubectl";
const TOKENS: &str = "the proxy does not check tokens, the apiserver does; remove the field, and see `--oidc-issuer-url` or `--authentication-config` of the apiserver";
const EXTERNAL: &str = "the proxy asks no other service about a request; write what it decides as `access` before you use the configuration, see docs/access.md";
const PATHS: &str = "paths are part of the API and pass unchanged; remove the field";
const CODE: &str = "it is configuration or code for another proxy; read what it does and write it by hand, see docs/configuration.md";
const CIPHERS: &str = "the proxy has TLS 1.2 and 1.3 with forward secrecy only";
const IDENTITY_OF_PROXY: &str = "the proxy shows no client certificate of its own for requests of others, because each client would get its rights; remove the field";
const LOGS: &str = "the log has every request; `log.access: false` turns that off";
const WEBSOCKETS: &str =
    "exec, attach, cp and port-forward always pass, over WebSocket and over SPDY";
const ALWAYS_TLS: &str = "the proxy speaks only TLS with the apiserver";
const STATUS: &str = "the controller wrote it";
const MIRROR: &str =
    "a copy of a request would carry its token to another service; remove the field";

/// Fields by kind; an empty kind means every kind, and several kinds have blanks between them.
const FIELDS: &[(&str, &str, FieldVerdict, &str)] = &[
    ("", "apiVersion", Used, IDENTITY),
    ("", "kind", Used, IDENTITY),
    ("", "metadata.name", Used, IDENTITY),
    ("", "metadata.namespace", Used, IDENTITY),
    (
        "",
        "metadata.labels",
        NotNeeded,
        "no object selects the configuration",
    ),
    ("", "metadata.uid", NotNeeded, STATUS),
    ("", "metadata.resourceVersion", NotNeeded, STATUS),
    ("", "metadata.generation", NotNeeded, STATUS),
    ("", "metadata.creationTimestamp", NotNeeded, STATUS),
    ("", "metadata.managedFields", NotNeeded, STATUS),
    ("", "metadata.ownerReferences", NotNeeded, STATUS),
    ("", "metadata.finalizers", NotNeeded, STATUS),
    ("", "metadata.selfLink", NotNeeded, STATUS),
    ("", "metadata.generateName", NotNeeded, STATUS),
    ("", "status", NotNeeded, STATUS),
    ("", "items", Used, "each item is an object of its own"),
    ("List", "metadata", NotNeeded, STATUS),
    // HTTPProxy.
    (
        "HTTPProxy",
        "spec.ingressClassName",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.tls.enableFallbackCertificate",
        NotNeeded,
        "clients without a server name get the first certificate",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.authorization",
        NotPossible,
        EXTERNAL,
    ),
    ("HTTPProxy", "spec.virtualhost.corsPolicy", NotNeeded, WEB),
    (
        "HTTPProxy",
        "spec.virtualhost.rateLimitPolicy.global",
        NotPossible,
        "limits hold for one process of the proxy; set `limits.requestsPerClient`",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.rateLimitPolicy.local.responseStatusCode",
        NotNeeded,
        "the response is 429 with `Retry-After`, which client-go obeys",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.rateLimitPolicy.local.responseHeadersToAdd",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.jwtProviders",
        NotPossible,
        TOKENS,
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.tls.clientValidation.crlOnlyVerifyLeafCert",
        NotPossible,
        "the list of each CA in the chain is checked; give the lists of all of them in one file, or remove the field",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.tls.clientValidation.forwardClientCertificate",
        NotNeeded,
        "the apiserver does not read X-Forwarded-Client-Cert",
    ),
    (
        "HTTPProxy",
        "spec.virtualhost.tls.clientValidation.optionalClientCertificate",
        NotNeeded,
        "a client may always come without a certificate, and then needs a token",
    ),
    (
        "HTTPProxy",
        "spec.routes[].timeoutPolicy",
        NotNeeded,
        NO_TIMEOUT,
    ),
    ("HTTPProxy", "spec.routes[].retryPolicy", NotNeeded, RETRIES),
    (
        "HTTPProxy",
        "spec.routes[].healthCheckPolicy",
        NotNeeded,
        PROBES,
    ),
    (
        "HTTPProxy",
        "spec.routes[].loadBalancerPolicy",
        NotNeeded,
        BALANCING,
    ),
    (
        "HTTPProxy",
        "spec.routes[].enableWebsockets",
        NotNeeded,
        WEBSOCKETS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].permitInsecure",
        NotPossible,
        "the proxy does not serve plain HTTP, where a token would be readable; remove the field",
    ),
    (
        "HTTPProxy",
        "spec.routes[].pathRewritePolicy",
        NotPossible,
        PATHS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].requestHeadersPolicy",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].responseHeadersPolicy",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].cookieRewritePolicies",
        NotNeeded,
        WEB,
    ),
    (
        "HTTPProxy",
        "spec.routes[].authPolicy",
        NotPossible,
        EXTERNAL,
    ),
    (
        "HTTPProxy",
        "spec.routes[].jwtVerificationPolicy",
        NotPossible,
        TOKENS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].internalRedirectPolicy",
        NotNeeded,
        "the apiserver sends no redirect that a proxy has to follow",
    ),
    (
        "HTTPProxy",
        "spec.routes[].rateLimitPolicy.global",
        NotPossible,
        "limits hold for one process of the proxy; set `limits.requestsPerClient`",
    ),
    (
        "HTTPProxy",
        "spec.routes[].rateLimitPolicy.local.responseStatusCode",
        NotNeeded,
        "the response is 429 with `Retry-After`, which client-go obeys",
    ),
    (
        "HTTPProxy",
        "spec.routes[].rateLimitPolicy.local.responseHeadersToAdd",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].weight",
        NotNeeded,
        BALANCING,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].healthPort",
        NotNeeded,
        PROBES,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].requestHeadersPolicy",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].responseHeadersPolicy",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].cookieRewritePolicies",
        NotNeeded,
        WEB,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].slowStartPolicy",
        NotNeeded,
        BALANCING,
    ),
    (
        "HTTPProxy",
        "spec.routes[].services[].mirror",
        NotPossible,
        MIRROR,
    ),
    (
        "HTTPProxy",
        "spec.tcpproxy.loadBalancerPolicy",
        NotNeeded,
        BALANCING,
    ),
    (
        "HTTPProxy",
        "spec.tcpproxy.healthCheckPolicy",
        NotNeeded,
        PROBES,
    ),
    (
        "HTTPProxy",
        "spec.tcpproxy.services[].weight",
        NotNeeded,
        BALANCING,
    ),
    (
        "HTTPProxy",
        "spec.tcpproxy.services[].healthPort",
        NotNeeded,
        PROBES,
    ),
    (
        "TLSCertificateDelegation",
        "spec",
        NotNeeded,
        "a pod mounts only Secrets of its own namespace; let cert-manager write a second Secret there, or copy it",
    ),
    // Ingress.
    (
        "Ingress",
        "spec.ingressClassName",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
    // Gateway API.
    (
        "Gateway",
        "spec.gatewayClassName",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
    (
        "Gateway",
        "spec.addresses",
        NotNeeded,
        "the Service of the proxy has the address",
    ),
    (
        "Gateway",
        "spec.infrastructure",
        NotNeeded,
        "set labels and annotations of the Service in the chart: `service.annotations`",
    ),
    (
        "Gateway",
        "spec.allowedListeners",
        NotNeeded,
        "all listeners come from these files",
    ),
    (
        "Gateway",
        "spec.backendTLS.clientCertificateRef",
        NotPossible,
        IDENTITY_OF_PROXY,
    ),
    (
        "Gateway",
        "spec.tls.backend.clientCertificateRef",
        NotPossible,
        IDENTITY_OF_PROXY,
    ),
    (
        "ListenerSet XListenerSet",
        "spec.parentRef",
        NotNeeded,
        "the proxy has no Gateway object",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].name",
        Used,
        "routes name it",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].port",
        NotNeeded,
        "the proxy listens on 8443, and its Service on 443",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].allowedRoutes",
        NotNeeded,
        "all routes come from these files",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].tls.options",
        NotPossible,
        CODE,
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].hostname",
        NotNeeded,
        "no route to an apiserver uses it",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].protocol",
        NotNeeded,
        "no route to an apiserver uses this listener",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].tls.mode",
        NotNeeded,
        "no route to an apiserver uses this listener",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].tls.certificateRefs",
        NotNeeded,
        "no route to an apiserver uses this listener",
    ),
    (
        "Gateway ListenerSet XListenerSet",
        "spec.listeners[].tls.frontendValidation",
        NotNeeded,
        "no route to an apiserver uses this listener",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].group",
        Used,
        "says which object has the listeners",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].kind",
        Used,
        "says which object has the listeners",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].namespace",
        Used,
        "says which object has the listeners",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].name",
        Used,
        "says which object has the listeners",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].sectionName",
        Used,
        "says which listener it is",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.parentRefs[].port",
        Used,
        "says which listener it is",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.useDefaultGateways",
        NotNeeded,
        "the proxy has no Gateway object",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.rules[].name",
        NotNeeded,
        "the proxy has one rule for each host",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.rules[].backendRefs[].group",
        Used,
        "the backend is a Service",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.rules[].backendRefs[].kind",
        Used,
        "the backend is a Service",
    ),
    (
        "HTTPRoute TLSRoute",
        "spec.rules[].backendRefs[].weight",
        NotNeeded,
        BALANCING,
    ),
    ("HTTPRoute", "spec.rules[].timeouts", NotNeeded, NO_TIMEOUT),
    ("HTTPRoute", "spec.rules[].retry", NotNeeded, RETRIES),
    (
        "HTTPRoute",
        "spec.rules[].sessionPersistence",
        NotNeeded,
        BALANCING,
    ),
    ("BackendTLSPolicy", "spec.options", NotPossible, CODE),
    (
        "BackendTLSPolicy",
        "spec.targetRefs[].group",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.targetRefs[].kind",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.targetRefs[].name",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.targetRefs[].sectionName",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.validation.hostname",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.validation.caCertificateRefs",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.validation.wellKnownCACertificates",
        NotNeeded,
        "no route leads to its Service",
    ),
    (
        "BackendTLSPolicy",
        "spec.validation.subjectAltNames",
        NotNeeded,
        "no route leads to its Service",
    ),
    // Service, Secret, ConfigMap.
    ("Service", "spec", NotNeeded, "the Service stays as it is"),
    ("Secret ConfigMap", "type", NotNeeded, "only the keys count"),
    (
        "Secret ConfigMap",
        "immutable",
        NotNeeded,
        "only the keys count",
    ),
    (
        "Secret ConfigMap",
        "data",
        NotNeeded,
        "no object that is translated names this key",
    ),
    (
        "Secret ConfigMap",
        "stringData",
        NotNeeded,
        "no object that is translated names this key",
    ),
    (
        "Secret ConfigMap",
        "binaryData",
        NotNeeded,
        "no object that is translated names this key",
    ),
    (
        "Ingress",
        "spec.rules[].http.paths[].pathType",
        Used,
        "only `Prefix` leads all paths to the apiserver",
    ),
    (
        "TLSRoute",
        "spec.rules[].backendRefs[].filters",
        NotPossible,
        HEADERS,
    ),
    (
        "HTTPRoute",
        "spec.rules[].backendRefs[].filters",
        NotPossible,
        HEADERS,
    ),
    ("", "metadata.deletionTimestamp", NotNeeded, STATUS),
];

/// Annotations of ingress controllers, without their prefix, that the translation does not read.
const ANNOTATIONS: &[(&str, FieldVerdict, &str)] = &[
    (
        "proxy-connect-timeout",
        NotNeeded,
        "`timeouts.upstreamConnect` is 5 s",
    ),
    ("proxy-read-timeout", NotNeeded, NO_TIMEOUT),
    ("proxy-send-timeout", NotNeeded, NO_TIMEOUT),
    ("proxy-stream-timeout", NotNeeded, NO_TIMEOUT),
    ("timeout-client", NotNeeded, NO_TIMEOUT),
    ("timeout-server", NotNeeded, NO_TIMEOUT),
    ("timeout-tunnel", NotNeeded, NO_TIMEOUT),
    (
        "timeout-connect",
        NotNeeded,
        "`timeouts.upstreamConnect` is 5 s",
    ),
    ("timeout-check", NotNeeded, PROBES),
    ("timeout-queue", NotNeeded, "requests wait in no queue"),
    (
        "timeout-http-request",
        NotNeeded,
        "`timeouts.requestHead` is 10 s",
    ),
    (
        "timeout-keep-alive",
        NotNeeded,
        "`timeouts.clientIdle` is 75 s",
    ),
    (
        "timeout-client-fin",
        NotNeeded,
        "`timeouts.halfCloseTimeout` is 30 s",
    ),
    (
        "timeout-server-fin",
        NotNeeded,
        "`timeouts.halfCloseTimeout` is 30 s",
    ),
    ("timeout-stop", NotNeeded, "`timeouts.drainTunnels` is 60 s"),
    (
        "upstream-keepalive-timeout",
        NotNeeded,
        "`timeouts.upstreamIdle` is 60 s",
    ),
    ("response-timeout", NotNeeded, NO_TIMEOUT),
    ("request-timeout", NotNeeded, NO_TIMEOUT),
    ("per-try-timeout", NotNeeded, NO_TIMEOUT),
    ("num-retries", NotNeeded, RETRIES),
    ("retry-on", NotNeeded, RETRIES),
    ("proxy-next-upstream", NotNeeded, RETRIES),
    ("proxy-next-upstream-timeout", NotNeeded, RETRIES),
    ("proxy-next-upstream-tries", NotNeeded, RETRIES),
    ("websocket-routes", NotNeeded, WEBSOCKETS),
    ("websocket-services", NotNeeded, WEBSOCKETS),
    (
        "proxy-http-version",
        NotNeeded,
        "clients that speak HTTP/2 get HTTP/2, all others HTTP/1.1",
    ),
    (
        "server-proto",
        NotNeeded,
        "clients that speak HTTP/2 get HTTP/2, all others HTTP/1.1",
    ),
    ("http2-push-preload", NotNeeded, WEB),
    ("upstream-protocol.tls", NotNeeded, ALWAYS_TLS),
    ("upstream-protocol.h2", NotNeeded, ALWAYS_TLS),
    ("upstream-protocol.h2c", NotNeeded, ALWAYS_TLS),
    ("service.serversscheme", NotNeeded, ALWAYS_TLS),
    ("proxy-body-size", NotNeeded, BODIES),
    ("client-body-buffer-size", NotNeeded, BODIES),
    ("proxy-buffering", NotNeeded, BODIES),
    ("proxy-request-buffering", NotNeeded, BODIES),
    ("proxy-buffers-number", NotNeeded, BODIES),
    (
        "proxy-buffer-size",
        NotNeeded,
        "`limits.headerBytes` is 64 KiB",
    ),
    ("proxy-busy-buffers-size", NotNeeded, BODIES),
    ("proxy-max-temp-file-size", NotNeeded, BODIES),
    ("ssl-redirect", NotNeeded, REDIRECT),
    ("force-ssl-redirect", NotNeeded, REDIRECT),
    ("ssl-redirect-code", NotNeeded, REDIRECT),
    ("ssl-redirect-port", NotNeeded, REDIRECT),
    ("preserve-trailing-slash", NotNeeded, REDIRECT),
    ("hsts", NotNeeded, WEB),
    ("hsts-max-age", NotNeeded, WEB),
    ("hsts-include-subdomains", NotNeeded, WEB),
    ("hsts-preload", NotNeeded, WEB),
    ("enable-cors", NotNeeded, WEB),
    ("cors-enable", NotNeeded, WEB),
    ("cors-allow-origin", NotNeeded, WEB),
    ("cors-allow-methods", NotNeeded, WEB),
    ("cors-allow-headers", NotNeeded, WEB),
    ("cors-allow-credentials", NotNeeded, WEB),
    ("cors-expose-headers", NotNeeded, WEB),
    ("cors-max-age", NotNeeded, WEB),
    ("affinity", NotNeeded, BALANCING),
    ("affinity-mode", NotNeeded, BALANCING),
    ("session-cookie-name", NotNeeded, BALANCING),
    ("upstream-hash-by", NotNeeded, BALANCING),
    ("load-balance", NotNeeded, BALANCING),
    ("balance-algorithm", NotNeeded, BALANCING),
    ("service-upstream", NotNeeded, BALANCING),
    ("service.sticky.cookie", NotNeeded, BALANCING),
    (
        "service.passhostheader",
        NotNeeded,
        "`host: client` of `upstream` is the default for this apiserver",
    ),
    ("service.nativelb", NotNeeded, BALANCING),
    ("check", NotNeeded, PROBES),
    ("check-http", NotNeeded, PROBES),
    ("check-interval", NotNeeded, PROBES),
    (
        "max-connections",
        NotNeeded,
        "`limits.connections` follows the memory and the open files of the process",
    ),
    (
        "max-pending-requests",
        NotNeeded,
        "requests wait in no queue",
    ),
    (
        "max-requests",
        NotNeeded,
        "the apiserver limits requests by its priority and fairness",
    ),
    ("max-retries", NotNeeded, RETRIES),
    (
        "pod-maxconn",
        NotNeeded,
        "the apiserver limits requests by its priority and fairness",
    ),
    ("enable-access-log", NotNeeded, LOGS),
    ("enable-rewrite-log", NotNeeded, LOGS),
    (
        "enable-opentelemetry",
        NotPossible,
        "the proxy sends no traces; use its metrics and its log, and remove the field",
    ),
    (
        "enable-opentracing",
        NotPossible,
        "the proxy sends no traces; use its metrics and its log, and remove the field",
    ),
    ("use-regex", NotNeeded, "all paths lead to the apiserver"),
    (
        "router.entrypoints",
        NotNeeded,
        "`listen` has the address, the Service of the proxy the port",
    ),
    ("router.tls", NotNeeded, "the proxy serves only TLS"),
    ("router.tls.certresolver", NotNeeded, CERT_MANAGER),
    (
        "router.tls.options",
        NotPossible,
        "a TLSOption is not read: write its client CAs as `clientCertificates` before you use the configuration, see docs/client-certificates.md",
    ),
    (
        "router.priority",
        NotNeeded,
        "a host belongs to one cluster",
    ),
    (
        "router.pathmatcher",
        NotNeeded,
        "all paths lead to the apiserver",
    ),
    (
        "router.middlewares",
        NotPossible,
        "a Middleware is not read, and it may restrict who can connect: write an `ipAllowList` as `access` before you use the configuration, see docs/access.md",
    ),
    (
        "service.serverstransport",
        NotPossible,
        "a ServersTransport is not read: write its root CAs as `ca` and its `serverName` as `name` of `upstream`; the apiserver is always verified",
    ),
    (
        "tls-cert-namespace",
        NotNeeded,
        "a Secret must be in the namespace of the proxy",
    ),
    ("ssl-ciphers", NotNeeded, CIPHERS),
    ("ssl-prefer-server-ciphers", NotNeeded, CIPHERS),
    ("proxy-ssl-ciphers", NotNeeded, CIPHERS),
    ("proxy-ssl-protocols", NotNeeded, CIPHERS),
    (
        "proxy-ssl-verify-depth",
        NotNeeded,
        "the chain may have any usual length",
    ),
    (
        "proxy-ssl-server-name",
        NotNeeded,
        "the proxy always sends a server name",
    ),
    (
        "auth-tls-verify-depth",
        NotNeeded,
        "the chain may have any usual length",
    ),
    ("auth-tls-error-page", NotNeeded, WEB),
    (
        "auth-tls-pass-certificate-to-upstream",
        NotNeeded,
        "the proxy names the user, because the apiserver does not read the certificate from a header",
    ),
    (
        "auth-tls-match-cn",
        NotPossible,
        "names in certificates are not compared; bind only the users that may do something with RBAC, and remove the field",
    ),
    ("server-crt", NotPossible, IDENTITY_OF_PROXY),
    (
        "secure-sni",
        NotNeeded,
        "the proxy sends the name that it verifies as the server name",
    ),
    (
        "client-crt-optional",
        NotNeeded,
        "a client may always come without a certificate, and then needs a token",
    ),
    (
        "rate-limit-size",
        NotNeeded,
        "the table of clients grows and shrinks by itself",
    ),
    (
        "rate-limit-status-code",
        NotNeeded,
        "the response is 429 with `Retry-After`, which client-go obeys",
    ),
    ("secure-crt-secret", NotPossible, IDENTITY_OF_PROXY),
    ("auth-url", NotPossible, EXTERNAL),
    ("auth-signin", NotPossible, EXTERNAL),
    ("auth-type", NotPossible, TOKENS),
    ("auth-secret", NotPossible, TOKENS),
    ("auth-secret-type", NotPossible, TOKENS),
    ("auth-realm", NotPossible, TOKENS),
    ("auth-response-headers", NotPossible, EXTERNAL),
    ("oauth", NotPossible, EXTERNAL),
    (
        "satisfy",
        NotPossible,
        "access rules hold together with the check of the credential; write them as `access`, see docs/access.md",
    ),
    ("enable-global-auth", NotNeeded, TOKENS),
    ("configuration-snippet", NotPossible, CODE),
    ("server-snippet", NotPossible, CODE),
    ("stream-snippet", NotPossible, CODE),
    ("auth-snippet", NotPossible, CODE),
    ("backend-config-snippet", NotPossible, CODE),
    ("config-backend", NotPossible, CODE),
    ("enable-modsecurity", NotPossible, EXTERNAL),
    ("rewrite-target", NotPossible, PATHS),
    ("path-rewrite", NotPossible, PATHS),
    ("app-root", NotPossible, PATHS),
    (
        "upstream-vhost",
        NotPossible,
        "the apiserver gets the host that the client asks for; write `host: upstream` in `upstream` for the host of its URL",
    ),
    ("custom-headers", NotPossible, HEADERS),
    ("request-set-header", NotPossible, HEADERS),
    (
        "limit-whitelist",
        NotPossible,
        "limits hold for all clients; choose values that suit all of them, and remove the field",
    ),
    (
        "limit-rate",
        NotPossible,
        "the proxy limits no bytes; remove the field",
    ),
    ("mirror-target", NotPossible, MIRROR),
    ("service-weight", NotNeeded, BALANCING),
];

/// Annotations of other programs, by the beginning of their names.
const OTHER_ANNOTATIONS: &[(&str, FieldVerdict, &str)] = &[
    ("kubectl.kubernetes.io/", NotNeeded, STATUS),
    (
        "kubernetes.io/ingress.class",
        NotNeeded,
        "it names the controller, which the proxy replaces",
    ),
    ("kubernetes.io/ingress.allow-http", NotNeeded, REDIRECT),
    ("kubernetes.io/tls-acme", NotNeeded, CERT_MANAGER),
    ("cert-manager.io/", NotNeeded, CERT_MANAGER),
    ("certmanager.k8s.io/", NotNeeded, CERT_MANAGER),
    ("acme.cert-manager.io/", NotNeeded, CERT_MANAGER),
    (
        "external-dns.alpha.kubernetes.io/",
        NotNeeded,
        "put it on the Service of the proxy: `service.annotations` of the chart",
    ),
    (
        "meta.helm.sh/",
        NotNeeded,
        "it is for the tool that applied the object",
    ),
    (
        "helm.sh/",
        NotNeeded,
        "it is for the tool that applied the object",
    ),
    (
        "argocd.argoproj.io/",
        NotNeeded,
        "it is for the tool that applied the object",
    ),
    (
        "kustomize.toolkit.fluxcd.io/",
        NotNeeded,
        "it is for the tool that applied the object",
    ),
    (
        "field.cattle.io/",
        NotNeeded,
        "it is for the tool that applied the object",
    ),
    ("hajimari.io/", NotNeeded, WEB),
    ("gethomepage.dev/", NotNeeded, WEB),
];
