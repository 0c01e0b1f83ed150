//! `kubectl logs`: all of it, as it comes, and after a long silence.

use std::time::{Duration, UNIX_EPOCH};

use crate::kubectl::{Kubectl, same_on_both};
use crate::suite::{Route, alone, on_both, shared};

#[test]
fn logs_prints_the_same_lines() {
    let Some(suite) = shared() else { return };
    let all = same_on_both(&suite, &["logs", "shell"]).ok();
    assert_eq!(all.lines().count(), 1000);
    let tail = same_on_both(&suite, &["logs", "shell", "--tail=2"]).ok();
    assert_eq!(tail, "line 998\nline 999\n");
}

#[test]
fn logs_follow_shows_each_line_soon_after_it_was_written() {
    // Alone, because it measures time; and one route after the other for the same reason.
    let Some(suite) = alone() else { return };
    let [direct, proxied] = [Route::Direct, Route::Proxied].map(|route| {
        let running = Kubectl::new(&suite, route).start(&["logs", "-f", "chatty"]);
        // The median is robust against a machine that is busy with something else for a moment,
        // and large when lines are held back: one comes only each 100 ms.
        let mut ages: Vec<Duration> = (0..LINES)
            .map(|number| {
                let line = running.line(Duration::from_secs(20));
                let (index, written) = line.text.split_once(' ').unwrap();
                assert_eq!(index, number.to_string());
                let written = UNIX_EPOCH + Duration::from_nanos(written.parse().unwrap());
                line.at.duration_since(written).unwrap_or_default()
            })
            .collect();
        ages.sort();
        (ages[LINES / 2], ages[LINES - 1])
    });
    eprintln!("median and largest age of a line: direct {direct:?}, proxied {proxied:?}");
    assert!(
        proxied.0 < direct.0 + Duration::from_millis(50),
        "{direct:?} {proxied:?}"
    );
    assert!(
        proxied.1 < direct.1 + Duration::from_secs(1),
        "{direct:?} {proxied:?}"
    );
}

#[test]
fn logs_follow_survives_a_long_silence() {
    let Some(suite) = shared() else { return };
    on_both(|route| {
        let running = Kubectl::new(&suite, route).start(&["logs", "-f", "quiet"]);
        assert_eq!(
            running.line(Duration::from_secs(20)).text,
            "before the silence"
        );
        assert!(
            running.try_line(Duration::from_secs(20)).is_none(),
            "the pod is not silent"
        );
        assert_eq!(
            running.line(Duration::from_secs(20)).text,
            "after the silence"
        );
        let (rest, code) = running.finish(Duration::from_secs(20));
        assert_eq!((rest, code), (Vec::new(), Some(0)));
    });
}

const LINES: usize = 41;
