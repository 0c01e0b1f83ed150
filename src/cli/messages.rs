//! What the command line prints: output, errors and exit codes.

use std::{
    error::Error,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};

use crate::{app::AppError, quote, text::error_chain};

/// Returns 2 if the command line or the configuration has to change, and 1 for everything else.
pub(super) fn exit_code(error: &AppError) -> ExitCode {
    match error {
        AppError::Config(_)
        | AppError::Pki(_)
        | AppError::Acme(_)
        | AppError::Setup(_)
        | AppError::LogFilter(_)
        | AppError::Listen { .. }
        | AppError::Inherited { .. }
        | AppError::Admin(_) => ExitCode::from(2),
        AppError::Run { .. } => ExitCode::from(1),
    }
}

/// The error and its causes, joined by `: `.
#[must_use]
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    error_chain(error).to_string()
}

/// Prints `text` on stdout.
///
/// # Errors
///
/// When not all of it is written: half of a file must not look like a whole one. A closed pipe is no error, because
/// its reader has read all that it wanted.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints `kube-tls-proxy: …` on stderr, and the line of the configuration file that the error is about.
pub fn print_error(error: &(dyn Error + 'static)) {
    let text = sentence(error);
    let mut excerpt = String::new();
    if let Some(AppError::Config(error)) = error.downcast_ref()
        && let Some(line) = error.excerpt()
    {
        excerpt = line.to_string();
    }
    // If stderr is closed, the exit code says enough.
    drop(write!(
        io::stderr().lock(),
        "kube-tls-proxy: {text}\n{excerpt}"
    ));
}

/// A file of `--output` that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {}", quote::path(file), reason_not_written(cause))]
pub(super) struct WriteError {
    pub(super) file: PathBuf,
    pub(super) cause: io::Error,
}

/// What is wrong, and how to fix it.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "std adds kinds; an unknown one keeps its own words"
)]
fn reason_not_written(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::NotFound => {
            "its directory does not exist; create it, or name another with --output".to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            "permission denied; name a file in a directory of your own with --output".to_owned()
        }
        io::ErrorKind::IsADirectory => {
            "is a directory; give the path of a file in it with --output".to_owned()
        }
        _ => cause.to_string(),
    }
}

/// Adds the flag that the user probably means, where another program has another name for it. The parser itself
/// finds only misspellings.
fn add_tip(error: &mut clap::Error) {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else {
        return;
    };
    let name = argument.split('=').next().unwrap_or_default();
    let Some((_, tip)) = OTHER_FLAGS.iter().find(|(other, _)| *other == name) else {
        return;
    };
    let tips = ContextValue::StyledStrs(vec![StyledStr::from(*tip)]);
    error.insert(ContextKind::Suggested, tips);
    error.remove(ContextKind::SuggestedArg);
}

/// Flags of other programs, and ours.
const OTHER_FLAGS: [(&str, &str); 11] = [
    ("-l", LISTEN),
    ("-p", LISTEN),
    ("--port", LISTEN),
    ("--bind", LISTEN),
    (
        "-f",
        "the flag for the configuration file is --config FILE, or -c FILE",
    ),
    ("-v", "more log lines: --log-level debug"),
    ("--verbose", "more log lines: --log-level debug"),
    (
        "--tls-cert-file",
        "the flags for certificate and key are --cert FILE and --key FILE",
    ),
    (
        "--tls-private-key-file",
        "the flags for certificate and key are --cert FILE and --key FILE",
    ),
    (
        "--server",
        "the URL of the apiserver is --upstream URL, that of a running proxy --through URL",
    ),
    (
        "--format",
        "the format of the report is --output json; that of log lines is --log-format json",
    ),
];
const LISTEN: &str = "the address to listen on is --listen ADDRESS:PORT, such as --listen :8443";

/// Prints the message of the argument parser, without values that may be a secret, and returns the exit code.
pub(super) fn print_parser_error(mut error: clap::Error) -> ExitCode {
    add_tip(&mut error);
    let secret = |(kind, value): (_, &ContextValue)| {
        let ContextValue::String(text) = value else {
            return None;
        };
        Some((kind, quote::pasted(text)?))
    };
    let secrets: Vec<_> = error.context().filter_map(secret).collect();
    for (kind, found) in secrets {
        error.insert(kind, ContextValue::String(quote::HIDDEN.to_owned()));
        let tip = format!(
            "a path or a name belongs here, not {found}; write it to a file and give the path of that file"
        );
        // This replaces the parser's own tip. The tip and the other suggestions can repeat the value.
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
    // If the pipe is closed, the exit code says enough.
    drop(error.print());
    if error.use_stderr() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}
