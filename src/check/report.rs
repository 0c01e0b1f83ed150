//! What was found, as lines for people and as one document for machines.
//!
//! The shape of the document is part of the interface: a key is always there, with `null` when it has
//! nothing to say.

use std::{fmt, time::Duration};

use serde_json::{Value, json};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// In which part of the run.
    pub section: Section,
    /// Between whom it works or fails.
    pub leg: Leg,
    /// The cluster or URL that the section is about; empty for the configuration.
    pub target: String,
    /// How it went.
    pub outcome: CheckOutcome,
    /// What was found, as a sentence without its full stop.
    pub message: String,
    /// What to do about it.
    pub fix: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It works.
    Ok,
    /// It works, and should be fixed all the same.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be looked at.
    Skipped,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Configuration, certificates and port.
    Local,
    /// From here to an apiserver.
    Upstream,
    /// From here to an apiserver through a running proxy.
    Through,
}

/// Who speaks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    /// Nobody: files and sockets of this machine.
    None,
    /// Clients to the proxy.
    ClientProxy,
    /// The proxy to the apiserver.
    ProxyApiserver,
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "docs/check.md has a row for each")]
pub enum Check {
    Configuration,
    Certificate,
    Trust,
    Hosts,
    Listen,
    Ca,
    Dns,
    Tcp,
    Tls,
    Verify,
    Alpn,
    Version,
    Readyz,
    Clock,
    Upgrade,
    Watch,
}

/// All that was found, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// One entry a line.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// How many findings went like this.
    #[must_use]
    pub fn count(&self, outcome: CheckOutcome) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == outcome)
            .count()
    }

    /// The worst outcome; skipped checks always stand behind a failed one or a wish, and do not count.
    #[must_use]
    pub fn outcome(&self) -> CheckOutcome {
        if self.count(CheckOutcome::Failed) > 0 {
            CheckOutcome::Failed
        } else if self.count(CheckOutcome::Warning) > 0 {
            CheckOutcome::Warning
        } else {
            CheckOutcome::Ok
        }
    }

    /// 0 all well, 1 something does not work, 2 there is no usable configuration.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let unusable = self.findings.iter().any(|finding| {
            finding.check == Check::Configuration && finding.outcome == CheckOutcome::Failed
        });
        match self.outcome() {
            CheckOutcome::Failed if unusable => 2,
            CheckOutcome::Failed => 1,
            CheckOutcome::Ok | CheckOutcome::Warning | CheckOutcome::Skipped => 0,
        }
    }

    /// The leg of the first failure, if it is one between two peers.
    #[must_use]
    pub fn broken_leg(&self) -> Option<Leg> {
        self.findings
            .iter()
            .find(|finding| finding.outcome == CheckOutcome::Failed)
            .map(|finding| finding.leg)
            .filter(|leg| *leg != Leg::None)
    }

    /// The document for machines.
    #[must_use]
    pub fn json(&self) -> Value {
        let checks: Vec<_> = self.findings.iter().map(Finding::json).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "result": self.outcome().word(),
            "brokenLeg": self.broken_leg().and_then(Leg::word),
            "ok": self.count(CheckOutcome::Ok),
            "warnings": self.count(CheckOutcome::Warning),
            "failed": self.count(CheckOutcome::Failed),
            "skipped": self.count(CheckOutcome::Skipped),
            "checks": checks,
        })
    }

    /// The last line for people.
    #[must_use]
    pub fn conclusion(&self) -> String {
        let warnings = match self.count(CheckOutcome::Warning) {
            0 => String::new(),
            1 => ", with one warning".to_owned(),
            more => format!(", with {more} warnings"),
        };
        let failed = self.count(CheckOutcome::Failed);
        if failed == 0 {
            return format!("Everything that was checked works{warnings}.");
        }
        let things = match failed {
            1 => "One thing does not work".to_owned(),
            more => format!("{more} things do not work; begin with the first"),
        };
        match self.broken_leg() {
            Some(leg) => format!("{things}. The broken leg is {leg}."),
            None => format!("{things}."),
        }
    }
}

