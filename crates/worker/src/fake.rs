//! For tests and measurements: images and a network that are always there, and health checks that
//! find what they are told.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode, RegionCode};
use caddis_bus::message::ImageSummary;
use caddis_disk::Reserve;
use caddis_guest_protocol::{host::Pace, spec::NetworkSpec};
use caddis_image::{
    Digest, ImageConfig, ImageReference, OwnFile, Progress, ResolvedImage, RootDisk,
};
use caddis_network::{Assignments, DnsQueries, MachineAddresses, MachinePolicy, Refused, Tracked};
use caddis_snapshot::{Location, Options, SnapshotStore, StoreKey};
use caddis_vmm::{
    Patch, SlotPool, VmmError,
    fake::{FakeHost, FakeVmm},
    slot::SlotPoolConfig,
};
use caddis_volume::{InstallationKey, StoreConfig, VolumeError, VolumeStore};
use ipnet::Ipv4Net;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

pub use self::exports::{BLOCK, FakeExports};
pub use crate::adapters::image_error;
use crate::{
    Clock, Drivers, Finding, Probe, Prober, WorkerConfig,
    host::{HostNetwork, Images},
};

mod exports;

/// How long the files of volumes may be in use.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A worker that has room for whatever is asked of it. Its directory is `worker` below `directory`.
pub fn config(directory: &Path) -> WorkerConfig {
    WorkerConfig {
        directory: directory.join("worker"),
        region: RegionCode::from_trusted("local"),
        ipv4_pool: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
        memory_mib: Some(1 << 30),
        cpu_overcommit: 1e6,
        memory_overcommit: 1.0,
        disk_overcommit: 1e6,
        volume_reserve: None,
        volume_throttle: false,
        restart_concurrency: 4,
        launch_concurrency: 1024,
        log_bytes_per_machine: 1 << 20,
        reserved_disk: 0,
        destroyed_retention: Duration::from_secs(3600),
        guest_pace: Pace::default(),
        boot_id: "first".to_owned(),
        clock: Clock::default(),
        reserve: Arc::new(Reserve::none()),
    }
}

/// Drivers of a host that pretends, with slots and snapshots below `directory`. Health checks pass;
/// of what volumes hold only zeroes are read for snapshots.
///
/// # Errors
/// When the directory of the slots or of the volumes can't be used.
pub fn drivers(
    directory: &Path,
    slots: u32,
    vms: &FakeHost,
    network: &FakeNetwork,
    images: impl Images,
) -> io::Result<Drivers> {
    let slots = slots_of(directory, slots).map_err(io::Error::other)?;
    Ok(Drivers {
        vmm: Arc::new(FakeVmm::new(vms.clone(), slots)),
        images: Arc::new(images),
        network: Arc::new(network.clone()),
        prober: Arc::new(FakeProber::default()),
        volumes: volumes(directory, |_| ())?,
        snapshots: Some(snapshot_store(directory)?),
        exports: Arc::new(FakeExports::default()),
    })
}

/// The files of volumes below `directory`, with a configuration that is changed. What an earlier
/// worker of this process still does with them is waited for.
///
/// # Errors
/// When the directory can't be used.
pub fn volumes(directory: &Path, change: impl FnOnce(&mut StoreConfig)) -> io::Result<VolumeStore> {
    let key = InstallationKey::new([7; 32], "fake");
    let mut config = StoreConfig::new(directory.join("volumes"), key);
    change(&mut config);
    let begun = Instant::now();
    loop {
        match VolumeStore::open(config.clone()) {
            Err(VolumeError::StoreInUse(_)) if begun.elapsed() < TIMEOUT => {
                thread::sleep(Duration::from_millis(1));
            }
            opened => return opened.map_err(io::Error::other),
        }
    }
}

/// The snapshot store below `directory`, which sweeps also what was just written.
///
/// # Errors
/// When its directory can't be used.
pub fn snapshot_store(directory: &Path) -> io::Result<SnapshotStore> {
    let location = Location::Directory(directory.join("snapshots"));
    let key = StoreKey { bytes: [7; 32].into(), id: "fake".to_owned() };
    let config = caddis_snapshot::StoreConfig { location, key };
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    SnapshotStore::open_with(config, options).map_err(io::Error::other)
}

/// The slots of such a host.
///
/// # Errors
/// When their directory can't be used.
pub fn slots_of(directory: &Path, count: u32) -> Result<SlotPool, VmmError> {
    let directory = directory.join("slots");
    SlotPool::open_without_cgroups(SlotPoolConfig { directory, count, ..SlotPoolConfig::default() })
}

