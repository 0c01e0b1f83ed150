//! The `translate` subcommand: prints the configuration on stdout, and what became of every field on stderr.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{
    messages::{WriteError, print},
    print_error,
};
use crate::{
    app::AppError,
    config::{ConfigError, manifest_text},
    translate::{FieldVerdict, FilePlacement, ManifestFile, Translation, translate},
};

/// Arguments of `kube-tls-proxy translate`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct TranslateArgs {
    /// Manifests in YAML or JSON; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// Exit with 1 if a field is not possible or not known
    #[arg(long)]
    pub strict: bool,

    /// Write kube-tls-proxy.yaml and the CA files that the manifests contain into this directory
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// Translates the files, prints the result and returns the exit code.
pub(super) fn translate_files(args: &TranslateArgs) -> ExitCode {
    let files: Result<Vec<_>, ConfigError> = args.files.iter().map(|file| read(file)).collect();
    let placement = match &args.output {
        Some(_) => FilePlacement::Beside,
        None => FilePlacement::Mounted,
    };
    let translated = files.map_err(|error| vec![error]);
    let translation = match translated.and_then(|files| translate(&files, placement)) {
        Ok(translation) => translation,
        Err(errors) => {
            for error in errors {
                print_error(&AppError::Config(error));
            }
            return ExitCode::from(2);
        }
    };
    // If stderr is closed, configuration and exit code say enough.
    drop(report(&translation));
    let written: Result<(), Box<dyn std::error::Error>> = match &args.output {
        Some(directory) => write(&translation, directory).map_err(Into::into),
        None => print(&translation.config).map_err(Into::into),
    };
    if let Err(error) = written {
        print_error(error.as_ref());
        return ExitCode::from(1);
    }
    let is_lost = |verdict| matches!(verdict, FieldVerdict::NotPossible | FieldVerdict::NotKnown);
    let is_lossy = translation
        .fields
        .iter()
        .any(|field| is_lost(field.verdict));
    if args.strict && is_lossy {
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    }
}

fn read(file: &Path) -> Result<ManifestFile, ConfigError> {
    let text = manifest_text(file)?;
    let path = if file.as_os_str() == "-" {
        PathBuf::from("standard input")
    } else {
        file.to_owned()
    };
    Ok(ManifestFile { path, text })
}

/// Prints a line for each field, and how many there are of each verdict.
fn report(translation: &Translation) -> io::Result<()> {
    let mut stderr = io::stderr().lock();
    for field in &translation.fields {
        writeln!(stderr, "{field}")?;
    }
    let count = |verdict| {
        let fields = translation.fields.iter();
        fields.filter(|field| field.verdict == verdict).count()
    };
    writeln!(
        stderr,
        "{} fields used, {} not needed, {} not possible, {} not known",
        count(FieldVerdict::Used),
        count(FieldVerdict::NotNeeded),
        count(FieldVerdict::NotPossible),
        count(FieldVerdict::NotKnown),
    )
}

/// Writes the configuration and the CA files into `directory`. A file that exists is not replaced.
fn write(translation: &Translation, directory: &Path) -> Result<(), WriteError> {
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |cause: io::Error| WriteError {
            file,
            cause: if cause.kind() == io::ErrorKind::AlreadyExists {
                io::Error::other(
                    "it exists, and is not replaced; remove it, or name another directory with --output",
                )
            } else {
                cause
            },
        }
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    let beside = translation.files.iter();
    let beside = beside.filter_map(|file| Some((file.path.as_str(), file.content.as_deref()?)));
    let config = ("kube-tls-proxy.yaml", translation.config.as_str());
    for (name, content) in beside.chain([config]) {
        let path = directory.join(name);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
        written.map_err(failed(&path))?;
    }
    Ok(())
}
