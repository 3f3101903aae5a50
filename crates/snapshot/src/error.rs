//! What goes wrong with snapshots.

use std::io;

use crate::SnapshotName;

/// Why something with a snapshot failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of this name in the store.
    #[error("there is no snapshot {} of volume {} in the store", .0.id, .0.volume)]
    NotFound(SnapshotName),
    /// The store can't be reached or used now; trying again later may help.
    #[error("the snapshot store can't be used: {0}")]
    Store(String),
    /// What is in the store is not what was put there: missing, changed, or another's.
    #[error("snapshot {} is damaged: {reason}", name.id)]
    Damaged {
        /// Which.
        name: SnapshotName,
        /// What is wrong, and where in the volume.
        reason: String,
    },
    /// It was encrypted with another installation key.
    #[error(
        "snapshot {} was taken with installation key {expected}, this server has {found}",
        name.id
    )]
    OtherKey {
        /// Which.
        name: SnapshotName,
        /// Id of the key that it needs.
        expected: String,
        /// Id of the key that there is.
        found: String,
    },
    /// The volume can't be read.
    #[error("can't read the volume: {0}")]
    Source(#[source] io::Error),
    /// A setting of the store makes no sense.
    #[error("invalid snapshot store: {0}")]
    InvalidStore(String),
}
