//! Watches and logs: at once, for as long as it takes, and a cut stays a cut.
