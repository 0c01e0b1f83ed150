//! Private functions that the benches measure without a socket.

pub use crate::{
    downstream::bench::scan_requests,
    proxy::bench::{Counting, classify, rewrite_request},
};
