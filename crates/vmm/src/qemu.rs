//! The QEMU driver: one `microvm` process per machine.
//!
//! ```text
//! launch:  lock the directory ▸ record the slot ▸ cgroup ▸ sockets and files as descriptors ▸ fork, drop rights, exec
//!          ▸ record the process
//! adopt:   the lock is held ▸ record ▸ pidfd ▸ slot from the process's own descriptor
//! end:     pidfd ▸ why? ▸ cgroup, sockets, record removed ▸ slot given back
//! ```

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
};
use tracing::{debug, warn};

use crate::{
    AgentStream, Capabilities, Isolation, LaunchSpec, Slot, SlotPool, Vm, VmExit, Vmm, VmmError,
    boot::BootFiles,
    capture::Capture,
    cgroup::{CgroupRoot, Limits},
    lock,
    process::{Process, Spawn, Status, Watch, spawn},
    record::Record,
    socket,
};

mod arguments;

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
    pub const TAP: i32 = 10;
    /// Standard output: where the guest's serial console goes.
    pub const CONSOLE: i32 = 1;
    /// Standard error.
    pub const OUTPUT: i32 = 2;
}

/// Name of the control channel's socket in a machine's directory.
const CONTROL_SOCKET: &str = "control.sock";

/// What a VM process takes beside its guest's memory, bytes: QEMU itself with its translation cache of 64 MiB under
/// emulation, page cache and kernel memory. See ARCHITECTURE.md for the measurement.
const OVERHEAD: [(Accelerator, u64); 2] = [(Accelerator::Kvm, 96 << 20), (Accelerator::Emulation, 192 << 20)];

/// Threads beside those of processors: main loop, RCU, workers of the block layer.
const THREADS: u32 = 128;

/// Patience with a killed process.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Emulation,
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
}

/// The driver.
pub struct Qemu {
    config: QemuConfig,
    version: String,
    tsc_khz: u64,
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
    first.map(str::to_owned).ok_or_else(|| unusable("it does not say its version; is it QEMU?".to_owned()))
}

impl Qemu {
    /// A driver. Blocks for about 50 ms to measure the processor's clock.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] when the program can't be run.
    pub fn new(config: QemuConfig) -> Result<Self, VmmError> {
        let version = version(&config.program)?;
        Ok(Self { config, version, tsc_khz: crate::clock::tsc_khz() })
    }

    /// The program's version, in its own words.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn overhead(&self) -> u64 {
        OVERHEAD.iter().find(|(kind, _)| *kind == self.config.accelerator).map_or(0, |(_, bytes)| *bytes)
    }
}

/// What a launch needs, moved to a blocking thread.
struct Launch {
    config: QemuConfig,
    version: String,
    arguments: Vec<String>,
    memory_limit: u64,
    spec: LaunchSpec,
}

/// A process and what watches it.
struct Running {
    process: Process,
    output: Option<Capture>,
    console: Option<Capture>,
}

impl Launch {
    /// Starts the process. On error nothing is left behind.
    fn run(&self) -> Result<Running, VmmError> {
        let directory = &self.spec.directory;
        let already = || VmmError::AlreadyRunning { machine_id: self.spec.machine_id.clone() };
        // Held until after the fork, so that no other child of this process inherits the lock.
        let _guard = lock::no_fork();
        let lock = lock::try_lock(directory)?.ok_or_else(already)?;
        let slot = &self.spec.slot;
        let mut record = Record::new(&self.spec.machine_id, slot.index(), &self.version)?;
        record.write(directory)?;
        let started = self.start(&lock).and_then(|running| {
            record.process = Some(running.process.id);
            // A server that is killed before this finds the process by its lock.
            match record.write(directory) {
                Ok(()) => Ok(running),
                Err(error) => {
                    end(&running.process);
                    Err(error)
                }
            }
        });
        if started.is_err() {
            clear(directory, slot.cgroups(), &slot.cgroup_name());
        }
        started
    }

    fn start(&self, lock: &File) -> Result<Running, VmmError> {
        let spec = &self.spec;
        let boot = &self.config.boot;
        let unusable = |reason: &str| VmmError::Unusable { path: "/sys/fs/cgroup".into(), reason: reason.to_owned() };
        let cgroups = spec.slot.cgroups().ok_or_else(|| unusable("these slots have no cgroups"))?;
        let cgroup = cgroups.slot(&spec.slot.cgroup_name());
        let weight = spec.cpu_weight;
        cgroups.ensure()?;
        cgroup.create(Limits { memory: self.memory_limit, cpu_weight: weight, threads: THREADS + spec.vcpus })?;
        let (output, output_writer) = Capture::new("output")?;
        let (console, console_writer) = Capture::new("console")?;
        let control = socket::listen(&spec.directory, CONTROL_SOCKET)?;
        let files = [
            open(&boot.kernel, false)?,
            open(&boot.initrd, false)?,
            open(&spec.root_base, false)?,
            open(&spec.root_overlay, true)?,
        ];
        let mut descriptors = vec![lock.as_fd(), spec.slot.lock()];
        descriptors.extend(files.iter().map(std::os::fd::AsFd::as_fd));
        descriptors.push(control.as_fd());
        descriptors.extend(spec.tap.as_ref().map(OwnedFd::as_fd));
        debug_assert_eq!(descriptor::LOCK + 7, descriptor::TAP, "the descriptors in the order of their numbers");
        let pid = spawn(Spawn {
            program: &self.config.program,
            arguments: &self.arguments,
            uid: spec.slot.uid(),
            groups: &groups(self.config.accelerator),
            cgroups: &cgroup.doors()?,
            descriptors: &descriptors,
            stdout: console_writer,
            stderr: output_writer,
        });
        let pid = pid.map_err(VmmError::io(format!("start {}", self.config.program.display())))?;
        let process = Process::open(pid).map_err(VmmError::io(format!("watch the VM process {pid}")))?;
        Ok(Running { process, output: Some(output), console: Some(console) })
    }
}

