//! Stages 5 and 6: sends one request on an upstream connection that its client leases.
//!
//! [`ClientLeases::send`] finds a connection in the client's `lease::table`, in the idle pool of the worker
//! ([`UpstreamContext`]), or through `dial`, which picks an endpoint and verifies it (`tls`). `h2` or `h1`
//! then sends the request and returns the response, which becomes a [`ResponseBody`].

mod cluster;
mod context;
mod dial;
mod endpoint;
mod error;
mod h1;
mod h2;
mod lease;
mod probe;
mod request_body;
mod response_body;
mod tls;

pub use cluster::Cluster;
pub use context::UpstreamContext;
pub(crate) use dial::{Offer, TcpConnected};
pub use endpoint::{EndpointHealth, Endpoints, Health};
pub use error::{DownloadError, H1Error, HttpError, UploadError, UpstreamError};
pub use h1::Upgraded;
pub use lease::ClientLeases;
pub use request_body::RequestBody;
pub use response_body::ResponseBody;
pub use tls::{ClientTls, VerifyError};

/// The fuzz bodies of this stage: the frames of HTTP/2, and the responses of HTTP/1.1.
pub(crate) const FUZZ: [fn(&[u8]); 3] = {
    let [head, chunks] = h1::FUZZ;
    [h2::fuzz, head, chunks]
};

#[cfg(test)]
mod tests;
