//! Tells a failure as one sentence and one exit code.

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use crate::{app::AppError, telemetry::causes};

/// 2 when command line or configuration must change first, 1 otherwise.
pub(super) fn exit_code(error: &AppError) -> ExitCode {
    match error {
        AppError::Config(_)
        | AppError::Pki(_)
        | AppError::Setup(_)
        | AppError::LogFilter(_)
        | AppError::Listen { .. }
        | AppError::Admin(_) => ExitCode::from(2),
        AppError::Run { .. } => ExitCode::from(1),
    }
}

/// The error and its causes, joined by `: `.
#[must_use]
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    causes(error).to_string()
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
