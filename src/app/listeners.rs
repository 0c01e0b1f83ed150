//! The addresses that clients connect to. A reload opens those that the configuration adds, and closes those that it
//! removes.
//!
//! New addresses are opened before anything else changes, so that one that cannot be opened changes nothing. Sockets of
//! another process stay as they are: only that process can change them.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use arc_swap::ArcSwap;
use tracing::info;

use super::AppError;
use crate::{
    config::{Config, ConfigError, ListenConfig, PeerPolicy, SettingError, overlap, peers_of},
    downstream::LivePeers,
    listen_error::{ListenError, ListenFlag},
    listener::{self, Owner, PortSharing},
    reload::ReloadError,
};

/// The addresses that clients connect to now.
pub(super) struct Listeners {
    open: Vec<OpenAddress>,
    owner: Owner,
    workers: usize,
    next_number: usize,
    bound: BoundAddresses,
}

/// The addresses that clients can connect to, with the ports that the kernel chose. A reload may change them.
pub type BoundAddresses = Arc<ArcSwap<Vec<SocketAddr>>>;

/// One address, with the same number in all workers.
struct OpenAddress {
    number: usize,
    configured: SocketAddr,
    bound: SocketAddr,
    peers: LivePeers,
}

/// An address that was just opened.
pub(super) struct NewAddress {
    address: OpenAddress,
    /// One for each worker.
    sockets: Vec<TcpListener>,
}

/// A socket for one worker.
pub(super) struct WorkerSocket {
    pub(super) number: usize,
    pub(super) socket: TcpListener,
    pub(super) peers: LivePeers,
}

impl Listeners {
    /// Opens the configured addresses, or shares the inherited sockets. Returns the sockets of each worker too.
    ///
    /// # Errors
    ///
    /// When an address cannot be opened, or an inherited socket has no entry in the configuration.
    pub(super) fn new(
        config: &Config,
        inherited: &[TcpListener],
    ) -> Result<(Self, Vec<Vec<WorkerSocket>>), AppError> {
        let mut listeners = Self {
            open: Vec::new(),
            owner: if inherited.is_empty() {
                Owner::Proxy
            } else {
                Owner::Parent
            },
            workers: config.workers.get(),
            next_number: 0,
            bound: Arc::default(),
        };
        let opened = if inherited.is_empty() {
            let opened = listeners.open_missing(config);
            opened.map_err(|(address, source)| AppError::Listen { address, source })?
        } else {
            let shared = inherited.iter().enumerate();
            let shared = shared.map(|(number, socket)| listeners.share(config, number, socket));
            shared.collect::<Result<_, _>>()?
        };
        let sockets = listeners.add(opened);
        Ok((listeners, sockets))
    }

    /// The addresses that clients can connect to.
    pub(super) fn bound(&self) -> &BoundAddresses {
        &self.bound
    }

    /// Who closes the sockets for good.
    pub(super) fn owner(&self) -> Owner {
        self.owner
    }

    /// Opens the addresses that `config` adds. Nothing listens on them for this process until [`Listeners::replace`].
    ///
    /// # Errors
    ///
    /// The first address that cannot be opened.
    pub(super) fn open_new(&self, config: &Config) -> Result<Vec<NewAddress>, ReloadError> {
        if self.owner == Owner::Parent {
            return Ok(Vec::new());
        }
        let opened = self.open_missing(config);
        opened.map_err(|(address, source)| ReloadError::Listen { address, source })
    }

    /// Uses the addresses and lists of `config` from now on. Returns the new sockets of each worker, and the numbers of
    /// the addresses that are closed.
    pub(super) fn replace(
        &mut self,
        config: &Config,
        opened: Vec<NewAddress>,
    ) -> (Vec<Vec<WorkerSocket>>, Vec<usize>) {
        let mut closed = Vec::new();
        if self.owner == Owner::Parent {
            for (number, address) in self.open.iter().enumerate() {
                // A socket whose entry is gone keeps its lists.
                if let Some(peers) = peers_of(&config.listen, number, address.bound) {
                    address.peers.store(Arc::new(peers.clone()));
                }
            }
        } else {
            let mut kept = Vec::new();
            for (at, entry) in self.entries(config).into_iter().zip(&config.listen) {
                if let Some(address) = at.and_then(|at| self.open.get(at)) {
                    address.peers.store(Arc::new(entry.peers.clone()));
                    kept.push(address.number);
                }
            }
            self.open.retain(|address| {
                let is_kept = kept.contains(&address.number);
                if !is_kept {
                    info!(address = %address.bound, "stopped listening on an address");
                    closed.push(address.number);
                }
                is_kept
            });
            for new in &opened {
                info!(address = %new.address.bound, "listening on another address");
            }
        }
        (self.add(opened), closed)
    }

