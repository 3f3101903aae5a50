//! Launches, adopts and ends VM processes. Knows nothing of apps, images or the API.
//!
//! A [`Vmm`] makes a [`Vm`] out of a [`LaunchSpec`]; the VM then lives independently of this process, and
//! [`Vmm::adopt`] finds it again. What runs inside is reached over [`Vm::connect_agent`], a byte stream to init.

use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub mod boot;
mod capture;
pub mod cgroup;
mod clock;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod lock;
pub mod probe;
mod process;
pub mod qemu;
mod qmp;
mod record;
pub mod slot;
mod socket;
mod template;

pub use error::VmmError;
pub use qemu::{Accelerator, Qemu, QemuConfig};
pub use slot::{Slot, SlotPool};

/// A byte stream to init.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// What a driver can do on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether a guest is kept apart by the processor or only by an emulator.
    pub isolation: Isolation,
    /// RAM and device state can be saved and restored.
    pub snapshot: bool,
    /// Memory can be taken back from a running guest.
    pub balloon: bool,
}

/// What keeps a guest apart from its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Hardware virtualisation.
    Hardware,
    /// An emulator, which its authors don't call a security boundary.
    Emulated,
}

/// Everything a VM process needs. The caller keeps `directory` until the VM is gone.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Which machine; at most one VM process exists per id, held by a lock in `directory`.
    pub machine_id: String,
    /// The machine's directory on the host, owned by root: lock, sockets, console log, the VM's record.
    pub directory: PathBuf,
    /// Leased uid, tap name and cgroup.
    pub slot: Slot,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// CPU weight against other VMs, 1-10000, 100 is the default weight.
    pub cpu_weight: u32,
    /// Read-only raw ext4, shared by all machines of the image.
    pub root_base: PathBuf,
    /// The machine's qcow2 overlay over `root_base`.
    pub root_overlay: PathBuf,
    /// Open tap device, or none for a VM without network.
    pub tap: Option<OwnedFd>,
    /// MAC address the interface is created with.
    pub mac: String,
    /// Further kernel arguments of the user.
    pub kernel_args: Vec<String>,
}

/// Serial number of the root disk, as init finds it in `/sys/block/*/serial`.
pub const ROOT_DISK_SERIAL: &str = "caddis-root";

/// Why a VM process is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off, or we killed it.
    Ended,
    /// The host's kernel killed it for exceeding its memory bound.
    HostOom,
    /// It died on its own: the last lines it wrote to its standard error.
    Crashed {
        /// Tail of the VMM's standard error.
        message: String,
    },
}

/// How a VM came to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StartKind {
    /// Its kernel booted.
    Cold {
        /// Why there was no quicker way.
        reason: String,
    },
    /// It was restored from a template.
    Template,
}

impl StartKind {
    /// Its name on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Cold { .. } => "cold",
            Self::Template => "template",
        }
    }
}

/// A driver.
#[async_trait]
pub trait Vmm: Send + Sync + 'static {
    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// Whether VMs can be started now; the reason if not (program missing, kernel missing).
    async fn check(&self) -> Result<(), VmmError>;

    /// Starts a VM process and returns once it runs (not once the guest is up). On error nothing is left behind.
    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Vm>, VmmError>;

    /// Finds the VM process that an earlier server started for the machine with this directory.
    /// `None` when the lock shows there is none; a dead VM's remains (sockets, record, cgroup) are removed then.
    async fn adopt(&self, machine_id: &str, directory: &std::path::Path) -> Result<Option<Arc<dyn Vm>>, VmmError>;
}

/// A running VM process.
#[async_trait]
pub trait Vm: Send + Sync + 'static {
    /// Its slot, for as long as the VM lives; freed by `wait` having returned and the `Slot` being dropped.
    fn slot(&self) -> &Slot;

    /// Process id on the host, for tests and diagnosis.
    fn pid(&self) -> u32;

    /// How it was started.
    fn start_kind(&self) -> &StartKind;

    /// Where the time of its start went, in order; empty for one that was adopted.
    fn start_steps(&self) -> &[(&'static str, Duration)];

    /// Opens the stream to init anew. An earlier stream stops working.
    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError>;

    /// Kills the process. Succeeds when it is already gone.
    async fn kill(&self) -> Result<(), VmmError>;

    /// Waits until the process is gone and its cgroup, sockets and record are removed. May be called by several.
    async fn wait(&self) -> VmExit;

    /// Memory the VM process holds on the host, bytes.
    async fn memory_used(&self) -> Result<u64, VmmError>;

    /// Processor time used so far by the VM process.
    async fn cpu_used(&self) -> Result<Duration, VmmError>;
}
