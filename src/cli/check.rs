//! `check`: from the command line to a report, in lines as they come or as one document.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use clap::{Args, ValueEnum, builder::PossibleValue};

use super::print_failure;
use crate::{
    check::{
        self, ANSWER_WITHIN, CheckReport, Colours, Event, Plan, Through, Token, TokenError, WATCH,
    },
    config::{self, ConfigError, Environment, ServeArgs, TrustSource, UpstreamUrl, is_colourless},
    pki::{PkiError, TrustAnchors},
};

/// Flags of `kube-tls-proxy check`: those of `serve`, and how to check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// What `serve` would be given.
    #[command(flatten)]
    pub serve: ServeArgs,

    /// Also look whether a watch stays open for 20 seconds; needs --token-file
    #[arg(long, help_heading = CHECKING)]
    pub long: bool,

    /// Also look through the running proxy at this URL, as clients do; alone it needs no other flag
    #[arg(long, value_name = "URL", help_heading = CHECKING)]
    pub through: Option<String>,

    /// Take clients to trust the CAs in this PEM file instead of the public ones
    #[arg(long, value_name = "FILE", help_heading = CHECKING)]
    pub through_ca: Option<PathBuf>,

    /// Send the bearer token in this file with every request
    #[arg(long, value_name = "FILE", help_heading = CHECKING)]
    pub token_file: Option<PathBuf>,

    /// Print lines for people or one JSON document
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = CHECKING)]
    pub output: OutputFormat,
}

/// Whom the report is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One document for machines.
    Json,
}

/// By hand: the derived one makes help texts of the comments, and every flag of `--help` a paragraph.
impl ValueEnum for OutputFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

/// What stands in the way of any check.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error(transparent)]
    Flag(#[from] ConfigError),
    #[error(transparent)]
    Ca(#[from] PkiError),
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// Checks, prints what is found, and returns the exit code.
pub(super) fn check(args: &CheckArgs) -> ExitCode {
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(error) => {
            print_failure(&error);
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            print_failure(&error);
            return ExitCode::from(1);
        }
    };
    let mut page = Printer::new(args.output);
    let report = runtime.block_on(check::run(&plan, &mut |event| page.tell(event)));
    page.end(&report);
    // Dropping it would wait for a lookup that a dead resolver holds up.
    runtime.shutdown_background();
    ExitCode::from(report.exit_code())
}

fn plan(args: &CheckArgs) -> Result<Plan, UsageError> {
    let through = match &args.through {
        Some(url) => Some(through(url)?),
        None => None,
    };
    let clients_trust = match &args.through_ca {
        Some(file) => {
            let source = TrustSource::File(file.clone());
            let anchors = TrustAnchors::load(&source, SystemTime::now())?;
            Some((file.display().to_string(), anchors))
        }
        None => None,
    };
    let token = match &args.token_file {
        Some(file) => Some(Token::load(file)?),
        None => None,
    };
    // From outside nothing is known of what the proxy was given.
    let only_outside = through.is_some() && args.serve.is_empty();
    let config = (!only_outside).then(|| config::load(&args.serve, &Environment::from_process()));
    Ok(Plan {
        config,
        through,
        clients_trust,
        token,
        watch: args.long.then_some(WATCH),
        answer_within: ANSWER_WITHIN,
    })
}

fn through(url: &str) -> Result<Through, ConfigError> {
    let UpstreamUrl {
        host,
        port,
        prefix,
        name,
    } = url.parse().map_err(|source| ConfigError::Flag {
        flag: "--through",
        source,
    })?;
    Ok(Through {
        url: url.trim_end_matches('/').to_owned(),
        host,
        port,
        prefix,
        name,
    })
}

/// Where the report goes while it is made.
struct Printer {
    output: OutputFormat,
    colours: Colours,
    shows_progress: bool,
    begun: bool,
}

impl Printer {
    fn new(output: OutputFormat) -> Self {
        let colourless = is_colourless() || !io::stdout().is_terminal();
        Self {
            output,
            colours: if colourless {
                Colours::No
            } else {
                Colours::Yes
            },
            shows_progress: io::stderr().is_terminal(),
            begun: false,
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        match (event, self.output) {
            (Event::Waiting(what), _) => self.progress(&format!("  … {what}")),
            (Event::Section(title), OutputFormat::Text) => {
                let gap = if self.begun { "\n" } else { "" };
                self.begun = true;
                self.print(&format!("{gap}{title}\n"));
            }
            (Event::Found(finding), OutputFormat::Text) => self.print(&finding.lines(self.colours)),
            (Event::Section(_) | Event::Found(_), OutputFormat::Json) => {}
        }
    }

    fn end(&self, report: &CheckReport) {
        match self.output {
            OutputFormat::Text => self.print(&format!("\n{}\n", report.conclusion())),
            OutputFormat::Json => self.print(&format!("{:#}\n", report.json())),
        }
    }

    /// Writes over what is waited for. A closed pipe leaves nobody to tell; the exit code says enough.
    fn print(&self, text: &str) {
        self.progress("");
        let mut stdout = io::stdout().lock();
        drop(
            stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush()),
        );
    }

    fn progress(&self, text: &str) {
        if self.shows_progress {
            let mut stderr = io::stderr().lock();
            drop(write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush()));
        }
    }
}

const CHECKING: &str = "Checking";