/// Groups a VM process needs: with hardware virtualisation the one that may open `/dev/kvm`.
fn groups(accelerator: Accelerator) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt as _;
    match accelerator {
        Accelerator::Kvm => std::fs::metadata("/dev/kvm").map(|device| vec![device.gid()]).unwrap_or_default(),
        Accelerator::Emulation => Vec::new(),
    }
}

fn open(path: &Path, writable: bool) -> Result<File, VmmError> {
    let attempted = format!("open {}", path.display());
    OpenOptions::new().read(true).write(writable).open(path).map_err(VmmError::io(attempted))
}

/// Kills a process and waits for its end.
fn end(process: &Process) {
    // It can't be left running: what is held of it is told in the log.
    if let Err(error) = process.kill().and_then(|()| process.wait_blocking(KILL_DEADLINE)) {
        warn!(pid = process.id.pid, %error, "can't end a VM process");
    }
}

/// Removes what a VM that is gone has left.
fn clear(directory: &Path, cgroups: Option<&CgroupRoot>, cgroup: &str) {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        warn!(directory = %directory.display(), %error, "can't remove the {what} of a VM that is gone");
    };
    if let Some(cgroups) = cgroups {
        let cgroup = cgroups.slot(cgroup);
        // The last process may take a moment to leave it after its end was told.
        let mut removed = cgroup.remove();
        for _ in 0..50 {
            if removed.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
            removed = cgroup.remove();
        }
        if let Err(error) = removed {
            failed("cgroup", &error);
        }
    }
    if let Err(error) = socket::remove(directory, CONTROL_SOCKET) {
        failed("socket", &error);
    }
    if let Err(error) = Record::remove(directory) {
        failed("record", &error);
    }
}

fn panicked(error: JoinError) -> VmmError {
    VmmError::io("run a blocking task")(io::Error::other(error))
}

#[async_trait]
impl Vmm for Qemu {
    fn capabilities(&self) -> Capabilities {
        let isolation = match self.config.accelerator {
            Accelerator::Kvm => Isolation::Hardware,
            Accelerator::Emulation => Isolation::Emulated,
        };
        Capabilities { isolation, snapshot: false, balloon: false }
    }

