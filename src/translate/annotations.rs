//! The annotations of ingress controllers and of other programs that the translation itself does not read.
//!
//! The controllers took many names from each other, and a name means the same everywhere, so one table has them all.

use super::{
    known::{
        BALANCING, CERT_MANAGER, CODE, CONTROLLER, EXTERNAL, HEADERS, IDENTITY_OF_PROXY,
        KnownField, MIRROR, NO_CERTIFICATE, NO_TIMEOUT, PATHS, PROBES, RETRIES, STATUS, TOKENS,
        TOO_MANY, WEB, WEBSOCKETS, holds,
    },
    object::FieldVerdict::{self, NotNeeded, NotPossible},
};

/// The verdict on an annotation that the translation has not read.
pub(super) fn note(name: &str) -> Option<KnownField> {
    if let Some((_, suffix)) = controller(name)
        && let Some((verdict, reason, _)) = ANNOTATIONS
            .iter()
            .find(|(_, _, known)| holds(known, suffix))
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

/// The prefixes of the annotations of ingress controllers.
const CONTROLLERS: [&str; 7] = [
    "nginx.ingress.kubernetes.io",
    "ingress.kubernetes.io",
    "haproxy-ingress.github.io",
    "haproxy.org",
    "haproxy.com",
    "traefik.ingress.kubernetes.io",
    "projectcontour.io",
];

const REDIRECT: &str = "the proxy does not listen on port 80, where a token would be readable";
const BODIES: &str = "bodies pass as they come, without a buffer and without a limit";
const CIPHERS: &str = "the proxy has TLS 1.2 and 1.3 with forward secrecy only";
const LOGS: &str = "the log has every request; `log.access: false` turns that off";
const DEPLOYMENT_TOOL: &str = "it is for the tool that applied the object";
const ALWAYS_TLS: &str = "the proxy speaks only TLS with the apiserver";

/// Annotations of ingress controllers that the translation does not read: names without their prefix, with blanks
/// between them.
const ANNOTATIONS: &[(FieldVerdict, &str, &str)] = &[
    (
        NotNeeded,
        "`timeouts.upstreamConnect` is 5 s",
        "proxy-connect-timeout timeout-connect",
    ),
    (
        NotNeeded,
        NO_TIMEOUT,
        "proxy-read-timeout proxy-send-timeout proxy-stream-timeout timeout-client timeout-server \
         timeout-tunnel response-timeout request-timeout per-try-timeout",
    ),
    (
        NotNeeded,
        PROBES,
        "timeout-check check check-http check-interval",
    ),
    (
        NotNeeded,
        "requests wait in no queue",
        "timeout-queue max-pending-requests",
    ),
    (
        NotNeeded,
        "`timeouts.requestHead` is 10 s",
        "timeout-http-request",
    ),
    (
        NotNeeded,
        "`timeouts.clientIdle` is 75 s",
        "timeout-keep-alive",
    ),
    (
        NotNeeded,
        "`timeouts.halfCloseTimeout` is 30 s",
        "timeout-client-fin timeout-server-fin",
    ),
    (NotNeeded, "`timeouts.drainTunnels` is 60 s", "timeout-stop"),
    (
        NotNeeded,
        "`timeouts.upstreamIdle` is 60 s",
        "upstream-keepalive-timeout",
    ),
    (
        NotNeeded,
        RETRIES,
        "num-retries retry-on proxy-next-upstream proxy-next-upstream-timeout \
         proxy-next-upstream-tries max-retries",
    ),
    (NotNeeded, WEBSOCKETS, "websocket-routes websocket-services"),
    (
        NotNeeded,
        "clients that speak HTTP/2 get HTTP/2, all others HTTP/1.1",
        "proxy-http-version server-proto",
    ),
    (
        NotNeeded,
        WEB,
        "http2-push-preload hsts hsts-max-age hsts-include-subdomains hsts-preload enable-cors \
         cors-enable cors-allow-origin cors-allow-methods cors-allow-headers cors-allow-credentials \
         cors-expose-headers cors-max-age auth-tls-error-page",
    ),
    (
        NotNeeded,
        ALWAYS_TLS,
        "upstream-protocol.tls upstream-protocol.h2 upstream-protocol.h2c service.serversscheme",
    ),
    (
        NotNeeded,
        BODIES,
        "proxy-body-size client-body-buffer-size proxy-buffering proxy-request-buffering \
         proxy-buffers-number proxy-busy-buffers-size proxy-max-temp-file-size",
    ),
    (
        NotNeeded,
        "`limits.headerBytes` is 64 KiB",
        "proxy-buffer-size",
    ),
    (
        NotNeeded,
        REDIRECT,
        "ssl-redirect force-ssl-redirect ssl-redirect-code ssl-redirect-port preserve-trailing-slash",
    ),
    (
        NotNeeded,
        BALANCING,
        "affinity affinity-mode session-cookie-name upstream-hash-by load-balance balance-algorithm \
         service-upstream service.sticky.cookie service.nativelb service-weight",
    ),
    (
        NotNeeded,
        "`host: client` of `upstream` is the default for this apiserver",
        "service.passhostheader",
    ),
    (
        NotNeeded,
        "`limits.connections` follows the memory and the open files of the process",
        "max-connections",
    ),
    (
        NotNeeded,
        "the apiserver limits requests by its priority and fairness",
        "max-requests pod-maxconn",
    ),
    (NotNeeded, LOGS, "enable-access-log enable-rewrite-log"),
    (
        NotPossible,
        "the proxy sends no traces; use its metrics and its log, and remove the field",
        "enable-opentelemetry enable-opentracing",
    ),
    (
        NotNeeded,
        "all paths lead to the apiserver",
        "use-regex router.pathmatcher",
    ),
    (
        NotNeeded,
        "`listen` has the address, the Service of the proxy the port",
        "router.entrypoints",
    ),
    (NotNeeded, "the proxy serves only TLS", "router.tls"),
    (NotNeeded, CERT_MANAGER, "router.tls.certresolver"),
    (
        NotPossible,
        "a TLSOption is not read: write its client CAs as `clientCertificates` before you use the configuration, see docs/client-certificates.md",
        "router.tls.options",
    ),
    (
        NotNeeded,
        "a host belongs to one cluster",
        "router.priority",
    ),
    (
        NotPossible,
        "a Middleware is not read, and it may restrict who can connect: write an `ipAllowList` as `access` before you use the configuration, see docs/access.md",
        "router.middlewares",
    ),
    (
        NotPossible,
        "a ServersTransport is not read: write its root CAs as `ca` and its `serverName` as `name` of `upstream`; the apiserver is always verified",
        "service.serverstransport",
    ),
    (
        NotNeeded,
        "a Secret must be in the namespace of the proxy",
        "tls-cert-namespace",
    ),
    (
        NotNeeded,
        CIPHERS,
        "ssl-ciphers ssl-prefer-server-ciphers proxy-ssl-ciphers proxy-ssl-protocols",
    ),
    (
        NotNeeded,
        "the chain may have any usual length",
        "proxy-ssl-verify-depth auth-tls-verify-depth",
    ),
    (
        NotNeeded,
        "the proxy always sends a server name",
        "proxy-ssl-server-name",
    ),
    (
        NotNeeded,
        "the proxy names the user, because the apiserver does not read the certificate from a header",
        "auth-tls-pass-certificate-to-upstream",
    ),
    (
        NotPossible,
        "names in certificates are not compared; bind only the users that may do something with RBAC, and remove the field",
        "auth-tls-match-cn",
    ),
    (
        NotPossible,
        IDENTITY_OF_PROXY,
        "server-crt secure-crt-secret",
    ),
    (
        NotNeeded,
        "the proxy sends the name that it verifies as the server name",
        "secure-sni",
    ),
    (NotNeeded, NO_CERTIFICATE, "client-crt-optional"),
    (
        NotNeeded,
        "the table of clients grows and shrinks by itself",
        "rate-limit-size",
    ),
    (NotNeeded, TOO_MANY, "rate-limit-status-code"),
    (
        NotPossible,
        EXTERNAL,
        "auth-url auth-signin auth-response-headers oauth enable-modsecurity",
    ),
    (
        NotPossible,
        TOKENS,
        "auth-type auth-secret auth-secret-type auth-realm",
    ),
    (
        NotPossible,
        "access rules hold together with the check of the credential; write them as `access`, see docs/access.md",
        "satisfy",
    ),
    (NotNeeded, TOKENS, "enable-global-auth"),
    (
        NotPossible,
        CODE,
        "configuration-snippet server-snippet stream-snippet auth-snippet backend-config-snippet \
         config-backend",
    ),
    (NotPossible, PATHS, "rewrite-target path-rewrite app-root"),
    (
        NotPossible,
        "the apiserver gets the host that the client asks for; write `host: upstream` in `upstream` for the host of its URL",
        "upstream-vhost",
    ),
    (NotPossible, HEADERS, "custom-headers request-set-header"),
    (
        NotPossible,
        "limits hold for all clients; choose values that suit all of them, and remove the field",
        "limit-whitelist",
    ),
    (
        NotPossible,
        "the proxy limits no bytes; remove the field",
        "limit-rate",
    ),
    (NotPossible, MIRROR, "mirror-target"),
];

/// Annotations of other programs, by the beginning of their names.
const OTHER_ANNOTATIONS: &[(&str, FieldVerdict, &str)] = &[
    ("kubectl.kubernetes.io/", NotNeeded, STATUS),
    ("kubernetes.io/ingress.class", NotNeeded, CONTROLLER),
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
    ("meta.helm.sh/", NotNeeded, DEPLOYMENT_TOOL),
    ("helm.sh/", NotNeeded, DEPLOYMENT_TOOL),
    ("argocd.argoproj.io/", NotNeeded, DEPLOYMENT_TOOL),
    ("kustomize.toolkit.fluxcd.io/", NotNeeded, DEPLOYMENT_TOOL),
    ("field.cattle.io/", NotNeeded, DEPLOYMENT_TOOL),
    ("hajimari.io/", NotNeeded, WEB),
    ("gethomepage.dev/", NotNeeded, WEB),
];
