//! The command line: what may be typed, how failures are told, and what is said at the start.
//!
//! One failure is one sentence on stderr; exit codes are 0 done, 1 failed while running, 2 unusable
//! command line or configuration.

mod check;
mod completions;
mod failure;
mod kubeconfig;
mod serve;
mod start;
mod systemd;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};

use crate::{config::ServeArgs, quote};

pub use check::{CheckArgs, OutputFormat};
pub use completions::{CompletionsArgs, script as completion_script};
pub use failure::{print_failure, sentence};
pub use kubeconfig::KubeconfigArgs;
pub use start::StartBlock;

/// Everything that may be typed after `kube-tls-proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "kube-tls-proxy",
    version,
    about = "The TLS front door of a kube-apiserver: public certificate outside, verified cluster CA inside",
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed while running, 2 unusable command line or configuration."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the proxy: it needs a certificate to present and an apiserver to forward to
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<ServeArgs>),
    /// Check configuration, certificates and network, and say how to fix what is wrong
    #[command(after_help = CHECK_EXAMPLES)]
    Check(Box<CheckArgs>),
    /// Print a kubeconfig for clients that reach the proxy by its public name
    #[command(after_help = KUBECONFIG_EXAMPLES)]
    Kubeconfig(Box<KubeconfigArgs>),
    /// Print the completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
}

/// Does what was asked for and returns the exit code. What there is to say about a failure is printed.
#[must_use]
pub fn run(command_line: Cli) -> ExitCode {
    let done = match command_line.command {
        Command::Serve(args) => serve::serve(*args),
        Command::Check(args) => return check::check(&args),
        Command::Kubeconfig(args) => return kubeconfig::kubeconfig(&args),
        Command::Completions(args) => completions::completions(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_failure(&error);
            failure::exit_code(&error)
        }
    }
}

/// Reads the command line of this process.
///
/// # Errors
///
/// The exit code, when help or version was asked for or the command line is unusable. What there is
/// to say has been printed.
pub fn parse() -> Result<Cli, ExitCode> {
    parse_from(std::env::args_os())
}

/// Reads `arguments`, of which the first is the name of the program.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    parsed(arguments).map_err(|error| {
        let code = if error.use_stderr() {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        };
        // A closed pipe leaves nobody to tell.
        drop(without_secrets(error).print());
        code
    })
}

/// The argument parser repeats values in its messages. Leaves out those that may be a secret, and the tips that may
/// repeat them again.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let mut pasted = None;
    let hidden: Vec<_> = error
        .context()
        .filter_map(|(kind, value)| Some((kind, hide(value, &mut pasted)?)))
        .collect();
    for (kind, value) in hidden {
        error.insert(kind, value);
    }
    if let Some(found) = pasted {
        let tip =
            format!("a path or a name belongs here, not {found}; write it to a file and name that");
        let tips = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tips);
        for kind in [
            ContextKind::SuggestedArg,
            ContextKind::SuggestedSubcommand,
            ContextKind::SuggestedValue,
        ] {
            error.remove(kind);
        }
    }
    error
}

/// `value` without what may be a secret, if it has any; `pasted` becomes what that is.
fn hide(value: &ContextValue, pasted: &mut Option<&'static str>) -> Option<ContextValue> {
    let mut is_hidden = false;
    let mut safe = |text: &String| match quote::pasted(text) {
        Some(found) => {
            is_hidden = true;
            *pasted = Some(found);
            quote::HIDDEN.to_owned()
        }
        None => text.clone(),
    };
    let safe = if let ContextValue::String(text) = value {
        ContextValue::String(safe(text))
    } else if let ContextValue::Strings(texts) = value {
        ContextValue::Strings(texts.iter().map(safe).collect())
    } else {
        // Numbers and texts of the parser's own.
        return None;
    };
    is_hidden.then_some(safe)
}

fn parsed(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Some((_, matches)) = matches.subcommand() {
        match &mut cli.command {
            Command::Serve(args) => args.note_variables(matches),
            Command::Check(args) => args.serve.note_variables(matches),
            Command::Kubeconfig(_) | Command::Completions(_) => {}
        }
    }
    Ok(cli)
}

const SERVE_EXAMPLES: &str = "\
Examples:
  In a pod, in front of the cluster it runs in:
    kube-tls-proxy serve --cert tls.crt --key tls.key

  On a host outside the cluster, from a kubeconfig:
    kube-tls-proxy serve --cert tls.crt --key tls.key --kubeconfig admin.conf

  With everything said:
    kube-tls-proxy serve --listen 0.0.0.0:443 --cert tls.crt --key tls.key \\
      --upstream https://10.0.0.1:6443 --upstream-ca ca.crt --upstream-name kubernetes.default.svc

Every flag has an environment variable: --drain-timeout is KUBE_TLS_PROXY_DRAIN_TIMEOUT. Lists in
variables are separated by commas. A flag wins over its variable, and both win over the --config
file; a list replaces the whole list.";

const CHECK_EXAMPLES: &str = "\
Examples:
  Where the proxy runs or will run, with the flags of serve:
    kube-tls-proxy check --cert tls.crt --key tls.key --kubeconfig admin.conf

  From any machine, through the running proxy, with a watch of 20 seconds:
    kube-tls-proxy check --through https://kube.example.com --token-file token --long

The flags of serve have their environment variables here too.
Exit codes: 0 all works (there may be warnings), 1 something does not, 2 unusable command line or
configuration.";

const KUBECONFIG_EXAMPLES: &str = "\
Examples:
  For a user with a token:
    kube-tls-proxy kubeconfig --server https://kube.example.com --token-file token --output jane.conf

  With names and exec plugin of a kubeconfig for the cluster itself:
    kube-tls-proxy kubeconfig --server https://kube.example.com --from ~/.kube/config --context prod

  With an OIDC login:
    kube-tls-proxy kubeconfig --server https://kube.example.com \\
      --exec-command kubectl --exec-arg oidc-login --exec-arg get-token \\
      --exec-arg=--oidc-issuer-url=https://login.example.com --exec-arg=--oidc-client-id=kubectl";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  For yourself; open a new shell afterwards:
    kube-tls-proxy completions bash > ~/.local/share/bash-completion/completions/kube-tls-proxy
    kube-tls-proxy completions fish > ~/.config/fish/completions/kube-tls-proxy.fish

  In a directory of zsh's $fpath:
    kube-tls-proxy completions zsh > ~/.zfunc/_kube-tls-proxy";

#[cfg(test)]
mod tests;
