//! `kubectl cp` of a large file in both directions.

use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

use crate::kubectl::{Kubectl, STREAMINGS};
use crate::suite::{Route, alone};

#[test]
fn cp_keeps_every_byte_of_a_large_file_in_both_directions() {
    // Runs alone, because it uses a whole processor and the disk.
    let Some(suite) = alone() else { return };
    let source = suite.fixture.scratch().join("large");
    write_large(&source);
    for streaming in STREAMINGS {
        for route in [Route::Direct, Route::Proxied] {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            let name = format!("large-{}-{}", route.name(), streaming.name());
            let remote = format!("shell:{name}");
            kubectl.run(&["cp", source.to_str().unwrap(), &remote]).ok();
            let uploaded = suite.fixture.pod_directory("shell").join(&name);
            assert!(same_content(&source, &uploaded), "{route:?} {streaming:?}");

            let back = suite.fixture.scratch().join(&name);
            kubectl.run(&["cp", &remote, back.to_str().unwrap()]).ok();
            assert!(same_content(&source, &back), "{route:?} {streaming:?}");
            fs::remove_file(uploaded).unwrap();
            fs::remove_file(back).unwrap();
        }
    }
    fs::remove_file(source).unwrap();
}

const LARGE_BYTES: usize = 200 << 20;

/// Writes a file in which all blocks differ, so that a lost or doubled block is visible.
fn write_large(path: &Path) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let mut state = 1_u64;
    for _ in 0..LARGE_BYTES / 8 {
        // The constants of a well-known linear congruential generator with a period of 2^64.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        file.write_all(&state.to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

fn same_content(a: &Path, b: &Path) -> bool {
    let open = |path| BufReader::with_capacity(1 << 20, File::open(path).unwrap());
    let (mut a, mut b) = (open(a), open(b));
    let (mut from_a, mut from_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for _ in 0..LARGE_BYTES >> 20 {
        if a.read_exact(&mut from_a).is_err()
            || b.read_exact(&mut from_b).is_err()
            || from_a != from_b
        {
            return false;
        }
    }
    // Both files end here.
    a.read(&mut from_a).unwrap() == 0 && b.read(&mut from_b).unwrap() == 0
}
