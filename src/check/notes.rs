//! Writes down what is found while the run goes on, and tells whoever waits for it.

use std::{error::Error, time::Duration};

use tokio::time::Instant;

use super::{Check, Finding, Leg, Outcome, Report, Section};
use crate::text::{error_chain, escape};

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
pub(super) struct Notes<'a> {
    report: Report,
    tell: &'a mut dyn FnMut(Event<'_>),
    section: Section,
    leg: Leg,
    of: String,
    since: Instant,
}

/// Something found, with its mend unless there is nothing to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) what: String,
    pub(super) mend: Option<String>,
}

impl Words {
    pub(super) fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            mend: Some(mend.into()),
        }
    }

    /// A sentence of this crate, whose mend stands behind its last semicolon.
    pub(super) fn of_sentence(sentence: &str) -> Self {
        match sentence.rsplit_once("; ") {
            Some((what, mend)) => Self::new(what, mend),
            None => Self {
                what: sentence.to_owned(),
                mend: None,
            },
        }
    }

    /// An error of this crate and its causes.
    pub(super) fn of_error(error: &(dyn Error + 'static)) -> Self {
        Self::of_sentence(&error_chain(error).to_string())
    }
}

impl<'a> Notes<'a> {
    pub(super) fn new(tell: &'a mut dyn FnMut(Event<'_>)) -> Self {
        Self {
            report: Report::default(),
            tell,
            section: Section::Here,
            leg: Leg::None,
            of: String::new(),
            since: Instant::now(),
        }
    }

    pub(super) fn begin(&mut self, section: Section, of: &str, title: &str) {
        self.section = section;
        self.leg = match section {
            Section::Here => Leg::None,
            Section::Upstream => Leg::ProxyApiserver,
            Section::Through => Leg::ClientProxy,
        };
        of.clone_into(&mut self.of);
        (self.tell)(Event::Section(title));
        self.since = Instant::now();
    }

    /// Begins to measure, and tells what is waited for.
    pub(super) fn waiting(&mut self, check: Check, for_what: &str) {
        self.since = Instant::now();
        (self.tell)(Event::Waiting(&format!("{}: {for_what}", check.word())));
    }

    pub(super) fn ok(&mut self, check: Check, what: impl Into<String>) {
        self.note(check, Outcome::Ok, what.into(), None, self.leg);
    }

    pub(super) fn warning(&mut self, check: Check, words: Words) {
        self.note(check, Outcome::Warning, words.what, words.mend, self.leg);
    }

    pub(super) fn failed(&mut self, check: Check, words: Words) {
        self.note(check, Outcome::Failed, words.what, words.mend, self.leg);
    }

    /// A failure on another leg than the one the part is about.
    pub(super) fn failed_on(&mut self, leg: Leg, check: Check, words: Words) {
        self.note(check, Outcome::Failed, words.what, words.mend, leg);
    }

    pub(super) fn skipped(&mut self, checks: &[Check], why: &str) {
        for check in checks {
            self.since = Instant::now();
            self.note(
                *check,
                Outcome::Skipped,
                format!("skipped: {why}"),
                None,
                self.leg,
            );
        }
    }

    fn note(
        &mut self,
        check: Check,
        outcome: Outcome,
        what: String,
        mend: Option<String>,
        leg: Leg,
    ) {
        let finding = Finding {
            check,
            section: self.section,
            leg,
            of: self.of.clone(),
            outcome,
            what,
            mend,
            took: self.since.elapsed(),
        };
        (self.tell)(Event::Found(&finding));
        self.report.findings.push(finding);
        self.since = Instant::now();
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }
}

/// Text of a peer, fit for a terminal.
pub(super) fn shown(text: &str) -> String {
    escape(text.trim(), MAX_SHOWN_CHARS).to_string()
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
