//! The command line: the subcommands, their flags, and what they print.
//!
//! A failure is one sentence on stderr. Exit codes are 0 for success, 1 for a failure while running, and 2 for an
//! unusable command line or configuration.

mod check;
mod kubeconfig;
mod messages;
mod serve;
mod start;
mod systemd;
mod translate;

use std::{ffi::OsString, process::ExitCode, sync::LazyLock};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::{Shell, generate};

use crate::{app::AppError, config::ServeArgs};

pub use check::{CheckArgs, OutputFormat};
pub use kubeconfig::KubeconfigArgs;
pub use messages::{print_error, sentence};
pub use start::StartBlock;
pub use translate::TranslateArgs;

/// The command line of `kube-tls-proxy`.
#[derive(Debug, Clone, PartialEq, Eq, Parser)]
#[command(
    name = "kube-tls-proxy",
    version = version(),
    about = "TLS proxy in front of kube-apiserver: a public certificate for clients, the cluster CA for the apiserver",
    after_help = "Exit codes: 0 success, 1 failure while running, 2 unusable command line or configuration."
)]
pub struct Cli {
    /// The subcommand.
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
    /// Print or write a kubeconfig for clients that reach the proxy by its public name
    #[command(after_help = KUBECONFIG_EXAMPLES)]
    Kubeconfig(Box<KubeconfigArgs>),
    /// Translate the manifests of an ingress controller or a Gateway into a configuration file
    #[command(after_help = TRANSLATE_EXAMPLES)]
    Translate(TranslateArgs),
    /// Print the version, as --version does
    Version,
    /// Print the completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
}

/// Arguments of `kube-tls-proxy completions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Runs the subcommand, prints its error if it fails, and returns the exit code.
#[must_use]
pub fn run(command_line: Cli) -> ExitCode {
    let done = match command_line.command {
        Command::Serve(args) => serve::serve(*args),
        Command::Check(args) => return check::check(&args),
        Command::Kubeconfig(args) => return kubeconfig::kubeconfig(&args),
        Command::Translate(args) => return translate::translate_files(&args),
        Command::Version => print_all(&format!("kube-tls-proxy {}\n", version())),
        Command::Completions(args) => print_all(&completion_script(args.shell)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error);
            messages::exit_code(&error)
        }
    }
}

fn print_all(text: &str) -> Result<(), AppError> {
    messages::print(text).map_err(|source| AppError::Run {
        doing: "write to stdout".into(),
        source,
    })
}

/// The version, with the commit if the build knew it. Jenkins sets the first variable, GitHub the second.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("GIT_COMMIT").or(option_env!("GITHUB_SHA"));
        match commit.and_then(|commit| commit.get(..12)) {
            Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
            None => env!("CARGO_PKG_VERSION").to_owned(),
        }
    });
    &VERSION
}

/// Returns the completion script for `shell`.
#[must_use]
pub fn completion_script(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "kube-tls-proxy", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Parses the command line of this process.
///
/// # Errors
///
/// The exit code, after help, version or an error was printed.
pub fn parse() -> Result<Cli, ExitCode> {
    parse_from(std::env::args_os())
}

/// Parses `arguments`, of which the first is the name of the program.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_from(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    parsed(arguments).map_err(messages::print_parser_error)
}

fn parsed(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let Some((_, matches)) = matches.subcommand() {
        match &mut cli.command {
            Command::Serve(args) => args.note_variables(matches),
            Command::Check(args) => args.serve.note_variables(matches),
            Command::Kubeconfig(_)
            | Command::Translate(_)
            | Command::Version
            | Command::Completions(_) => {}
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

  With all settings on the command line:
    kube-tls-proxy serve --listen 0.0.0.0:443 --cert tls.crt --key tls.key \\
      --upstream https://10.0.0.1:6443 --upstream-ca ca.crt --upstream-name kubernetes.default.svc

Every flag has an environment variable: --drain-timeout is KUBE_TLS_PROXY_DRAIN_TIMEOUT. Commas
separate the items of a list in a variable. A flag overrides its variable, and both override the
--config file; a list replaces the whole list.";

const CHECK_EXAMPLES: &str = "\
Examples:
  Where the proxy runs or will run, with the flags of serve:
    kube-tls-proxy check --cert tls.crt --key tls.key --kubeconfig admin.conf

  From any machine, through the running proxy, with a watch of 20 seconds:
    kube-tls-proxy check --through https://kube.example.com --token-file token --long

  Before DNS leads to the proxy:
    kube-tls-proxy check --through https://kube.example.com --connect-to 203.0.113.20:443

  In CI, without network:
    kube-tls-proxy check --offline --config kube-tls-proxy.yaml

  Which access rule decides about a request:
    kube-tls-proxy check --config kube-tls-proxy.yaml --token-file token \\
      --from 203.0.113.9 --explain-access 'GET /api/v1/namespaces/default/secrets'

The flags of serve have their environment variables here too.
Exit codes: 0 all works (there may be warnings), 1 something does not, 2 unusable command line or
configuration.";

const KUBECONFIG_EXAMPLES: &str = "\
Examples:
  For a user with a token:
    kube-tls-proxy kubeconfig --server https://kube.example.com --token-file token --output jane.conf

  With the names and the exec plugin of a kubeconfig of the cluster:
    kube-tls-proxy kubeconfig --server https://kube.example.com --from ~/.kube/config --context prod

  Added to the kubeconfig that kubectl uses:
    kube-tls-proxy kubeconfig --server https://kube.example.com --token-file token \\
      --output ~/.kube/config --merge

  With an OIDC login:
    kube-tls-proxy kubeconfig --server https://kube.example.com \\
      --exec-command kubectl --exec-arg oidc-login --exec-arg get-token \\
      --exec-arg=--oidc-issuer-url=https://login.example.com --exec-arg=--oidc-client-id=kubectl";

const TRANSLATE_EXAMPLES: &str = "\
Examples:
  From the manifests in a repository:
    kube-tls-proxy translate httpproxy.yaml > kube-tls-proxy.yaml

  From a cluster:
    kubectl --namespace default get httpproxy,service,secret --output yaml |
      kube-tls-proxy translate - > kube-tls-proxy.yaml

  With the CA files that the manifests contain, for a host outside of the cluster:
    kube-tls-proxy translate --output /etc/kube-tls-proxy ingress.yaml ca.yaml

Standard error has one line for each field: used, not needed, not possible or not known. No private
key is printed or written.
Exit codes: 0 translated, 1 not written, or with --strict a field that is not possible or not known,
2 unusable command line, or manifests that cannot be translated.";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  For one user; open a new shell afterwards:
    kube-tls-proxy completions bash > ~/.local/share/bash-completion/completions/kube-tls-proxy
    kube-tls-proxy completions fish > ~/.config/fish/completions/kube-tls-proxy.fish

  For zsh, in a directory of $fpath:
    kube-tls-proxy completions zsh > ~/.zfunc/_kube-tls-proxy";

#[cfg(test)]
mod tests;
