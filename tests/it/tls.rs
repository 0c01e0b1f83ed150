//! Certificates by SNI, ALPN, versions, resumption and deadlines of the downstream handshake.
