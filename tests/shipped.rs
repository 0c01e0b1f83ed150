//! The completions and man pages in `config` are those of the command line.
//!
//! `UPDATE=1 cargo test --test shipped` writes them again.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helper functions too"
)]

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::{Generator as _, Shell};
use kube_tls_proxy::cli::{Cli, completion_script};

/// What should stand in each of the two folders, by file name.
fn generated() -> [(PathBuf, BTreeMap<String, String>); 2] {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let completions = Shell::value_variants()
        .iter()
        .map(|shell| (shell.file_name("kube-tls-proxy"), completion_script(*shell)))
        .collect();
    let dir = standin::TempDir::new();
    clap_mangen::generate_to(Cli::command(), dir.path()).unwrap();
    [
        (config.join("completions"), completions),
        (config.join("man"), files(dir.path())),
    ]
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let named = paths.map(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    });
    named.collect()
}

#[test]
fn completions_and_man_pages_are_current() {
    for (folder, wanted) in generated() {
        if env::var_os("UPDATE").is_some() {
            write(&folder, &wanted);
        }
        let found = files(&folder);
        let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
        let fix = "UPDATE=1 cargo test --test shipped";
        assert_eq!(names(&found), names(&wanted), "{}: {fix}", folder.display());
        for (name, text) in &wanted {
            assert!(
                found.get(name) == Some(text),
                "{} is stale: {fix}",
                folder.join(name).display()
            );
        }
    }
}

/// Puts these files into `folder`, and nothing else.
fn write(folder: &Path, wanted: &BTreeMap<String, String>) {
    fs::create_dir_all(folder).unwrap();
    for name in files(folder).keys() {
        fs::remove_file(folder.join(name)).unwrap();
    }
    for (name, text) in wanted {
        fs::write(folder.join(name), text).unwrap();
    }
}
