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
pub(crate) fn set_user_timeout(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(timeouts.tcp_user_timeout))
}

/// Takes that back: behind a tunnel a person may look at a pager for an hour. A peer that is gone is
/// still noticed, by the probes of [`tune`] or by retransmission.
///
/// # Errors
///
/// As [`tune`].
pub(crate) fn clear_user_timeout(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(None)
}

/// Lets a listening socket finish the handshakes that it has begun and begin no more. A client that asks
/// now gets no answer, asks again after a second, and is then another listener's, or refused.
///
/// # Errors
///
/// When the kernel has no packet filters.
#[cfg(target_os = "linux")]
pub(crate) fn drop_new_syns(listening: SockRef<'_>) -> io::Result<()> {
    use socket2::SockFilter;
    // Classic BPF, which sees a TCP segment from its header on: load the flags, keep SYN and ACK, and
    // drop what has SYN alone.
    let flags = SockFilter::new(0x30, 0, 0, 13);
    let syn_and_ack = SockFilter::new(0x54, 0, 0, 0x12);
    let is_syn = SockFilter::new(0x15, 0, 1, 0x02);
    let (drop, pass) = (
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    );
    listening.attach_filter(&[flags, syn_and_ack, is_syn, drop, pass])
}

/// As on Linux, which alone can do this.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_new_syns(_: SockRef<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Unanswered probes after which a peer is given up: one more interval of silence in all.
const PROBES: u32 = 3;
