//! Launches, adopts and ends VM processes. Knows nothing of apps, images or the API.
//!
//! A [`Vmm`] makes a [`Vm`] out of a [`LaunchSpec`], in two steps, between which the caller
//! connects the network; the VM then lives independently of this process, and [`Vmm::adopt`] finds
//! it again. What runs inside is reached over [`Vm::connect_agent`], a byte stream to init.
//!
//! ```text
//! LaunchSpec ──prepare──▶ Seat {slot, tap or none} ──launch──▶ Vm
//! Vm ──save──▶ what a LaunchSpec resumes
//! ```
//! What is known to drivers alone: whether a VM is warm, from a template or boots, how disks and
//! saved VMs are written down, and what names these files have.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

pub mod boot;
mod capture;
pub mod cgroup;
#[cfg(feature = "fake")]
pub mod contract;
mod disk;
mod error;
#[cfg(feature = "fake")]
pub mod fake;
mod lock;
pub mod probe;
mod process;
pub mod qemu;
mod record;
pub mod slot;
mod socket;
mod volume;

pub use disk::{Disk, DiskFormat, DiskRole, Patch};
pub use error::VmmError;
pub use qemu::{Accelerator, Qemu, QemuConfig};
pub use slot::{Slot, SlotPool};
pub use volume::{
    Backing, BegunSnapshot, Hydration, IoLimits, Passphrase, PointInTime, PreparedSnapshot,
    VolumeDisk, VolumeExport,
};

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

/// What decides which warm VMs fit a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
}

/// Everything a VM process needs. The caller keeps `directory` until the VM is gone.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// Which machine; at most one VM process exists per id, held by a lock in `directory`.
    pub machine_id: String,
    /// The machine's directory on the host, owned by root: lock, sockets, console log, the VM's
    /// record.
    pub directory: PathBuf,
    /// Virtual processors.
    pub vcpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// CPU weight against other VMs, 1-10000, 100 is the default weight.
    pub cpu_weight: u32,
    /// Its disks, the root disk among them; at most one per role, and none that is a volume.
    pub disks: Vec<Disk>,
    /// Its volumes, at most one per slot.
    pub volumes: Vec<VolumeDisk>,
    /// What its guest may read and write of them; `None`: as much as the host can.
    pub volume_limits: Option<IoLimits>,
    /// MAC address the interface is created with.
    pub mac: String,
    /// Further kernel arguments of the user.
    pub kernel_args: Vec<String>,
    /// Not to be a warm VM: the tap of one could not be connected.
    pub not_warm: bool,
    /// The directory that the machine was saved to, if it is to resume: nothing is saved there any
    /// more when this is over, whether or not it could be used. Where it can't be, the machine
    /// boots.
    pub saved: Option<PathBuf>,
}

impl LaunchSpec {
    /// Decides which warm VMs and templates fit it.
    pub fn shape(&self) -> Shape {
        Shape { vcpus: self.vcpus, memory_mib: self.memory_mib }
    }
}

/// Why a VM process is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmExit {
    /// The guest powered off or reset itself, or we killed it.
    Ended,
    /// The host's kernel killed it for exceeding its memory bound.
    HostOom,
    /// The disk of the host was full, and it could not go on without room on it.
    DiskFull {
        /// What for.
        message: String,
    },
    /// It died on its own: the last lines it wrote to its standard error.
    Crashed {
        /// Tail of the VMM's standard error.
        message: String,
    },
}

/// Why a VM stands still that nobody has stopped. Nothing of it is lost: what it was writing is
/// written when [`Vm::unpause`] has it try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// There is no room for what it writes to its disk.
    DiskFull,
    /// Its disk can't be written for another reason.
    DiskError,
}

/// How a VM came to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// Its kernel booted.
    Cold,
    /// It was restored from a template.
    Template,
    /// It was restored from what it was saved to.
    Resume,
}

impl StartKind {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Template => "template",
            Self::Resume => "resume",
        }
    }
}

/// What the warm pool had to do with a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolUse {
    /// One became the machine's.
    Hit,
    /// None waited.
    Empty,
    /// None are kept.
    Off,
}

