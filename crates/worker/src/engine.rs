//! The worker as a whole: what its machines share, how it starts, and how it takes in new ones.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use caddis_api::{ApiError, MachineConfig, MachineId, WorkerId, event::MachineEvent};
use caddis_bus::message::MachineRecord;
use caddis_image::{Digest, Progress, ResolvedImage};
use caddis_snapshot::SnapshotStore;
use caddis_vmm::{Vm, Vmm};
use caddis_volume::VolumeStore;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::{
    StepHook, WorkerConfig,
    capacity::Capacity,
    checks::Prober,
    clock::Clock,
    egress::Egress,
    files::MachineFiles,
    host::{Exports, HostNetwork, Images},
    live::RunningVm,
    logs::Logs,
    owner::{Message, Owner, kept, record},
    policies::Policies,
    policy::DRAINED,
    publish::Publisher,
    quarantine,
    row::MachineRow,
    store::Store,
    turns::{Creations, Queues},
    volumes::Volumes,
};

/// Requests a machine's owner may have waiting.
const INBOX: usize = 256;

/// What all machines of a worker share.
pub struct Shared {
    /// Id.
    pub worker: WorkerId,
    /// As configured.
    pub config: WorkerConfig,
    /// Database.
    pub store: Store,
    /// Log files.
    pub logs: Logs,
    /// Way to the gateways.
    pub publisher: Publisher,
    /// Starts VMs.
    pub vmm: Arc<dyn Vmm>,
    /// Gets root disks.
    pub images: Arc<dyn Images>,
    /// Connects them.
    pub network: Arc<dyn HostNetwork>,
    /// Carries out their health checks.
    pub prober: Arc<dyn Prober>,
    /// What is promised to machines.
    pub capacity: Capacity,
    /// The volumes.
    pub volumes: Volumes,
    /// Which connections machines may have.
    pub policies: Policies,
    /// What connections of machines come from.
    pub egress: Egress,
    /// By which it records and waits.
    pub clock: Clock,
    /// What tests have steps do.
    pub hook: Option<Arc<dyn StepHook>>,
    /// Where machines wait for their turn.
    pub queues: Queues,
    /// Machines that are being made.
    pub creations: Creations,
    owners: Mutex<HashMap<MachineId, mpsc::Sender<Message>>>,
    images_in_use: Mutex<HashMap<MachineId, Option<Digest>>>,
    running: Mutex<BTreeMap<MachineId, Arc<dyn Vm>>>,
    draining: AtomicBool,
    tasks: TaskTracker,
}

impl Shared {
    /// What machines of a worker with these parts share.
    pub fn new(
        worker: WorkerId,
        config: WorkerConfig,
        store: Store,
        logs: Logs,
        publisher: Publisher,
        drivers: Drivers,
    ) -> Self {
        let volumes = Volumes::new(&config.directory, &drivers);
        Self {
            worker,
            capacity: Capacity::new(&config),
            queues: Queues::new(&config),
            creations: Creations::default(),
            clock: config.clock.clone(),
            config,
            hook: None,
            store,
            logs,
            publisher,
            vmm: drivers.vmm,
            images: drivers.images,
            network: drivers.network,
            prober: drivers.prober,
            volumes,
            policies: Policies::default(),
            egress: Egress::default(),
            owners: Mutex::default(),
            images_in_use: Mutex::default(),
            running: Mutex::default(),
            draining: AtomicBool::new(false),
            tasks: TaskTracker::new(),
        }
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<MachineId, mpsc::Sender<Message>>> {
        self.owners.lock()
    }

    fn used(&self) -> MutexGuard<'_, HashMap<MachineId, Option<Digest>>> {
        self.images_in_use.lock()
    }

    /// The way to a machine's owner; `None` when it does not exist or is destroyed.
    pub fn owner(&self, machine: &MachineId) -> Option<mpsc::Sender<Message>> {
        self.owners().get(machine).cloned()
    }

    /// The ways to all owners.
    pub fn all_owners(&self) -> Vec<mpsc::Sender<Message>> {
        self.owners().values().cloned().collect()
    }

    /// Gives a machine its owner. `live` is its VM, when one was adopted.
    pub fn adopt(
        self: &Arc<Self>,
        row: MachineRow,
        config: MachineConfig,
        events: Vec<MachineEvent>,
        live: Option<RunningVm>,
    ) -> MachineRecord {
        let (sender, inbox) = mpsc::channel(INBOX);
        let id = row.id.clone();
        self.uses(&id, &row.image);
        self.policies.knows(&row, &config);
        self.egress.knows(&id, &row.addresses);
        {
            let mut owners = self.owners();
            // One that comes when all are ended ends at once.
            if !self.is_ending() {
                owners.insert(id.clone(), sender);
            }
        }
        let owner = Owner::new(self.clone(), row, kept(config), events, inbox, live);
        owner.publish();
        let record = self.publisher.known(owner.record());
        self.tasks.spawn(quarantine::supervise(self.clone(), id, owner));
        record
    }

