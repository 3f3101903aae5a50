//! Who the peers are, and what becomes of what comes from them and for them.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::Ipv6Net;
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::{
    PrivateKey, PublicKey, WireGuardError,
    packet::{self, Unreachable},
    socket::Endpoint,
    tunnel::{Buffer, Message, Opened, Protocol, Received, Sealed, Tick, Tunnel},
};

/// How long a peer may leave unanswered what is sent to it. One that is there answers within 10 s,
/// with an empty packet if with nothing else; after 15 s a handshake is tried.
const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(20);

/// A computer of a user that belongs to a private network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub key: PublicKey,
    /// Its address within the tunnel: what it sends comes from there and from nowhere else.
    pub address: Ipv6Addr,
    /// What it reaches, and by what it is reached.
    pub network: Ipv6Net,
}

/// What is known of a peer since the server was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Where it was last heard; none before it has connected.
    pub endpoint: Option<SocketAddr>,
    /// When its last handshake was.
    pub last_handshake: Option<SystemTime>,
    /// Bytes of packets that came from it.
    pub received: u64,
    /// Bytes of packets that were sent to it.
    pub sent: u64,
    /// Packets from it that were dropped, for their source or destination.
    pub refused: u64,
}

/// What is to be done.
#[derive(Default)]
pub(crate) struct Effects {
    /// Datagrams to the outside.
    pub(crate) datagrams: Vec<(Buffer, Endpoint)>,
    /// Packets to machines.
    pub(crate) packets: Vec<Buffer>,
}

/// All peers of a server.
pub struct Peers {
    protocol: Protocol,
    table: RwLock<Table>,
    /// By the numbers of sessions that there are or have been.
    sessions: RwLock<HashMap<u32, Arc<Entry>>>,
    /// Those who have a session or try to have one: who the clock matters to.
    active: Mutex<HashMap<PublicKey, Arc<Entry>>>,
}

#[derive(Default)]
struct Table {
    by_key: HashMap<PublicKey, Arc<Entry>>,
    by_address: HashMap<Ipv6Addr, Arc<Entry>>,
}

struct Entry {
    peer: Peer,
    /// Locked before `sessions` and `active`.
    state: Mutex<State>,
}

/// What there is of a peer.
#[derive(Default)]
struct State {
    /// Made with the first handshake, and kept: it knows the time of the last, so that a recorded
    /// one is not taken for new.
    tunnel: Option<Tunnel>,
    is_active: bool,
    /// It is no peer any more.
    is_removed: bool,
    /// Where it was last heard.
    endpoint: Option<Endpoint>,
    /// Since when what is sent to it is not answered, and when something was sent last.
    unanswered: Option<(Instant, Instant)>,
    /// But for its endpoint.
    status: PeerStatus,
}

impl Peers {
    /// None yet, of a server with this key.
    pub fn new(key: &PrivateKey) -> Self {
        Self {
            protocol: Protocol::new(key),
            table: RwLock::default(),
            sessions: RwLock::default(),
            active: Mutex::default(),
        }
    }

    /// The server's public key.
    pub fn public_key(&self) -> PublicKey {
        self.protocol.public()
    }