    async fn check(&self) -> Result<(), VmmError> {
        for path in [&self.config.program, &self.config.boot.kernel, &self.config.boot.initrd] {
            if let Err(error) = tokio::fs::metadata(path).await {
                let reason = format!("{error}; restart the server to make it anew");
                return Err(VmmError::Unusable { path: path.clone(), reason });
            }
        }
        Ok(())
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Vm>, VmmError> {
        let shape = arguments::Shape {
            machine_id: &spec.machine_id,
            accelerator: self.config.accelerator,
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            mac: &spec.mac,
            has_tap: spec.tap.is_some(),
            tsc_khz: self.tsc_khz,
            kernel_args: &spec.kernel_args,
        };
        let launch = Launch {
            arguments: arguments::arguments(&shape),
            config: self.config.clone(),
            version: self.version.clone(),
            memory_limit: (spec.memory_mib << 20) + self.overhead(),
            spec,
        };
        let vm = spawn_blocking(move || {
            let running = launch.run()?;
            let LaunchSpec { directory, slot, .. } = launch.spec;
            Ok((running, directory, slot))
        });
        let (running, directory, slot) = vm.await.map_err(panicked)??;
        QemuVm::watch(running, directory, slot)
    }

    async fn adopt(&self, machine_id: &str, directory: &Path) -> Result<Option<Arc<dyn Vm>>, VmmError> {
        let (owned, slots, id) = (directory.to_owned(), self.config.slots.clone(), machine_id.to_owned());
        let found = spawn_blocking(move || find(&owned, &slots, &id)).await.map_err(panicked)??;
        found.map(|(running, slot)| QemuVm::watch(running, directory.to_owned(), slot)).transpose()
    }
}

/// The VM process that holds a directory's lock, if one does; what a dead one left is removed.
fn find(directory: &Path, slots: &SlotPool, machine_id: &str) -> Result<Option<(Running, Slot)>, VmmError> {
    if !directory.exists() {
        return Ok(None);
    }
    let record = Record::read(directory);
    {
        let _guard = lock::no_fork();
        if let Some(_lock) = lock::try_lock(directory)? {
            // Nobody runs. The slot may be another's by now; its cgroup is removed only while we hold it.
            let slot = record.as_ref().and_then(|record| slots.lease_exact(record.slot).ok().flatten());
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
            let first = holders.first().ok_or_else(|| io::Error::other("its lock is held, but by no process"));
            let pid = *first.map_err(VmmError::io(attempted()))?;
            Process::open(pid).map_err(VmmError::io(attempted()))?
        }
    };
    let pid = process.id.pid;
    let attempted = || format!("adopt the VM process {pid} of machine {machine_id}");
    let index = record.ok_or_else(|| io::Error::other("its record is lost")).map_err(VmmError::io(attempted()))?.slot;
    let held = process.descriptor(descriptor::SLOT).map_err(VmmError::io(attempted()))?;
    let slot = slots.adopt(index, held)?;
    let capture = |number| Capture::adopt(pid, number).ok();
    let (output, console) = (capture(descriptor::OUTPUT), capture(descriptor::CONSOLE));
    Ok(Some((Running { process, output, console }, slot)))
}

struct QemuVm {
    process: Arc<Process>,
    slot: Slot,
    directory: PathBuf,
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
}

impl QemuVm {
    /// Begins to watch a process.
    fn watch(running: Running, directory: PathBuf, slot: Slot) -> Result<Arc<dyn Vm>, VmmError> {
        let process = Arc::new(running.process);
        let watcher = process.watch().map_err(VmmError::io(format!("watch the VM process {}", process.id.pid)))?;
        let (sender, exit) = watch::channel(None);
        let killed = Arc::new(AtomicBool::new(false));
        let captures = Mutex::new(Some((running.output, running.console)));
        let watched = Watched { directory: directory.clone(), slot: slot.clone(), killed: killed.clone(), captures };
        tokio::spawn(async move { sender.send_replace(Some(watched.ended(watcher).await)) });
        Ok(Arc::new(Self { process, slot, directory, killed, exit }))
    }
}

/// What is needed once the process has ended.
struct Watched {
    directory: PathBuf,
    slot: Slot,
    killed: Arc<AtomicBool>,
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
        let cgroups = self.slot.cgroups();
        let oom_kills = cgroups.map_or(0, |cgroups| cgroups.slot(&name).oom_kills());
        clear(&self.directory, cgroups, &name);
        let captures = self.captures.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (output, console) = captures.unwrap_or_default();
        let tail = |capture: Option<Capture>| capture.map(|capture| capture.tail()).unwrap_or_default();
        let (output, console) = (tail(output), tail(console));
        debug!(directory = %self.directory.display(), ?status, oom_kills, output, console, "VM process ended");
        why(status, self.killed.load(Ordering::Relaxed), oom_kills, &output, &console)
    }
}

/// Why a VM process has ended. Pure.
fn why(status: Status, killed: bool, oom_kills: u64, output: &str, console: &str) -> VmExit {
    if killed {
        return VmExit::Ended;
    }
    let crashed = |message: String| VmExit::Crashed { message };
    match status {
        _ if oom_kills > 0 => VmExit::HostOom,
        _ if console.contains("Kernel panic") => crashed(console.to_owned()),
        Status::Exited(0) | Status::Unknown => VmExit::Ended,
        Status::Exited(code) if output.is_empty() => crashed(format!("QEMU ended with code {code}")),
        Status::Exited(_) => crashed(output.to_owned()),
        Status::Killed(signal) => crashed(format!("QEMU was killed by signal {signal} {output}").trim().to_owned()),
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

    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        Ok(Box::new(socket::connect(&self.directory, CONTROL_SOCKET).await?))
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
        self.process.cpu().map_err(VmmError::io(format!("read the CPU time of VM process {}", self.pid())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_vm_is_explained() {
        let crashed = |message: &str| VmExit::Crashed { message: message.to_owned() };
        for (status, killed, ooms, output, console, expected) in [
            (Status::Exited(0), false, 0, "", "", VmExit::Ended),
            (Status::Killed(9), true, 0, "", "", VmExit::Ended),
            (Status::Killed(9), false, 1, "", "", VmExit::HostOom),
            (Status::Killed(9), false, 0, "", "", crashed("QEMU was killed by signal 9")),
            (Status::Exited(1), false, 0, "no such device", "", crashed("no such device")),
            (Status::Exited(1), false, 0, "", "", crashed("QEMU ended with code 1")),
            (Status::Exited(0), false, 0, "", "Kernel panic - x", crashed("Kernel panic - x")),
            (Status::Unknown, false, 0, "a warning", "", VmExit::Ended),
        ] {
            assert_eq!(why(status, killed, ooms, output, console), expected);
        }
    }
}