    /// Shows a machine that is destroyed; it needs no owner.
    pub fn publish_destroyed(&self, row: &MachineRow, events: Vec<MachineEvent>) {
        let events = events.into_iter().map(Arc::new).collect();
        self.publisher.publish(record(self, row, None, &events, &Progress::default(), None));
    }

    /// Ends all owners, each once it is between two steps. VMs stay.
    pub async fn end(&self) {
        self.volumes.end().await;
        self.tasks.close();
        self.owners().clear();
        self.tasks.wait().await;
    }

    /// Whether the owners are being ended.
    pub fn is_ending(&self) -> bool {
        self.tasks.is_closed()
    }

    /// A machine was destroyed: forgets its owner and gives back what it reserved.
    pub fn retire(&self, machine: &MachineId) {
        self.owners().remove(machine);
        self.used().remove(machine);
        self.capacity.release(machine);
        self.detach_volumes(machine);
        self.policies.forget(machine);
        self.logs.close(machine);
    }

    /// A machine's VM, or that it has none any more.
    pub fn runs(&self, machine: &MachineId, vm: Option<Arc<dyn Vm>>) {
        let mut running = self.running.lock();
        match vm {
            Some(vm) => drop(running.insert(machine.clone(), vm)),
            None => drop(running.remove(machine)),
        }
    }

    /// A machine's VM, as its owner has told of it last.
    pub fn vm(&self, machine: &MachineId) -> Option<Arc<dyn Vm>> {
        self.running.lock().get(machine).cloned()
    }

    /// The machines that have a VM, in the order of their ids.
    pub fn running(&self) -> Vec<(MachineId, Arc<dyn Vm>)> {
        let running = self.running.lock();
        running.iter().map(|(id, vm)| (id.clone(), vm.clone())).collect()
    }

    /// A machine needs this image from now on.
    pub fn uses(&self, machine: &MachineId, image: &ResolvedImage) {
        self.used().insert(machine.clone(), image.reference.digest.clone());
    }

    /// The files of a machine.
    pub fn machine_files(&self, machine: &MachineId) -> MachineFiles {
        MachineFiles::of(&self.config.directory, machine)
    }

    /// Digests of images that machines need.
    pub fn images_in_use(&self) -> HashSet<Digest> {
        self.used().values().flatten().cloned().collect()
    }

    /// How many machines use each image, by digest.
    pub fn machines_per_image(&self) -> HashMap<Digest, u64> {
        let mut counts = HashMap::new();
        for digest in self.used().values().flatten() {
            *counts.entry(digest.clone()).or_default() += 1;
        }
        counts
    }

    /// Bytes free on the disk of the worker's directory.
    pub fn free_disk(&self) -> std::io::Result<u64> {
        let stat = nix::sys::statvfs::statvfs(&self.config.directory)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Removes unused images when the disk is nearly full.
    pub async fn make_room(&self) {
        let wanted = self.config.reserved_disk;
        if self.free_disk().is_ok_and(|free| free >= wanted) {
            return;
        }
        if let Err(e) = self.images.collect_garbage(&self.images_in_use(), wanted).await {
            tracing::warn!(error = %e, "can't remove unused images");
        }
    }

    /// Refuses while the host is being drained.
    pub fn check_not_draining(&self) -> Result<(), ApiError> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(ApiError::precondition(DRAINED));
        }
        Ok(())
    }

    /// No machine starts from here on.
    pub fn begin_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.announce();
    }

    /// Tells the gateways that this worker is there.
    pub fn announce(&self) {
        let draining = self.draining.load(Ordering::Relaxed);
        self.publisher.announce(&self.config.region, draining, self.volumes.revision());
    }
}

/// The drivers of a worker.
#[derive(Clone)]
pub struct Drivers {
    /// Starts VMs.
    pub vmm: Arc<dyn Vmm>,
    /// Gets root disks.
    pub images: Arc<dyn Images>,
    /// Connects them.
    pub network: Arc<dyn HostNetwork>,
    /// Carries out their health checks.
    pub prober: Arc<dyn Prober>,
    /// The files of volumes.
    pub volumes: VolumeStore,
    /// Where snapshots of volumes are kept; none are taken without.
    pub snapshots: Option<SnapshotStore>,
    /// How volumes are read for them.
    pub exports: Arc<dyn Exports>,
}
