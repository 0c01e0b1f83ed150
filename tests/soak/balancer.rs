//! A TCP load balancer: new connections go to its targets in turn, existing connections stay.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A running balancer.
pub(crate) struct Balancer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    targets: Vec<SocketAddr>,
    turn: usize,
    open: HashMap<SocketAddr, usize>,
}

impl Balancer {
    pub(crate) async fn start(targets: impl Iterator<Item = SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            targets: targets.collect(),
            ..State::default()
        }));
        let serving = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(join(client, Arc::clone(&serving)));
            }
        });
        Self {
            address,
            state,
            accepting,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn add(&self, target: SocketAddr) {
        self.state.lock().unwrap().targets.push(target);
    }

    /// Sends no new connections to this target.
    pub(crate) fn remove(&self, target: SocketAddr) {
        let mut state = self.state.lock().unwrap();
        state.targets.retain(|known| *known != target);
    }

    /// The number of open connections to this target.
    pub(crate) fn open(&self, target: SocketAddr) -> usize {
        let state = self.state.lock().unwrap();
        state.open.get(&target).copied().unwrap_or_default()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn join(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let target = {
        let mut state = state.lock().unwrap();
        state.turn += 1;
        let target = state.targets[state.turn % state.targets.len()];
        *state.open.entry(target).or_default() += 1;
        target
    };
    // If the target does not accept, the client's connection is closed, and the client counts a failure.
    if let Ok(mut server) = TcpStream::connect(target).await {
        for tcp in [&client, &server] {
            tcp.set_nodelay(true).unwrap();
        }
        drop(copy_bidirectional(&mut client, &mut server).await);
    }
    *state.lock().unwrap().open.get_mut(&target).unwrap() -= 1;
}
