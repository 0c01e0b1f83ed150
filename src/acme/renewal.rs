//! When a certificate is renewed, and how long the proxy waits after a failure.

use std::time::{Duration, SystemTime};

use crate::pki::CertSummary;

/// The time at which the certificate is renewed. `window` is what the CA suggests (RFC 9773); without it, two thirds of
/// the lifetime count. `fraction`, from 0 to 1, spreads many proxies over that time, and stays the same for one
/// certificate. `issued` is when the CA issued it, as far as this process knows.
pub(super) fn due(
    leaf: &CertSummary,
    window: Option<(SystemTime, SystemTime)>,
    fraction: f64,
    issued: SystemTime,
) -> SystemTime {
    let lifetime = leaf.not_after.duration_since(leaf.not_before);
    let lifetime = lifetime.unwrap_or_default();
    let at = |share: f64| leaf.not_before + lifetime.mul_f64(share);
    let suggested = window.and_then(|(start, end)| {
        let width = end.duration_since(start).ok()?;
        start.checked_add(width.mul_f64(fraction))
    });
    // If the CA suggests a wrong time, or the clock is wrong, these bounds prevent repeated orders and an expired
    // certificate.
    let earliest = issued.max(leaf.not_before) + lifetime.mul_f64(EARLIEST);
    suggested
        .unwrap_or_else(|| at(DUE - fraction * SPREAD))
        .min(at(LATEST))
        .max(earliest)
}

/// The wait after this number of failures in a row. `asked` is the wait that the CA asks for.
pub(super) fn back_off(failures: u32, asked: Option<Duration>, fraction: f64) -> Duration {
    let doubled = 2_u32.saturating_pow(failures.saturating_sub(1).min(MAX_DOUBLINGS));
    let wait = MIN_WAIT.saturating_mul(doubled).min(MAX_WAIT);
    let wait = wait.mul_f64(1.0 - fraction * WAIT_SPREAD).max(MIN_WAIT);
    wait.max(asked.unwrap_or_default())
}

/// The share of the lifetime after which a certificate is renewed if the CA suggests nothing. Earlier than the share at
/// which a certificate counts as one that expires soon.
const DUE: f64 = 2.0 / 3.0;
const SPREAD: f64 = 1.0 / 24.0;
const EARLIEST: f64 = 1.0 / 100.0;
const LATEST: f64 = 5.0 / 6.0;
const MIN_WAIT: Duration = Duration::from_secs(60);
const MAX_WAIT: Duration = Duration::from_secs(12 * 60 * 60);
const WAIT_SPREAD: f64 = 1.0 / 4.0;
/// Enough for [`MAX_WAIT`].
const MAX_DOUBLINGS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn leaf() -> (CertSummary, SystemTime) {
        let leaf = &standin::pki::Ca::new("a").server(&["a.test"]).chain[0];
        let mut leaf = CertSummary::from_der(leaf).unwrap();
        let start = SystemTime::UNIX_EPOCH + DAY * 20_000;
        (leaf.not_before, leaf.not_after) = (start, start + DAY * 90);
        (leaf, start)
    }

    #[test]
    fn window_of_the_ca_decides_within_reason() {
        let (leaf, start) = leaf();
        let day = |days: u32| start + DAY * days;
        for (window, fraction, wanted) in [
            ((day(50), day(52)), 0.0, day(50)),
            ((day(50), day(52)), 0.5, day(51)),
            // The certificate will be revoked.
            ((day(0), day(0)), 0.5, start + DAY.mul_f64(0.9)),
            // Too late, or nonsense.
            ((day(89), day(90)), 0.5, day(75)),
            ((day(52), day(50)), 0.0, day(60)),
        ] {
            assert_eq!(
                due(&leaf, Some(window), fraction, start),
                wanted,
                "{window:?}"
            );
        }
    }

    #[test]
    fn new_certificate_is_in_use_for_a_while_at_any_clock() {
        let (leaf, start) = leaf();
        let issued = start + DAY * 85;
        for window in [None, Some((start, start))] {
            assert_eq!(due(&leaf, window, 0.5, issued), issued + DAY.mul_f64(0.9));
        }
    }

    #[test]
    fn renewal_comes_before_the_certificate_expires_soon() {
        let (mut leaf, start) = leaf();
        for days in [1, 6, 45, 90, 365] {
            leaf.not_after = start + DAY * days;
            for fraction in [0.0, 0.5, 1.0] {
                let due = due(&leaf, None, fraction, start);
                assert!(due > start + (DAY * days).mul_f64(0.6));
                assert!(!leaf.expires_soon(due - Duration::from_secs(1)), "{days}");
            }
        }
    }

    #[test]
    fn back_off_grows_to_twelve_hours_and_obeys_the_ca() {
        let hour = Duration::from_secs(60 * 60);
        for (failures, least, most) in [
            (1, 60, 60),
            (2, 90, 120),
            (3, 180, 240),
            (10, 23_040, 30_720),
            (11, 32_400, 43_200),
            (u32::MAX, 32_400, 43_200),
        ] {
            assert_eq!(back_off(failures, None, 1.0).as_secs(), least);
            assert_eq!(back_off(failures, None, 0.0).as_secs(), most);
        }
        assert_eq!(back_off(1, Some(hour * 20), 0.3), hour * 20);
        assert_eq!(back_off(9, Some(hour), 0.0), Duration::from_secs(15_360));
    }
}
