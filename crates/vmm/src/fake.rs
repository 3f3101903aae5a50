//! A driver without VMs: guests that speak the real protocol, and faults on demand. What "runs"
//! outlives the driver's clones, as VMs outlive a server: another [`FakeVmm`] over the same
//! [`FakeHost`] adopts it.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use caddis_guest_protocol::fake::{Behaviour, FakeGuest};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    AgentStream, BegunSnapshot, Capabilities, Disk, Hydration, Isolation, LaunchSpec, Patch, Pause,
    PointInTime, PoolUse, PreparedSnapshot, Seat, Slot, SlotPool, Start, Vm, VmExit, Vmm, VmmError,
    VolumeDisk, VolumeExport, disk, volume,
};

mod volumes;

use volumes::Snapshots;
pub use volumes::{VolumeCall, create_volume, snapshot_socket};

/// How the driver misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// So many launches fail.
    pub failing_launches: usize,
    /// A launch takes this long.
    pub launch_delay: Duration,
    /// A warm VM is there for each start.
    pub pool: bool,
    /// So many VMs can't be saved.
    pub failing_saves: usize,
    /// Saving takes this long.
    pub save_delay: Duration,
    /// A VM process takes this long to be gone once it was killed.
    pub death_delay: Duration,
    /// No snapshot can be resumed from.
    pub failing_resumes: bool,
    /// VMs that are paused stay so, whoever has them go on.
    pub disk_stays_full: bool,
    /// So many launches with volumes fail because one can't be opened.
    pub failing_volumes: usize,
    /// So many volumes can't be resized.
    pub failing_resizes: usize,
    /// So many snapshots can't be begun.
    pub failing_snapshots: usize,
    /// Beginning a snapshot takes this long.
    pub snapshot_delay: Duration,
    /// So many clones of volumes fail.
    pub failing_clones: usize,
    /// The file system of the volumes has no reflinks.
    pub no_reflinks: bool,
    /// How guests behave that are launched from now on.
    pub guest: Behaviour,
}

/// What runs on the fake host.
#[derive(Clone, Default)]
pub struct FakeHost {
    running: Arc<Mutex<HashMap<String, Arc<FakeVm>>>>,
    faults: Arc<Mutex<Faults>>,
    launches: Arc<AtomicUsize>,
    collisions: Arc<AtomicUsize>,
    /// Where guests run; the caller's runtime when there is none.
    runtime: Option<Handle>,
    /// Guests as they were saved, by the file's path.
    snapshots: Arc<Mutex<HashMap<PathBuf, FakeGuest>>>,
    /// Machine, volume and size of each resize.
    resizes: Arc<Mutex<Vec<(String, u8, u64)>>>,
    /// Machine and what was asked of its volumes.
    volume_calls: Arc<Mutex<Vec<volumes::Asked>>>,
    /// How far volumes are, by machine and number.
    hydrations: Arc<Mutex<HashMap<(String, u8), Hydration>>>,
}

impl FakeHost {
    /// One whose guests go on when the runtime ends that a driver was used in, as VMs outlive their
    /// server.
    pub fn on(runtime: Handle) -> Self {
        Self { runtime: Some(runtime), ..Self::default() }
    }

    /// How often a second VM of a machine was to be launched while the first was there.
    pub fn collisions(&self) -> usize {
        self.collisions.load(Ordering::Relaxed)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(work)),
            None => drop(tokio::spawn(work)),
        }
    }

    /// From now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock() = faults;
    }

    /// How many VMs were launched so far.
    pub fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }

    /// Machines whose VM runs.
    pub fn running(&self) -> Vec<String> {
        self.running.lock().keys().cloned().collect()
    }

    /// The guest of a machine.
    pub fn guest(&self, machine_id: &str) -> Option<FakeGuest> {
        self.running.lock().get(machine_id).map(|vm| vm.guest.clone())
    }

    /// What volumes were resized to, in order: number and bytes.
    pub fn resizes(&self, machine_id: &str) -> Vec<(u8, u64)> {
        let all = self.resizes.lock();
        all.iter().filter(|(id, ..)| id == machine_id).map(|(_, index, to)| (*index, *to)).collect()
    }

    /// Ends a machine's VM as nobody asked for.
    pub fn crash(&self, machine_id: &str, exit: VmExit) {
        let crashed = self.running.lock().remove(machine_id);
        if let Some(vm) = crashed {
            vm.let_go();
            vm.exit.send_replace(Some(exit));
            vm.guest.kill();
        }
    }

    /// Has a machine's VM stand still, or not any more.
    pub fn pause(&self, machine_id: &str, pause: Option<Pause>) {
        if let Some(vm) = self.running.lock().get(machine_id) {
            vm.pause.send_replace(pause);
        }
    }

    /// Ends all VMs, as a reboot of the host does.
    pub fn power_cycle(&self) {
        for machine in self.running() {
            self.crash(&machine, VmExit::Ended);
        }
        self.running.lock().clear();
    }
}

