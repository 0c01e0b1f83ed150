//! The binary: hands the command line to the library and returns its exit code.

use std::process::ExitCode;

use kube_tls_proxy::cli;

/// jemalloc returns memory to the kernel after a burst. Proof: tests/it
/// `memory_is_freed_after_a_burst`; the figures are in docs/performance.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(command_line) => cli::run(command_line),
        Err(code) => code,
    }
}
