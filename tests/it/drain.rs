//! The end: running work finishes, new work is refused, and it is bounded.
