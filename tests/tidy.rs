//! Keeps the shape and the words of the code: imports in one direction, a duty at the top of every file, files
//! of a useful size, one meaning per type name, short test names, plain English, a true map, and the list of
//! test cases.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helper functions too"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// What each module may import from this crate besides itself, in the order in which a request meets
/// them. A module uses what a request meets later, and leaves; never what the request met earlier.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "app",
        &[
            "acme",
            "admin",
            "clients",
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
        "acme",
        &["config", "drain", "listen_error", "pki", "plain_http"],
    ),
    ("plain_http", &["drain"]),
    (
        "admin",
        &[
            "acme",
            "activity",
            "clients",
            "config",
            "drain",
            "heartbeat",
            "listen_error",
            "memory",
            "metrics",
            "pki",
            "plain_http",
            "process",
            "reload",
            "socket",
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
            "kubeconfig_document",
            "pki",
            "process",
            "reload",
            "telemetry",
            "translate",
        ],
    ),
    ("translate", &["config", "kubeconfig_document"]),
    (
        "check",
        &[
            "acme",
            "admin",
            "app",
            "config",
            "drain",
            "listen_error",
            "listener",
            "pki",
            "proxy",
            "reload",
            "upstream",
        ],
    ),
    (
        "reload",
        &[
            "config",
            "downstream",
            "kubeconfig_document",
            "listen_error",
            "metrics",
            "pki",
            "proxy",
            "upstream",
        ],
    ),
    (
        "fuzz",
        &[
            "downstream",
            "http1",
            "proxy",
            "translate",
            "transport",
            "upstream",
        ],
    ),
    ("bench", &["http1", "proxy"]),
    (
        "listener",
        &["clients", "config", "drain", "memory", "metrics", "socket"],
    ),
    (
        "downstream",
        &[
            "clients",
            "config",
            "drain",
            "http1",
            "memory",
            "metrics",
            "pki",
            "proxy",
            "socket",
            "telemetry",
            "transport",
            "upstream",
        ],
    ),
    (
        "proxy",
        &[
            "activity",
            "clients",
            "config",
            "drain",
            "http1",
            "kubeconfig_document",
            "metrics",
            "pki",
            "transport",
            "upstream",
        ],
    ),
    (
        "upstream",
        &[
            "config",
            "drain",
            "http1",
            "memory",
            "metrics",
            "pki",
            "socket",
            "transport",
        ],
    ),
    ("kubeconfig_document", &["config"]),
    ("pki", &["config"]),
    ("telemetry", &["config"]),
    ("metrics", &["activity", "clients", "drain"]),
    ("clients", &["config"]),
    ("activity", &["telemetry"]),
    ("http1", &["transport"]),
    ("transport", &[]),
    ("socket", &["config"]),
    ("config", &["memory", "process"]),
    ("memory", &[]),
    ("process", &[]),
    ("quote", &[]),
    ("drain", &[]),
    ("cidr", &[]),
    ("ending", &[]),
    ("hosts", &[]),
    ("text", &[]),
    ("tls_error", &[]),
    ("token_bucket", &[]),
    ("upgrade_token", &[]),
    ("listen_error", &[]),
    ("heartbeat", &[]),
];

/// Leaves that every module may use.
const LEAVES: &[&str] = &[
    "cidr",
    "ending",
    "hosts",
    "quote",
    "text",
    "tls_error",
    "token_bucket",
    "upgrade_token",
];

/// A file with fewer lines is a part of another one: it only adds a door to open.
const MIN_LINES: usize = 40;
/// A file with more lines, tests not counted, mostly has two duties.
const MAX_LINES: usize = 600;

/// Files below [`MIN_LINES`], and why.
const SMALL_FILES: &[(&str, &str)] = &[
    ("bench.rs", "the door of `benches` into the crate"),
    ("fuzz.rs", "the door of `fuzz` into the crate"),
    ("cli/completions.rs", "every subcommand has a file"),
    (
        "downstream/bench.rs",
        "the door of `benches` into this folder",
    ),
];

/// Files above [`MAX_LINES`], and why they have one duty all the same.
const LARGE_FILES: &[(&str, &str)] = &[];

