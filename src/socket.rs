//! TCP settings of the connections on both legs.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::config::Timeouts;

/// Sets up a long-lived connection: a keystroke is sent without delay, and keepalive probes end the connection of a
/// peer that is gone. Tunnels carry no pings of the proxy, so only keepalive ends a dead tunnel.
///
/// # Errors
///
/// Only for a socket that is already dead.
pub(crate) fn tune(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(timeouts.tcp_keepalive)
        .with_interval(timeouts.tcp_keepalive / PROBES)
        .with_retries(PROBES);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Ends the connection when the peer takes no byte for `timeouts.tcpUserTimeout`, whether it is gone or only
/// does not read: Linux also counts the time of a closed window, even of an acknowledged one. Use it where
/// the peer always reads, as over HTTP/2, and for HTTP/1.1 clients until their connection becomes a tunnel.
///
/// # Errors
///
/// As [`tune`].
pub(crate) fn set_user_timeout(stream: &TcpStream, timeouts: &Timeouts) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(timeouts.tcp_user_timeout))
}

/// Makes the close of a refused connection a reset. It costs one segment, and no socket in `TIME_WAIT`.
pub(crate) fn reset_when_closed(stream: &TcpStream) {
    // It fails only for a dead socket.
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
}

/// Undoes [`set_user_timeout`]: the user of a tunnel may look at a pager for an hour. The probes of [`tune`]
/// and retransmissions still detect a peer that is gone.
///
/// # Errors
///
/// As [`tune`].
pub(crate) fn clear_user_timeout(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(None)
}

/// Drops new SYNs on a listening socket (classic BPF) while handshakes in progress complete. A client
/// retransmits its SYN after about a second and then reaches another listener, or is refused.
///
/// # Errors
///
/// When the kernel has no packet filters.
#[cfg(target_os = "linux")]
pub(crate) fn drop_new_syns(listening: SockRef<'_>) -> io::Result<()> {
    use socket2::SockFilter;
    // The filter sees a TCP segment from its header on: load the flags, keep SYN and ACK, and drop the
    // segment if only SYN is set.
    let flags = SockFilter::new(0x30, 0, 0, 13);
    let syn_and_ack = SockFilter::new(0x54, 0, 0, 0x12);
    let is_syn = SockFilter::new(0x15, 0, 1, 0x02);
    let (drop, pass) = (
        SockFilter::new(0x06, 0, 0, 0),
        SockFilter::new(0x06, 0, 0, u32::MAX),
    );
    listening.attach_filter(&[flags, syn_and_ack, is_syn, drop, pass])
}

/// Only Linux can do this.
///
/// # Errors
///
/// Always.
#[cfg(not(target_os = "linux"))]
pub(crate) fn drop_new_syns(_: SockRef<'_>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Unanswered probes after which the connection ends. Together they take one more keepalive interval.
const PROBES: u32 = 3;
