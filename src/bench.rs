//! Private functions that the benches measure without a socket.

pub use crate::{
    http1::requests,
    proxy::bench::{Counting, classify, rewrite_request},
};
