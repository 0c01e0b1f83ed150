//! Bytes through one upgraded connection, down, up, or there and back.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::{
    Error,
    dial::{Dialer, Protocol, Sessions, Target},
    orders::{Orders, say},
    tally::Tally,
};

/// Time limit for the upgrade.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Size in bytes of one read or write, on both ends.
pub(crate) const CHUNK: usize = 128 << 10;

/// The direction of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// From the apiserver to the client
    Down,
    /// From the client to the apiserver
    Up,
    /// From the client to the apiserver and back
    Echo,
}

impl Way {
    /// The name in the path.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Echo => "echo",
        }
    }
}

/// How many bytes, in which direction.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The direction
    #[arg(long)]
    way: Way,
    /// How many MiB
    #[arg(long)]
    mib: usize,
    /// What to upgrade to
    #[arg(long, default_value = "websocket")]
    upgrade: String,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

/// Upgrades, then transfers the bytes when told to.
///
/// # Errors
///
/// When the CA cannot be read. Faults of the proxy are counted and are no errors here.
pub(crate) async fn run(args: Args) -> Result<(), Error> {
    let mut orders = Orders::listen();
    let dialer = Dialer::new(&args.target, Protocol::H1, Sessions::Fresh)?;
    let size = args.mib << 20;
    let path = format!("/tunnel/{}/{size}", args.way.word());
    let opening = Tally::default();
    let opened = timeout(UPGRADE_TIMEOUT, open(&dialer, &path, &args.upgrade))
        .await
        .unwrap_or_else(|_| Err(format!("no upgrade within {UPGRADE_TIMEOUT:?}").into()));
    let tunnel = opened.map_err(|err| opening.failed(err)).ok();
    say(&opening.ready(usize::from(tunnel.is_some())))?;
    if orders.next_soon().await.is_none() {
        return Ok(());
    }

    let tally = Tally::default();
    let begun = Instant::now();
    if let Some(tunnel) = tunnel {
        let limit = Duration::from_secs(args.seconds);
        match timeout(limit, carry(tunnel, args.way, size)).await {
            Ok(Ok(())) => tally.done(begun.elapsed(), size as u64),
            Ok(Err(err)) => tally.failed(err),
            Err(_) => tally.failed(format!("not through within {limit:?}")),
        }
    }
    say(&tally.result(begun.elapsed()))?;
    orders.next_soon().await;
    Ok(())
}

async fn open(dialer: &Dialer, path: &str, protocol: &str) -> Result<TlsStream<TcpStream>, Error> {
    let mut tls = dialer.tls().await?;
    tls.write_all(dialer.upgrade(path, protocol).as_bytes())
        .await?;
    // Byte by byte, so that no byte of the tunnel is read with the head. This is cheap: the TLS record is in memory.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await?);
        if head.len() > 16 << 10 {
            return Err("the head of the answer has no end".into());
        }
    }
    expect_switch(&head)?;
    Ok(tls)
}

/// Returns an error with the status line, unless the status is 101.
fn expect_switch(head: &[u8]) -> Result<(), Error> {
    let text = String::from_utf8_lossy(head);
    let line = text.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) == Some("101") {
        Ok(())
    } else {
        Err(format!("answered {line}").into())
    }
}

async fn carry(tunnel: TlsStream<TcpStream>, way: Way, size: usize) -> Result<(), Error> {
    let (mut reader, mut writer) = tokio::io::split(tunnel);
    let write = async {
        let chunk = vec![0x5a; CHUNK];
        // Down begins with one byte from the client, so that no data flows before the measurement starts.
        let mut left = if way == Way::Down { 1 } else { size };
        while left > 0 {
            let part = left.min(CHUNK);
            writer.write_all(&chunk[..part]).await?;
            left -= part;
        }
        writer.flush().await?;
        Ok::<_, Error>(())
    };
    let read = async {
        let mut chunk = vec![0; CHUNK];
        // Up ends with one byte from the apiserver, which confirms that everything has arrived.
        let mut left = if way == Way::Up { 1 } else { size };
        while left > 0 {
            let part = left.min(CHUNK);
            match reader.read(&mut chunk[..part]).await? {
                0 => return Err(format!("ended with {left} bytes missing").into()),
                count => left -= count,
            }
        }
        Ok(())
    };
    tokio::try_join!(write, read)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_101_opens_the_tunnel_and_another_answer_is_quoted() {
        expect_switch(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").unwrap();
        expect_switch(b"HTTP/1.1 101 \r\n\r\n").unwrap();
        let err = expect_switch(b"HTTP/1.1 502 Bad Gateway\r\nx: 101\r\n\r\n").unwrap_err();
        assert_eq!(err.to_string(), "answered HTTP/1.1 502 Bad Gateway");
        assert!(expect_switch(b"\r\n\r\n").is_err());
    }
}
