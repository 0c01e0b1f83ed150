//! Compares the clock of this machine with the apiserver's.

use std::time::{Duration, SystemTime};

use http::header;

use super::{Check, Message, Recorder, http::BufferedResponse, recorder::seconds};
use crate::pki::UtcDate;

/// What the date of an answer says.
pub(super) fn compare(answer: &BufferedResponse, recorder: &mut Recorder<'_>) {
    let date = answer
        .headers
        .get(header::DATE)
        .and_then(|date| date.to_str().ok())
        .and_then(|date| httpdate::parse_http_date(date).ok());
    let Some(theirs) = date else {
        return recorder.skipped(&[Check::Clock], "the answer has no date");
    };
    let (apart, which) = apart(answer.at, theirs);
    // A date has whole seconds.
    if apart < NOTICEABLE {
        return recorder.ok(
            Check::Clock,
            "the clocks of this machine and of the apiserver agree",
        );
    }
    let words = Message::new(
        format!(
            "the clock of this machine is {} {which} the apiserver's ({} here, {} there); certificates and tokens are then taken for expired, or for not valid yet",
            seconds(Duration::from_secs(apart.as_secs())),
            UtcDate(answer.at),
            UtcDate(theirs)
        ),
        "set both clocks by NTP (`timedatectl set-ntp true`)",
    );
    if apart < HARMFUL {
        recorder.warning(Check::Clock, words);
    } else {
        recorder.failed(Check::Clock, words);
    }
}

fn apart(ours: SystemTime, theirs: SystemTime) -> (Duration, &'static str) {
    match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    }
}

/// Below this nobody is hurt: tokens and certificates are made with some minutes to spare.
const NOTICEABLE: Duration = Duration::from_secs(30);
/// The leeway that validators of tokens commonly allow is one minute; two clocks may each use some of it.
const HARMFUL: Duration = Duration::from_secs(60);
