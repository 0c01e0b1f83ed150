//! `kubectl logs`: a complete log, a followed log, and a log with a long pause.

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
fn logs_follow_shows_each_line_without_delay() {
    // Runs alone, and the routes one after the other, because it measures time.
    let Some(suite) = alone() else { return };
    let [direct, proxied] = [Route::Direct, Route::Proxied].map(|route| {
        let running = Kubectl::new(&suite, route).start(&["logs", "-f", "chatty"]);
        // The median ignores short delays of a busy machine, and it is large if lines are held back,
        // because the pod writes only one line per 100 ms.
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
fn logs_follow_continues_after_a_long_pause() {
    let Some(suite) = shared() else { return };
    on_both(|route| {
        let running = Kubectl::new(&suite, route).start(&["logs", "-f", "quiet"]);
        assert_eq!(
            running.line(Duration::from_secs(20)).text,
            "before the silence"
        );
        assert!(
            running.try_line(Duration::from_secs(20)).is_none(),
            "the pod wrote a line during its pause"
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
