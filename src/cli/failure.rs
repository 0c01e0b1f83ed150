//! Tells a failure as one sentence and one exit code.

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{app::AppError, text::error_chain};

/// 2 when command line or configuration must change first, 1 otherwise.
pub(super) fn exit_code(error: &AppError) -> ExitCode {
    match error {
        AppError::Config(_)
        | AppError::Pki(_)
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

/// Prints what was asked for on stdout.
///
/// # Errors
///
/// When not all of it is written: half of a file must not pass for a whole one. A closed pipe is no error,
/// since whoever closed it has had enough.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes());
    match written.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Prints `kube-tls-proxy: …` on stderr.
pub fn print_failure(error: &(dyn Error + 'static)) {
    // A closed stderr leaves nobody to tell; the exit code says enough.
    drop(writeln!(
        io::stderr().lock(),
        "kube-tls-proxy: {}",
        sentence(error)
    ));
}