/// Type names that `src` may use twice, and why.
const SHARED_TYPE_NAMES: &[(&str, &str)] = &[];

/// Longer names of tests are sentences that have to be decoded.
const MAX_TEST_NAME: usize = 60;

/// Keys of the log and labels of metrics that pages name with a value, and the files that have the values.
const LABELS: &[(&[&str], &[&str])] = &[
    (
        &["reason"],
        &[
            "ending.rs",
            "downstream/handshake_log.rs",
            "metrics/labels.rs",
            "proxy/policy/mod.rs",
        ],
    ),
    (&["ended_by"], &["ending.rs"]),
    (
        &["outcome"],
        &[
            "metrics/labels.rs",
            "proxy/access_log.rs",
            "proxy/passthrough.rs",
        ],
    ),
    (&["credential.problem"], &["proxy/hints.rs"]),
    (&["limit", "result", "end", "from"], &["metrics/labels.rs"]),
];

/// The functions whose labels a page must explain: file, first line of the function, page.
const EXPLAINED: &[(&str, &str, &str)] = &[
    ("ending.rs", "impl EndReason {", "configuration.md"),
    ("ending.rs", "impl Side {", "configuration.md"),
    (
        "proxy/policy/mod.rs",
        "pub(super) fn label(",
        "configuration.md",
    ),
    ("proxy/hints.rs", "pub(super) fn label(", "configuration.md"),
    (
        "downstream/handshake_log.rs",
        "fn reason(",
        "configuration.md",
    ),
    (
        "downstream/handshake_log.rs",
        "fn reason(",
        "troubleshooting.md",
    ),
];

/// What [`OLD_WORDS`] is checked in, from the root of the repository.
const PROSE: &[&str] = &[
    "src",
    "docs",
    "config",
    "demo",
    "fuzz",
    "benches",
    "tests",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "Cargo.toml",
    "Dockerfile",
    "clippy.toml",
    "deny.toml",
    "justfile",
    ".ci",
    ".github",
];

/// Words that a reader has to decode, and the words of the field. `…` ends a word with any letters.
const OLD_WORDS: &[(&str, &str)] = &[
    ("afresh", "`again`"),
    ("anew", "`again`"),
    ("anybody", "name who: `a client`, `an operator`"),
    ("everybody", "name who: `all clients`, `all operators`"),
    ("nobody", "name who: `no client`, `no operator`"),
    ("somebody", "name who: `a client`, `an operator`"),
    ("whoever", "name who: `a client that`, `an attacker who`"),
    ("comes about", "`is accepted`, `is opened`"),
    ("for ever", "`forever`, or name the end"),
    ("goes on", "`continues`"),
    ("ill", "`unhealthy`"),
    ("is well", "`is healthy`"),
    ("be well", "`be healthy`"),
    ("becomes well", "`becomes healthy`"),
    ("hears of", "`learns of`"),
    ("idle set", "`idle pool`"),
    ("looks whether", "`checks whether`"),
    ("mend…", "`fix`"),
    ("passed over", "`ejected`, `skipped`"),
    ("people outside", "`users`"),
    ("shake hands", "`run the handshake`"),
    ("shakes hands", "`runs the handshake`"),
    ("so long", "`for`, `until`, `while`"),
    ("so many", "a number, `up to`, `per`"),
    ("spoil…", "`poison`"),
    ("spotless", "`reusable`"),
    ("stands", "`is`, `runs`, `means`"),
    ("takeover", "`reuse-port`"),
    ("told apart", "`distinguished`"),
    ("tunnel rest", "`half-close timeout`"),
    ("under way", "`in progress`"),
];

/// `behind` is for places, and for time only if a clock or a reader is late. One of these words is then near.
const BEHIND_A: &[&str] = &[
    "ahead", "balancer", "clock", "firewall", "gateway", "ingress", "lag", "leave", "leaves",
    "left", "nat", "rancher", "services",
];

