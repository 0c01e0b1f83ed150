//! The TCP settings that both legs share.

use std::io;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::Timeouts;

/// Sets what a long-lived connection needs: no delay for a keystroke, and an end for a peer that is
/// gone without a word. Tunnels carry no pings of ours, so this is all that ends a dead one.
///
/// # Errors
///
/// When the kernel refuses, which happens only for a socket that is already dead.
pub(crate) fn tune(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(timeouts.tcp_keepalive)
        .with_interval(timeouts.tcp_keepalive / PROBES)
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(timeouts.tcp_user_timeout))
}

/// Unanswered probes after which a peer is given up: one more interval of silence in all.
const PROBES: u32 = 3;
