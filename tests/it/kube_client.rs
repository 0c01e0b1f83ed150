//! A Kubernetes client written in Rust works through the proxy.
