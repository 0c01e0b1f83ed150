//! Runs the body of one fuzz target on the inputs of libFuzzer. Every fuzz binary is built from this file and has the
//! name of its target.

#![no_main]

use kube_tls_proxy::fuzz::targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let found = targets().into_iter().find(|(name, _)| *name == env!("CARGO_BIN_NAME"));
    let (_, body) = found.expect("every binary is named after a target");
    body(bytes);
});
