//! Opens a connection that is passed through: TCP to an endpoint, then the `ClientHello` of the client.
//!
//! An endpoint is reached when it answers the `ClientHello`: until then another one can be tried, because the client
//! has sent nothing else. A `ClientHello` is text of a client, so no answer to it makes an endpoint unhealthy for
//! others. Only a failed TCP connection does, and the probes decide the rest.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::io::AsyncWriteExt as _;

use super::{
    Cluster, UpstreamContext, UpstreamError,
    dial::{dial_failed, first_of, in_time, reach},
    endpoint::Endpoint,
    sockets::{ClientSockets, OpenSocket},
};
use crate::{hosts::UpstreamAddr, transport::ReadAhead};

/// A connection to an apiserver that has answered the `ClientHello` of a client.
#[derive(Debug)]
pub(crate) struct PassedHello {
    /// The connection. Its first bytes are the answer.
    pub(crate) stream: ReadAhead,
    /// The endpoint.
    pub(crate) endpoint: UpstreamAddr,
}

/// Why no apiserver has answered the `ClientHello` of a client.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// The failure of the endpoint that failed last.
    pub(crate) error: UpstreamError,
    /// Whether some endpoint may have the `ClientHello`.
    pub(crate) was_sent: bool,
}

impl Cluster {
    /// Sends the `ClientHello` of a client to the first endpoint that answers it. Up to three endpoints are tried, as
    /// for a request.
    ///
    /// # Errors
    ///
    /// When no endpoint has sent a byte.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connections.
    pub(crate) async fn pass_hello(
        &self,
        context: &UpstreamContext,
        hello: &[u8],
    ) -> Result<PassedHello, NoAnswer> {
        let sockets = ClientSockets::new(Arc::clone(&context.spare_sockets));
        let was_sent = AtomicBool::new(false);
        first_of(self, &sockets, |endpoint, socket| {
            try_one(context, self, endpoint, socket, (hello, &was_sent))
        })
        .await
        .map_err(|error| NoAnswer {
            error,
            was_sent: was_sent.load(Ordering::Relaxed),
        })
    }

    /// Whether an answer to a client says that an endpoint is healthy. With a CA only a verified probe does.
    fn learns_from_clients(&self, context: &UpstreamContext) -> bool {
        !self.tls.has_anchors() || context.probe_interval().is_zero()
    }
}

async fn try_one(
    context: &UpstreamContext,
    cluster: &Cluster,
    endpoint: Arc<Endpoint>,
    socket: OpenSocket,
    (hello, was_sent): (&[u8], &AtomicBool),
) -> Result<PassedHello, UpstreamError> {
    let address = endpoint.address();
    let mut is_connected = false;
    let exchange = async {
        // Counted before TCP connects, so that dials at the same time spread over the endpoints.
        let counted = endpoint.count();
        let settings = context.settings.load_full();
        let route = cluster.outbound.as_ref();
        let stream = reach(route, address, &settings.timeouts).await?;
        is_connected = true;
        was_sent.store(true, Ordering::Relaxed);
        let mut stream = stream.with_on_close(Box::new((counted, socket)));
        match first_answer(&mut stream, hello).await {
            Ok(()) => Ok(PassedHello {
                stream,
                endpoint: address,
            }),
            Err(source) => Err(UpstreamError::Handshake {
                endpoint: address,
                source,
            }),
        }
    };
    let passed = in_time(context, cluster, &endpoint, exchange).await;
    match &passed {
        Ok(_) if cluster.learns_from_clients(context) => cluster.endpoints.mark_healthy(&endpoint),
        Ok(_) => {}
        Err(error) if !is_connected => dial_failed(cluster, &endpoint, error),
        Err(_) => cluster.endpoints.request_probe(),
    }
    passed
}

/// Sends the `ClientHello`, and waits for the first bytes of the answer.
async fn first_answer(stream: &mut ReadAhead, hello: &[u8]) -> io::Result<()> {
    stream.write_all(hello).await?;
    if stream.first_bytes().await?.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