/// The driver.
#[derive(Clone)]
pub struct FakeVmm {
    host: FakeHost,
    slots: SlotPool,
}

impl FakeVmm {
    /// A driver on that host.
    pub fn new(host: FakeHost, slots: SlotPool) -> Self {
        Self { host, slots }
    }
}

struct FakeVm {
    host: FakeHost,
    machine_id: String,
    directory: PathBuf,
    /// Held open until it ends.
    volumes: Mutex<Vec<VolumeDisk>>,
    snapshots: Mutex<HashMap<u8, Snapshots>>,
    slot: Slot,
    start: Start,
    guest: FakeGuest,
    exit: watch::Sender<Option<VmExit>>,
    pause: watch::Sender<Option<Pause>>,
}

impl FakeHost {
    /// Has a guest run as the VM of a machine.
    fn run(
        &self,
        spec: LaunchSpec,
        slot: Slot,
        start: Start,
        guest: FakeGuest,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let (exit, pause) = (watch::Sender::new(None), watch::Sender::new(None));
        let LaunchSpec { machine_id, directory, volumes, .. } = spec;
        let vm = Arc::new(FakeVm {
            host: self.clone(),
            machine_id: machine_id.clone(),
            directory,
            volumes: Mutex::new(volumes),
            snapshots: Mutex::default(),
            slot,
            start,
            guest,
            exit,
            pause,
        });
        {
            let mut running = self.running.lock();
            if running.contains_key(&machine_id) {
                self.collisions.fetch_add(1, Ordering::Relaxed);
                return Err(VmmError::AlreadyRunning { machine_id });
            }
            running.insert(machine_id, vm.clone());
        }
        self.launches.fetch_add(1, Ordering::Relaxed);
        let (host, ended) = (self.clone(), vm.clone());
        self.spawn(async move {
            ended.guest.powered_off().await;
            let delay = host.faults.lock().death_delay;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            // Whoever hears of its end may launch the next.
            ended.let_go();
            host.running.lock().retain(|_, vm| !Arc::ptr_eq(vm, &ended));
            ended.exit.send_if_modified(|exit| {
                exit.is_none() && exit.insert(VmExit::Ended) == &VmExit::Ended
            });
        });
        Ok(vm)
    }

    /// The guest that was saved to this file, which is used up.
    fn resume(&self, file: &Path) -> Option<FakeGuest> {
        let whole = fs::read(file).is_ok_and(|content| content == SNAPSHOT);
        let usable = whole && !self.faults.lock().failing_resumes;
        // Whatever is in it: it is tried once.
        let _ = fs::remove_file(file);
        let _runtime = self.runtime.as_ref().map(Handle::enter);
        self.snapshots.lock().remove(file).filter(|_| usable).map(|guest| guest.restored())
    }
}

/// What a fake snapshot holds.
const SNAPSHOT: &[u8] = b"fake snapshot";

