//! The QEMU driver: one `microvm` process per machine.
//!
//! ```text
//! launch:  lock the directory ▸ record the slot ▸ cgroup ▸ sockets and files as descriptors
//!          ▸ fork, drop rights, exec ▸ record the process
//! adopt:   the lock is held ▸ record ▸ pidfd ▸ slot from the process's own descriptor
//! end:     pidfd ▸ why? ▸ cgroup, sockets, record removed ▸ slot given back
//! ```

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::Semaphore,
    task::{JoinError, spawn_blocking},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::{adopt::find, pool::Pool, seat::QemuSeat, template::Templates, vm::QemuVm};
use crate::{
    Capabilities, Disk, Isolation, LaunchSpec, Patch, Seat, Shape, SlotPool, Vm, Vmm, VmmError,
    boot::BootFiles, disk, lock, volume,
};

mod adopt;
mod amd64;
mod arguments;
mod clock;
mod demand;
mod disks;
mod exit;
mod guest_memory;
mod launch;
mod overlay;
mod pause;
mod pool;
mod qmp;
mod seat;
mod snapshot;
mod suspend;
mod template;
mod throttle;
mod unassigned;
mod vm;
mod volumes;
mod warm_up;

pub use pool::PoolLimits;
pub use unassigned::{end_unassigned, kill_machines};

/// Numbers of the descriptors a VM process is given.
mod descriptor {
    /// The machine's lock, held by being open.
    pub const LOCK: i32 = 3;
    /// The slot's lock, held by being open.
    pub const SLOT: i32 = 4;
    pub const KERNEL: i32 = 5;
    pub const INITRD: i32 = 6;
    /// Listening socket of the control channel.
    pub const CONTROL: i32 = 9;
    /// Listening socket for what QEMU is told.
    pub const QMP: i32 = 10;
    pub const TAP: i32 = 11;
    /// Memory that is a template's, or to be one's.
    pub const MEMORY: i32 = 12;
    /// The disk with the kernel's modules.
    pub const MODULES: i32 = 13;
    /// Two per disk: what it is an overlay over, and its own.
    const FIRST_DISK: i32 = 14;
    /// Standard output: where the guest's serial console goes.
    pub const CONSOLE: i32 = 1;
    /// Standard error.
    pub const OUTPUT: i32 = 2;

    /// Of the file that a disk is an overlay over, and of its own.
    pub fn of_disk(role: crate::DiskRole) -> [i32; 2] {
        let base = FIRST_DISK + 2 * i32::from(role.index());
        [base, base + 1]
    }
}

/// Patience with a killed process.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Patience, at the end, with what makes VMs that are no machine's. A second is usual: one that
/// boots is killed.
const END_DEADLINE: Duration = Duration::from_secs(20);

/// How many templates are read from disk at once: each is hashed, which takes a processor.
const READS: usize = 2;

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Emulation,
}

/// What makes a tap of that name.
pub type TapMaker = dyn Fn(&str) -> io::Result<OwnedFd> + Send + Sync;

/// Makes a tap of that name, which is gone when it is closed. Blocks.
#[derive(Clone)]
pub struct MakeTap(pub Arc<TapMaker>);

impl std::fmt::Debug for MakeTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MakeTap")
    }
}

/// What the driver is told.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program, `qemu-system-x86_64`.
    pub program: PathBuf,
    /// What runs guests.
    pub accelerator: Accelerator,
    /// What they boot.
    pub boot: BootFiles,
    /// The host's slots.
    pub slots: SlotPool,
    /// Where templates are kept.
    pub templates: PathBuf,
    /// How many VMs may wait for machines.
    pub pool: PoolLimits,
    /// Makes taps for VMs that are no machine's yet.
    pub tap: MakeTap,
}

/// The driver.
pub struct Qemu {
    driver: Arc<Driver>,
}

/// What all its VMs have in common.
struct Driver {
    config: QemuConfig,
    version: String,
    tsc_khz: u64,
    /// What the host's processor can do.
    processor: String,
    templates: Templates,
    /// Turns of templates that are built.
    turns: Semaphore,
    /// Turns of templates that are read from disk.
    reads: Semaphore,
    pool: Pool,
    /// What makes VMs that are no machine's: it is awaited at the end, so that none is left.
    tasks: TaskTracker,
    ending: CancellationToken,
}

