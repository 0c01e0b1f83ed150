//! What becomes of clients when sockets open, close and pass from one process to another.

use std::{
    net::TcpStream as Client,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;

/// Two proxies that share a port in silence would each get a part of the connections.
#[test]
fn a_port_is_shared_with_another_proxy_only_to_take_over() {
    let first = bind("127.0.0.1:0".parse().unwrap(), 2, PortSharing::Exclusive).unwrap();
    let address = first[0].local_addr().unwrap();
    assert_eq!(first[1].local_addr().unwrap(), address);
    let second = bind(address, 2, PortSharing::Exclusive).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    let third = bind(address, 2, PortSharing::Reuse).unwrap();
    assert_eq!(third[1].local_addr().unwrap(), address);
}

/// The kernel would hand clients to a socket that listens, if only for a moment, and reset them with it.
#[test]
fn a_look_whether_a_port_can_be_taken_over_takes_no_client_away() {
    let serving = bound("127.0.0.1:0");
    let address = serving.local_addr().unwrap();
    let (begun, is_over) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|threads| {
        threads.spawn(|| {
            begun.wait();
            while !is_over.load(Ordering::Relaxed) {
                claim(address, PortSharing::Reuse).unwrap();
            }
        });
        begun.wait();
        let comes_through = |_: &_| Client::connect(address).is_ok() && serving.accept().is_ok();
        let through = (0..1000).filter(comes_through).count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(through, 1000);
    });
}

fn bound(address: &str) -> std::net::TcpListener {
    let bound = bind(address.parse().unwrap(), 1, PortSharing::Exclusive);
    bound.unwrap().remove(0)
}

fn listener(socket: std::net::TcpListener, owner: Owner) -> Listener {
    let connections = Arc::new(Semaphore::new(10));
    let (timeouts, counts) = (Timeouts::default(), Arc::default());
    Listener::new(socket, owner, connections, timeouts, counts).unwrap()
}

/// The kernel resets what is in the queue of a socket that is closed.
#[tokio::test]
async fn connections_that_nobody_accepted_are_served_behind_the_end() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let listener = listener(socket, Owner::Proxy);
    let waiting: Vec<_> = (0..3).map(|_| Client::connect(address).unwrap()).collect();
    let mut rest = listener.close(Vec::new());
    Client::connect(address).unwrap_err();
    for client in waiting {
        let accepted = rest.next().await.unwrap();
        assert_eq!(accepted.peer.0, client.local_addr().unwrap());
    }
    assert!(rest.next().await.is_none());
}

/// Between the last look at the queue and the end of the socket there would always be a moment in
/// which a client could still connect, only to be reset.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn whoever_connects_while_it_winds_up_is_left_to_the_next_listener() {
    let old = bound("127.0.0.1:0");
    let address = old.local_addr().unwrap();
    let old = listener(old, Owner::Proxy);
    old.wind_up();
    let connecting = TcpStream::connect(address);
    let mut connecting = std::pin::pin!(connecting);
    let early = tokio::time::timeout(Duration::from_millis(200), connecting.as_mut());
    early.await.unwrap_err();
    assert!(old.close(Vec::new()).next().await.is_none());
    let new = listener(bound(&address.to_string()), Owner::Proxy);
    let (client, Unplaced { peer, .. }) = tokio::join!(connecting, new.next());
    assert_eq!(peer.0, client.unwrap().local_addr().unwrap());
}

/// Systemd keeps the socket; what is in its queue is for the process that comes next.
#[tokio::test]
async fn the_queue_of_an_inherited_socket_is_left_alone() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let shared = share(&socket, 1).unwrap().remove(0);
    let listener = listener(shared, Owner::Parent);
    listener.wind_up();
    let client = Client::connect(address).unwrap();
    assert!(listener.close(Vec::new()).next().await.is_none());
    let (_, peer) = socket.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}
