//! Wire types of the Machines API: what requests and replies look like, which values are legal, and
//! the ids they carry. Shared by server and clients; does no I/O.
//!
//! A machine's configuration travels as the JSON it was sent as ([`config::RawConfig`]), so that
//! fields this build does not know come back unchanged; [`config::MachineConfig`] is the typed
//! reading of it.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod app;
pub mod checks;
pub mod config;
pub mod duration;
pub mod error;
pub mod event;
pub mod exec;
pub mod fields;
pub mod hold;
pub mod ids;
pub mod images;
pub mod lease;
pub mod logs;
pub mod machine;
pub mod names;
pub mod organization;
pub mod platform;
pub mod policies;
pub mod requests;
pub mod signal;
pub mod state;
pub mod terminal;
pub mod time;
pub mod traffic;
pub mod usage;
pub mod validate;
pub mod volume;
pub mod warnings;
pub mod watch;
pub mod wireguard;

pub use config::{MachineConfig, RawConfig};
pub use duration::ApiDuration;
pub use error::{ApiError, ErrorCode};
pub use ids::{
    AppName, EventId, LeaseNonce, MachineId, NetworkName, PolicyId, RegionCode, SnapshotId,
    VersionId, VolumeId, WorkerId,
};
pub use machine::Machine;
pub use signal::{Signal, UnknownSignal};
pub use state::MachineState;
pub use time::UnixMillis;
pub use volume::Volume;
