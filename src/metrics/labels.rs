//! The closed sets that labels are taken from.

/// An enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$of_variant:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$of_variant])* $variant,)+
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As it stands in a metric.
            #[must_use]
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

label! {
    /// What a request does, as kube-apiserver names it in its own metrics.
    Verb {
        /// Reads one object, or a path that is no resource.
        Get = "get",
        /// Reads many.
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
        /// Deletes many.
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
    /// The protocol between client and proxy.
    Protocol {
        /// HTTP/1.1 and what is older.
        Http1 = "http/1.1",
        /// HTTP/2.
        Http2 = "h2",
    }
}

label! {
    /// How a handshake with a client ended.
    Handshake {
        /// TLS is agreed.
        Ok = "ok",
        /// The client took too long.
        Timeout = "timeout",
        /// TLS could not be agreed, or the connection broke.
        Failed = "failed",
    }
}

label! {
    /// Where a lease came from.
    LeaseFrom {
        /// A new connection.
        Dial = "dial",
        /// The idle connections of the worker.
        Idle = "idle",
    }
}

label! {
    /// Why an upstream connection is used no more.
    LeaseEnd {
        /// The apiserver said GOAWAY.
        GoAway = "goaway",
        /// An answer was 401.
        Unauthorized = "unauthorized",
        /// A request did not come to a good end.
        Reset = "reset",
        /// It was closed, by the apiserver or for the drain.
        Closed = "closed",
        /// Its trust anchors or settings were replaced.
        Generation = "generation",
        /// It was idle for too long.
        Age = "age",
        /// It carried an upgrade, which is the last thing that a connection does.
        Upgrade = "upgrade",
        /// There were enough idle ones.
        Full = "full",
    }
}

label! {
    /// How dialling an apiserver ended.
    Dialled {
        /// There is a connection.
        Ok = "ok",
        /// TCP was refused, or the host cannot be reached.
        Refused = "refused",
        /// It took too long.
        Timeout = "timeout",
        /// The certificate is not the one expected.
        Verify = "verify",
        /// TLS failed for another reason.
        Tls = "tls",
        /// HTTP was not spoken as agreed.
        Protocol = "protocol",
        /// Anything else, such as a name without an address.
        Other = "other",
    }
}

label! {
    /// What came of reading configuration and files again.
    Reloaded {
        /// A new state is in use.
        Ok = "ok",
        /// Something is wrong; the last good state stays.
        Failed = "failed",
        /// Nothing has changed.
        Unchanged = "unchanged",
    }
}

label! {
    /// A bound that was reached.
    Limit {
        /// `limits.connections`: a client waits to be served.
        Connections = "connections",
        /// `limits.handshakes`: a handshake waits for another.
        Handshakes = "handshakes",
        /// `limits.headerFields`: answered with 431.
        HeaderFields = "header_fields",
        /// `limits.headerBytes`: answered with 431.
        HeaderBytes = "header_bytes",
        /// `limits.uriBytes`: answered with 414.
        UriBytes = "uri_bytes",
        /// `limits.streamsPerConnection`: a client has as many streams open as it may.
        Streams = "streams",
    }
}