    /// For each entry of `listen` the open address that it is about.
    fn entries(&self, config: &Config) -> Vec<Option<usize>> {
        let mut taken = Vec::new();
        let find = |configured| {
            let mut open = self.open.iter().enumerate();
            // Two entries with port 0 are two addresses.
            let found = open.find(|(at, one)| one.configured == configured && !taken.contains(at));
            let at = found.map(|(at, _)| at);
            taken.extend(at);
            at
        };
        let configured = config.listen.iter().map(|entry| entry.address);
        configured.map(find).collect()
    }

    fn open_missing(&self, config: &Config) -> Result<Vec<NewAddress>, (SocketAddr, ListenError)> {
        let missing = self.entries(config).into_iter().zip(&config.listen);
        let missing = missing.filter_map(|(at, entry)| at.is_none().then_some(entry));
        let open = |(at, entry): (usize, &ListenConfig)| {
            let configured = entry.address;
            // An address that replaces one of our own, such as `[::]:8443` in place of `127.0.0.1:8443`.
            let mut own = self.open.iter();
            let replaces = own.any(|own| overlap(&own.bound, &configured));
            let sharing = PortSharing::new(config.reuse_port || replaces);
            let sockets = listener::bind(configured, self.workers, sharing);
            let opened = sockets.and_then(|sockets| {
                Ok(NewAddress {
                    address: OpenAddress {
                        number: self.next_number + at,
                        configured,
                        bound: bound_address(&sockets, configured)?,
                        peers: live(&entry.peers),
                    },
                    sockets,
                })
            });
            opened.map_err(|error| (configured, ListenError::new(ListenFlag::Clients, error)))
        };
        missing.enumerate().map(open).collect()
    }

    fn share(
        &self,
        config: &Config,
        number: usize,
        socket: &TcpListener,
    ) -> Result<NewAddress, AppError> {
        let address = socket.local_addr().map_err(|source| AppError::Run {
            doing: "read the address of an inherited socket".into(),
            source,
        })?;
        let unknown = ConfigError::Whole(SettingError::UnknownSocket { address });
        let peers = peers_of(&config.listen, number, address).ok_or(unknown)?;
        let failed = |error| AppError::Listen {
            address,
            source: ListenError::new(ListenFlag::Clients, error),
        };
        Ok(NewAddress {
            address: OpenAddress {
                number,
                configured: address,
                bound: address,
                peers: live(peers),
            },
            sockets: listener::share(socket, self.workers).map_err(failed)?,
        })
    }

    /// Adds addresses, and returns their sockets for each worker.
    fn add(&mut self, opened: Vec<NewAddress>) -> Vec<Vec<WorkerSocket>> {
        let mut of_workers: Vec<_> = (0..self.workers).map(|_| Vec::new()).collect();
        for NewAddress { address, sockets } in opened {
            for (of_worker, socket) in of_workers.iter_mut().zip(sockets) {
                of_worker.push(WorkerSocket {
                    number: address.number,
                    socket,
                    peers: Arc::clone(&address.peers),
                });
            }
            self.next_number = self.next_number.max(address.number + 1);
            self.open.push(address);
        }
        let bound = self.open.iter().map(|address| address.bound).collect();
        self.bound.store(Arc::new(bound));
        of_workers
    }
}

fn bound_address(sockets: &[TcpListener], configured: SocketAddr) -> io::Result<SocketAddr> {
    let first = sockets.first().map(TcpListener::local_addr);
    Ok(first.transpose()?.unwrap_or(configured))
}

fn live(peers: &PeerPolicy) -> LivePeers {
    Arc::new(ArcSwap::from_pointee(peers.clone()))
}