/// How a VM came to run, and why not otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// How.
    pub kind: StartKind,
    /// Why there was no quicker way; empty when there is nothing to say.
    #[serde(default)]
    pub reason: String,
    /// For starts from a template.
    #[serde(default)]
    pub pool: Option<PoolUse>,
}

impl Start {
    /// A boot, for this reason.
    pub fn cold(reason: impl Into<String>) -> Self {
        Self { kind: StartKind::Cold, reason: reason.into(), pool: None }
    }

    /// From a template.
    pub fn template(pool: PoolUse) -> Self {
        Self { kind: StartKind::Template, reason: String::new(), pool: Some(pool) }
    }

    /// From what the machine was saved to.
    pub fn resume() -> Self {
        Self { kind: StartKind::Resume, reason: String::new(), pool: None }
    }
}

/// A driver.
#[async_trait]
pub trait Vmm: Send + Sync + 'static {
    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// What works less well than it should, and why, for the operator. Starts succeed all the same.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether VMs can be started now; the reason if not (program missing, kernel missing).
    async fn check(&self) -> Result<(), VmmError>;

    /// Makes the file of a disk, blank but for what it is an overlay over and `patches`, in place
    /// of whatever file is there. Blocks.
    ///
    /// # Errors
    /// What the file system says; then there is no file.
    fn create_disk(&self, disk: &Disk, patches: &[Patch]) -> io::Result<()>;

    /// Finds a place for a VM: a slot, with all in it that does not depend on the machine's
    /// network.
    ///
    /// # Errors
    /// [`VmmError::InvalidDisk`] for disks and volumes that no machine can have;
    /// [`VmmError::NoSlot`].
    async fn prepare(&self, spec: LaunchSpec) -> Result<Box<dyn Seat>, VmmError>;

    /// Whether a machine is saved in this directory, by [`Vm::save`].
    fn is_saved(&self, directory: &Path) -> bool;

    /// Removes what is saved of a machine in this directory, or was begun to be. Nothing to remove
    /// is no error. Blocks.
    fn remove_saved(&self, directory: &Path) -> io::Result<()>;

    /// Ends all VMs that are no machine's; those of machines go on.
    async fn close(&self);

    /// Finds the VM process that an earlier server started for the machine with this directory.
    /// `None` when the lock shows there is none; a dead VM's remains (sockets, record, cgroup) are
    /// removed then.
    async fn adopt(
        &self,
        machine_id: &str,
        directory: &Path,
    ) -> Result<Option<Arc<dyn Vm>>, VmmError>;
}

/// A place for a VM. Dropped, it is given back with whatever runs there.
#[async_trait]
pub trait Seat: Send + Sync {
    /// Leased uid, tap name and cgroup.
    fn slot(&self) -> &Slot;

    /// Whether the slot's tap is there, not connected to anything. Else the launch is given one.
    fn has_tap(&self) -> bool;

    /// Starts the VM the quickest way there is, and returns once it runs (not once the guest is
    /// up). Without a tap of either side it has no network. On error nothing is left behind, and
    /// what the machine was saved to is kept where it could have been used.
    ///
    /// # Errors
    /// Among others [`VmmError::InvalidDisk`] for a volume that can't be opened, with a wrong
    /// passphrase for instance.
    async fn launch(self: Box<Self>, tap: Option<OwnedFd>) -> Result<Arc<dyn Vm>, VmmError>;
}

