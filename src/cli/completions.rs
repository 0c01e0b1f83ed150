//! `completions`: what a shell needs to complete the command line.

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::Cli;

/// Arguments of `kube-tls-proxy completions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// The script for `shell`.
#[must_use]
pub fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "kube-tls-proxy", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Prints the script.
pub(super) fn completions(args: CompletionsArgs) {
    // A closed pipe leaves nobody to tell.
    drop(io::stdout().lock().write_all(script(args.shell).as_bytes()));
}
