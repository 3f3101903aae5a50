//! Starts VM processes, cold or from a template. Blocks.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::runtime::Handle;
use tracing::warn;

use super::{
    Accelerator, Driver, KILL_DEADLINE, arguments, descriptor,
    disks::{self, Backing, open},
    qmp::Qmp,
    snapshot::{self, Snapshot},
    template::{Sealed, file},
    throttle,
    volumes::{self, Guest},
};
use crate::{
    Disk, DiskRole, IoLimits, LaunchSpec, Shape, Slot, Start, VmmError, VolumeDisk,
    capture::Capture,
    cgroup::{CgroupRoot, Limits},
    lock,
    process::{Process, Spawn, spawn},
    record::{Record, Saving},
    socket,
};

/// Name of the control channel's socket in a machine's directory.
pub(super) const CONTROL_SOCKET: &str = "control.sock";
/// Name of the socket that QEMU is told things by.
pub(super) const QMP_SOCKET: &str = "qmp.sock";

/// Name of the socket that volumes are read from while snapshots of them are taken.
pub(super) const NBD_SOCKET: &str = "nbd.sock";

/// Threads beside those of processors: main loop, RCU, workers of the block layer.
const THREADS: u32 = 128;

/// What a VM process takes beside its guest's memory, bytes: QEMU itself with its translation cache
/// of 64 MiB under emulation, page cache and kernel memory. See docs/measurements.md for the
/// measurement.
const OVERHEAD: [(Accelerator, u64); 2] =
    [(Accelerator::Kvm, 96 << 20), (Accelerator::Emulation, 192 << 20)];

/// What a VM's memory is at first.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// This memory, which is empty: it boots.
    Cold(&'a OwnedFd),
    /// A template's.
    Template(&'a Sealed),
    /// What the machine was saved to, and where that is.
    Snapshot(&'a Snapshot, &'a Path),
}

/// One start.
pub(super) struct Launch<'a> {
    pub(super) driver: &'a Driver,
    /// The machine's id, or what else it is for.
    pub(super) name: &'a str,
    pub(super) directory: &'a Path,
    pub(super) slot: &'a Slot,
    pub(super) shape: Shape,
    pub(super) cpu_weight: u32,
    pub(super) disks: Backing<'a>,
    pub(super) volumes: &'a [VolumeDisk],
    pub(super) volume_limits: Option<IoLimits>,
    /// The file with the kernel's modules, where it has some and they are to be reached.
    pub(super) modules: Option<&'a Path>,
    pub(super) tap: Option<BorrowedFd<'a>>,
    pub(super) mac: &'a str,
    pub(super) kernel_args: &'a [String],
    pub(super) source: Source<'a>,
    pub(super) kind: Start,
}

/// A process and what watches it.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) output: Option<Capture>,
    pub(super) console: Option<Capture>,
    pub(super) kind: Start,
    /// What saving it takes.
    pub(super) saving: Option<Saving>,
    /// Whether it has volumes.
    pub(super) has_volumes: bool,
    /// Where the time went.
    pub(super) steps: Vec<(&'static str, Duration)>,
}

