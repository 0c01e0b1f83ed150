//! Writes down what is found while the run goes on, and tells whoever waits for it.

use std::{error::Error, time::Duration};

use tokio::time::Instant;

use super::{Check, CheckOutcome, CheckReport, Finding, Leg, Section};
use crate::text::{self, error_chain};

/// What a run tells while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A part begins; this is its title.
    Section(&'a str),
    /// Something is waited for: these are the words for it.
    Waiting(&'a str),
    /// Something was found.
    Found(&'a Finding),
}

/// The report so far, and the part it is at.
pub(super) struct Recorder<'a> {
    report: CheckReport,
    tell: &'a mut dyn FnMut(Event<'_>),
    section: Section,
    leg: Leg,
    target: String,
    since: Instant,
}

/// Something found, with its fix unless there is nothing to fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) what: String,
    pub(super) fix: Option<String>,
}

impl Message {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: Some(fix.into()),
        }
    }

    /// A sentence of this crate, whose fix stands behind its last semicolon.
    pub(super) fn from_sentence(sentence: &str) -> Self {
        match sentence.rsplit_once("; ") {
            Some((what, fix)) => Self::new(what, fix),
            None => Self {
                what: sentence.to_owned(),
                fix: None,
            },
        }
    }

    /// An error of this crate and its causes.
    pub(super) fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::from_sentence(&error_chain(error).to_string())
    }
}

impl<'a> Recorder<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(Event<'_>)) -> Self {
        Self {
            report: CheckReport::default(),
            tell,
            section: Section::Local,
            leg: Leg::None,
            target: String::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn begin(&mut self, section: Section, target: &str, title: &str) {
        self.section = section;
        self.leg = match section {
            Section::Local => Leg::None,
            Section::Upstream => Leg::ProxyApiserver,
            Section::Through => Leg::ClientProxy,
        };
        target.clone_into(&mut self.target);
        (self.tell)(Event::Section(title));
        self.since = Instant::now();
    }

    /// Begins to measure, and tells what is waited for.
    pub(super) fn waiting(&mut self, check: Check, for_what: &str) {
        self.since = Instant::now();
        (self.tell)(Event::Waiting(&format!("{}: {for_what}", check.word())));
    }

    pub(super) fn ok(&mut self, check: Check, what: impl Into<String>) {
        self.note(check, CheckOutcome::Ok, what.into(), None, self.leg);
    }

    pub(super) fn warning(&mut self, check: Check, words: Message) {
        self.note(
            check,
            CheckOutcome::Warning,
            words.what,
            words.fix,
            self.leg,
        );
    }

    pub(super) fn failed(&mut self, check: Check, words: Message) {
        self.note(check, CheckOutcome::Failed, words.what, words.fix, self.leg);
    }

    /// A failure on another leg than the one the part is about.
    pub(super) fn failed_on(&mut self, leg: Leg, check: Check, words: Message) {
        self.note(check, CheckOutcome::Failed, words.what, words.fix, leg);
    }

    pub(super) fn skipped(&mut self, checks: &[Check], why: &str) {
        for check in checks {
            self.since = Instant::now();
            self.note(
                *check,
                CheckOutcome::Skipped,
                format!("skipped: {why}"),
                None,
                self.leg,
            );
        }
    }

    fn note(
        &mut self,
        check: Check,
        outcome: CheckOutcome,
        message: String,
        fix: Option<String>,
        leg: Leg,
    ) {
        let finding = Finding {
            check,
            section: self.section,
            leg,
            target: self.target.clone(),
            outcome,
            message,
            fix,
            took: self.since.elapsed(),
        };
        (self.tell)(Event::Found(&finding));
        self.report.findings.push(finding);
        self.since = Instant::now();
    }

    pub(super) fn into_report(self) -> CheckReport {
        self.report
    }
}

/// Text of a peer, fit for a terminal.
pub(super) fn escape(text: &str) -> String {
    text::escape(text.trim(), MAX_SHOWN_CHARS).to_string()
}

/// `5 s`, `300 ms`.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

const MAX_SHOWN_CHARS: usize = 200;
