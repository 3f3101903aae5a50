//! A driver without VMs: guests that speak the real protocol, and faults on demand. What "runs" outlives the driver's
//! clones, as VMs outlive a server: another [`FakeVmm`] over the same [`FakeHost`] adopts it.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use caddis_guest_protocol::fake::{Behaviour, FakeGuest};
use tokio::sync::watch;

use crate::{AgentStream, Capabilities, Isolation, LaunchSpec, Slot, StartKind, Vm, VmExit, Vmm, VmmError};

/// How the driver misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// So many launches fail.
    pub failing_launches: usize,
    /// A launch takes this long.
    pub launch_delay: Duration,
    /// How guests behave that are launched from now on.
    pub guest: Behaviour,
}

/// What runs on the fake host.
#[derive(Clone, Default)]
pub struct FakeHost {
    running: Arc<Mutex<HashMap<String, Arc<FakeVm>>>>,
    faults: Arc<Mutex<Faults>>,
    launches: Arc<AtomicUsize>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeHost {
    /// From now on.
    pub fn set_faults(&self, faults: Faults) {
        *locked(&self.faults) = faults;
    }

    /// How many VMs were launched so far.
    pub fn launches(&self) -> usize {
        self.launches.load(Ordering::Relaxed)
    }

    /// Machines whose VM runs.
    pub fn running(&self) -> Vec<String> {
        locked(&self.running).keys().cloned().collect()
    }

    /// The guest of a machine.
    pub fn guest(&self, machine_id: &str) -> Option<FakeGuest> {
        locked(&self.running).get(machine_id).map(|vm| vm.guest.clone())
    }

    /// Ends a machine's VM as nobody asked for.
    pub fn crash(&self, machine_id: &str, exit: VmExit) {
        if let Some(vm) = locked(&self.running).get(machine_id).cloned() {
            vm.exit.send_replace(Some(exit));
            vm.guest.kill();
        }
    }

    /// Ends all VMs, as a reboot of the host does.
    pub fn power_cycle(&self) {
        for machine in self.running() {
            self.crash(&machine, VmExit::Ended);
        }
        locked(&self.running).clear();
    }
}

/// The driver.
#[derive(Clone, Default)]
pub struct FakeVmm {
    host: FakeHost,
}

impl FakeVmm {
    /// A driver on that host.
    pub fn new(host: FakeHost) -> Self {
        Self { host }
    }
}

struct FakeVm {
    slot: Slot,
    guest: FakeGuest,
    exit: watch::Sender<Option<VmExit>>,
}

#[async_trait]
impl Vmm for FakeVmm {
    fn capabilities(&self) -> Capabilities {
        Capabilities { isolation: Isolation::Emulated, snapshot: false, balloon: false }
    }

    async fn check(&self) -> Result<(), VmmError> {
        Ok(())
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Vm>, VmmError> {
        let faults = {
            let mut faults = locked(&self.host.faults);
            let now = faults.clone();
            faults.failing_launches = faults.failing_launches.saturating_sub(1);
            now
        };
        tokio::time::sleep(faults.launch_delay).await;
        if faults.failing_launches > 0 {
            return Err(VmmError::DiedAtStart { message: "told to fail".to_owned() });
        }
        let vm =
            Arc::new(FakeVm { slot: spec.slot, guest: FakeGuest::new(faults.guest), exit: watch::Sender::new(None) });
        {
            let mut running = locked(&self.host.running);
            if running.contains_key(&spec.machine_id) {
                return Err(VmmError::AlreadyRunning { machine_id: spec.machine_id });
            }
            running.insert(spec.machine_id.clone(), vm.clone());
        }
        self.host.launches.fetch_add(1, Ordering::Relaxed);
        let (host, ended) = (self.host.clone(), vm.clone());
        tokio::spawn(async move {
            ended.guest.powered_off().await;
            ended.exit.send_if_modified(|exit| exit.is_none() && exit.insert(VmExit::Ended) == &VmExit::Ended);
            locked(&host.running).retain(|_, vm| !Arc::ptr_eq(vm, &ended));
        });
        Ok(vm)
    }

    async fn adopt(&self, machine_id: &str, _directory: &Path) -> Result<Option<Arc<dyn Vm>>, VmmError> {
        Ok(locked(&self.host.running).get(machine_id).cloned().map(|vm| vm as Arc<dyn Vm>))
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

    fn start_kind(&self) -> &StartKind {
        &StartKind::Template
    }

    fn start_steps(&self) -> &[(&'static str, Duration)] {
        &[]
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        if self.exit.borrow().is_some() {
            return Err(VmmError::io("connect to a guest")(std::io::ErrorKind::ConnectionRefused.into()));
        }
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let guest = self.guest.clone();
        tokio::spawn(async move { guest.serve(theirs).await });
        Ok(Box::new(ours))
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
