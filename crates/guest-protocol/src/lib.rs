//! What a host and the init of a VM say to each other.
//!
//! The two ends talk over one byte stream (virtio-serial today, vsock with another VMM). The stream
//! may break and be opened again at any time, and after that bytes of the previous connection may
//! still arrive; so frames delimit and check themselves ([`frame`]), carry the epoch of their
//! session, and what must not be lost is acknowledged and sent again.
//!
//! ```text
//! host                                             init
//!  │ Hello{epoch, acknowledged logs} ──────────────▶ │   (first on every connection)
//!  │ ◀────────────── Welcome{state, versions}        │
//!  │ Configure{spec} ───────────────────────────────▶│   state Waiting only
//!  │ ◀────────────── Started{pid}                    │
//!  │ ◀────────────── Log{sequence, …}  (raw payload) │   ─▶ AcknowledgeLogs{sequence}
//!  │ Exec{stream} ──▶ ◀── Output, ExecFinished       │
//!  │ ◀────────────── Exited{code, signal, oom}       │   repeated until acknowledged
//!  │ AcknowledgeExit ───────────────────────────────▶│   init unmounts and powers off
//! ```
#![forbid(unsafe_code)]

pub mod disks;
#[cfg(feature = "fake")]
pub mod fake;
pub mod frame;
#[cfg(feature = "host")]
pub mod host;
pub mod message;
pub mod spec;
pub mod text;

pub use message::{GuestMessage, GuestState, HostMessage};
pub use spec::MachineSpec;

/// The protocol version this build speaks. A host also accepts [`OLDEST_SUPPORTED_VERSION`], since
/// VMs outlive the server that started them.
pub const PROTOCOL_VERSION: u32 = 6;

/// Since this version a guest serves interactive sessions in full: a shell of its choice, signals
/// to an exec, its own program for files, and programs that a session holds.
pub const SESSIONS_SINCE: u32 = 2;

/// Since this version a host hears of processes that the guest's kernel killed for want of memory.
pub const VICTIMS_SINCE: u32 = 3;
/// Since this version a machine's own files and the size of its root disk are told; before, init
/// wrote names itself and looked for the disk by its serial number.
pub const OWN_FILES_SINCE: u32 = 4;
/// Since this version programs may ask by a socket in the guest that the machine stays awake.
pub const HOLDS_SINCE: u32 = 5;
/// Since this version a machine has volumes, and what is asked of them is answered.
pub const VOLUMES_SINCE: u32 = 6;

/// The oldest protocol version this build still understands.
pub const OLDEST_SUPPORTED_VERSION: u32 = 1;

/// Name of the virtio-serial port that carries the protocol; in the guest it is found under this
/// name in `/sys/class/virtio-ports/*/name`.
pub const PORT_NAME: &str = "caddis.control";

/// What init keeps of log output that no host has acknowledged; beyond it the oldest is dropped and
/// counted.
pub const LOG_BACKLOG_BYTES: usize = 1024 * 1024;

/// Log bytes that init sends ahead of acknowledgements. A guest that sends more breaks the
/// protocol.
pub const LOG_WINDOW_BYTES: usize = 256 * 1024;

/// How long init takes at most, when the programs of a machine with volumes have ended, to end all
/// other processes and to unmount the volumes before it reports that end. The report says nothing
/// of the volumes' state by itself: where they could not be unmounted in this time, a line in the
/// log does.
pub const UNMOUNT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// Bytes of an exec's stream that may be under way in each direction before the receiver says that
/// it took some.
pub const STREAM_WINDOW_BYTES: usize = 256 * 1024;
