//! Replays the corpus of every fuzz target, and each entry cut, doubled and with single bytes changed.

use std::{fs, path::Path};

use kube_tls_proxy::fuzz::targets;

#[test]
fn no_entry_of_the_corpus_breaks_an_invariant() {
    for (name, body) in targets() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let entries: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!entries.is_empty(), "{} has no entry", folder.display());
        for entry in entries {
            let bytes = fs::read(&entry).unwrap();
            body(&bytes);
            body(&[bytes.as_slice(), &bytes].concat());
            for at in 0..bytes.len() {
                body(&bytes[..at]);
                for change in [0, b'\n', b':', 0x7f, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] = change;
                    body(&changed);
                }
            }
        }
    }
}

#[test]
fn every_target_has_a_fuzz_binary() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).unwrap();
    for (name, _) in targets() {
        let binary = format!("[[bin]]\nname = \"{name}\"\npath = \"target.rs\"");
        assert!(manifest.contains(&binary), "fuzz/Cargo.toml lacks {name}");
    }
}
