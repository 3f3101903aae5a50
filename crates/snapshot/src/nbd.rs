//! NBD (the protocol document of the NetworkBlockDevice project, doc/proto.md), as far as QEMU
//! needs it, over unix sockets: a [`Client`] for exports of QEMU, and a server ([`serve`]) that is
//! the backing of its volumes.
//!
//! By hand: no crate has structured replies and block status, and the one for tokio is under GPL.

mod client;
mod connection;
mod contents;
mod handshake;
mod server;
mod wire;

pub use client::Client;
pub use contents::Contents;
pub use server::serve;
