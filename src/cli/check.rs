//! The `check` subcommand: turns flags into a plan and prints the report as lines or as JSON.

use std::{
    io::{self, IsTerminal as _, Write as _},
    net::IpAddr,
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use clap::{Args, ValueEnum};

use super::print_error;
use crate::{
    check::{
        self, AccessQuestion, AccessQuestionError, CheckReport, Colours, Event, Plan,
        RESPONSE_TIMEOUT, Through, Token, TokenError, WATCH_DURATION,
    },
    config::{
        self, ConfigError, ConnectTo, Environment, IdentityFiles, ServeArgs, TrustSource,
        UpstreamUrl, has_no_colours,
    },
    pki::{ClientIdentity, PkiError, TrustAnchors},
    process, quote,
};

/// Flags of `kube-tls-proxy check`: those of `serve`, and its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// The flags that `serve` gets.
    #[command(flatten)]
    pub serve: ServeArgs,

    /// Also check that a watch stays open for 20 seconds; needs --token-file
    #[arg(long, help_heading = CHECKING)]
    pub long: bool,

    /// Also check the running proxy at this URL, as clients use it; needs no other flag
    #[arg(long, value_name = "URL", help_heading = CHECKING)]
    pub through: Option<String>,

    /// The host, and perhaps the port, to connect to.
    #[arg(
        long,
        value_name = "ADDRESS",
        requires = "through",
        help_heading = CHECKING,
        help = "Connect to HOST[:PORT], not to the host of --through, as before a change of DNS"
    )]
    pub connect_to: Option<String>,

    /// Check only what needs no network and no port: configuration, certificates and CAs
    #[arg(long, conflicts_with_all = ["through", "long", "token_file"], help_heading = CHECKING)]
    pub offline: bool,

    /// Only say which access rule decides about a request, 'METHOD PATH'; needs --from
    #[arg(
        long,
        value_name = "REQUEST",
        requires = "from",
        conflicts_with_all = ["through", "long", "offline"],
        help_heading = CHECKING
    )]
    pub explain_access: Option<String>,

    /// The address of the client that sends the request of --explain-access
    #[arg(long, value_name = "ADDRESS", requires = "explain_access", help_heading = CHECKING)]
    pub from: Option<IpAddr>,

    /// CA file that clients use to verify the proxy [default: public CAs]
    #[arg(long, value_name = "FILE", help_heading = CHECKING)]
    pub through_ca: Option<PathBuf>,

    /// File with a bearer token to send with every request
    #[arg(long, value_name = "FILE", help_heading = CHECKING)]
    pub token_file: Option<PathBuf>,

    /// Certificate of a user, to check who its owner is; needs --client-key
    #[arg(long, value_name = "FILE", requires = "client_key", help_heading = CHECKING)]
    pub client_cert: Option<PathBuf>,

    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "client_cert", help_heading = CHECKING)]
    pub client_key: Option<PathBuf>,

    /// Format of the report
    #[arg(short, long, value_name = "FORMAT", default_value = "text", help_heading = CHECKING)]
    pub output: OutputFormat,
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
#[expect(
    missing_docs,
    reason = "clap prints the docs of variants, and then `--help` prints each flag as a paragraph"
)]
pub enum OutputFormat {
    #[default]
    Text,
    Json,
}

/// Why no check can run.
#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error(transparent)]
    Flag(#[from] ConfigError),
    #[error(transparent)]
    Ca(#[from] PkiError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Question(#[from] AccessQuestionError),
}

/// Runs the checks, prints the report and returns the exit code.
pub(super) fn check(args: &CheckArgs) -> ExitCode {
    // As `serve` does, so that the report has its limits.
    process::raise_open_files();
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(&error);
            return ExitCode::from(1);
        }
    };
    let mut printer = Printer::new(args.output);
    let report = runtime.block_on(check::run(&plan, &mut |event| printer.print_event(event)));
    printer.print_end(&report);
    // Dropping the runtime would wait for a lookup that hangs in a dead resolver.
    runtime.shutdown_background();
    ExitCode::from(report.exit_code())
}