impl Launch<'_> {
    /// All arguments of the process.
    pub(super) fn arguments(&self) -> Vec<String> {
        arguments::arguments(&arguments::Shape {
            name: self.name,
            accelerator: self.driver.config.accelerator,
            vcpus: self.shape.vcpus,
            memory_mib: self.shape.memory_mib,
            boots: matches!(self.source, Source::Cold(_)),
            waits: !self.volumes.is_empty(),
            disks: self.driver.disk_arguments(self.modules.is_some(), self.disks.machine()),
            mac: self.mac,
            has_tap: self.tap.is_some(),
            tsc_khz: self.driver.tsc_khz,
            kernel_args: self.kernel_args,
        })
    }

    /// Whether its process needs nothing more from us once it runs.
    fn is_complete(&self) -> bool {
        matches!(self.source, Source::Cold(_)) && self.volumes.is_empty()
    }

    /// Starts the process. On error nothing is left behind.
    pub(super) fn run(&self) -> Result<Running, VmmError> {
        let directory = self.directory;
        let already = || VmmError::AlreadyRunning { machine_id: self.name.to_owned() };
        // Held until after the fork, so that no other child of this process inherits the lock.
        let guard = lock::no_fork();
        let lock = lock::try_lock(directory)?.ok_or_else(already)?;
        let saving = Saving {
            key: self.driver.key(self.shape, self.kernel_args),
            memory: self.shape.memory_mib << 20,
            disks: disks::files(self.disks.machine().unwrap_or_default()),
        };
        let (version, kind) = (&self.driver.version, self.kind.clone());
        let mut record = Record::new(self.name, self.slot.index(), version, kind, saving.clone())?;
        record.has_volumes = !self.volumes.is_empty();
        record.write(directory)?;
        let started = self.start(&lock, saving);
        // Our own copy of the lock would keep it held when the process is gone.
        drop(lock);
        drop(guard);
        let started = started.and_then(|mut running| {
            record.process = Some(running.process.id);
            record.complete = self.is_complete();
            // A server that is killed before this finds the process by its lock.
            match record.write(directory).and_then(|()| self.restore(&mut running, &mut record)) {
                Ok(()) => Ok(running),
                Err(error) => {
                    end(&running.process);
                    Err(error)
                }
            }
        });
        if started.is_err() {
            clear(directory, self.slot.cgroups(), &self.slot.cgroup_name());
        }
        started
    }

    fn start(&self, lock: &File, saving: Saving) -> Result<Running, VmmError> {
        let begun = Instant::now();
        let config = &self.driver.config;
        let unusable = |reason: &str| VmmError::Unusable {
            path: "/sys/fs/cgroup".into(),
            reason: reason.to_owned(),
        };
        let cgroups = self.slot.cgroups().ok_or_else(|| unusable("these slots have no cgroups"))?;
        let cgroup = cgroups.slot(&self.slot.cgroup_name());
        let overhead = OVERHEAD
            .iter()
            .find(|(kind, _)| *kind == config.accelerator)
            .map_or(0, |(_, bytes)| *bytes);
        let memory = (self.shape.memory_mib << 20) + overhead;
        cgroups.ensure()?;
        cgroup.create(Limits {
            memory,
            cpu_weight: self.cpu_weight,
            threads: THREADS + self.shape.vcpus,
        })?;
        let (output, output_writer) = Capture::new("output")?;
        let (console, console_writer) = Capture::new("console")?;
        let control = socket::listen(self.directory, CONTROL_SOCKET)?;
        let qmp = socket::listen(self.directory, QMP_SOCKET)?;
        let mut files = Vec::new();
        if matches!(self.source, Source::Cold(_)) {
            files.push((descriptor::KERNEL, open(&config.boot.kernel, false)?));
            files.push((descriptor::INITRD, open(&config.boot.initrd, false)?));
        }
        files.extend(self.disks.open()?);
        if let Some(modules) = self.modules {
            files.push((descriptor::MODULES, open(modules, false)?));
        }
        let mut descriptors = vec![
            (descriptor::LOCK, lock.as_fd()),
            (descriptor::SLOT, self.slot.lock()),
            (descriptor::CONTROL, control.as_fd()),
            (descriptor::QMP, qmp.as_fd()),
        ];
        descriptors.extend(files.iter().map(|(number, file)| (*number, file.as_fd())));
        if let Backing::WarmUp(memory) = self.disks {
            descriptors.push((descriptor::of_disk(DiskRole::Root)[1], memory.as_fd()));
        }
        descriptors.extend(self.tap.map(|tap| (descriptor::TAP, tap)));
        let memory = match self.source {
            Source::Cold(memory) => memory.as_fd(),
            Source::Template(sealed) => sealed.memory.as_fd(),
            Source::Snapshot(snapshot, _) => {
                // QEMU opens it once more, as whoever it runs as.
                let owner = rustix::fs::Uid::from_raw(self.slot.uid());
                rustix::fs::fchown(snapshot, Some(owner), None)
                    .map_err(|error| VmmError::io("hand on a snapshot")(error.into()))?;
                snapshot.as_fd()
            }
        };
        descriptors.push((descriptor::MEMORY, memory));
        let prepared = begun.elapsed();
        let pid = spawn(Spawn {
            program: &config.program,
            arguments: &self.arguments(),
            uid: self.slot.uid(),
            groups: &groups(config.accelerator),
            cgroups: &cgroup.cgroup_procs()?,
            descriptors: &descriptors,
            stdout: console_writer,
            stderr: output_writer,
        });
        let pid = pid.map_err(VmmError::io(format!("start {}", config.program.display())))?;
        let process =
            Process::open(pid).map_err(VmmError::io(format!("watch the VM process {pid}")))?;
        let steps =
            vec![("prepare", prepared), ("spawn", begun.elapsed().saturating_sub(prepared))];
        Ok(Running {
            process,
            output: Some(output),
            console: Some(console),
            kind: self.kind.clone(),
            saving: Some(saving),
            has_volumes: !self.volumes.is_empty(),
            steps,
        })
    }

    /// Has the process take on what was saved and the volumes, and go on from there.
    fn restore(&self, running: &mut Running, record: &mut Record) -> Result<(), VmmError> {
        if self.is_complete() {
            return Ok(());
        }
        let begun = Instant::now();
        let said = |error: io::Error| {
            let output = running.output.as_ref().map(Capture::tail).unwrap_or_default();
            format!("{error} {output}").trim().to_owned()
        };
        let not_restored = |error| match self.source {
            Source::Cold(_) => VmmError::DiedAtStart { message: said(error) },
            _ => VmmError::NotRestored { message: said(error) },
        };
        let (mut qmp, greeted) = self.take_on(&running.process, begun).map_err(not_restored)?;
        let guest = match self.source {
            Source::Template(_) => Guest::IsTold,
            Source::Cold(_) | Source::Snapshot(..) => Guest::Knows,
        };
        // What was saved is as good as before, when it is a volume that is not.
        volumes::attach(&mut qmp, &running.process, self.volumes, guest)?;
        throttle::limit(&mut qmp, self.volumes, self.volume_limits)?;
        // From here on it is to be kept, and what it was saved to must never be used again, since
        // its disk changes.
        record.complete = true;
        // If this fails, what was saved is as good as before too: the host is at fault.
        record.write(self.directory)?;
        let mut resume = || {
            if let Source::Snapshot(_, path) = self.source {
                fs::remove_file(path)?;
            }
            // It was saved while it stood still, or has waited.
            qmp.execute("cont", json!({})).map(drop)
        };
        resume().map_err(not_restored)?;
        running.steps.push(("qemu", greeted));
        running.steps.push(("restore", begun.elapsed().saturating_sub(greeted)));
        Ok(())
    }

    /// Connects, and has the process take on what was saved. Gives how long connecting took, too.
    fn take_on(&self, process: &Process, begun: Instant) -> io::Result<(Qmp, Duration)> {
        let connect = || Qmp::connect(process, self.directory, QMP_SOCKET);
        let (mut qmp, state) = match self.source {
            Source::Cold(_) => return connect().map(|qmp| (qmp, begun.elapsed())),
            Source::Template(sealed) => (connect()?, file::reopen(&sealed.state)?),
            Source::Snapshot(snapshot, _) => {
                // While QEMU comes up.
                let (checked, qmp) = std::thread::scope(|scope| {
                    let checking = scope.spawn(|| snapshot.verify());
                    let qmp = connect();
                    let panicked = |_| Err(io::Error::other("checking the snapshot panicked"));
                    (checking.join().unwrap_or_else(panicked), qmp)
                });
                checked?;
                let state = file::memory("caddis-state", 0)?;
                File::from(state.try_clone()?).write_all(&snapshot.state)?;
                (qmp?, file::reopen(&state)?)
            }
        };
        let greeted = begun.elapsed();
        qmp.leave_out_shared_memory()?;
        qmp.restore(state.as_fd())?;
        // Before anybody could have it go on.
        if let Source::Template(_) = self.source {
            disks::tell_sizes(&mut qmp, self.disks.machine().unwrap_or_default())?;
        }
        Ok((qmp, greeted))
    }
}