/// One image that is always there, `missing` which isn't, and `broken` which can't be had in the
/// end.
#[derive(Debug, Clone, Copy, Default)]
pub struct FakeImages;

#[async_trait]
impl Images for FakeImages {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ApiError> {
        if reference == "missing" {
            return Err(ApiError::new(
                ErrorCode::ImageUnavailable,
                "image `missing` was not found",
            ));
        }
        Ok(ResolvedImage {
            requested: reference.to_owned(),
            reference: ImageReference {
                digest: Some(Digest::of(b"the image")),
                ..ImageReference::default()
            },
            config: ImageConfig::default(),
            download_size: 1,
            imported: false,
        })
    }

    async fn root_disk(
        &self,
        image: &ResolvedImage,
        _: &watch::Sender<Progress>,
    ) -> Result<RootDisk, ApiError> {
        if image.requested == "broken" {
            return Err(ApiError::new(ErrorCode::ImageUnavailable, "told to fail"));
        }
        Ok(RootDisk { path: "/nowhere".into(), size: 1 })
    }

    fn ready_root_disk(&self, _: &Digest) -> Option<RootDisk> {
        None
    }

    fn knows(&self, _: &str) -> bool {
        true
    }

    fn patches(&self, _: &Path, _: &[OwnFile]) -> std::io::Result<Vec<Patch>> {
        Ok(Vec::new())
    }

    fn unwritten(&self, _: &Path, files: Vec<OwnFile>, _: bool) -> std::io::Result<Vec<OwnFile>> {
        Ok(files)
    }

    async fn import(
        &self,
        _: &str,
        _: Option<&str>,
        _: &watch::Sender<Progress>,
    ) -> Result<ImageSummary, ApiError> {
        Err(ApiError::internal("not here"))
    }

    async fn list(&self) -> Result<Vec<ImageSummary>, ApiError> {
        Ok(Vec::new())
    }

    async fn remove(&self, _: &str, _: &HashSet<Digest>) -> Result<(), ApiError> {
        Ok(())
    }

    async fn collect_garbage(&self, _: &HashSet<Digest>, _: u64) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Taps that are attached.
#[derive(Debug, Clone, Default)]
pub struct FakeNetwork {
    taps: Arc<Mutex<BTreeSet<String>>>,
    refuses_to_adopt: Arc<AtomicBool>,
    policies: Arc<Mutex<Vec<MachinePolicy>>>,
    refuses_policies: Arc<AtomicBool>,
    egress: Arc<Mutex<Assignments>>,
    refused: Arc<watch::Sender<Refused>>,
    tracked: Arc<watch::Sender<Tracked>>,
    dns_queries: Arc<Mutex<HashMap<Ipv6Addr, DnsQueries>>>,
    looks: Arc<watch::Sender<u64>>,
}

impl FakeNetwork {
    /// As by the end of the processes that held them.
    pub fn forget(&self) {
        self.attached().clear();
    }

    /// Those that are attached.
    pub fn taps(&self) -> Vec<String> {
        self.attached().iter().cloned().collect()
    }

    /// Egress addresses that machines have.
    pub fn egress(&self) -> Assignments {
        self.egress.lock().clone()
    }

    /// Has this many connections tracked, from now on, and so many packets dropped.
    pub fn track(&self, tracked: Tracked) {
        self.tracked.send_replace(tracked);
    }

    /// Has time pass until the worker has seen how many are tracked now, and made of it what it
    /// does.
    pub async fn until_looked(&self, clock: &Clock) {
        let looks = || *self.looks.borrow();
        // The first may have begun before; what follows it is over when the second begins.
        let end = looks() + 3;
        while looks() < end {
            clock.advance(Duration::from_secs(60));
            tokio::task::yield_now().await;
        }
    }

    /// Has connections of the machine with this address find no free port.
    pub fn refuse_connections(&self, machine: IpAddr, count: u64) {
        self.refused.send_modify(|refused| *refused.entry(machine).or_default() += count);
    }

    /// Has the machine with this address ask the name server.
    pub fn ask_names(&self, machine: Ipv6Addr, queries: DnsQueries) {
        self.dns_queries.lock().insert(machine, queries);
    }

    /// Has taps that are there already not be connected, as when another program removed them.
    pub fn refuse_to_adopt(&self) {
        self.refuses_to_adopt.store(true, Ordering::Relaxed);
    }

    /// Policies that are in force.
    pub fn policies(&self) -> Vec<MachinePolicy> {
        self.policies.lock().clone()
    }

