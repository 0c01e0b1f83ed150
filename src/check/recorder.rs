//! Collects the findings of a run and passes them on as they are made.

use std::{error::Error, time::Duration};

use tokio::time::Instant;

use super::{Check, CheckOutcome, CheckReport, Finding, Leg, Section};
use crate::{
    config::ConfigError,
    text::{self, error_chain},
};

/// The progress of a run.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A section begins; holds its title.
    Section(&'a str),
    /// A check waits for the network; says for what.
    Waiting(&'a str),
    /// A check has a result.
    Found(&'a Finding),
}

/// The report so far, and the section that the run is in.
pub(super) struct Recorder<'a> {
    report: CheckReport,
    observer: &'a mut dyn FnMut(Event<'_>),
    section: Section,
    leg: Option<Leg>,
    target: Option<String>,
    /// When the current check began.
    since: Instant,
}

/// A problem, and how to fix it if there is a fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    text: String,
    fix: Option<String>,
    excerpt: Option<String>,
}

impl Message {
    pub(super) fn new(text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::from_text(text.into())
        }
    }

    fn from_text(text: String) -> Self {
        Self {
            text,
            fix: None,
            excerpt: None,
        }
    }

    /// A sentence of this crate, in which the fix follows the last semicolon.
    pub(super) fn from_sentence(sentence: &str) -> Self {
        match sentence.rsplit_once("; ") {
            Some((text, fix)) => Self::new(text, fix),
            None => Self::from_text(sentence.to_owned()),
        }
    }

    /// An error of this crate with its causes.
    pub(super) fn from_error(error: &(dyn Error + 'static)) -> Self {
        Self::from_sentence(&error_chain(error).to_string())
    }

    /// An error of the configuration, with the line that it is about.
    pub(super) fn from_config_error(error: &ConfigError) -> Self {
        Self {
            excerpt: error.excerpt().map(ToString::to_string),
            ..Self::from_error(error)
        }
    }
}

impl<'a> Recorder<'a> {
    pub(super) fn new(observer: &'a mut dyn FnMut(Event<'_>)) -> Self {
        Self {
            report: CheckReport::default(),
            observer,
            section: Section::Local,
            leg: None,
            target: None,
            since: Instant::now(),
        }
    }

    /// Begins a section about `target`.
    pub(super) fn begin(&mut self, section: Section, target: Option<&str>, title: &str) {
        self.section = section;
        self.leg = match section {
            Section::Local => None,
            Section::Upstream => Some(Leg::ProxyApiserver),
            Section::Through => Some(Leg::ClientProxy),
        };
        self.target = target.map(str::to_owned);
        (self.observer)(Event::Section(title));
        self.since = Instant::now();
    }

    /// Starts the clock of a check that waits for the network.
    pub(super) fn waiting(&mut self, check: Check, what: &str) {
        self.since = Instant::now();
        (self.observer)(Event::Waiting(&format!("{check}: {what}")));
    }

    pub(super) fn ok(&mut self, check: Check, text: impl Into<String>) {
        let message = Message::from_text(text.into());
        self.push(self.leg, check, CheckOutcome::Ok, message);
    }

    pub(super) fn warning(&mut self, check: Check, message: Message) {
        self.record(check, CheckOutcome::Warning, message);
    }

    pub(super) fn failed(&mut self, check: Check, message: Message) {
        self.record(check, CheckOutcome::Failed, message);
    }

    /// Records a problem with this outcome.
    pub(super) fn record(&mut self, check: Check, outcome: CheckOutcome, message: Message) {
        self.push(self.leg, check, outcome, message);
    }

    /// Records a failure on another leg than that of the section.
    pub(super) fn failed_on(&mut self, leg: Leg, check: Check, message: Message) {
        self.push(Some(leg), check, CheckOutcome::Failed, message);
    }

    pub(super) fn skipped(&mut self, checks: &[Check], reason: &str) {
        for check in checks {
            self.since = Instant::now();
            let text = format!("skipped: {reason}");
            let message = Message::from_text(text);
            self.push(self.leg, *check, CheckOutcome::Skipped, message);
        }
    }

    fn push(&mut self, leg: Option<Leg>, check: Check, outcome: CheckOutcome, message: Message) {
        let Message { text, fix, excerpt } = message;
        let finding = Finding {
            check,
            section: self.section,
            leg,
            target: self.target.clone(),
            outcome,
            message: text,
            excerpt,
            fix,
            took: self.since.elapsed(),
        };
        (self.observer)(Event::Found(&finding));
        self.report.findings.push(finding);
        self.since = Instant::now();
    }

    pub(super) fn into_report(self) -> CheckReport {
        self.report
    }
}

/// Makes text of a peer safe for a terminal.
pub(super) fn escape(text: &str) -> String {
    text::escape(text.trim(), MAX_ESCAPED_CHARS).to_string()
}

/// `5 s`, `300 ms` or `1.5 s`.
pub(super) fn format_duration(time: Duration) -> String {
    if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

const MAX_ESCAPED_CHARS: usize = 200;
