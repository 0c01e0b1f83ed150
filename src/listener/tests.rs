//! Tests that no client is lost when sockets open, close and pass from one process to another.

use std::{
    net::TcpStream as Client,
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::io::AsyncReadExt as _;

use super::*;
use crate::config::Limits;

/// Two proxies that share a port without knowing it would each get a part of the connections.
#[test]
fn port_in_use_is_an_error_without_reuse_port() {
    let first = bind("127.0.0.1:0".parse().unwrap(), 2, PortSharing::Exclusive).unwrap();
    let address = first[0].local_addr().unwrap();
    assert_eq!(first[1].local_addr().unwrap(), address);
    let second = bind(address, 2, PortSharing::Exclusive).unwrap_err();
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    let third = bind(address, 2, PortSharing::Reuse).unwrap();
    assert_eq!(third[1].local_addr().unwrap(), address);
}

/// The kernel would give clients to a socket that listens for only a moment, and reset them when it closes.
#[test]
fn claim_takes_no_client_from_the_listening_process() {
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
    let limits = Limits {
        connections: 10,
        ..Limits::default()
    };
    let (settings, counters) = (LiveSettings::default(), Arc::default());
    let clients = ClientTable::new(&limits);
    Listener::new(socket, owner, clients, Arc::default(), settings, counters).unwrap()
}

fn serve_all(_: PeerAddr) -> Admission {
    Admission::Client
}

/// The kernel resets the connections in the queue of a socket that is closed.
#[tokio::test]
async fn close_returns_connections_not_yet_accepted() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let listener = listener(socket, Owner::Proxy);
    let waiting: Vec<_> = (0..3).map(|_| Client::connect(address).unwrap()).collect();
    let backlog = listener.close(serve_all);
    Client::connect(address).unwrap_err();
    let peers = backlog.iter().map(|accepted| accepted.peer.0);
    assert!(peers.eq(waiting.iter().map(|client| client.local_addr().unwrap())));
}

/// A connection that waits for a place must not hold up the end of the socket, nor be lost with it. Otherwise only a
/// few of one client may wait.
#[tokio::test]
async fn connections_at_the_limit_are_served_after_the_drain() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let listener = listener(socket, Owner::Proxy);
    let table = Arc::clone(&listener.entrance.clients);
    let enter = |_| table.enter(PeerAddr(address), false).unwrap();
    let taken: Vec<_> = (0..10).map(enter).collect();
    let clients: Vec<_> = (0..8).map(|_| Client::connect(address).unwrap()).collect();
    let drain = Drain::new();
    drain.begin();
    let mut accepted = Vec::new();
    listener
        .run(drain, serve_all, |next| accepted.push(next))
        .await;
    Client::connect(address).unwrap_err();
    drop(taken);
    for (client, Accepted { peer, place, .. }) in clients.iter().zip(&mut accepted) {
        assert_eq!(client.local_addr().unwrap(), peer.0);
        assert!(place.wait_for_permit(Duration::from_secs(5)).await);
    }
    assert_eq!(accepted.len(), clients.len());
}

/// Otherwise a client could connect between the last look at the queue and the end of the socket, and be
/// reset.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn client_that_connects_after_stop_syn_gets_the_next_listener() {
    let old = bound("127.0.0.1:0");
    let address = old.local_addr().unwrap();
    let old = listener(old, Owner::Proxy);
    old.stop_syn();
    let connecting = TcpStream::connect(address);
    let mut connecting = std::pin::pin!(connecting);
    let early = tokio::time::timeout(Duration::from_millis(200), connecting.as_mut());
    early.await.unwrap_err();
    assert!(old.close(serve_all).is_empty());
    let new = listener(bound(&address.to_string()), Owner::Proxy);
    let (client, (_, peer)) = tokio::join!(connecting, new.accept());
    assert_eq!(peer.0, client.unwrap().local_addr().unwrap());
}

/// systemd keeps the socket, and the next process accepts the connections in its queue.
#[tokio::test]
async fn close_leaves_the_queue_of_an_inherited_socket() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let shared = share(&socket, 1).unwrap().remove(0);
    let listener = listener(shared, Owner::Parent);
    listener.stop_syn();
    let client = Client::connect(address).unwrap();
    assert!(listener.close(serve_all).is_empty());
    let (_, peer) = socket.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}

/// The loop pauses once it has refused all that the queue holds.
#[tokio::test]
async fn client_after_refused_ones_is_served() {
    let socket = bound("127.0.0.1:0");
    let address = socket.local_addr().unwrap();
    let listener = listener(socket, Owner::Proxy);
    let honest = std::sync::Mutex::new(Vec::new());
    let judge = |peer: PeerAddr| match honest.lock().unwrap().contains(&peer.0) {
        true => Admission::Client,
        false => Admission::Denied,
    };
    let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
    let serve = listener.run(Drain::new(), judge, |next| {
        sender.send(next.peer.0).unwrap();
    });
    let clients = async {
        for _ in 0..3 {
            for _ in 0..20 {
                let refused = async { TcpStream::connect(address).await?.read_u8().await };
                // It sees the reset, so that the pause has begun or is about to.
                refused.await.unwrap_err();
            }
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let peer = socket.local_addr().unwrap();
            honest.lock().unwrap().push(peer);
            let _client = socket.connect(address).await.unwrap();
            assert_eq!(accepted.recv().await, Some(peer));
        }
    };
    tokio::select! {
        () = serve => unreachable!("no drain has begun"),
        () = clients => {}
    }
}
