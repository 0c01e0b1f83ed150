//! `completions`: what a shell needs to complete the command line.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, failure::print};
use crate::app::AppError;

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
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn completions(args: CompletionsArgs) -> Result<(), AppError> {
    print(&script(args.shell)).map_err(|source| AppError::Run {
        doing: "cannot write to stdout".into(),
        source,
    })
}
