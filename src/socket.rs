//! The TCP settings that both legs share.

use std::io;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::Timeouts;

/// Sets what a long-lived connection needs: no delay for a keystroke, and an end for a peer that is
/// gone without a word. Tunnels carry no pings of ours, so this is what ends a dead one.
///
/// # Errors
///
/// When the kernel refuses, which happens only for a socket that is already dead.
pub(crate) fn tune(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(timeouts.tcp_keepalive)
        .with_interval(timeouts.tcp_keepalive / PROBES)
        .with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Gives up a peer that takes nothing for so long, whether it is gone or only does not read: Linux
/// counts a closed window too, even one that is acknowledged. For connections whose peer always reads,
/// as it does over HTTP/2, and for clients that have proved nothing yet.
///
/// # Errors
///
/// As [`tune`].
pub(crate) fn bound_patience(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(timeouts.tcp_user_timeout))
}

/// Takes that back: behind a tunnel a person may look at a pager for an hour. A peer that is gone is
/// still noticed, by the probes of [`tune`] or by retransmission.
///
/// # Errors
///
/// As [`tune`].
pub(crate) fn have_patience(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(None)
}

/// Unanswered probes after which a peer is given up: one more interval of silence in all.
const PROBES: u32 = 3;