/// A running VM process.
#[async_trait]
pub trait Vm: Send + Sync + 'static {
    /// Its slot, for as long as the VM lives; freed by `wait` having returned and the `Slot` being
    /// dropped.
    fn slot(&self) -> &Slot;

    /// Process id on the host, for tests and diagnosis.
    fn pid(&self) -> u32;

    /// How it was started, and why so.
    fn start(&self) -> &Start;

    /// Where the time of its start went, in order; empty for one that was adopted.
    fn start_steps(&self) -> &[(&'static str, Duration)];

    /// Opens the stream to init anew. An earlier stream stops working.
    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError>;

    /// Whether it can be saved at all: one that an earlier release started can't.
    fn can_save(&self) -> bool;

    /// Saves it in a directory, in place of whatever is saved there, and durably: memory and
    /// devices, and with them what its disks hold. The VM stands still from here on, also after an
    /// error; [`Self::unpause`] has it go on. When this future is dropped, saving ends soon.
    ///
    /// # Errors
    /// [`VmmError::NotSaved`]; then nothing is saved there. Among others while a snapshot of a
    /// volume is open, and while one is being restored, with the VM as it was.
    async fn save(&self, directory: &Path) -> Result<(), VmmError>;

    /// Has it go on after [`Self::save`], or where it is paused. Harmless when it does already.
    async fn unpause(&self) -> Result<(), VmmError>;

    /// Tells the guest that a volume has grown to so many bytes, and has its file grow to them. The
    /// same size again is harmless; a volume is never made smaller. Also for a VM that was adopted.
    ///
    /// # Errors
    /// [`VmmError::InvalidDisk`] where it has no such volume, or a larger one, and while a snapshot
    /// of it is open or it is being restored; [`VmmError::Io`] when the VM can't be told.
    async fn resize_volume(&self, index: u8, bytes: u64) -> Result<(), VmmError>;

    /// Does what a snapshot of a volume needs before [`Self::begin_snapshot`]; until
    /// [`Self::end_snapshot`], or the VM's end. Until [`Self::export_snapshot`], or until what this
    /// gives is dropped, whoever else wants to tell the VM something waits, so that nobody is
    /// before the snapshot when its instant has come.
    ///
    /// # Errors
    /// [`VmmError::InvalidDisk`] where it has no such volume, one is being taken of it already, or
    /// it is being restored; [`VmmError::Io`] when the VM can't be told. Then nothing is left of
    /// it.
    async fn prepare_snapshot(
        &self,
        index: u8,
        point: PointInTime,
    ) -> Result<PreparedSnapshot, VmmError>;

    /// The instant of a snapshot, and nothing else: the caller has the guest hold its file system
    /// still around this call. From here on what the guest overwrites is copied first. Where there
    /// is no room any more for that, reading the snapshot fails and the guest goes on.
    ///
    /// # Errors
    /// As [`Self::prepare_snapshot`], after which nothing is left of that either.
    async fn begin_snapshot(
        &self,
        index: u8,
        prepared: PreparedSnapshot,
    ) -> Result<BegunSnapshot, VmmError>;

    /// Has a volume be readable from outside as it was at the instant.
    ///
    /// # Errors
    /// As [`Self::begin_snapshot`].
    async fn export_snapshot(
        &self,
        index: u8,
        begun: BegunSnapshot,
    ) -> Result<VolumeExport, VmmError>;

    /// Ends what [`Self::prepare_snapshot`] began, also when an earlier server did; harmless where
    /// there is nothing. If it is taken, what changes from then on is noted for the next one.
    async fn end_snapshot(&self, index: u8, is_taken: bool) -> Result<(), VmmError>;

    /// Copies the file of a volume as it is now to an empty file by reflink (`FICLONE`). The VM
    /// stands still meanwhile; the caller has the guest hold its file system still around this.
    ///
    /// # Errors
    /// [`VmmError::Io`] of kind `Unsupported` or `CrossesDevices` where the file system can't, and
    /// where the VM stands still for another reason, as it goes on doing;
    /// [`VmmError::InvalidDisk`] where it has no such volume, or it is being restored.
    async fn clone_volume(&self, index: u8, to: OwnedFd) -> Result<(), VmmError>;

    /// Has a volume that was given a backing copy all of it, if that was not begun, and says how
    /// far it is.
    ///
    /// # Errors
    /// [`VmmError::InvalidDisk`] where it has no such volume; [`VmmError::Io`] when the VM can't be
    /// told.
    async fn hydrate(&self, index: u8) -> Result<Hydration, VmmError>;

    /// Whether it stands still because of its disk. Known some seconds after a start.
    fn pause(&self) -> watch::Receiver<Option<Pause>>;

    /// Kills the process, once what its guest has written to volumes is in their files, if that
    /// does not take long. Succeeds when it is already gone.
    async fn kill(&self) -> Result<(), VmmError>;

    /// Waits until the process is gone and its cgroup, sockets and record are removed. May be
    /// called by several.
    async fn wait(&self) -> VmExit;

    /// Memory the VM process holds on the host, bytes.
    async fn memory_used(&self) -> Result<u64, VmmError>;

    /// Processor time used so far by the VM process.
    async fn cpu_used(&self) -> Result<Duration, VmmError>;
}
