//! The warm pool: VMs that were restored from a template and are paused until a machine needs one.
//! All of a start that does not depend on which machine it is lies behind them, and a warm-up of
//! the rest.
//!
//! ```text
//! make:    slot, tap ▸ restore from the template, over the warm-up disk ▸ init warms up ▸ pause
//! attach:  exchange the disks, while the machine's network is connected
//! assign:  resume ▸ the machine's lock ▸ record
//!          ▸ sockets into the machine's directory
//!          ▸ the VM's lock takes the place of the machine's: from here on it is the machine's VM
//! ```
//! A server that is killed before the last step leaves a warm VM, which the next server ends; after
//! it, one that is adopted.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use serde_json::json;
use tokio::{sync::Notify, task::spawn_blocking};
use tracing::{info, warn};

use super::{
    Driver,
    demand::Demand,
    disks::{self, Backing},
    launch::{CONTROL_SOCKET, Launch, QMP_SOCKET, Running, Source, clear},
    panicked,
    qmp::Qmp,
    template::{DEFAULT_SHAPE, Found, build::MAC},
    throttle,
    unassigned::{self, UnassignedVm, WAITING},
    volumes::{self, Guest},
    warm_up::{self, Part, warm_up, warm_up_disk},
};
use crate::{LaunchSpec, PoolUse, Shape, Slot, Start, VmmError, lock, record::Record};

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// So many VMs of all shapes together; with 0 none is kept.
    pub count: usize,
    /// Guest memory of all of them together, MiB.
    pub memory_mib: u64,
}

/// Processor weight until they are machines': of those that people wait for each has at least 100,
/// and when many start at once none of them shall wait for the next ones.
const WEIGHT: u32 = 10;
/// How long the warm-up of a VM may take on a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time after a start until more are made, so as not to be in the way of its program.
const SETTLE_DELAY: Duration = Duration::from_millis(400);
/// After a failure none are made for so long.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// How often it is looked whether fewer would do.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// Those of one shape.
struct WarmVms {
    waiting: Vec<WarmVm>,
    demand: Demand,
}

struct State {
    by_shape: HashMap<Shape, WarmVms>,
    last_start: Option<Instant>,
    failed: Option<Instant>,
}

/// All of a driver.
pub(super) struct Pool {
    limits: PoolLimits,
    state: Mutex<State>,
    changed: Notify,
    number: AtomicU64,
    /// A machine had volumes.
    with_volumes: AtomicBool,
}

/// A VM that waits.
pub(super) struct WarmVm {
    vm: UnassignedVm,
    qmp: Qmp,
    /// How long it took to put the machine's disks behind its devices.
    attaching: Duration,
}