/// Text that `src` must not contain, the one file that may contain it, and why.
const FORBIDDEN: &[(&str, Option<&str>, &str)] = &[
    (
        ".dangerous()",
        Some("upstream/tls.rs"),
        "verification has one place",
    ),
    (
        ".bearer()",
        Some("upstream/user_naming.rs"),
        "the proxy's token leaves only together with a user",
    ),
    (
        "= pod_authorization(",
        Some("upstream/discover.rs"),
        "the pod's token leaves only with the request for addresses of apiservers",
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
fn may_use_lists_no_module_that_is_not_imported() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in production_sources() {
        let imports = imports(&file.code());
        used.entry(file.module).or_default().extend(imports);
    }
    for (module, allowed) in MAY_USE {
        let used = &used[*module];
        let unused: Vec<_> = allowed.iter().filter(|one| !used.contains(**one)).collect();
        assert!(
            unused.is_empty(),
            "`{module}` does not use {unused:?}; take them out of MAY_USE"
        );
    }
}

#[test]
fn files_have_a_useful_size() {
    let mut wrong = Vec::new();
    for file in production_sources() {
        let path = file.relative();
        let lines = file.production().lines().count();
        let may_be_small = path.ends_with("mod.rs")
            || path.ends_with("error.rs")
            || matches!(path.as_str(), "lib.rs" | "main.rs")
            || is_listed(SMALL_FILES, &path);
        if lines < MIN_LINES && !may_be_small {
            wrong.push(format!("src/{path}: {lines} lines; merge it with its user"));
        }
        if lines > MAX_LINES && !is_listed(LARGE_FILES, &path) {
            wrong.push(format!("src/{path}: {lines} lines; split it by duty"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn type_names_are_used_once() {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in production_sources() {
        for name in type_names(file.production()) {
            found.entry(name).or_default().push(file.relative());
        }
    }
    assert!(found.len() > 100, "{} types", found.len());
    let twice: Vec<_> = found
        .iter()
        .filter(|(name, files)| files.len() > 1 && !is_listed(SHARED_TYPE_NAMES, name))
        .map(|(name, files)| format!("`{name}` is in {}", files.join(", ")))
        .collect();
    assert!(
        twice.is_empty(),
        "use a more specific name for one of each:\n{}",
        twice.join("\n")
    );
}

#[test]
fn test_names_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    let mut tests = 0;
    for folder in ["src", "tests", "benches", "demo"] {
        for file in sources_below(&root.join(folder)) {
            for name in test_names(&file.text) {
                tests += 1;
                if name.len() > MAX_TEST_NAME {
                    long.push(format!("{folder}/{}: {name}", file.relative()));
                }
            }
        }
    }
    assert!(tests > 500, "{tests} tests");
    assert!(
        long.is_empty(),
        "say condition and outcome in {MAX_TEST_NAME} characters:\n{}",
        long.join("\n")
    );
}

#[test]
fn prose_is_plain_english() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut files = 0;
    for path in PROSE.iter().flat_map(|path| files_below(&root.join(path))) {
        // Pictures.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        // Bytes and hashes, which have words by chance, and the list itself.
        let is_data = path
            .components()
            .any(|part| matches!(part.as_os_str().to_str(), Some("corpus" | "testdata")))
            || path.ends_with("go.sum");
        if is_data || path.ends_with("tests/tidy.rs") {
            continue;
        }
        files += 1;
        let path = path.strip_prefix(root).unwrap().display().to_string();
        // It names what was renamed.
        let text = if path == "CHANGELOG.md" {
            text.split('`').step_by(2).collect()
        } else {
            text
        };
        for (line, word, instead) in old_words(&text) {
            found.push(format!("{path}:{line}: `{word}`; write {instead}"));
        }
    }
    assert!(files > 100, "{files} files");
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn old_words_are_found_in_names_and_across_lines() {
    let words = |text: &str| -> Vec<(usize, String)> {
        old_words(text)
            .into_iter()
            .map(|(line, word, _)| (line, word))
            .collect()
    };
    let one = |line, word: &str| vec![(line, word.to_owned())];
    assert_eq!(words("the mended file"), one(1, "mended"));
    assert_eq!(words("fn marks_ill() {}"), one(1, "ill"));
    assert_eq!(words("enum Health { MarkedIll }"), one(1, "ill"));
    assert_eq!(words("/// It takes so\n/// many."), one(1, "so many"));
    assert_eq!(words("fill the pill, filling, still"), []);
    assert_eq!(words("it is behind the answer"), one(1, "behind"));
    assert_eq!(words("behind a load balancer; left behind"), []);
}

/// The map is for people who do not know the code yet, so a step that leads nowhere is worse than none.
#[test]
fn architecture_names_files_and_functions_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let mut steps = 0;
    let mut missing = Vec::new();
    // What comes after that are places for files that do not exist yet.
    let (map, _) = page.split_once("## Where new parts go").unwrap();
    for (at, line) in map.lines().enumerate() {
        let spans = line.split('`').skip(1).step_by(2);
        for span in spans.filter(|span| span.contains('/') && span.ends_with(".rs")) {
            if !root.join("src").join(span).exists() && !root.join(span).exists() {
                missing.push(format!("{}: there is no `{span}`", at + 1));
            }
        }
        // A step is `1. `file.rs`, `name` and `name`: what happens there.`
        let Some((_, step)) = line
            .split_once(". `")
            .filter(|(number, _)| number.parse::<u32>().is_ok())
        else {
            continue;
        };
        steps += 1;
        let Some((names, _)) = step.split_once(": ") else {
            continue;
        };
        let mut names = names.split('`').step_by(2);
        let Ok(text) = fs::read_to_string(root.join("src").join(names.next().unwrap())) else {
            continue;
        };
        for name in names.filter(|name| !name.is_empty()) {
            let name = name.rsplit("::").next().unwrap();
            let kinds = ["fn", "struct", "enum", "trait", "type"];
            if !kinds.iter().any(|kind| {
                text.split(&format!("{kind} {name}"))
                    .skip(1)
                    .any(|after| !after.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            }) {
                missing.push(format!("{}: the file has no `{name}`", at + 1));
            }
        }
    }
    assert!(steps > 20, "{steps} steps");
    assert!(
        missing.is_empty(),
        "docs/architecture.md:\n{}",
        missing.join("\n")
    );
}

/// A promise without its test is only a sentence.
#[test]
fn threat_model_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let mut code = String::new();
    for folder in ["src", "tests"] {
        for file in sources_below(&root.join(folder)) {
            code.push_str(&file.text);
        }
    }
    let is_name = |span: &&str| {
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        span.matches('_').count() > 2 && span.chars().all(is_word)
    };
    let mut named = 0;
    let mut missing = Vec::new();
    for span in page.split('`').skip(1).step_by(2).filter(is_name) {
        named += 1;
        // The tests of `tests/attacks` are rows of a macro.
        if !code.contains(&format!("fn {span}(")) && !code.contains(&format!("    {span}: \"")) {
            missing.push(span);
        }
    }
    assert!(named > 40, "{named} tests");
    assert!(missing.is_empty(), "docs/threat-model.md: {missing:#?}");
}

/// An operator searches this table for the message on the screen.
#[test]
fn configuration_page_quotes_messages_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let (_, section) = page.split_once("## When it does not start").unwrap();
    let plain = |text: &str| {
        text.replace('`', "")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    // A string of Rust goes on behind a backslash at the end of a line.
    let code = sources()
        .into_iter()
        .map(|file| file.text.replace("\\\n", " "))
        .collect::<String>();
    let code = plain(&code);
    let rows = section
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(2);
    let mut quoted = 0;
    let mut missing = Vec::new();
    for row in rows {
        let messages = row.split('|').nth(1).unwrap();
        // `…`, `N` and `M` are for the parts that differ from case to case.
        let words = plain(messages).replace(" N ", " … ").replace(" M ", " … ");
        for part in words.split([';', ',', '…']) {
            let part = part.trim_matches(|c: char| !c.is_alphanumeric() && c != '-');
            let part = part.trim_start_matches("N ").trim_end_matches(" N");
            let part = part.trim_end_matches(" M");
            quoted += 1;
            if !code.contains(part) {
                missing.push(part.to_owned());
            }
        }
    }
    assert!(quoted > 60, "{quoted} messages");
    assert!(missing.is_empty(), "docs/configuration.md: {missing:#?}");
}

/// An operator searches the log for the word that a page names, and a page for the word in the log.
#[test]
fn docs_name_labels_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: BTreeMap<_, _> = sources()
        .into_iter()
        .map(|file| (file.relative(), file.production().to_owned()))
        .collect();
    let labels = |key: &str| -> Option<BTreeSet<String>> {
        let (_, places) = LABELS.iter().find(|(keys, _)| keys.contains(&key))?;
        let texts = places.iter().map(|place| files[*place].as_str());
        Some(texts.flat_map(label_literals).collect())
    };
    let mut named = 0;
    let mut unknown = Vec::new();
    let mut check = |place: &str, keys: &[&str], words: &[&str]| {
        let known: BTreeSet<_> = keys
            .iter()
            .filter_map(|key| labels(key))
            .flatten()
            .collect();
        for word in words {
            named += 1;
            if !known.contains(*word) {
                unknown.push(format!("{place}: {}={word}", keys.join("|")));
            }
        }
    };
    let pages = ["README.md", "docs", "config/prometheus/rules.yaml"].map(|page| root.join(page));
    for path in pages.iter().flat_map(|page| files_below(page)) {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("md" | "yaml")) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let place = path.strip_prefix(root).unwrap().display().to_string();
        // The labels that the columns of the table have, if the head of the table is that of a key.
        let mut columns: Vec<Vec<&str>> = Vec::new();
        for line in text.lines() {
            for (key, value) in pairs(line) {
                if labels(key).is_some() {
                    check(&place, &[key], &value.split('|').collect::<Vec<_>>());
                }
            }
            if !line.starts_with('|') {
                columns.clear();
                continue;
            }
            let cells: Vec<_> = line.trim_matches('|').split(" | ").collect();
            if columns.is_empty() {
                let keys = cells.iter().map(|cell| {
                    let keys = cell.split(',').map(|key| key.trim_matches(['`', ' ']));
                    let keys: Vec<&str> = keys.collect();
                    let is_known = keys.iter().all(|key| labels(key).is_some());
                    if is_known { keys } else { Vec::new() }
                });
                columns = keys.collect();
                continue;
            }
            for (keys, cell) in columns.iter().zip(&cells) {
                if !keys.is_empty() {
                    let words: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
                    check(&place, keys, &words);
                }
            }
        }
    }
    assert!(named > 80, "{named} labels");
    assert!(unknown.is_empty(), "no such label: {unknown:#?}");
    let page = |name: &str| fs::read_to_string(root.join("docs").join(name)).unwrap();
    let mut missing = Vec::new();
    for (place, function, name) in EXPLAINED {
        let (_, body) = files[*place].split_once(function).unwrap();
        let found = label_literals(body.split("\n}\n").next().unwrap());
        assert!(found.len() > 2, "{place}: {found:?}");
        let page = page(name);
        let is_missing = |label: &String| {
            !page.contains(&format!("`{label}`")) && !page.contains(&format!("={label}`"))
        };
        missing.extend(
            found
                .into_iter()
                .filter(is_missing)
                .map(|label| format!("{name}: {label}")),
        );
    }
    assert!(missing.is_empty(), "not explained: {missing:#?}");
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

/// One Rust file.
struct Source {
    root: PathBuf,
    path: PathBuf,
    module: String,
    text: String,
}

impl Source {
    /// The path below the folder that was searched, with `/`.
    fn relative(&self) -> String {
        let path = self.path.strip_prefix(&self.root).unwrap();
        path.to_str().unwrap().replace('\\', "/")
    }

    /// The text before the tests that are in the same file.
    fn production(&self) -> &str {
        self.text
            .split_once("#[cfg(test)]\nmod tests {")
            .map_or(&self.text, |(production, _)| production)
    }

    /// The text without the lines that are comments.
    fn code(&self) -> String {
        let lines = self
            .text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// The string literals that can be labels.
fn label_literals(code: &str) -> Vec<String> {
    let is_label = |text: &&str| {
        !text.is_empty()
            && text.chars().all(|c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '/' | '.')
            })
    };
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let literals = lines.flat_map(|line| line.split('"').skip(1).step_by(2));
    literals.filter(is_label).map(str::to_owned).collect()
}

/// The `key=value` pairs of a line, with or without quotes around the value.
fn pairs(line: &str) -> Vec<(&str, &str)> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    let is_value =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '|' | '/');
    let mut found = Vec::new();
    for (at, _) in line.match_indices('=') {
        let key = &line[..at];
        let key = key.trim_end_matches('!');
        let key = &key[key.trim_end_matches(is_key).len()..];
        let value = line[at + 1..].trim_start_matches(['~', '"']);
        let value = &value[..value.find(|c| !is_value(c)).unwrap_or(value.len())];
        if !value.is_empty() {
            found.push((key, value));
        }
    }
    found
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

fn is_listed(list: &[(&str, &str)], name: &str) -> bool {
    list.iter().any(|(listed, _reason)| *listed == name)
}

/// The types that this text defines. Associated types have the names that their traits want.
fn type_names(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let indented = line.starts_with(' ');
            let line = line.trim_start();
            let line = match line.strip_prefix("pub") {
                Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1.trim_start(),
                Some(rest) => rest.trim_start(),
                None => line,
            };
            let kinds = ["struct ", "enum ", "trait ", "type "];
            let kind = kinds.iter().find(|kind| line.starts_with(**kind))?;
            if indented && *kind == "type " {
                return None;
            }
            let name: String = line
                .strip_prefix(kind)?
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            // A macro takes the name as an argument.
            (!name.is_empty()).then_some(name)
        })
        .collect()
}

