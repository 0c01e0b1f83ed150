//! The closed sets of label values.

use crate::ending::Side;

/// A closed set of label values. A series exists for each of them from the start.
pub trait LabelSet: Copy + Sized + 'static {
    /// All values, in order.
    const ALL: &'static [Self];

    /// The value in a metric.
    fn label(self) -> &'static str;

    /// Its place in [`LabelSet::ALL`].
    fn index(self) -> usize;
}

/// An enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$of_variant:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        impl $name {
            /// All values, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value in a metric.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl LabelSet for $name {
            const ALL: &'static [Self] = Self::ALL;

            fn label(self) -> &'static str {
                self.label()
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What a request does, in the words of the metrics of kube-apiserver.
    Verb {
        /// Reads one object, or a path that names no resource.
        Get = "get",
        /// Reads a collection.
        List = "list",
        /// Follows changes.
        Watch = "watch",
        /// POST.
        Create = "create",
        /// PUT.
        Update = "update",
        /// PATCH.
        Patch = "patch",
        /// Deletes one object.
        Delete = "delete",
        /// Deletes a collection.
        DeleteCollection = "deletecollection",
        /// exec, attach and port-forward.
        Connect = "connect",
        /// The `proxy` subresource of nodes, pods and services.
        Proxy = "proxy",
        /// Any other method.
        Other = "other",
    }
}

label! {
    /// What the status code of a response says, for the status page.
    CodeClass {
        /// Below 400.
        Ok = "ok",
        /// 401.
        Unauthorized = "unauthorized",
        /// 4xx, without 401.
        ClientError = "client_error",
        /// 500 or more.
        ServerError = "server_error",
        /// The client left before there was a response.
        NoResponse = "no_response",
    }
}

label! {
    /// The protocol between client and proxy.
    Protocol {
        /// HTTP/1.1 and HTTP/1.0.
        Http1 = "http/1.1",
        /// HTTP/2.
        Http2 = "h2",
        /// TLS that is passed through: the proxy does not see what is in it.
        Passthrough = "passthrough",
    }
}

label! {
    /// The result of a handshake with a client.
    Handshake {
        /// It succeeded.
        Ok = "ok",
        /// The `ClientHello` is for a passthrough host, so the apiserver continues the handshake.
        Passed = "passed",
        /// The client took too long.
        Timeout = "timeout",
        /// The proxy closed the connection, because another client needed its place.
        Closed = "closed",
        /// The client sent plain HTTP.
        PlainHttp = "plain_http",
        /// A load balancer sent no valid PROXY header, or another peer sent one.
        ProxyHeader = "proxy_header",
        /// The lists of the listener deny the address of the client.
        Denied = "denied",
        /// A CA has validated a name by ACME.
        Challenge = "challenge",
        /// A CA has yet to issue the certificate.
        NoCertificate = "no_certificate",
        /// Both sides did not agree on TLS parameters, or the connection broke.
        Failed = "failed",
    }
}

label! {
    /// How a tunnel ended.
    TunnelEnd {
        /// Both sides ended it in order.
        Complete = "complete",
        /// The client broke off.
        Client = "client",
        /// The apiserver broke off.
        Apiserver = "apiserver",
        /// The proxy closed it, because one half stayed open or another client needed its place.
        Proxy = "proxy",
        /// The proxy closed it because it was told to stop.
        Drained = "drained",
    }
}

impl TunnelEnd {
    /// The end of a tunnel that this side broke off.
    #[must_use]
    pub fn by(side: Side) -> Self {
        match side {
            Side::Client => Self::Client,
            Side::Apiserver => Self::Apiserver,
            Side::Proxy => Self::Proxy,
        }
    }
}

label! {
    /// The origin of a lease.
    LeaseFrom {
        /// A new connection.
        Dial = "dial",
        /// The idle pool of the worker.
        Idle = "idle",
    }
}

label! {
    /// Why an upstream connection is no longer used.
    LeaseEnd {
        /// The apiserver sent GOAWAY.
        GoAway = "goaway",
        /// The apiserver answered 401.
        Unauthorized = "unauthorized",
        /// A request on it was aborted.
        Reset = "reset",
        /// It was closed, by the apiserver or for the drain.
        Closed = "closed",
        /// A reload replaced its trust anchors or settings.
        Generation = "generation",
        /// It was idle for too long.
        Age = "age",
        /// It carried an upgrade, after which a connection cannot be used again.
        Upgrade = "upgrade",
        /// The idle pool was full, or a client needed the socket.
        Full = "full",
        /// Its endpoint had more leases than the others.
        Balance = "balance",
    }
}

