//! Upstream connections: one client each, mirrored protocol, overflow, retirement, reuse.
