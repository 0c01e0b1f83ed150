//! The binary: hands the command line to the library and returns its exit code.

use std::process::ExitCode;

use kube_tls_proxy::cli;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(command_line) => cli::run(command_line),
        Err(code) => code,
    }
}
