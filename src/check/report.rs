//! The findings of a run, as lines for people and as one JSON document.
//!
//! The shape of the document is part of the interface: every key is always present, with `null` when it has no value.

use std::{fmt, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub check: Check,
    /// The part of the run.
    pub section: Section,
    /// The two peers between which it works or fails; `None` on this machine.
    pub leg: Option<Leg>,
    /// The cluster or URL that the section is about; `None` for the configuration.
    pub target: Option<String>,
    /// How it went.
    #[serde(rename = "result")]
    pub outcome: CheckOutcome,
    /// What was found, as a sentence without its full stop.
    pub message: String,
    /// The line of the configuration file that it is about, and the mark below its column.
    pub excerpt: Option<String>,
    /// How to fix it.
    pub fix: Option<String>,
    /// How long it took.
    #[serde(rename = "milliseconds", serialize_with = "as_milliseconds")]
    pub took: Duration,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    /// It works.
    Ok,
    /// It works but needs attention.
    Warning,
    /// It does not work.
    Failed,
    /// It could not be checked.
    Skipped,
}

/// The parts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// Configuration, certificates and ports.
    Local,
    /// From this machine to an apiserver.
    Upstream,
    /// From this machine to an apiserver through a running proxy.
    Through,
}

/// Two peers that talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leg {
    /// Clients to the proxy.
    ClientProxy,
    /// The proxy to the apiserver.
    ProxyApiserver,
}

/// What can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "docs/check.md has a row for each")]
pub enum Check {
    Configuration,
    Cluster,
    Access,
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
    Discovery,
    Clients,
    Whoami,
}

/// All findings, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// One entry per line.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// The number of findings with this outcome.
    #[must_use]
    pub fn count(&self, outcome: CheckOutcome) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.outcome == outcome)
            .count()
    }

    /// The worst outcome. Skipped checks do not count: a check is skipped after a failed one, or for lack of a token.
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

    /// 0: everything works; 1: a check failed; 2: the configuration is invalid.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let is_invalid = self.findings.iter().any(|finding| {
            finding.check == Check::Configuration && finding.outcome == CheckOutcome::Failed
        });
        match self.outcome() {
            CheckOutcome::Failed if is_invalid => 2,
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
            .and_then(|finding| finding.leg)
    }

    /// The JSON document.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "result": self.outcome(),
            "brokenLeg": self.broken_leg(),
            "ok": self.count(CheckOutcome::Ok),
            "warnings": self.count(CheckOutcome::Warning),
            "failed": self.count(CheckOutcome::Failed),
            "skipped": self.count(CheckOutcome::Skipped),
            "checks": self.findings,
        })
    }

    /// The last line for people.
    #[must_use]
    pub fn conclusion(&self) -> String {
        let failed = match self.count(CheckOutcome::Failed) {
            0 => {
                return match self.count(CheckOutcome::Warning) {
                    0 => "All checks passed.".to_owned(),
                    1 => "All checks passed, with one warning.".to_owned(),
                    more => format!("All checks passed, with {more} warnings."),
                };
            }
            1 => "One check failed".to_owned(),
            more => format!("{more} checks failed; fix the first one first"),
        };
        match self.broken_leg() {
            Some(leg) => format!("{failed}. The broken leg is {leg}."),
            None => format!("{failed}."),
        }
    }
}

impl Finding {
    /// The lines for people: the message and, below it, the fix.
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
        // In the other sections every failure is on the same leg.
        let leg = match (self.section, self.outcome, self.leg) {
            (Section::Through, CheckOutcome::Failed, Some(leg)) => format!("{leg}: "),
            _ => String::new(),
        };
        let mut lines = format!("  {mark} {:<14} {leg}{}\n", self.check, self.message);
        for line in self.excerpt.iter().flat_map(|excerpt| excerpt.lines()) {
            lines.push_str(&format!("    {line}\n"));
        }
        if let Some(fix) = &self.fix {
            lines.push_str(&format!("    {:<14} → {fix}\n", ""));
        }
        lines
    }
}

/// Whether to colour the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    /// On a terminal.
    Yes,
    /// Anywhere else.
    No,
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClientProxy => "client → proxy",
            Self::ProxyApiserver => "proxy → apiserver",
        })
    }
}

impl fmt::Display for Check {
    /// Its name in the lines and in the document.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

fn as_milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(outcome: CheckOutcome, check: Check) -> Finding {
        Finding {
            check,
            section: Section::Upstream,
            leg: None,
            target: None,
            outcome,
            message: "message".into(),
            excerpt: None,
            fix: (outcome != CheckOutcome::Ok).then(|| "fix".into()),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn colours_only_the_mark() {
        let failed = finding(CheckOutcome::Failed, Check::Tcp);
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
    fn exit_code_is_2_only_for_invalid_configuration() {
        for (outcome, check, code) in [
            (CheckOutcome::Ok, Check::Configuration, 0),
            (CheckOutcome::Warning, Check::Alpn, 0),
            (CheckOutcome::Skipped, Check::Watch, 0),
            (CheckOutcome::Failed, Check::Tcp, 1),
            (CheckOutcome::Failed, Check::Cluster, 1),
            (CheckOutcome::Failed, Check::Configuration, 2),
        ] {
            let report = CheckReport {
                findings: vec![finding(outcome, check)],
            };
            assert_eq!(report.exit_code(), code, "{outcome:?} {check:?}");
        }
    }
}
