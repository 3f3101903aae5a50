//! The server's end of WireGuard: computers of users ("peers") in private networks of machines, in
//! user space.
//!
//! ```text
//!  UDP ──▶ inward ──▶ Peers: whose is it? does the source belong to it? ──▶ TUN device ─▶ routes
//!  UDP ◀───────────── Peers: who has this destination?        ◀── outward ◀── TUN device
//! ```
//! [`Peers`] does no I/O: it takes datagrams and packets and says what is to be sent. [`Server`]
//! moves them, with two threads, many at once: the kernel hands over TCP in large packets and takes
//! it so, and datagrams of one size in one call (segmentation offload). A peer that is only
//! configured costs a record: what the protocol needs is made when its first handshake comes.
//!
//! What passes does not depend on a packet filter: from a peer only what has its address as source
//! and an address of its network as destination, and to a peer only what comes from its network.

mod device;
mod error;
mod key;
mod packet;
mod peers;
mod server;
mod socket;
mod tunnel;

pub use device::{Device, create_device};
pub use error::WireGuardError;
pub use key::{InvalidKey, PrivateKey, PublicKey};
pub use packet::name_server;
pub use peers::{Peer, PeerStatus, Peers};
pub use server::Server;
pub use socket::{Socket, open_socket};