impl Driver {
    /// The disk with the kernel's modules; none where it has none, or they can't be had, which was
    /// told. Blocks while it is made, once per kernel.
    pub(super) fn modules(&self) -> Option<&Path> {
        self.config.boot.modules.as_ref().and_then(|disk| disk.get().ok())
    }

    /// Arguments for the disks of a machine, or of a VM that waits. Every VM of a kernel that has
    /// modules has a disk for them, so that what is saved of one fits all.
    pub(super) fn disk_arguments(
        &self,
        with_modules: bool,
        machine: Option<&[Disk]>,
    ) -> Vec<String> {
        let modules = self.config.boot.modules.as_ref().map(|_| disks::modules(with_modules));
        [modules.unwrap_or_default(), disks::arguments(machine)].concat()
    }

    /// Starts a machine's VM: from what it was saved to, if it was, else from the template, if
    /// there is one. Where neither can be restored, it boots. Blocks.
    pub(super) fn start(
        self: &Arc<Self>,
        spec: &LaunchSpec,
        slot: &Slot,
        tap: Option<BorrowedFd<'_>>,
    ) -> Result<Running, VmmError> {
        let shape = spec.shape();
        let template = match spec.kernel_args[..] {
            [] => self.template(shape),
            _ => Err("kernel_args are not in any template".to_owned()),
        };
        let key = self.key(shape, &spec.kernel_args);
        let start = |source: Source<'_>, kind| {
            let launch = Launch {
                driver: self,
                name: &spec.machine_id,
                directory: &spec.directory,
                slot,
                shape,
                cpu_weight: spec.cpu_weight,
                disks: Backing::Machine(&spec.disks),
                volumes: &spec.volumes,
                volume_limits: spec.volume_limits,
                modules: self.modules(),
                tap,
                mac: &spec.mac,
                kernel_args: &spec.kernel_args,
                source,
                kind,
            };
            launch.run()
        };
        let mut reasons = Vec::new();
        if let Some(saved) = &spec.saved {
            let snapshot = &snapshot::file(saved);
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
            warn!(machine = spec.machine_id, message, "machine not resumed, booting instead");
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
                warn!(machine = spec.machine_id, message, "template not restored, booting instead");
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

/// Groups a VM process needs: with hardware virtualisation the one that may open `/dev/kvm`.
fn groups(accelerator: Accelerator) -> Vec<u32> {
    use std::os::unix::fs::MetadataExt as _;
    match accelerator {
        Accelerator::Kvm => {
            std::fs::metadata("/dev/kvm").map(|device| vec![device.gid()]).unwrap_or_default()
        }
        Accelerator::Emulation => Vec::new(),
    }
}

/// Kills a process and waits for its end.
pub(super) fn end(process: &Process) {
    // It can't be left running: what is held of it is told in the log.
    if let Err(error) = process.kill().and_then(|()| process.wait_blocking(KILL_DEADLINE)) {
        warn!(pid = process.id.pid, %error, "can't kill a VM process");
    }
}

/// Removes what a VM that is gone has left.
pub(super) fn clear(directory: &Path, cgroups: Option<&CgroupRoot>, cgroup: &str) {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        warn!(directory = %directory.display(), %error, "can't remove the {what} of a VM that has \
            ended");
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
    for name in [CONTROL_SOCKET, QMP_SOCKET, NBD_SOCKET] {
        if let Err(error) = socket::remove(directory, name) {
            failed("socket", &error);
        }
    }
    if let Err(error) = Record::remove(directory) {
        failed("record", &error);
    }
}