fn snapshot(directory: &Path) -> PathBuf {
    directory.join("memory.snapshot")
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> Capabilities {
        Capabilities { isolation: Isolation::Emulated, snapshot: true }
    }

    async fn check(&self) -> Result<(), VmmError> {
        Ok(())
    }

    fn create_disk(&self, disk: &Disk, _patches: &[Patch]) -> io::Result<()> {
        fs::write(&disk.path, "disk")
    }

    async fn prepare(&self, spec: LaunchSpec) -> Result<Box<dyn Seat>, VmmError> {
        disk::check(&spec.disks)?;
        volume::check(&spec.volumes)?;
        let fits = spec.saved.is_none() && spec.kernel_args.is_empty() && !spec.not_warm;
        let is_warm = fits && self.host.faults.lock().pool;
        Ok(Box::new(FakeSeat { host: self.host.clone(), slot: self.slots.lease()?, spec, is_warm }))
    }

    fn is_saved(&self, directory: &Path) -> bool {
        snapshot(directory).exists()
    }

    fn remove_saved(&self, directory: &Path) -> io::Result<()> {
        match fs::remove_file(snapshot(directory)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn close(&self) {}

    async fn adopt(
        &self,
        machine_id: &str,
        _directory: &Path,
    ) -> Result<Option<Arc<dyn Vm>>, VmmError> {
        Ok(self.host.running.lock().get(machine_id).cloned().map(|vm| vm as Arc<dyn Vm>))
    }
}

struct FakeSeat {
    host: FakeHost,
    slot: Slot,
    spec: LaunchSpec,
    is_warm: bool,
}

#[async_trait]
impl Seat for FakeSeat {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn has_tap(&self) -> bool {
        self.is_warm
    }

    async fn launch(self: Box<Self>, _tap: Option<OwnedFd>) -> Result<Arc<dyn Vm>, VmmError> {
        let Self { host, slot, spec, is_warm } = *self;
        for Disk { path, .. } in &spec.disks {
            fs::metadata(path).map_err(VmmError::io(format!("open {}", path.display())))?;
        }
        host.open_volumes(&spec.volumes)?;
        // It may have died meanwhile.
        if is_warm && host.faults.lock().pool {
            let guest = FakeGuest::new(host.faults.lock().guest.clone());
            return host.run(spec, slot, Start::template(PoolUse::Hit), guest);
        }
        let faults = {
            let mut faults = host.faults.lock();
            let now = faults.clone();
            faults.failing_launches = faults.failing_launches.saturating_sub(1);
            now
        };
        tokio::time::sleep(faults.launch_delay).await;
        if faults.failing_launches > 0 {
            return Err(VmmError::DiedAtStart { message: "told to fail".to_owned() });
        }
        let mut start = Start::template(PoolUse::Off);
        if let Some(saved) = &spec.saved {
            match host.resume(&snapshot(saved)) {
                Some(guest) => return host.run(spec, slot, Start::resume(), guest),
                None => start.reason = "the machine could not be resumed: told to fail".to_owned(),
            }
        }
        host.run(spec, slot, start, FakeGuest::new(faults.guest))
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn start(&self) -> &Start {
        &self.start
    }

    fn start_steps(&self) -> &[(&'static str, Duration)] {
        &[]
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        if self.exit.borrow().is_some() {
            return Err(VmmError::io("connect to a guest")(
                std::io::ErrorKind::ConnectionRefused.into(),
            ));
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let guest = self.guest.clone();
        self.host.spawn(async move { guest.serve(theirs).await });
        Ok(Box::new(ours))
    }

    fn can_save(&self) -> bool {
        true
    }

    async fn save(&self, directory: &Path) -> Result<(), VmmError> {
        let (fails, delay) = {
            let mut faults = self.host.faults.lock();
            let fails = faults.failing_saves > 0;
            faults.failing_saves = faults.failing_saves.saturating_sub(1);
            (fails, faults.save_delay)
        };
        tokio::time::sleep(delay).await;
        if let Some(reason) = self.in_the_way_of_saving() {
            return Err(VmmError::NotSaved { reason });
        }
        if fails {
            return Err(VmmError::NotSaved { reason: "told to fail".to_owned() });
        }
        let file = snapshot(directory);
        fs::write(&file, SNAPSHOT).map_err(VmmError::io("write a fake snapshot"))?;
        self.host.snapshots.lock().insert(file, self.guest.clone());
        Ok(())
    }

    async fn unpause(&self) -> Result<(), VmmError> {
        if !self.host.faults.lock().disk_stays_full {
            self.pause.send_replace(None);
        }
        Ok(())
    }

    async fn resize_volume(&self, index: u8, bytes: u64) -> Result<(), VmmError> {
        self.resize(index, bytes)
    }

    async fn prepare_snapshot(
        &self,
        index: u8,
        point: PointInTime,
    ) -> Result<PreparedSnapshot, VmmError> {
        let PointInTime { id, previous, .. } = point;
        self.prepare(index, id, previous)
    }

    async fn begin_snapshot(
        &self,
        index: u8,
        prepared: PreparedSnapshot,
    ) -> Result<BegunSnapshot, VmmError> {
        let delay = self.host.faults.lock().snapshot_delay;
        tokio::time::sleep(delay).await;
        self.begin(index, prepared)
    }

    async fn export_snapshot(
        &self,
        index: u8,
        begun: BegunSnapshot,
    ) -> Result<VolumeExport, VmmError> {
        self.export(index, begun)
    }

    async fn end_snapshot(&self, index: u8, is_taken: bool) -> Result<(), VmmError> {
        self.end(index, is_taken)
    }

    async fn clone_volume(&self, index: u8, to: OwnedFd) -> Result<(), VmmError> {
        self.clone_to(index, to)
    }

    async fn hydrate(&self, index: u8) -> Result<Hydration, VmmError> {
        self.hydration(index)
    }

    fn pause(&self) -> watch::Receiver<Option<Pause>> {
        self.pause.subscribe()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.guest.kill();
        Ok(())
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        ended.unwrap_or(VmExit::Ended)
    }

    async fn memory_used(&self) -> Result<u64, VmmError> {
        Ok(32 << 20)
    }

    async fn cpu_used(&self) -> Result<Duration, VmmError> {
        Ok(Duration::from_millis(10))
    }
}
