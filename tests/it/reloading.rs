//! Certificates, keys and CAs that change while the proxy runs.