/// The version of a QEMU program, in its own words (`7.2.22 (Debian …)`). Blocks.
///
/// # Errors
/// [`VmmError::Unusable`] when it can't be run.
pub fn version(program: &Path) -> Result<String, VmmError> {
    let unusable = |reason: String| VmmError::Unusable { path: program.to_owned(), reason };
    let output = std::process::Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| unusable(format!("{error}; apt-get install qemu-system-x86")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().and_then(|line| line.strip_prefix("QEMU emulator version "));
    first
        .map(str::to_owned)
        .ok_or_else(|| unusable("it does not say its version; is it QEMU?".to_owned()))
}

impl Qemu {
    /// A driver. Blocks for about 50 ms to measure the processor's clock. Ends what an earlier
    /// server that was killed left of templates in the making.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] when the program can't be run, [`VmmError::Io`] when the directory
    /// can't be used.
    pub fn new(config: QemuConfig) -> Result<Self, VmmError> {
        let version = version(&config.program)?;
        let directory = &config.templates;
        fs::create_dir_all(directory)
            .map_err(VmmError::io(format!("make {}", directory.display())))?;
        end_unassigned(directory, &config.slots);
        let tsc_khz = clock::tsc_khz_of_this_host(&directory.join("tsc"))?;
        let driver = Driver {
            version,
            tsc_khz,
            processor: processor(),
            templates: Templates::new(directory.clone()),
            turns: Semaphore::new(1),
            reads: Semaphore::new(READS),
            pool: Pool::new(config.pool),
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
            config,
        };
        Ok(Self { driver: Arc::new(driver) })
    }

    /// The program's version, in its own words.
    pub fn version(&self) -> &str {
        &self.driver.version
    }

    /// The level of amd64 that VMs' processors have, 1 to 4 (x86-64 psABI, "Micro-Architecture
    /// Levels").
    pub fn amd64_level(&self) -> u8 {
        match self.driver.config.accelerator {
            Accelerator::Kvm => amd64::of_flags(&self.driver.processor),
            Accelerator::Emulation => amd64::of_emulator(&self.driver.version),
        }
    }

    /// How many warm VMs there are.
    pub fn warm_vms(&self) -> usize {
        self.driver.pool.count()
    }

    /// Gets the template that most machines start from, and keeps VMs waiting for machines, in the
    /// background.
    pub fn keep_warm(&self) {
        if let Some(modules) = self.driver.config.boot.modules.clone() {
            // A start that needs it sooner waits for it. What fails is told there.
            self.driver.tasks.spawn_blocking(move || modules.get().map(|_| ()).unwrap_or_default());
        }
        self.driver.tasks.spawn(self.driver.clone().get_usual());
        self.driver.tasks.spawn(self.driver.clone().retry_failed());
        self.driver.tasks.spawn(pool::keep(self.driver.clone()));
    }
}

/// Model and abilities of the host's processor: what a guest has found of them stays true only
/// where they are the same.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |name: &str| {
        text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
    };
    format!("{} {}", of("model name"), of("flags"))
}

fn panicked(error: JoinError) -> VmmError {
    VmmError::io("wait for a blocking task")(error.into())
}

#[async_trait]
impl Vmm for Qemu {
    fn capabilities(&self) -> Capabilities {
        let isolation = match self.driver.config.accelerator {
            Accelerator::Kvm => Isolation::Hardware,
            Accelerator::Emulation => Isolation::Emulated,
        };
        Capabilities { isolation, snapshot: true }
    }

    fn warnings(&self) -> Vec<String> {
        let warning = |(shape, reason): (Shape, String)| {
            let (vcpus, memory) = (shape.vcpus, shape.memory_mib);
            format!(
                "no template for {vcpus} vCPUs and {memory} MB, starts are cold boots until it is \
                 built: {reason}"
            )
        };
        let modules = self.driver.config.boot.modules.as_ref().and_then(|disk| disk.problem());
        let modules = modules.map(|reason| format!("machines can't load kernel modules: {reason}"));
        self.driver.templates.failures().into_iter().map(warning).chain(modules).collect()
    }

    async fn check(&self) -> Result<(), VmmError> {
        for path in [
            &self.driver.config.program,
            &self.driver.config.boot.kernel,
            &self.driver.config.boot.initrd,
        ] {
            if let Err(error) = tokio::fs::metadata(path).await {
                let reason = format!("{error}; restart the server to rebuild it");
                return Err(VmmError::Unusable { path: path.clone(), reason });
            }
        }
        Ok(())
    }

    fn create_disk(&self, disk: &Disk, patches: &[Patch]) -> io::Result<()> {
        disks::create(disk, patches)
    }

    async fn prepare(&self, spec: LaunchSpec) -> Result<Box<dyn Seat>, VmmError> {
        disk::check(&spec.disks)?;
        volume::check(&spec.volumes)?;
        Ok(Box::new(QemuSeat::new(self.driver.clone(), spec)?))
    }

    fn is_saved(&self, directory: &Path) -> bool {
        snapshot::file(directory).exists()
    }

    fn remove_saved(&self, directory: &Path) -> io::Result<()> {
        snapshot::remove(directory)
    }

    async fn close(&self) {
        self.driver.ending.cancel();
        self.driver.tasks.close();
        if tokio::time::timeout(END_DEADLINE, self.driver.tasks.wait()).await.is_err() {
            warn!("a VM without a machine does not exit: the next server kills it");
        }
        self.driver.pool.clear().await;
        // A process that is being started holds copies of all our descriptors until its program
        // runs.
        let _ = spawn_blocking(|| drop(lock::no_fork())).await;
    }

    async fn adopt(
        &self,
        machine_id: &str,
        directory: &Path,
    ) -> Result<Option<Arc<dyn Vm>>, VmmError> {
        let (owned, slots, id) =
            (directory.to_owned(), self.driver.config.slots.clone(), machine_id.to_owned());
        let found = spawn_blocking(move || find(&owned, &slots, &id)).await.map_err(panicked)??;
        // How it stands with its disk is to be known soon: it may have stood still for long.
        found
            .map(|(running, slot)| {
                QemuVm::watch(running, directory.to_owned(), slot, Duration::ZERO)
            })
            .transpose()
    }
}