fn plan(args: &CheckArgs) -> Result<Plan, UsageError> {
    let through = match &args.through {
        Some(url) => Some(through(url, args.connect_to.as_deref())?),
        None => None,
    };
    let client_trust = match &args.through_ca {
        Some(file) => {
            let source = TrustSource::File(file.clone());
            let anchors = TrustAnchors::load(&source, SystemTime::now())?;
            Some((quote::path(file).to_string(), anchors))
        }
        None => None,
    };
    let token = match &args.token_file {
        Some(file) => Some(Token::load(file)?),
        None => None,
    };
    let question = match (&args.explain_access, args.from) {
        (Some(request), Some(from)) => {
            let has_certificate = args.client_cert.is_some();
            Some(AccessQuestion::parse(request, from, has_certificate)?)
        }
        _ => None,
    };
    let client = match (&args.client_cert, &args.client_key) {
        (Some(certificate), Some(key)) => {
            let (certificate, key) = (certificate.clone(), key.clone());
            let files = IdentityFiles { certificate, key };
            Some(ClientIdentity::load(&files, SystemTime::now())?)
        }
        (Some(_), None) | (None, _) => None,
    };
    // With --through alone, the configuration of the proxy is unknown.
    let only_through = through.is_some() && args.serve.is_empty();
    let config = (!only_through).then(|| config::load(&args.serve, &Environment::from_process()));
    Ok(Plan {
        config,
        through,
        client_trust,
        token,
        client,
        question,
        offline: args.offline,
        watch: args.long.then_some(WATCH_DURATION),
        response_timeout: RESPONSE_TIMEOUT,
    })
}

fn through(url: &str, connect_to: Option<&str>) -> Result<Through, ConfigError> {
    let UpstreamUrl {
        host,
        port,
        prefix,
        name,
    } = url.parse().map_err(|source| ConfigError::Flag {
        flag: "--through",
        source,
    })?;
    let connect_to = connect_to.map(str::parse::<ConnectTo>).transpose();
    let connect_to = connect_to.map_err(|source| ConfigError::Flag {
        flag: "--connect-to",
        source,
    })?;
    Ok(Through {
        connect_to: connect_to.map(|to| (to.host, to.port.unwrap_or(port))),
        url: url.trim_end_matches('/').to_owned(),
        host,
        port,
        prefix,
        server_name: name,
    })
}

/// Prints the report while the checks run.
struct Printer {
    output: OutputFormat,
    colours: Colours,
    shows_progress: bool,
    has_printed: bool,
}

impl Printer {
    fn new(output: OutputFormat) -> Self {
        let colourless = has_no_colours() || !io::stdout().is_terminal();
        Self {
            output,
            colours: if colourless {
                Colours::No
            } else {
                Colours::Yes
            },
            shows_progress: io::stderr().is_terminal(),
            has_printed: false,
        }
    }

    fn print_event(&mut self, event: Event<'_>) {
        match (event, self.output) {
            (Event::Waiting(what), _) => self.progress(&format!("  … {what}")),
            (Event::Section(title), OutputFormat::Text) => {
                let gap = if self.has_printed { "\n" } else { "" };
                self.has_printed = true;
                self.print(&format!("{gap}{title}\n"));
            }
            (Event::Found(finding), OutputFormat::Text) => self.print(&finding.lines(self.colours)),
            (Event::Section(_) | Event::Found(_), OutputFormat::Json) => {}
        }
    }

    fn print_end(&self, report: &CheckReport) {
        match self.output {
            OutputFormat::Text => self.print(&format!("\n{}\n", report.conclusion())),
            OutputFormat::Json => self.print(&format!("{:#}\n", report.json())),
        }
    }

    /// Replaces the progress line. An error such as a closed pipe is ignored: the exit code says enough.
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
