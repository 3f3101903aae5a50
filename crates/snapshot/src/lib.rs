//! Snapshots of volumes. What a volume holds at one instant is read from a [`Source`], cut into
//! chunks of one size, and kept in an object store: a directory, or S3. Knows nothing of machines,
//! VMs or HTTP.
//!
//! ```text
//!  Source (nbd::Client: QEMU's export) ──SnapshotStore::take──▶ chunks + manifest
//!  SnapshotStore::open ──▶ Reader (verified) ──nbd::Server──▶ QEMU, as backing of a new volume
//!  SnapshotStore::delete, sweep                                (chunks that no manifest names go)
//! ```
#![forbid(unsafe_code)]

mod error;
pub mod nbd;
mod source;
mod store;
mod types;

pub use caddis_api::{SnapshotId, VolumeId};
pub use error::SnapshotError;
pub use source::{Extent, Source};
pub use store::{Location, Options, Reader, SnapshotStore, StoreConfig, StoreKey, Swept};
pub use types::{NewSnapshot, Progress, Snapshot, SnapshotName};