    /// Has these be the peers. Those who were before keep their sessions, but where one has another
    /// address or network now.
    ///
    /// # Errors
    /// When two of them have one key or one address, or one an address of another network. Nothing
    /// is changed then.
    pub fn replace(&self, peers: Vec<Peer>) -> Result<(), WireGuardError> {
        let mut table = self.table.write();
        let mut next = Table::default();
        for peer in peers {
            if !peer.network.contains(&peer.address) {
                let Peer { address, network, .. } = peer;
                return Err(WireGuardError::OutsideNetwork { address, network });
            }
            if peer.key == self.protocol.public() {
                return Err(WireGuardError::OwnKey(peer.key));
            }
            let (key, address) = (peer.key, peer.address);
            let entry = match table.by_key.get(&key).filter(|entry| entry.peer == peer) {
                Some(entry) => entry.clone(),
                None => Arc::new(Entry { peer, state: Mutex::default() }),
            };
            if next.by_key.insert(key, entry.clone()).is_some() {
                return Err(WireGuardError::KeyInUse(key));
            }
            if next.by_address.insert(address, entry).is_some() {
                return Err(WireGuardError::AddressInUse(address));
            }
        }
        let before = std::mem::replace(&mut *table, next);
        for (key, entry) in before.by_key {
            if !table.by_key.get(&key).is_some_and(|kept| Arc::ptr_eq(kept, &entry)) {
                let mut state = entry.state.lock();
                (state.tunnel, state.is_removed) = (None, true);
                self.deactivate(&entry, &mut state);
            }
        }
        Ok(())
    }

    /// How a peer is; none where it is no peer.
    pub fn status(&self, key: &PublicKey) -> Option<PeerStatus> {
        let entry = self.table.read().by_key.get(key)?.clone();
        let state = entry.state.lock();
        let endpoint = state.endpoint.map(|endpoint| endpoint.remote);
        Some(PeerStatus { endpoint, ..state.status.clone() })
    }

    /// Whether the clock matters.
    pub(crate) fn are_active(&self) -> bool {
        !self.active.lock().is_empty()
    }

    /// A datagram has come.
    pub(crate) fn take_datagram(&self, datagram: Buffer, source: Endpoint, effects: &mut Effects) {
        let (entry, message) = match self.protocol.open(datagram, source.remote) {
            Opened::Nothing => return,
            Opened::Answer(answer) => return effects.datagrams.push((answer, source)),
            Opened::From(key, message) => (self.table.read().by_key.get(&key).cloned(), message),
            Opened::Of(number, message) => (self.sessions.read().get(&number).cloned(), message),
        };
        let Some(entry) = entry else { return };
        let mut state = entry.state.lock();
        if !state.is_removed {
            self.receive(&entry, &mut state, message, source, effects);
        }
    }

    fn receive(
        &self,
        entry: &Arc<Entry>,
        state: &mut MutexGuard<'_, State>,
        message: Message,
        source: Endpoint,
        effects: &mut Effects,
    ) {
        let State { tunnel, is_active, endpoint, unanswered, status, .. } = &mut **state;
        let is_new = tunnel.is_none();
        let tunnel = tunnel.get_or_insert_with(|| self.protocol.tunnel(&entry.peer.key));
        if !*is_active {
            tunnel.tick();
        }
        match tunnel.receive(message) {
            Received::Rejected => {
                if is_new {
                    state.tunnel = None;
                }
                return;
            }
            Received::Nothing => return,
            // Where the peer is, is not changed by what anybody may have recorded.
            Received::Begun(answer) => {
                status.last_handshake = Some(SystemTime::now());
                self.push(entry, answer, source, effects);
            }
            Received::Confirmed(answer) => {
                status.last_handshake = Some(SystemTime::now());
                (*endpoint, *unanswered) = (Some(source), None);
                self.push(entry, answer, source, effects);
                for sealed in tunnel.waiting() {
                    self.push(entry, sealed, source, effects);
                }
            }
            Received::Packet(packet) => {
                (*endpoint, *unanswered) = (Some(source), None);
                for sealed in tunnel.waiting() {
                    self.push(entry, sealed, source, effects);
                }
                if !packet.is_empty() {
                    match admit(&entry.peer, packet) {
                        Some(packet) => {
                            status.received += packet.len() as u64;
                            effects.packets.push(packet);
                        }
                        None => status.refused += 1,
                    }
                }
            }
        }
        self.activate(entry, state);
    }

