//! The built binary: exit codes, messages, start-up block, signals.
