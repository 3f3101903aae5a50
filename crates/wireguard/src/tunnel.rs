//! The protocol itself, from the library gotatun. Nothing else here names it but for keys.

use std::{net::SocketAddr, sync::Arc};

use gotatun::{
    noise::{
        Tunn, TunnResult, handshake::parse_handshake_anon, index_table::IndexTable,
        rate_limiter::RateLimiter,
    },
    packet::{Packet, PacketBufPool, WgKind},
    tun::MtuWatcher,
    x25519,
};

use crate::{PrivateKey, PublicKey};

/// Largest packet within the tunnel, bytes. Sealed, and in UDP over IPv6, it has 1500.
pub(crate) const MTU: u16 = 1420;
/// Handshakes per second and address beyond which the sender must show that it receives at its
/// address (a "cookie"). Several peers may be behind one address.
const HANDSHAKES: u64 = 100;

/// Bytes of a packet or a datagram.
pub(crate) type Buffer = Packet;
/// Buffers that are used again, of 4096 bytes.
pub(crate) type Pool = PacketBufPool<4096>;

/// What all tunnels of a server share.
pub(crate) struct Protocol {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    limiter: Arc<RateLimiter>,
    /// Numbers of sessions by which their messages are found.
    indexes: IndexTable,
}

/// A message whose outer form is right.
pub(crate) struct Message(WgKind);

/// What a datagram is.
pub(crate) enum Opened {
    /// No message, or not for this server.
    Nothing,
    /// To be answered so, and no more.
    Answer(Buffer),
    /// Who begins a handshake. That it really does is checked by its tunnel.
    From(PublicKey, Message),
    /// A message of a session, or the answer to a handshake, by its number.
    Of(u32, Message),
}

/// One peer's end.
pub(crate) struct Tunnel(Box<Tunn>);

/// A datagram to send.
pub(crate) struct Sealed {
    pub(crate) bytes: Buffer,
    /// Number of the session that it begins.
    pub(crate) session: Option<u32>,
}

/// What comes of a message.
pub(crate) enum Received {
    /// It is not from this peer, or comes again.
    Rejected,
    /// Taken in.
    Nothing,
    /// The peer began a session; this is the answer. Only what it sends next shows that it has the
    /// answer, and so where it is.
    Begun(Sealed),
    /// The peer has answered: a session has begun; this confirms it.
    Confirmed(Sealed),
    /// A packet; empty to keep the way open.
    Packet(Buffer),
}

/// What the clock brings.
pub(crate) enum Tick {
    Nothing,
    Send(Sealed),
    /// There is no session and no attempt at one: nothing is to be done until something is sent.
    Expired,
}

impl Protocol {
    pub(crate) fn new(key: &PrivateKey) -> Self {
        let private = key.secret();
        let public = x25519::PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES));
        Self { private, public, limiter, indexes: IndexTable::from_os_rng() }
    }

    pub(crate) fn public(&self) -> PublicKey {
        PublicKey(self.public.to_bytes())
    }

    /// Reads a datagram. Costs a multiplication on the curve for the first message of a handshake.
    pub(crate) fn open(&self, datagram: Buffer, source: SocketAddr) -> Opened {
        let message = match self.limiter.verify_packet(source, datagram) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => return Opened::Answer(cookie.into()),
            Err(_) => return Opened::Nothing,
        };
        let session = match &message {
            WgKind::HandshakeInit(first) => {
                // Otherwise counted up for ever.
                self.limiter.try_reset_count();
                let Ok(half) = parse_handshake_anon(&self.private, &self.public, first) else {
                    return Opened::Nothing;
                };
                return Opened::From(PublicKey(half.peer_static_public), Message(message));
            }
            WgKind::HandshakeResp(answer) => answer.receiver_idx.get(),
            WgKind::CookieReply(answer) => answer.receiver_idx.get(),
            WgKind::Data(data) => data.header.receiver_idx.get(),
        };
        Opened::Of(session, Message(message))
    }

    /// The end of a peer, without a session yet. Costs a multiplication on the curve.
    pub(crate) fn tunnel(&self, peer: &PublicKey) -> Tunnel {
        let (private, peer) = (self.private.clone(), x25519::PublicKey::from(peer.0));
        let (indexes, limiter) = (self.indexes.clone(), self.limiter.clone());
        Tunnel(Box::new(Tunn::new(private, peer, None, None, indexes, limiter)))
    }

    /// Whether there is a session of this number.
    pub(crate) fn has_session(&self, number: u32) -> bool {
        self.indexes.in_use(number)
    }
}

impl Tunnel {
    /// Takes in a message of the peer.
    pub(crate) fn receive(&mut self, message: Message) -> Received {
        let begins = matches!(message.0, WgKind::HandshakeInit(_));
        match self.0.handle_incoming_packet(message.0) {
            TunnResult::Err(_) => Received::Rejected,
            TunnResult::Done => Received::Nothing,
            TunnResult::WriteToNetwork(answer) if begins => Received::Begun(answer.into()),
            TunnResult::WriteToNetwork(answer) => Received::Confirmed(answer.into()),
            TunnResult::WriteToTunnel(packet) => Received::Packet(packet),
        }
    }

    /// What is to be sent for a packet: itself, or a handshake, after which it follows. None while
    /// a handshake is under way.
    pub(crate) fn send(&mut self, packet: Buffer) -> Option<Sealed> {
        self.0.handle_outgoing_packet(packet, Some(&mut MtuWatcher::new(MTU))).map(Sealed::from)
    }

    /// Packets that waited for a session.
    pub(crate) fn waiting(&mut self) -> Vec<Sealed> {
        self.0.get_queued_packets(&mut MtuWatcher::new(MTU)).map(Sealed::from).collect()
    }

    /// Has the tunnel look at the clock. To be called several times a second while it is in use,
    /// and first when it is used again.
    pub(crate) fn tick(&mut self) -> Tick {
        match self.0.update_timers() {
            Ok(Some(message)) => Tick::Send(message.into()),
            Ok(None) => Tick::Nothing,
            Err(_) => Tick::Expired,
        }
    }
}

impl From<WgKind> for Sealed {
    fn from(message: WgKind) -> Self {
        let session = match &message {
            WgKind::HandshakeInit(first) => Some(first.sender_idx.get()),
            WgKind::HandshakeResp(answer) => Some(answer.sender_idx.get()),
            _ => None,
        };
        Self { bytes: message.into(), session }
    }
}
