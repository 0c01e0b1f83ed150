//! What the benches measure apart from the sockets around it: pure functions that are not public.

pub use crate::{
    downstream::bench::scan_requests,
    proxy::bench::{Counting, classify, rewrite_request},
};