    /// As by a reboot of the host.
    pub fn lose_policies(&self) {
        self.policies.lock().clear();
    }

    /// Has policies be refused, or no longer.
    pub fn refuse_policies(&self, refused: bool) {
        self.refuses_policies.store(refused, Ordering::Relaxed);
    }

    fn attached(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.taps.lock()
    }
}

#[async_trait]
impl HostNetwork for FakeNetwork {
    async fn attach(&self, tap: &str, _: &MachineAddresses) -> Result<Option<OwnedFd>, ApiError> {
        self.attached().insert(tap.to_owned());
        Ok(None)
    }

    async fn adopt(&self, tap: &str, _: &MachineAddresses) -> Result<(), ApiError> {
        if self.refuses_to_adopt.load(Ordering::Relaxed) {
            return Err(ApiError::internal("there is no such tap"));
        }
        self.attached().insert(tap.to_owned());
        Ok(())
    }

    async fn detach(&self, tap: &str, _: &MachineAddresses) -> Result<(), ApiError> {
        self.attached().remove(tap);
        Ok(())
    }

    async fn set_policies(&self, policies: Vec<MachinePolicy>) -> Result<(), ApiError> {
        if self.refuses_policies.load(Ordering::Relaxed) {
            return Err(ApiError::internal("can't load network policies"));
        }
        *self.policies.lock() = policies;
        Ok(())
    }

    async fn set_egress(&self, wanted: Assignments) -> Result<(), ApiError> {
        *self.egress.lock() = wanted;
        Ok(())
    }

    async fn clear_egress(&self, machine: &MachineAddresses) -> Result<(), ApiError> {
        let own = [IpAddr::from(machine.ipv4), machine.ipv6.into()];
        self.egress.lock().retain(|assignment| !own.contains(&assignment.machine));
        Ok(())
    }

    fn refused(&self) -> Option<watch::Receiver<Refused>> {
        let mut refused = self.refused.subscribe();
        // Nothing from before is missed, as with the real one.
        refused.mark_changed();
        Some(refused)
    }

    fn dns_queries(&self, machine: Ipv6Addr) -> DnsQueries {
        self.dns_queries.lock().get(&machine).copied().unwrap_or_default()
    }

    async fn tracked(&self) -> Result<Tracked, ApiError> {
        self.looks.send_modify(|looks| *looks += 1);
        Ok(*self.tracked.borrow())
    }

    fn guest_spec(&self, _: &MachineAddresses) -> NetworkSpec {
        NetworkSpec::default()
    }
}

/// What a health check finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Answer {
    /// It passes.
    #[default]
    Passes,
    /// It fails, with this said of it.
    Fails(String),
    /// Nothing, ever.
    Hangs,
}

/// Finds what it is told, by the name of the check, and counts the attempts. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct FakeProber(Arc<watch::Sender<HashMap<String, FakeCheck>>>);

#[derive(Debug, Clone, Default)]
struct FakeCheck {
    answer: Answer,
    attempts: u64,
}

impl FakeProber {
    /// Has checks of this name find this from now on.
    pub fn set(&self, name: &str, answer: Answer) {
        self.0.send_modify(|checks| checks.entry(name.to_owned()).or_default().answer = answer);
    }

    /// How often checks of this name were tried.
    pub fn attempts(&self, name: &str) -> u64 {
        self.0.borrow().get(name).map_or(0, |check| check.attempts)
    }

    /// Waits until checks of this name were tried at least so often.
    pub async fn until_tried(&self, name: &str, attempts: u64) {
        let is_tried = |checks: &HashMap<String, FakeCheck>| {
            checks.get(name).is_some_and(|check| check.attempts >= attempts)
        };
        // It fails only without a sender, which this is.
        let _ = self.0.subscribe().wait_for(is_tried).await;
    }
}

#[async_trait]
impl Prober for FakeProber {
    async fn probe(&self, probe: &Probe) -> Finding {
        let mut answer = Answer::default();
        self.0.send_modify(|checks| {
            let check = checks.entry(probe.name.clone()).or_default();
            check.attempts += 1;
            answer = check.answer.clone();
        });
        let subject = probe.subject();
        match answer {
            Answer::Passes => Finding {
                passed: true,
                summary: format!("{subject}: Success"),
                body: String::new(),
            },
            Answer::Fails(why) => Finding::failed(format!("{subject}: {why}")),
            Answer::Hangs => std::future::pending().await,
        }
    }
}
