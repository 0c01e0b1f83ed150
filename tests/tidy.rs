//! Keeps the shape of the code: a duty at the top of every file, short files, imports in one direction,
//! the few words that must not stand in `src`, and the list of test cases.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helper functions too"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What each module may import from this crate besides itself, in the order in which a request meets
/// them. A module uses what lies ahead on the way of a request, and leaves; never what lies behind.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "app",
        &[
            "admin",
            "config",
            "heartbeat",
            "metrics",
            "pki",
            "downstream",
            "drain",
            "listen_error",
            "listener",
            "reload",
            "upstream",
        ],
    ),
    (
        "admin",
        &[
            "activity",
            "config",
            "drain",
            "heartbeat",
            "listen_error",
            "metrics",
            "pki",
            "reload",
            "socket",
            "telemetry",
            "upstream",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "check",
            "config",
            "heartbeat",
            "pki",
            "reload",
            "telemetry",
        ],
    ),
    (
        "check",
        &[
            "admin",
            "app",
            "config",
            "drain",
            "listen_error",
            "listener",
            "pki",
            "telemetry",
            "transport",
            "upstream",
        ],
    ),
    (
        "reload",
        &["config", "downstream", "pki", "proxy", "upstream"],
    ),
    ("fuzz", &["downstream", "proxy", "upstream"]),
    ("bench", &["downstream", "proxy"]),
    (
        "listener",
        &["config", "drain", "metrics", "socket", "telemetry"],
    ),
    (
        "downstream",
        &[
            "config",
            "drain",
            "metrics",
            "pki",
            "proxy",
            "socket",
            "transport",
            "upstream",
        ],
    ),
    (
        "proxy",
        &["activity", "config", "drain", "metrics", "upstream"],
    ),
    (
        "upstream",
        &[
            "config",
            "drain",
            "metrics",
            "pki",
            "socket",
            "telemetry",
            "transport",
        ],
    ),
    ("pki", &["config"]),
    ("telemetry", &["config"]),
    ("metrics", &["activity"]),
    ("activity", &["telemetry"]),
    ("transport", &[]),
    ("socket", &["config"]),
    ("config", &[]),
    ("quote", &[]),
    ("drain", &[]),
    ("hosts", &[]),
    ("text", &[]),
    ("listen_error", &[]),
    ("heartbeat", &[]),
];

/// Leaves that every module may use.
const LEAVES: &[&str] = &["hosts", "quote", "text"];

/// Lines of a file, whatever is in them.
const MAX_LINES: usize = 600;

/// Words that must not stand in `src`, the one file that may have them, and why.
const FORBIDDEN: &[(&str, Option<&str>, &str)] = &[
    (
        ".dangerous()",
        Some("upstream/tls.rs"),
        "verification has one place",
    ),
    ("KeyLogFile", None, "session keys never leave the process"),
    (
        "enable_secret_extraction",
        None,
        "session keys never leave the process",
    ),
    ("tokio_unstable", None, "the build takes no flags"),
    ("TODO", None, "open an issue"),
    ("FIXME", None, "open an issue"),
];

#[test]
fn modules_import_only_what_lies_ahead_of_them() {
    for file in production_sources() {
        let Some((_, allowed)) = MAY_USE.iter().find(|(module, _)| *module == file.module) else {
            assert!(
                matches!(file.module.as_str(), "lib" | "main"),
                "{}: name the module `{}` in MAY_USE",
                file.path.display(),
                file.module
            );
            continue;
        };
        for used in imports(&file.code()) {
            assert!(
                used == file.module
                    || allowed.contains(&used.as_str())
                    || LEAVES.contains(&used.as_str()),
                "{}: `{}` must not use `{used}`",
                file.path.display(),
                file.module
            );
        }
    }
}

#[test]
fn files_stay_short() {
    for file in sources() {
        let lines = file.text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{}: {lines} lines; split it by duty",
            file.path.display()
        );
    }
}

#[test]
fn files_begin_with_their_duty() {
    for file in sources() {
        let path = file.path.display();
        assert!(
            file.text.starts_with("//! "),
            "{path}: begin with a `//!` sentence"
        );
    }
}

#[test]
fn source_has_no_forbidden_words() {
    for file in sources() {
        for (word, only_in, reason) in FORBIDDEN {
            if only_in.is_none_or(|path| !file.path.ends_with(path)) {
                assert!(
                    !file.text.contains(word),
                    "{}: `{word}`: {reason}",
                    file.path.display()
                );
            }
        }
    }
}

#[test]
fn imports_are_found_in_groups_and_paths() {
    let code = "use crate::{hosts::{Peer, crate_name}, config, proxy::{self, Body}};\nlet x = crate::drain::Drain::new();";
    assert_eq!(imports(code), ["hosts", "config", "proxy", "drain"]);
}

#[test]
fn every_test_case_has_a_test() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let readme = fs::read_to_string(tests.join("README.md")).unwrap();
    let listed: BTreeSet<u32> = readme
        .lines()
        .filter_map(|line| line.split('|').nth(1)?.trim().parse().ok())
        .collect();
    let tested: BTreeSet<u32> = sources_below(&tests.join("it"))
        .iter()
        .flat_map(|file| cases_with_a_test(&file.text))
        .collect();
    let missing: Vec<_> = listed.difference(&tested).collect();
    assert!(missing.is_empty(), "cases without a test: {missing:?}");
    let unknown: Vec<_> = tested.difference(&listed).collect();
    assert!(
        unknown.is_empty(),
        "cases that tests/README.md does not list: {unknown:?}"
    );
    assert!(listed.len() > 50, "{} cases are listed", listed.len());
}

/// The numbers of all `/// Case N.` and `/// Cases N and M.` lines that a function follows.
fn cases_with_a_test(text: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let mut cases = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if let Some(rest) = line.strip_prefix("/// Case") {
            let numbers = rest.split('.').next().unwrap();
            cases = numbers
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect();
        } else if line.contains("fn ") {
            found.append(&mut cases);
        }
    }
    found
}

/// One file below `src`.
struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

impl Source {
    /// The text without the lines that are comments.
    fn code(&self) -> String {
        let lines = self
            .text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The modules of this crate that the code names.
fn imports(code: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(name(rest));
            continue;
        };
        // The names at the outer level of the group, up to its closing brace.
        let mut depth = 0_usize;
        let mut outer = String::new();
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                c if depth == 0 => outer.push(c),
                _ => {}
            }
        }
        found.extend(
            outer
                .split(',')
                .map(|item| name(item.trim()))
                .filter(|name| !name.is_empty()),
        );
    }
    found
}

/// All files but those that hold nothing but tests.
fn production_sources() -> impl Iterator<Item = Source> {
    let is_test = |path: &Path| {
        path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources()
        .into_iter()
        .filter(move |file| !is_test(file.path.strip_prefix(&root).unwrap_or(&file.path)))
}

fn sources() -> Vec<Source> {
    sources_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn sources_below(root: &Path) -> Vec<Source> {
    let mut folders = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let first = path
                    .strip_prefix(root)
                    .unwrap()
                    .components()
                    .next()
                    .unwrap();
                let module = Path::new(first.as_os_str())
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { path, module, text });
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {}", root.display());
    found
}