label! {
    /// The result of dialling an apiserver.
    Dialled {
        /// The connection is verified and usable.
        Ok = "ok",
        /// TCP was refused, or the host is unreachable.
        Refused = "refused",
        /// The outbound proxy has opened no connection.
        OutboundProxy = "outbound_proxy",
        /// It took too long.
        Timeout = "timeout",
        /// The certificate was not accepted.
        Verify = "verify",
        /// TLS failed for another reason.
        Tls = "tls",
        /// The server did not speak HTTP as agreed.
        Protocol = "protocol",
        /// Any other failure, such as a name without an address.
        Other = "other",
    }
}

label! {
    /// Why the proxy itself responded to a request.
    ErrorReason {
        /// The request is not allowed through.
        Rejected = "rejected",
        /// An access rule denies the request.
        Denied = "denied",
        /// No address of the apiserver is known.
        NoEndpoint = "no_endpoint",
        /// The client holds all upstream connections that it may hold, or no socket is free for another one.
        UpstreamConnections = "upstream_connections",
        /// The TCP connection failed.
        Connect = "connect",
        /// The outbound proxy has opened no connection.
        OutboundProxy = "outbound_proxy",
        /// The connection took too long.
        ConnectTimeout = "connect_timeout",
        /// The TLS handshake failed.
        Handshake = "handshake",
        /// The certificate was not accepted.
        Verify = "verify",
        /// The apiserver closed connections without processing the request.
        Unprocessed = "unprocessed",
        /// The connection broke after the request was sent.
        Lost = "lost",
        /// The client did not finish the request body.
        Upload = "upload",
        /// The apiserver broke the protocol.
        Protocol = "protocol",
        /// The front-proxy certificate has expired.
        FrontProxy = "front_proxy",
        /// The token for impersonation cannot be used.
        ImpersonationToken = "impersonation_token",
    }
}

label! {
    /// The result of an order of a certificate by ACME.
    Issued {
        /// The CA has issued it.
        Ok = "ok",
        /// It has not; the proxy tries again.
        Failed = "failed",
    }
}

label! {
    /// The result of a reload.
    Reloaded {
        /// The new configuration is in use.
        Ok = "ok",
        /// The new configuration is invalid; the previous one stays in use.
        Failed = "failed",
        /// Nothing has changed.
        Unchanged = "unchanged",
    }
}

label! {
    /// A limit that was reached.
    Limit {
        /// `limits.connections`: a new connection waits for a place, or is refused because too many wait.
        Connections = "connections",
        /// `limits.connections`: a connection of the client with the most connections was closed, because other clients
        /// need places.
        ClientPlaces = "client_places",
        /// `limits.unauthorizedPerClient`: answered by the proxy, with the 401 or 403 of the apiserver or with 429.
        ClientUnauthorized = "client_unauthorized",
        /// `limits.requestsPerClient`: answered with 429.
        ClientRequests = "client_requests",
        /// `limits.connectionsPerClient`: a new connection was refused.
        ClientConnections = "client_connections",
        /// `limits.handshakes`: a handshake waits for another one.
        Handshakes = "handshakes",
        /// `limits.headerFields`: answered with 431.
        HeaderFields = "header_fields",
        /// `limits.headerBytes`: answered with 431.
        HeaderBytes = "header_bytes",
        /// `limits.uriBytes`: answered with 414.
        UriBytes = "uri_bytes",
        /// `limits.streamsPerConnection`: a client has that many streams open.
        Streams = "streams",
        /// A client holds all upstream connections that it may hold: answered with 503.
        UpstreamConnections = "upstream_connections",
        /// The process has no spare socket for another upstream connection of a client: answered with 503.
        UpstreamSockets = "upstream_sockets",
        /// A request body came too slowly: answered with 408.
        UploadRate = "upload_rate",
        /// Copies of request bodies use all memory that they may use: a request is sent without a copy.
        ReplayCopies = "replay_copies",
        /// The process was short of memory: a client waited to be accepted, or lost responses that it did not read.
        Memory = "memory",
        /// A client did not read a response for 60 s: its stream was reset.
        ClientStall = "client_stall",
        /// A client sent too many control frames or cancelled too many requests; its connection ended.
        Frames = "frames",
    }
}
