//! Volumes of a host: their files, keys, records and space. Knows nothing of machines, VMs or HTTP.
//!
//! ```text
//!  VolumeStore::open      records read, leftovers removed
//!    ├ create, copy       NewVolume, NewCopy ─▶ Volume          (programs run, progress)
//!    ├ clone_open         the same of one in use, by whoever has it open
//!    ├ export             the contents over NBD, while nobody uses it
//!    ├ fleecing_image     for a snapshot of one in use
//!    ├ create_for_restore, hydrate, mark_whole      contents that come over NBD
//!    ├ open_writer        Writer: descriptor with the lock, key (on the path of a start)
//!    ├ grow               Growth: done, or for the VM to be told
//!    ├ delete, undelete, purge_expired
//!    └ list, get, problems, space, usage, check
//! ```
//! A volume is one qcow2 file, and a record beside it. An encrypted one has LUKS inside of the
//! qcow2, with a random key of its own, which the record holds encrypted with the installation key.
//! Nothing is ever mounted on the host.
#![forbid(unsafe_code)]

mod disk;
mod error;
mod files;
mod key;
mod lock;
mod process;
mod qcow2;
mod record;
mod store;
mod types;

pub use caddis_api::{VolumeId, volume::Filesystem};
pub use error::{CloneError, VolumeError};
pub use key::{InstallationKey, VolumeKey};
pub use store::{
    Export, FleecingImage, FleecingSpace, Recorded, StoreConfig, VolumeStore, Writer,
    encrypted_volumes,
};
pub use types::{
    Check, Copied, Growth, InvalidSize, KEPT_AFTER_DELETE, NewCopy, NewVolume, Problem, Progress,
    SizeGib, Space, Usage, Volume,
};
