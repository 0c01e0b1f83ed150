//! What the benches measure of this stage: finding the requests of an HTTP/1.1 connection.

use super::scanner::Scanner;

/// How many requests begin in these bytes of one connection.
#[must_use]
pub fn scan_requests(bytes: &[u8]) -> u64 {
    let mut scanner = Scanner::new();
    scanner.scan(bytes);
    scanner.heads()
}
