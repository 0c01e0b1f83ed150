//! The binary: hands the command line to the library and returns its exit code.

use std::process::ExitCode;

use kube_tls_proxy::cli;

/// Buffers of 8 KiB come and go with every request. The figures are in docs/performance.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(command_line) => cli::run(command_line),
        Err(code) => code,
    }
}