impl Pool {
    pub(super) fn new(limits: PoolLimits) -> Self {
        let state = State { by_shape: HashMap::new(), last_start: None, failed: None };
        Self {
            limits,
            state: Mutex::new(state),
            changed: Notify::new(),
            number: AtomicU64::new(0),
            with_volumes: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Most VMs of a shape that memory allows.
    fn most(&self, shape: Shape) -> usize {
        let by_memory = self.limits.memory_mib.checked_div(shape.memory_mib).unwrap_or(0);
        self.limits.count.min(usize::try_from(by_memory).unwrap_or(usize::MAX))
    }

    /// Takes one for a start. From the first machine with volumes on all are warmed up with one.
    pub(super) fn acquire(&self, shape: Shape, with_volumes: bool) -> Option<WarmVm> {
        self.with_volumes.fetch_or(with_volumes, Ordering::Relaxed);
        let (most, now) = (self.most(shape), Instant::now());
        let mut state = self.state();
        state.last_start = Some(now);
        let warm_vms = state.warm_vms(shape, now);
        let warm_vm = warm_vms.waiting.pop();
        warm_vms.demand.started(warm_vm.is_some(), most, now);
        drop(state);
        self.changed.notify_one();
        warm_vm
    }

    /// What a start that got none says.
    pub(super) fn nothing(&self, shape: Shape) -> PoolUse {
        if self.most(shape) == 0 { PoolUse::Off } else { PoolUse::Empty }
    }

    /// Which shape is short of one, and there is room for it; those that are too many are handed
    /// out, to be ended.
    fn balance(&self) -> (Option<Shape>, Vec<WarmVm>) {
        let now = Instant::now();
        let mut state = self.state();
        // So that the usual one waits before anyone has asked.
        state.warm_vms(DEFAULT_SHAPE, now);
        let (mut surplus, mut short) = (Vec::new(), Vec::new());
        let (mut count, mut memory) = (0, 0);
        for (shape, warm_vms) in &mut state.by_shape {
            let wanted = warm_vms.demand.wanted(self.most(*shape), now);
            surplus.extend(warm_vms.waiting.drain(wanted.min(warm_vms.waiting.len())..));
            count += warm_vms.waiting.len();
            memory += warm_vms.waiting.len() as u64 * shape.memory_mib;
            if warm_vms.waiting.len() < wanted {
                short.push(*shape);
            }
        }
        let failed = state.failed.is_some_and(|at| at.elapsed() < AFTER_FAILURE);
        let room = |shape: &Shape| {
            count < self.limits.count
                && memory + shape.memory_mib <= self.limits.memory_mib
                && !failed
        };
        // The usual one first, then the smallest.
        short.sort_by_key(|shape| (*shape != DEFAULT_SHAPE, *shape));
        (short.into_iter().find(room), surplus)
    }

    fn put(&self, shape: Shape, warm_vm: WarmVm) {
        let now = Instant::now();
        let mut state = self.state();
        let warm_vms = state.warm_vms(shape, now);
        warm_vms.waiting.push(warm_vm);
        let (waiting, wanted) =
            (warm_vms.waiting.len(), warm_vms.demand.wanted(self.most(shape), now));
        drop(state);
        info!(vcpus = shape.vcpus, memory_mib = shape.memory_mib, waiting, wanted, "pool ready");
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.state().by_shape.values().map(|warm_vms| warm_vms.waiting.len()).sum()
    }

    /// Ends all, when none comes any more.
    pub(super) async fn clear(&self) {
        let by_shape = std::mem::take(&mut self.state().by_shape);
        // Ending them blocks.
        let _ = spawn_blocking(move || drop(by_shape)).await;
    }

    /// Time until a start that was just made is left alone.
    fn settled_in(&self) -> Duration {
        let last = self.state().last_start;
        last.map_or(Duration::ZERO, |at| SETTLE_DELAY.saturating_sub(at.elapsed()))
    }
}

impl State {
    fn warm_vms(&mut self, shape: Shape, now: Instant) -> &mut WarmVms {
        let floor = usize::from(shape == DEFAULT_SHAPE);
        self.by_shape
            .entry(shape)
            .or_insert_with(|| WarmVms { waiting: Vec::new(), demand: Demand::new(floor, now) })
    }
}

/// Keeps as many waiting as should, until the driver is closed.
pub(super) async fn keep(driver: Arc<Driver>) {
    while !driver.ending.is_cancelled() {
        let (short, surplus) = driver.pool.balance();
        if !surplus.is_empty() {
            // Ending them blocks.
            let _ = spawn_blocking(move || drop(surplus)).await;
        }
        let made = match short {
            Some(shape) => driver.add(shape).await,
            None => false,
        };
        if !made {
            let changed = tokio::time::timeout(LOOK_INTERVAL, driver.pool.changed.notified());
            driver.ending.run_until_cancelled(changed).await;
        }
    }
}

impl Driver {
    /// Has one more wait. False when it can't be done now.
    async fn add(self: &Arc<Self>, shape: Shape) -> bool {
        // A template that comes later tells.
        if self.template(shape).is_err() {
            return false;
        }
        loop {
            let settled_in = self.pool.settled_in();
            if settled_in.is_zero() {
                break;
            }
            if self.ending.run_until_cancelled(tokio::time::sleep(settled_in)).await.is_none() {
                return false;
            }
        }
        match self.restore_warm(shape).await {
            Ok(warm_vm) => {
                self.pool.put(shape, warm_vm);
                true
            }
            Err(_) if self.ending.is_cancelled() => false,
            Err(error) => {
                warn!(vcpus = shape.vcpus, memory_mib = shape.memory_mib, %error, "no warm VM: \
                    starts take longer");
                self.pool.state().failed = Some(Instant::now());
                false
            }
        }
    }

    /// There may be something to do for the pool.
    pub(super) fn look_at_pool(&self) {
        self.pool.changed.notify_one();
    }

    async fn restore_warm(self: &Arc<Self>, shape: Shape) -> Result<WarmVm, VmmError> {
        let number = self.pool.number.fetch_add(1, Ordering::Relaxed);
        let this = self.clone();
        let restored = spawn_blocking(move || this.restore_unassigned(shape, number))
            .await
            .map_err(panicked)?;
        let (vm, mut qmp, volume) = restored?;
        let part = Part::All { volume };
        let warmed_up = self.ending.run_until_cancelled(warm_up(&vm, part, TIMEOUT)).await;
        // Ending it, where it did not, blocks too.
        let stop = move || {
            warmed_up.unwrap_or_else(|| Err(unassigned::called_off()))?;
            let failed = |error| VmmError::io("prepare a warm VM")(error);
            if volume.is_some() {
                warm_up::detach_volume(&mut qmp).map_err(failed)?;
            }
            qmp.execute("stop", json!({})).map_err(failed)?;
            Ok(WarmVm { vm, qmp, attaching: Duration::ZERO })
        };
        spawn_blocking(stop).await.map_err(panicked)?
    }

    /// Restores a VM, and puts a volume behind its device where one is to be had. Gives the size of
    /// that, too.
    fn restore_unassigned(
        self: &Arc<Self>,
        shape: Shape,
        number: u64,
    ) -> Result<(UnassignedVm, Qmp, Option<u64>), VmmError> {
        let Found::Ready(sealed) = self.templates.find(shape) else {
            return Err(VmmError::NotRestored { message: "its template is gone".to_owned() });
        };
        let slot = self.config.slots.lease()?;
        let name = format!("{WAITING}{number}");
        let directory = self.templates.directory().join(&name);
        let failed = |error| VmmError::io("restore a warm VM")(error);
        unassigned::directory(&directory).map_err(failed)?;
        // Gone, with the directory, whatever fails from here on.
        let mut vm = UnassignedVm {
            running: None,
            tap: None,
            slot: slot.clone(),
            directory: directory.clone(),
        };
        let tap = vm.tap.insert((self.config.tap.0)(&slot.tap_name()).map_err(failed)?);
        let disk = warm_up_disk(&self.config.boot.warm_up_disk).map_err(failed)?;
        let launch = Launch {
            driver: self,
            name: &name,
            directory: &directory,
            slot: &slot,
            shape,
            cpu_weight: WEIGHT,
            disks: Backing::WarmUp(&disk),
            volumes: &[],
            volume_limits: None,
            modules: self.modules(),
            tap: Some(tap.as_fd()),
            mac: MAC,
            kernel_args: &[],
            source: Source::Template(&sealed),
            kind: Start::template(PoolUse::Hit),
        };
        let restored = launch.run();
        match &restored {
            Err(VmmError::NotRestored { message }) => {
                self.templates.discard(shape, &self.key(shape, &[]), message)
            }
            Ok(_) => self.templates.prove(shape),
            Err(_) => {}
        }
        let running = vm.running.insert(restored?);
        let mut qmp = Qmp::connect(&running.process, &directory, QMP_SOCKET).map_err(failed)?;
        let image = &self.config.boot.warm_up_volume;
        let with_volumes = self.pool.with_volumes.load(Ordering::Relaxed);
        let volume = with_volumes.then(|| warm_up::attach_volume(&mut qmp, image));
        let volume = volume.transpose().map_err(failed)?;
        Ok((vm, qmp, volume))
    }
}

impl WarmVm {
    pub(super) fn slot(&self) -> &Slot {
        &self.vm.slot
    }

    /// The server's own copy of its tap, which is there as long as one of them is.
    pub(super) fn take_tap(&mut self) -> Option<OwnedFd> {
        self.vm.tap.take()
    }

    /// Puts a machine's disks and volumes behind its devices. On error it is gone. Blocks.
    pub(super) fn attach(mut self, spec: &LaunchSpec) -> Result<Self, VmmError> {
        let begun = Instant::now();
        if let Some(running) = &self.vm.running {
            disks::exchange(&mut self.qmp, &spec.disks)?;
            volumes::attach(&mut self.qmp, &running.process, &spec.volumes, Guest::IsTold)?;
            throttle::limit(&mut self.qmp, &spec.volumes, spec.volume_limits)?;
        }
        self.attaching = begun.elapsed();
        Ok(self)
    }

    /// Makes it the machine's, whose disks it has. On error it is gone. Blocks.
    pub(super) fn assign(mut self, spec: &LaunchSpec) -> Result<Running, VmmError> {
        let begun = Instant::now();
        let assigned = self.try_assign(spec);
        let mut running = match assigned {
            Ok(()) => self.vm.running.take(),
            // What was already moved goes with what is left; where there is another VM, nothing
            // was.
            Err(error) => {
                if !matches!(error, VmmError::AlreadyRunning { .. }) {
                    clear(&spec.directory, None, "");
                }
                return Err(error);
            }
        };
        let running = running
            .take()
            .ok_or_else(|| VmmError::io("assign a warm VM")(io::ErrorKind::NotFound.into()))?;
        let steps = vec![("attach", self.attaching), ("assign", begun.elapsed())];
        Ok(Running { steps, ..running })
    }

    fn try_assign(&mut self, spec: &LaunchSpec) -> Result<(), VmmError> {
        let Some(running) = &mut self.vm.running else { return Ok(()) };
        let (own, directory) = (&self.vm.directory, &spec.directory);
        let failed = |what: &str| VmmError::io(format!("{what} of machine {}", spec.machine_id));
        if let Some(cgroups) = self.vm.slot.cgroups() {
            cgroups.slot(&self.vm.slot.cgroup_name()).set_cpu_weight(spec.cpu_weight)?;
        }
        self.qmp.execute("cont", json!({})).map_err(failed("resume the VM"))?;
        // Held until the VM's own has taken its place.
        let guard = lock::no_fork();
        let machine = lock::try_lock(directory)?;
        let machine = machine
            .ok_or_else(|| VmmError::AlreadyRunning { machine_id: spec.machine_id.clone() })?;
        let mut record = Record::read(own)
            .ok_or_else(|| failed("read the record of the VM")(io::ErrorKind::NotFound.into()))?;
        record.machine_id.clone_from(&spec.machine_id);
        record.process = Some(running.process.id);
        running.has_volumes = !spec.volumes.is_empty();
        record.has_volumes = running.has_volumes;
        if let (Some(saving), Some(recorded)) = (&mut running.saving, &mut record.saving) {
            saving.disks = disks::files(&spec.disks);
            recorded.disks.clone_from(&saving.disks);
        }
        record.write(directory)?;
        for name in [CONTROL_SOCKET, QMP_SOCKET] {
            fs::rename(own.join(name), directory.join(name)).map_err(failed("move the sockets"))?;
        }
        lock::pass_on(own, directory).map_err(failed("pass on the lock"))?;
        drop((machine, guard));
        Ok(())
    }
}
