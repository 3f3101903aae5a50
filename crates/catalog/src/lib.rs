//! Facts that must be unique in the whole installation: organisations, apps and their addresses,
//! networks, machine names, ids and addresses with their worker and placement epoch, tokens,
//! idempotency keys. Knows nothing of what a machine does.
//!
//! ```text
//! gateway ─▶ Catalog (rules/)   names, addresses, deletion, tokens, keyed requests, error texts
//!               │
//!               ▼
//!            Store (store.rs)   rows: reads, and writes under conditions, each one transaction
//!               ├─ SqliteStore  one file, for an installation of one host
//!               └─ MemoryStore  tests (feature `memory`)
//! ```
//!
//! One suite, `tests/contract`, says what every store has to do and what the catalog makes of it.
#![forbid(unsafe_code)]

mod error;
#[cfg(feature = "memory")]
mod memory;
mod peers;
mod records;
mod rules;
mod sqlite;
pub mod store;

pub use error::{CatalogError, StoreError};
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
pub use peers::{NewPeer, PeerConflict, PeerRecord, PeerRow};
pub use records::{
    Access, Address, AddressKind, AddressPool, AppPage, AppQuery, AppRecord, AppState,
    EgressAddress, EgressBlock, IdempotencyState, KeyedRequest, NewAddress, NewApp, NewEgress,
    NewPlacement, NewVolume, Placement, PolicyRecord, PrivateNetwork, SharedAddress,
    StoredResponse, TokenRecord, TokenScope, VolumePlacement, WantedAddress,
};
pub use rules::{Catalog, Clock, REQUEST_LEASE, REQUEST_RETENTION};
pub use sqlite::{SqliteError, SqliteStore};
pub use store::Push;

/// Slug of the organisation made at the first start, and the alias of the caller's own in requests.
pub const PERSONAL: &str = "personal";

/// Epoch of a machine's first placement; each move raises it by one.
pub const FIRST_EPOCH: u64 = 1;

/// Result of catalog calls.
pub type Result<T> = std::result::Result<T, CatalogError>;
