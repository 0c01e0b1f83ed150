//! kube-tls-proxy terminates TLS with a public certificate and re-originates it, verified against the
//! cluster's own CA, to a kube-apiserver.

pub mod addr;
pub mod cli;
pub mod config;
pub mod pki;

#[cfg(test)]
mod scratch;
