//! The QEMU driver: one `microvm` process per machine.
//!
//! ```text
//! launch:  lock the directory ▸ record the slot ▸ cgroup ▸ sockets and files as descriptors ▸ fork, drop rights, exec
//!          ▸ record the process
//! adopt:   the lock is held ▸ record ▸ pidfd ▸ slot from the process's own descriptor
//! end:     pidfd ▸ why? ▸ cgroup, sockets, record removed ▸ slot given back
//! ```

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::{JoinError, spawn_blocking},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use self::{
    hold::{Listener, Orders},
    launch::{CONTROL_SOCKET, Disk, Launch, Running, Source, clear, end},
    pool::Pool,
};
use crate::{
    AgentStream, Capabilities, Hold, Isolation, LaunchSpec, Slot, SlotPool, Start, StartKind, Vm,
    VmExit, Vmm, VmmError, Waiting, amd64,
    boot::BootFiles,
    capture::Capture,
    lock,
    process::{Process, Status, Watch},
    record::Record,
    snapshot::Snapshot,
    socket,
    template::{Sealed, Shape, Templates, file},
};

mod arguments;
mod hold;
mod launch;
mod pool;
mod suspend;
mod templates;
mod unbound;

pub use pool::PoolLimits;
pub use unbound::{end_unbound, kill_machines};

/// Numbers of the descriptors a VM process is given.
mod descriptor {
    /// The machine's lock, held by being open.
    pub const LOCK: i32 = 3;
    /// The slot's lock, held by being open.
    pub const SLOT: i32 = 4;
    pub const KERNEL: i32 = 5;
    pub const INITRD: i32 = 6;
    pub const ROOT_BASE: i32 = 7;
    pub const ROOT_OVERLAY: i32 = 8;
    /// Listening socket of the control channel.
    pub const CONTROL: i32 = 9;
    /// Listening socket for what QEMU is told.
    pub const QMP: i32 = 10;
    pub const TAP: i32 = 11;
    /// Memory that is a template's, or to be one's.
    pub const MEMORY: i32 = 12;
    /// The disk with the kernel's modules.
    pub const MODULES: i32 = 13;
    /// Standard output: where the guest's serial console goes.
    pub const CONSOLE: i32 = 1;
    /// Standard error.
    pub const OUTPUT: i32 = 2;
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
        end_unbound(directory, &config.slots);
        let tsc_khz = crate::clock::tsc_khz_of_this_host(&directory.join("tsc"))?;
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

    /// Gets the template that most machines start from, and keeps VMs waiting for machines, in the
    /// background.
    pub fn prepare(&self) {
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
        Capabilities { isolation, snapshot: true, balloon: false }
    }