impl Finding {
    fn json(&self) -> Value {
        json!({
            "section": self.section.word(),
            "target": (!self.target.is_empty()).then_some(&self.target),
            "leg": self.leg.word(),
            "check": self.check.word(),
            "result": self.outcome.word(),
            "message": self.message,
            "fix": self.fix,
            "milliseconds": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// The lines for people: what was found and, below it, the fix.
    #[must_use]
    pub fn lines(&self, colours: Colours) -> String {
        let (mark, colour) = match self.outcome {
            CheckOutcome::Ok => ("✓", "32"),
            CheckOutcome::Warning => ("!", "33"),
            CheckOutcome::Failed => ("✗", "31"),
            CheckOutcome::Skipped => ("–", "2"),
        };
        let mark = match colours {
            Colours::Yes => format!("\x1b[{colour}m{mark}\x1b[0m"),
            Colours::No => mark.to_owned(),
        };
        let leg = match (self.section, self.outcome) {
            (Section::Through, CheckOutcome::Failed) => format!("{}: ", self.leg),
            (Section::Through | Section::Local | Section::Upstream, _) => String::new(),
        };
        let mut lines = format!("  {mark} {:<14} {leg}{}\n", self.check.word(), self.message);
        if let Some(fix) = &self.fix {
            lines.push_str(&format!("    {:<14} → {fix}\n", ""));
        }
        lines
    }
}

/// Whether text may carry colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// On a terminal.
    Yes,
    /// Anywhere else.
    No,
}

impl CheckOutcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

impl Section {
    fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Upstream => "upstream",
            Self::Through => "through",
        }
    }
}

impl Leg {
    fn word(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::ClientProxy => Some("client-proxy"),
            Self::ProxyApiserver => Some("proxy-apiserver"),
        }
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "on this machine",
            Self::ClientProxy => "client → proxy",
            Self::ProxyApiserver => "proxy → apiserver",
        })
    }
}

impl Check {
    /// What lines and documents call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Certificate => "certificate",
            Self::Trust => "trust",
            Self::Hosts => "hosts",
            Self::Listen => "listen",
            Self::Ca => "ca",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Verify => "verify",
            Self::Alpn => "alpn",
            Self::Version => "version",
            Self::Readyz => "readyz",
            Self::Clock => "clock",
            Self::Upgrade => "upgrade",
            Self::Watch => "watch",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: CheckOutcome, check: Check, leg: Leg) -> Finding {
        Finding {
            check,
            section: Section::Upstream,
            leg,
            target: String::new(),
            outcome,
            message: "message".into(),
            fix: (outcome != CheckOutcome::Ok).then(|| "fix".into()),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn the_mark_is_coloured_and_the_words_are_not() {
        let failed = finding(CheckOutcome::Failed, Check::Tcp, Leg::ProxyApiserver);
        let fix = "                   → fix\n";
        assert_eq!(
            failed.lines(Colours::Yes),
            format!("  \x1b[31m✗\x1b[0m tcp            message\n{fix}")
        );
        assert_eq!(
            failed.lines(Colours::No),
            format!("  ✗ tcp            message\n{fix}")
        );
    }

    #[test]
    fn the_exit_code_tells_what_does_not_work_from_what_is_unusable() {
        for (outcome, check, code) in [
            (CheckOutcome::Ok, Check::Configuration, 0),
            (CheckOutcome::Warning, Check::Alpn, 0),
            (CheckOutcome::Skipped, Check::Watch, 0),
            (CheckOutcome::Failed, Check::Tcp, 1),
            (CheckOutcome::Failed, Check::Configuration, 2),
        ] {
            let report = CheckReport {
                findings: vec![finding(outcome, check, Leg::None)],
            };
            assert_eq!(report.exit_code(), code, "{outcome:?} {check:?}");
        }
    }
}