    /// A packet for a peer has come.
    pub(crate) fn take_packet(&self, packet: Buffer, effects: &mut Effects) {
        let Some(header) = packet::read(&packet) else { return };
        let Some(entry) = self.table.read().by_address.get(&header.destination).cloned() else {
            return undeliverable(&packet, Unreachable::NoRoute, effects);
        };
        if !entry.peer.network.contains(&header.source) {
            return;
        }
        let mut state = entry.state.lock();
        let State { tunnel, is_active, endpoint, unanswered, status, .. } = &mut *state;
        let (Some(tunnel), Some(endpoint)) = (tunnel, *endpoint) else {
            return undeliverable(&packet, Unreachable::Address, effects);
        };
        if !*is_active {
            tunnel.tick();
        }
        let now = Instant::now();
        let (since, last) = unanswered.get_or_insert((now, now));
        if now.duration_since(*last) >= UNANSWERED_TIMEOUT {
            // Nobody has tried for so long: it may be there again.
            *since = now;
        }
        *last = now;
        if now.duration_since(*since) >= UNANSWERED_TIMEOUT {
            // It is sent all the same, which tries for a session: the peer may be there again.
            undeliverable(&packet, Unreachable::Address, effects);
        }
        status.sent += packet.len() as u64;
        if let Some(sealed) = tunnel.send(packet) {
            self.push(&entry, sealed, endpoint, effects);
        }
        self.activate(&entry, &mut state);
    }

    /// The clock has moved on. To be called several times a second while [`Self::are_active`].
    pub(crate) fn tick(&self, effects: &mut Effects) {
        let active: Vec<_> = self.active.lock().values().cloned().collect();
        for entry in active {
            let mut state = entry.state.lock();
            let endpoint = state.endpoint;
            match state.tunnel.as_mut().map(Tunnel::tick) {
                Some(Tick::Nothing) => {}
                Some(Tick::Send(sealed)) => {
                    if let Some(endpoint) = endpoint {
                        self.push(&entry, sealed, endpoint, effects);
                    }
                }
                Some(Tick::Expired) | None => self.deactivate(&entry, &mut state),
            }
        }
        self.forget_sessions();
    }

    /// Numbers of sessions that there are no more. All of them are looked at when they have become
    /// twice as many as there can be.
    fn forget_sessions(&self) {
        let mut sessions = self.sessions.write();
        // Of each peer: eight sessions and a handshake.
        if sessions.len() > 18 * self.active.lock().len() {
            sessions.retain(|number, _| self.protocol.has_session(*number));
        }
    }

    fn push(&self, entry: &Arc<Entry>, sealed: Sealed, to: Endpoint, effects: &mut Effects) {
        if let Some(number) = sealed.session {
            self.sessions.write().insert(number, entry.clone());
        }
        effects.datagrams.push((sealed.bytes, to));
    }

    fn activate(&self, entry: &Arc<Entry>, state: &mut State) {
        if !state.is_active {
            state.is_active = true;
            self.active.lock().insert(entry.peer.key, entry.clone());
        }
    }

    fn deactivate(&self, entry: &Arc<Entry>, state: &mut State) {
        if state.is_active {
            state.is_active = false;
            let mut active = self.active.lock();
            // The same key may be that of another entry by now.
            if active.get(&entry.peer.key).is_some_and(|found| Arc::ptr_eq(found, entry)) {
                active.remove(&entry.peer.key);
            }
        }
    }
}

/// The packet without its padding, if its peer may send it.
fn admit(peer: &Peer, mut packet: Buffer) -> Option<Buffer> {
    let header = packet::read(&packet)?;
    let is_right = header.source == peer.address
        && peer.network.contains(&header.destination)
        && packet::is_reached_by_peers(header.destination);
    is_right.then(|| {
        packet.truncate(header.length);
        packet
    })
}

fn undeliverable(packet: &[u8], reason: Unreachable, effects: &mut Effects) {
    effects
        .packets
        .extend(packet::unreachable(packet, reason).map(|error| Buffer::copy_from(&error[..])));
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.table.read().by_key.len();
        f.debug_struct("Peers").field("count", &count).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