/// The names of the functions with a `#[test]` or `#[tokio::test]`.
fn test_names(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some((_, after)) = line.split_once("fn ").filter(|_| is_test) {
            found.extend(after.split(['(', '<']).next());
            is_test = false;
        }
    }
    found
}

/// Each of [`OLD_WORDS`] in this text with its line, and what to write instead.
fn old_words(text: &str) -> Vec<(usize, String, &'static str)> {
    let words = words(text);
    let mut found = Vec::new();
    for (at, (line, word)) in words.iter().enumerate() {
        let from_here = words.get(at..).unwrap();
        for (old, instead) in OLD_WORDS {
            let Some(said) = begins_with(from_here, old) else {
                continue;
            };
            // A name or a placeholder stands for something.
            if *old != "stands" || begins_with(from_here, "stands for").is_none() {
                found.push((*line, said, *instead));
            }
        }
        let mut near = words.iter().skip(at.saturating_sub(8)).take(17);
        if word == "behind" && !near.any(|(_, word)| BEHIND_A.contains(&word.as_str())) {
            found.push((*line, word.clone(), "`after`, `past`"));
        }
    }
    found
}

/// What these words have for the phrase that they begin with, if they do.
fn begins_with(words: &[(usize, String)], phrase: &str) -> Option<String> {
    let mut said = Vec::new();
    for (part, (_, word)) in phrase.split(' ').zip(words) {
        let is_same = match part.strip_suffix('…') {
            Some(beginning) => word.starts_with(beginning),
            None => word == part,
        };
        if !is_same {
            return None;
        }
        said.push(word.as_str());
    }
    (said.len() == phrase.split(' ').count()).then(|| said.join(" "))
}

/// The words of a text in small letters, with their lines; a name is as many words as it has parts.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut word = String::new();
        let mut before = ' ';
        for c in line.chars().chain([' ']) {
            let begins = c.is_uppercase() && before.is_lowercase();
            if (begins || !c.is_alphabetic()) && !word.is_empty() {
                found.push((at + 1, std::mem::take(&mut word).to_lowercase()));
            }
            if c.is_alphabetic() {
                word.push(c);
            }
            before = c;
        }
    }
    found
}

/// The files below a folder, or the file itself.
fn files_below(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        found.extend(files_below(&entry.unwrap().path()));
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
                let root = root.to_owned();
                found.push(Source {
                    root,
                    path,
                    module,
                    text,
                });
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {}", root.display());
    found
}