    fn warnings(&self) -> Vec<String> {
        let warning = |(shape, reason): (crate::Shape, String)| {
            let (vcpus, memory) = (shape.vcpus, shape.memory_mib);
            format!(
                "no template for {vcpus} vCPUs and {memory} MB, starts are cold boots until it is built: {reason}"
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
                let reason = format!("{error}; restart the server to make it anew");
                return Err(VmmError::Unusable { path: path.clone(), reason });
            }
        }
        Ok(())
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Vm>, VmmError> {
        let driver = self.driver.clone();
        let shape = Shape { vcpus: spec.vcpus, memory_mib: spec.memory_mib };
        let template = match spec.kernel_args[..] {
            [] => driver.template(shape),
            _ => Err("kernel_args are not in any template".to_owned()),
        };
        let launched = spawn_blocking(move || {
            let running = driver.start(&spec, shape, template)?;
            Ok((running, spec.directory, spec.slot))
        });
        let (running, directory, slot) = launched.await.map_err(panicked)??;
        QemuVm::watch(running, directory, slot, hold::AFTER_START)
    }

    async fn take(&self, shape: Shape) -> Option<Box<dyn Waiting>> {
        self.driver.take(shape)
    }

    async fn close(&self) {
        self.driver.ending.cancel();
        self.driver.tasks.close();
        if tokio::time::timeout(END_DEADLINE, self.driver.tasks.wait()).await.is_err() {
            warn!("a VM that is no machine's does not end: the next server ends it");
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

impl Driver {
    /// The disk with the kernel's modules; none where it has none, or they can't be had, which was
    /// told. Blocks while it is made, once per kernel.
    fn modules(&self) -> Option<&Path> {
        self.config.boot.modules.as_ref().and_then(|disk| disk.get().ok())
    }

    /// Starts a machine's VM: from what it was saved to, if it was, else from the template, if
    /// there is one. Where neither can be restored, it boots. Blocks.
    fn start(
        self: &Arc<Self>,
        spec: &LaunchSpec,
        shape: Shape,
        template: Result<Arc<Sealed>, String>,
    ) -> Result<Running, VmmError> {
        let key = self.key(shape, &spec.kernel_args);
        let start = |source: Source<'_>, kind| {
            let launch = Launch {
                driver: self,
                name: &spec.machine_id,
                directory: &spec.directory,
                slot: &spec.slot,
                shape,
                cpu_weight: spec.cpu_weight,
                disk: Disk::Root(&spec.root_base, &spec.root_overlay, spec.root_size),
                modules: self.modules(),
                tap: spec.tap.as_ref().map(std::os::fd::AsFd::as_fd),
                mac: &spec.mac,
                kernel_args: &spec.kernel_args,
                source,
                kind,
            };
            launch.run()
        };
        let mut reasons = Vec::new();
        if let Some(snapshot) = &spec.snapshot {
            let resumed = match Snapshot::open(snapshot, &key, shape.memory_mib << 20) {
                Ok(saved) => start(Source::Snapshot(&saved, snapshot), Start::resume()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(VmmError::NotRestored { message: format!("its snapshot is lost: {error}") })
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    Err(VmmError::NotRestored { message: error.to_string() })
                }
                // What was saved is as good as before.
                Err(error) => Err(VmmError::io("read a snapshot")(error)),
            };
            let Err(VmmError::NotRestored { message }) = resumed else { return resumed };
            warn!(machine = spec.machine_id, message, "machine not resumed, started anew");
            // It would be no better the next time.
            let _ = fs::remove_file(snapshot);
            reasons.push(format!("the machine could not be resumed: {message}"));
        }
        let template = match template {
            // Only now: what is resumed waits for none.
            Err(_) if spec.kernel_args.is_empty() => {
                Handle::current().block_on(self.template_from_disk(shape))
            }
            template => template,
        };
        match &template {
            Ok(template) => {
                let mut how = Start::template(self.pool.nothing(shape));
                how.reason = reasons.join("; ");
                let restored = start(Source::Template(template), how);
                if restored.is_ok() {
                    self.templates.prove(shape);
                }
                let Err(VmmError::NotRestored { message }) = restored else { return restored };
                warn!(machine = spec.machine_id, message, "template not restored, booted instead");
                self.templates.discard(shape, &self.key(shape, &[]), &message);
                reasons.push(format!("the template could not be restored: {message}"));
            }
            Err(reason) => reasons.push(reason.clone()),
        }
        let memory = file::memory("caddis-memory", shape.memory_mib << 20)
            .map_err(VmmError::io("get memory for a VM"))?;
        start(Source::Cold(&memory), Start::cold(reasons.join("; ")))
    }
}

/// How long a VM process that was killed may take to let go of its lock.
const DYING: Duration = Duration::from_secs(10);
/// Nothing tells when another process lets go of a lock.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The VM process that holds a directory's lock, if one does; what a dead one left is removed.
fn find(
    directory: &Path,
    slots: &SlotPool,
    machine_id: &str,
) -> Result<Option<(Running, Slot)>, VmmError> {
    let deadline = Instant::now() + DYING;
    loop {
        match look_for(directory, slots, machine_id) {
            // One on its way out, killed by the last server, shows nothing any more before its lock
            // is free.
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            found => return found,
        }
    }
}

fn look_for(
    directory: &Path,
    slots: &SlotPool,
    machine_id: &str,
) -> Result<Option<(Running, Slot)>, VmmError> {
    if !directory.exists() {
        return Ok(None);
    }
    let record = Record::read(directory);
    {
        let _guard = lock::no_fork();
        if let Some(_lock) = lock::try_lock(directory)? {
            // Nobody runs. The slot may be another's by now; its cgroup is removed only while we
            // hold it.
            let slot =
                record.as_ref().and_then(|record| slots.lease_exact(record.slot).ok().flatten());
            let cgroups = slot.as_ref().and_then(Slot::cgroups);
            clear(directory, cgroups, &slot.as_ref().map(Slot::cgroup_name).unwrap_or_default());
            return Ok(None);
        }
    }
    let recorded = record.as_ref().and_then(|record| record.process).and_then(Process::reopen);
    let recorded = recorded.filter(|process| lock::is_held_by(directory, process.id.pid));
    let process = match recorded {
        Some(process) => process,
        // The server was killed between the fork and the record of it.
        None => {
            let attempted = || format!("find the VM process of machine {machine_id}");
            let holders = lock::holders(directory).map_err(VmmError::io(attempted()))?;
            let first = holders
                .first()
                .ok_or_else(|| io::Error::other("its lock is held, but by no process"));
            let pid = *first.map_err(VmmError::io(attempted()))?;
            Process::open(pid).map_err(VmmError::io(attempted()))?
        }
    };
    if record.as_ref().is_some_and(|record| !record.complete) {
        // It was never restored, and nobody is there to do it.
        end(&process);
        if lock::is_held_by(directory, process.id.pid) {
            let attempted =
                format!("end the VM process {} that was never restored", process.id.pid);
            return Err(VmmError::io(attempted)(io::ErrorKind::TimedOut.into()));
        }
        return look_for(directory, slots, machine_id);
    }
    let pid = process.id.pid;
    let attempted = || format!("adopt the VM process {pid} of machine {machine_id}");
    let lost = || io::Error::other("its record is lost");
    let Record { slot: index, start: kind, key, .. } =
        record.ok_or_else(lost).map_err(VmmError::io(attempted()))?;
    let held = process.descriptor(descriptor::SLOT).map_err(VmmError::io(attempted()))?;
    let slot = slots.adopt(index, held)?;
    let capture = |number| Capture::adopt(pid, number).ok();
    let (output, console) = (capture(descriptor::OUTPUT), capture(descriptor::CONSOLE));
    Ok(Some((Running { process, output, console, kind, key, steps: Vec::new() }, slot)))
}

struct QemuVm {
    process: Arc<Process>,
    slot: Slot,
    directory: PathBuf,
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
    start: Start,
    steps: Vec<(&'static str, Duration)>,
    /// What a snapshot of it depends on.
    key: Option<String>,
    /// One at a time tells QEMU anything.
    orders: Arc<Orders>,
    hold: watch::Receiver<Option<Hold>>,
    _listener: Listener,
}

impl QemuVm {
    /// Begins to watch a process, and from `after` on how it stands with its disk.
    fn watch(
        running: Running,
        directory: PathBuf,
        slot: Slot,
        after: Duration,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let Running { process, output, console, kind: start, steps, key } = running;
        let process = Arc::new(process);
        let watcher = process.watch().map_err(|error| {
            // Nobody would know of it any more.
            end(&process);
            VmmError::io(format!("watch the VM process {}", process.id.pid))(error)
        })?;
        let (sender, exit) = watch::channel(None);
        let killed = Arc::new(AtomicBool::new(false));
        let captures = Mutex::new(Some((output, console)));
        let resumed = start.kind == StartKind::Resume;
        let watched = Watched {
            directory: directory.clone(),
            slot: slot.clone(),
            killed: killed.clone(),
            resumed,
            captures,
        };
        tokio::spawn(async move { sender.send_replace(Some(watched.ended(watcher).await)) });
        let orders = Orders::new();
        let (listener, hold) = Listener::begin(directory.clone(), orders.clone(), after);
        Ok(Arc::new(Self {
            process,
            slot,
            directory,
            killed,
            exit,
            start,
            steps,
            key,
            orders,
            hold,
            _listener: listener,
        }))
    }
}

/// Calls off what it was given to, when it is dropped.
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is needed once the process has ended.
struct Watched {
    directory: PathBuf,
    slot: Slot,
    killed: Arc<AtomicBool>,
    /// Its memory is a file on the host's disk.
    resumed: bool,
    captures: Mutex<Option<(Option<Capture>, Option<Capture>)>>,
}

impl Watched {
    async fn ended(self, watcher: Watch) -> VmExit {
        let status = watcher.ended().await;
        let clearing = spawn_blocking(move || self.conclude(status));
        clearing.await.unwrap_or_else(|error| VmExit::Crashed { message: error.to_string() })
    }

    /// Finds out why it ended and removes what is left. Blocks.
    fn conclude(self, status: Status) -> VmExit {
        let name = self.slot.cgroup_name();
        let on_tmpfs = rustix::fs::statfs(&self.directory).is_ok_and(|found| found.f_type == TMPFS);
        let cgroups = self.slot.cgroups();
        let oom_kills = cgroups.map_or(0, |cgroups| cgroups.slot(&name).oom_kills());
        clear(&self.directory, cgroups, &name);
        let captures = self.captures.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (output, console) = captures.unwrap_or_default();
        let tail =
            |capture: Option<Capture>| capture.map(|capture| capture.tail()).unwrap_or_default();
        let (output, console) = (tail(output), tail(console));
        debug!(directory = %self.directory.display(), ?status, oom_kills, output, console, "VM process ended");
        let exit = why(status, self.killed.load(Ordering::Relaxed), oom_kills, &output, &console);
        match exit {
            VmExit::Crashed { .. } if self.resumed && status == Status::Killed(libc::SIGBUS) => {
                lost_memory(on_tmpfs)
            }
            exit => exit,
        }
    }
}

/// What a kernel writes to its console, however quiet, before it resets or powers off.
const SWITCHED_OFF: &str = "reboot: ";
/// What QEMU says when somebody on the host ends it.
const TOLD_TO_END: &str = "terminating on signal";
/// A page of memory that lies in a file could not be had. On tmpfs that is for want of room: there
/// also what was empty when the machine was saved takes some as soon as it is read. How full it was
/// can't be seen any more: the file went with the process.
fn lost_memory(on_tmpfs: bool) -> VmExit {
    let what = "the machine was resumed, and its memory lies in the file that it was saved to";
    if on_tmpfs {
        let message = format!(
            "the disk of the host is full: {what}, on tmpfs, where it needs room; free space, or keep \
                               the data directory on a disk"
        );
        return VmExit::DiskFull { message };
    }
    VmExit::Crashed {
        message: format!(
            "{what}, which can't be read any more (SIGBUS): see the host's kernel log"
        ),
    }
}

/// What `statfs` calls tmpfs.
const TMPFS: i64 = 0x0102_1994;

/// Why a VM process has ended. Pure.
fn why(status: Status, killed: bool, oom_kills: u64, output: &str, console: &str) -> VmExit {
    if killed {
        return VmExit::Ended;
    }
    let crashed = |message: String| VmExit::Crashed { message };
    match status {
        _ if oom_kills > 0 => VmExit::HostOom,
        _ if console.contains("Kernel panic") => crashed(console.to_owned()),
        // It takes the signals that end programs for a wish of whoever runs it.
        Status::Exited(0) if output.contains(TOLD_TO_END) => crashed(output.to_owned()),
        Status::Exited(0) => VmExit::Ended,
        // No child of this server: the kernel's last words tell whether it was told to end.
        Status::Unknown if console.contains(SWITCHED_OFF) => VmExit::Ended,
        Status::Unknown if output.is_empty() => {
            crashed("the VM process ended, and nobody knows how".to_owned())
        }
        Status::Unknown => crashed(output.to_owned()),
        Status::Exited(code) if output.is_empty() => {
            crashed(format!("QEMU ended with code {code}"))
        }
        Status::Exited(_) => crashed(output.to_owned()),
        Status::Killed(signal) => {
            crashed(format!("QEMU was killed by signal {signal} {output}").trim().to_owned())
        }
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn pid(&self) -> u32 {
        self.process.id.pid
    }

    fn start(&self) -> &Start {
        &self.start
    }

    fn start_steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        Ok(Box::new(socket::connect(&self.directory, CONTROL_SOCKET).await?))
    }

    fn can_save(&self) -> bool {
        self.key.is_some()
    }

    async fn save(&self, file: &Path, overlay: &Path, memory: u64) -> Result<(), VmmError> {
        let older = || VmmError::NotSaved {
            reason: "it was started by an older server; restart it".to_owned(),
        };
        let key = self.key.clone().ok_or_else(older)?;
        // Set when nobody waits any more.
        let cancelled = Cancelled(Arc::default());
        let called_off = cancelled.0.clone();
        let (directory, file, overlay) =
            (self.directory.clone(), file.to_owned(), overlay.to_owned());
        let (turn, process, uid) =
            (self.orders.turn().await, self.process.clone(), self.slot.uid());
        let saving = spawn_blocking(move || {
            let _turn = turn;
            let vm = suspend::Standing { process: &process, directory: &directory, uid, memory };
            vm.save(&file, &key, &overlay, &called_off)
        });
        saving.await.map_err(panicked)?
    }

    async fn go_on(&self) -> Result<(), VmmError> {
        let (directory, turn) = (self.directory.clone(), self.orders.turn().await);
        let going = spawn_blocking(move || {
            let _turn = turn;
            suspend::go_on(&directory)
        });
        going.await.map_err(panicked)?
    }

    fn hold(&self) -> watch::Receiver<Option<Hold>> {
        self.hold.clone()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.killed.store(true, Ordering::Relaxed);
        self.process.kill().map_err(VmmError::io(format!("kill the VM process {}", self.pid())))
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The watching task ends only after it has told.
        ended.unwrap_or(VmExit::Ended)
    }

    async fn memory_used(&self) -> Result<u64, VmmError> {
        let process = self.process.clone();
        let read = spawn_blocking(move || process.memory()).await.map_err(panicked)?;
        read.map_err(VmmError::io(format!("read the memory of VM process {}", self.pid())))
    }

    async fn cpu_used(&self) -> Result<Duration, VmmError> {
        self.process
            .cpu()
            .map_err(VmmError::io(format!("read the CPU time of VM process {}", self.pid())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SlotPoolConfig;

    #[test]
    fn a_vm_on_its_way_out_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let config = SlotPoolConfig {
            directory: directory.path().join("slots"),
            ..SlotPoolConfig::default()
        };
        let slots = SlotPool::open_without_cgroups(config).unwrap();
        // By this process, which counts as none.
        let held = lock::try_lock(directory.path()).unwrap().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(LOOK_AGAIN * 10);
            drop(held);
        });
        assert!(find(directory.path(), &slots, "m").unwrap().is_none());
        holder.join().unwrap();
    }

    #[test]
    fn memory_of_a_resumed_machine_that_could_not_be_had_is_told_as_that() {
        let full = lost_memory(true);
        assert!(
            matches!(&full, VmExit::DiskFull { message } if message.contains("disk of the host is full")),
            "{full:?}"
        );
        let other = lost_memory(false);
        assert!(
            matches!(&other, VmExit::Crashed { message } if message.contains("can't be read")),
            "{other:?}"
        );
    }

    #[test]
    fn the_end_of_a_vm_is_explained() {
        let crashed = |message: &str| VmExit::Crashed { message: message.to_owned() };
        for (status, killed, ooms, output, console, expected) in [
            (Status::Exited(0), false, 0, "", "", VmExit::Ended),
            (
                Status::Exited(0),
                false,
                0,
                "terminating on signal 15",
                "",
                crashed("terminating on signal 15"),
            ),
            (Status::Killed(9), true, 0, "", "", VmExit::Ended),
            (Status::Killed(9), false, 1, "", "", VmExit::HostOom),
            (Status::Killed(9), false, 0, "", "", crashed("QEMU was killed by signal 9")),
            (Status::Exited(1), false, 0, "no such device", "", crashed("no such device")),
            (Status::Exited(1), false, 0, "", "", crashed("QEMU ended with code 1")),
            (Status::Exited(0), false, 0, "", "Kernel panic - x", crashed("Kernel panic - x")),
            (Status::Unknown, false, 0, "a warning", "[ 9.1] reboot: Power down", VmExit::Ended),
            (Status::Unknown, true, 0, "", "", VmExit::Ended),
            (Status::Unknown, false, 0, "a warning", "", crashed("a warning")),
            (
                Status::Unknown,
                false,
                0,
                "",
                "",
                crashed("the VM process ended, and nobody knows how"),
            ),
        ] {
            assert_eq!(why(status, killed, ooms, output, console), expected);
        }
    }
}
