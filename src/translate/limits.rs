//! Settings that objects of several kinds have: limits per client, and versions of TLS.

use super::{
    FieldVerdict::{NotNeeded, NotPossible},
    draft::Draft,
    object::ManifestField,
};
use crate::{config::ConfigError, quote};

/// Sets `limits.requestsPerClient`. It holds for the whole proxy, so the first object that sets it wins.
///
/// A rate of less than one request per second becomes one: no smaller one can be configured, and none suits kubectl.
pub(super) fn requests(
    draft: &mut Draft<'_>,
    field: &ManifestField<'_>,
    number: u64,
    seconds: u64,
    burst: u64,
) -> Result<(), ConfigError> {
    if number == 0 {
        return Err(field.error(
            "a limit of 0 would refuse every request; write a larger number, or remove the field",
        ));
    }
    let rate = number.div_ceil(seconds.max(1)).min(MAX_RATE);
    let limit = (rate, burst.clamp(rate, MAX_BURST));
    match draft.requests {
        Some(old) if old != limit => field.mark(
            NotPossible,
            "another field sets `limits.requestsPerClient`, which holds for the whole proxy; choose one value",
        ),
        Some(_) | None => {
            draft.requests = Some(limit);
            field.used("`limits.requestsPerClient`: it counts each client for itself, and all hosts together");
        }
    }
    Ok(())
}

/// Sets `limits.connectionsPerClient`.
pub(super) fn connections(
    draft: &mut Draft<'_>,
    field: &ManifestField<'_>,
    number: u64,
) -> Result<(), ConfigError> {
    if number == 0 {
        return Err(field.error("a limit of 0 would refuse every connection; write a larger number, or remove the field"));
    }
    let number = number.min(MAX_BURST);
    if draft.connections.is_some_and(|old| old != number) {
        field.mark(NotPossible, "another field sets `limits.connectionsPerClient`, which holds for the whole proxy; choose one value");
    } else {
        draft.connections = Some(number);
        field.used("`limits.connectionsPerClient`");
    }
    Ok(())
}

/// A lowest or highest version of TLS.
pub(super) fn tls_version(field: &ManifestField<'_>, is_minimum: bool) -> Result<(), ConfigError> {
    let text = field.text()?;
    match (text, is_minimum) {
        ("1.2", true) | ("1.3", false) => field.mark(NotNeeded, "the proxy has TLS 1.2 and 1.3"),
        ("1.0" | "1.1", true) => field.mark(
            NotPossible,
            "the proxy has nothing older than TLS 1.2; remove the field",
        ),
        ("1.3", true) => field.mark(
            NotPossible,
            "TLS 1.2 cannot be turned off; remove the field",
        ),
        ("1.0" | "1.1" | "1.2", false) => field.mark(
            NotPossible,
            "TLS 1.3 cannot be turned off; remove the field",
        ),
        _ => {
            let text = quote::value(text);
            return Err(field.error(format!(
                "`{text}` is no version of TLS; write \"1.2\" or \"1.3\""
            )));
        }
    }
    Ok(())
}

/// The bounds of `requestsPerClient` and `connectionsPerClient`.
const MAX_RATE: u64 = 100_000;
const MAX_BURST: u64 = 1_000_000;
