//! What the fuzz targets run: plain functions that panic when an invariant breaks.
//!
//! `tests/fuzz.rs` replays `fuzz/corpus` through them in every `cargo test`.

/// A target's name, which is also the folder of its corpus, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
#[must_use]
pub fn targets() -> [Target; 7] {
    let [headers, host, path] = crate::proxy::FUZZ;
    let [goaway, answer, chunks] = crate::upstream::FUZZ;
    [
        ("heads", crate::downstream::FUZZ),
        ("headers", headers),
        ("host", host),
        ("path", path),
        ("goaway", goaway),
        ("answer", answer),
        ("chunks", chunks),
    ]
}
