//! `kubectl port-forward` with many concurrent connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use crate::fixture::SOURCE_BYTES;
use crate::kubectl::{Kubectl, STREAMINGS};
use crate::process::Running;
use crate::suite::{on_both, shared};

#[test]
fn port_forward_keeps_connections_when_others_are_aborted() {
    let Some(suite) = shared() else { return };
    let (echo, source) = (suite.fixture.echo_port(), suite.fixture.source_port());
    for streaming in STREAMINGS {
        on_both(|route| {
            let kubectl = Kubectl::new(&suite, route).streaming(streaming);
            let ports = [format!(":{echo}"), format!(":{source}")];
            let running = kubectl.start(&["port-forward", "pod/shell", &ports[0], &ports[1]]);
            let (echo, source) = (local_port(&running, echo), local_port(&running, source));
            thread::scope(|scope| {
                for number in 0..CONNECTIONS {
                    scope.spawn(move || match number % 5 {
                        0 => abort_half_way(echo),
                        1 => read_source(source),
                        _ => echo_all(echo, number),
                    });
                }
            });
            // A new connection still works afterwards.
            echo_all(echo, CONNECTIONS);
        });
    }
}

const CONNECTIONS: usize = 20;
const ECHO_BYTES: usize = 4 << 20;

/// The local port that kubectl forwards to `remote`, read from its output.
#[track_caller]
fn local_port(running: &Running, remote: u64) -> u16 {
    let limit = Duration::from_secs(30);
    loop {
        // The line is like `Forwarding from 127.0.0.1:40001 -> 8080`; a similar line follows for [::1].
        let line = running.line(limit).text;
        let forwarded = line.strip_prefix("Forwarding from 127.0.0.1:");
        if let Some((local, to)) = forwarded.and_then(|rest| rest.split_once(" -> "))
            && to == remote.to_string()
        {
            return local.parse().unwrap();
        }
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    stream
}

/// Sends bytes that no other connection sends, and expects the same bytes back.
fn echo_all(port: u16, number: usize) {
    let stream = connect(port);
    let sent: Vec<u8> = (0..ECHO_BYTES)
        .map(|i| u8::try_from((i + number) % 251).unwrap())
        .collect();
    let mut writing = stream.try_clone().unwrap();
    let mut received = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            writing.write_all(&sent).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        (&stream).read_to_end(&mut received).unwrap();
    });
    assert!(
        received == sent,
        "connection {number}: {} bytes",
        received.len()
    );
}

fn read_source(port: u16) {
    let mut received = Vec::new();
    connect(port).read_to_end(&mut received).unwrap();
    let in_order = received
        .iter()
        .enumerate()
        .all(|(i, byte)| usize::from(*byte) == i % 251);
    assert!(
        received.len() == SOURCE_BYTES && in_order,
        "{} bytes",
        received.len()
    );
}

/// Closes the connection with unread data, so that the kernel sends a reset.
fn abort_half_way(port: u16) {
    let mut stream = connect(port);
    stream.write_all(&vec![7; 1 << 20]).unwrap();
    stream.read_exact(&mut [0; 1024]).unwrap();
}
