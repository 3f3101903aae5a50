//! The QEMU driver does what every driver has to do.
#![allow(clippy::unwrap_used, reason = "a host that can't be set up fails its test")]

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use caddis_network::{Network, NetworkConfig};
use caddis_testkit::{DEADLINE, Host, process};
use caddis_vmm::{
    Accelerator, Passphrase, Qemu, QemuConfig, SlotPool, Vmm,
    boot::{self, BootFiles, BootSource},
    cgroup::CgroupRoot,
    contract::Fixture,
    qemu::{MakeTap, PoolLimits, end_unassigned, kill_machines},
    slot::SlotPoolConfig,
};
use caddis_volume::{
    Filesystem, InstallationKey, NewVolume, SizeGib, StoreConfig, VolumeId, VolumeStore,
};

/// More than a test needs.
const SLOTS: u32 = 16;
/// Beyond the uids that servers lease.
const FIRST_UID: u32 = 601_000;
pub const ONE: PoolLimits = PoolLimits { count: 1, memory_mib: 1024 };
pub const NONE: PoolLimits = PoolLimits { count: 0, memory_mib: 0 };

/// A host with slots of its own, and what drivers need there.
pub struct QemuHost {
    network: Arc<Network>,
    boot: BootFiles,
    slots: SlotPool,
    cgroups: String,
    pub data: PathBuf,
    volumes: OnceLock<VolumeStore>,
    _host: Host,
}

impl QemuHost {
    pub async fn new() -> Self {
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let (number, host) = (HOSTS.fetch_add(1, Ordering::Relaxed), Host::new().await.unwrap());
        let data = host.path("data");
        std::fs::create_dir(&data).unwrap();
        let kernel = caddis_testkit::kernel().unwrap();
        let modules = std::env::var_os("CADDIS_MODULES").map(PathBuf::from);
        let source = BootSource {
            modules: modules.unwrap_or_else(|| kernel.with_file_name("modules")),
            kernel,
            init: caddis_guest_init_image::INIT.into(),
            extra_modules: Vec::new(),
        };
        let cgroups = format!("caddis-test-{}-{number}.slice", std::process::id());
        let slots = SlotPoolConfig {
            directory: host.path("slots"),
            first_uid: FIRST_UID + number * SLOTS,
            count: SLOTS,
            cgroup_parent: cgroups.clone(),
        };
        let network = NetworkConfig {
            state_file: data.join("network.json"),
            data_directory: data.clone(),
            run_directory: caddis_network::RUN_DIRECTORY.into(),
            ipv4_pool: None,
            allowed: Vec::new(),
            egress_pools: Vec::new(),
            dns_upstreams: Vec::new(),
            names: None,
        };
        Self {
            volumes: OnceLock::new(),
            network: Arc::new(Network::start(network).await.unwrap()),
            boot: boot::prepare(&source, &data.join("boot")).unwrap(),
            slots: SlotPool::open(slots).unwrap(),
            cgroups,
            data,
            _host: host,
        }
    }

    fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    /// The store of its volumes. Opened when the network is there: this process, which has taps of
    /// other hosts, would be taken for a VM of this one by the files that it has open.
    pub fn volumes(&self) -> &VolumeStore {
        self.volumes.get_or_init(|| {
            let key = InstallationKey::new([7; 32], "test");
            VolumeStore::open(StoreConfig::new(self.data.join("volumes"), key)).unwrap()
        })
    }

    /// Makes a volume of 1 GiB.
    pub async fn create_volume(
        &self,
        name: &str,
        filesystem: Filesystem,
        encrypted: bool,
    ) -> VolumeId {
        let id: VolumeId = name.parse().unwrap();
        let new = NewVolume {
            id: id.clone(),
            size: SizeGib::new(1).unwrap(),
            filesystem,
            encrypted,
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        self.volumes().create(new).await.unwrap();
        id
    }

    pub fn qemu(&self, pool: PoolLimits) -> Qemu {
        let network = self.network.clone();
        let config = QemuConfig {
            program: "qemu-system-x86_64".into(),
            accelerator: match caddis_testkit::accelerator().as_str() {
                "kvm" => Accelerator::Kvm,
                _ => Accelerator::Emulation,
            },
            boot: self.boot.clone(),
            slots: self.slots.clone(),
            templates: self.templates(),
            pool,
            tap: MakeTap(Arc::new(move |name| network.create_tap(name))),
        };
        Qemu::new(config).unwrap()
    }
}

/// Waits until a driver that keeps warm VMs has one.
pub async fn until_warm(driver: &Qemu) {
    let is_warm = async {
        while driver.warm_vms() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, is_warm).await.unwrap();
}

#[async_trait]
impl Fixture for QemuHost {
    async fn driver(&self) -> Arc<dyn Vmm> {
        Arc::new(self.qemu(NONE))
    }

    async fn warm_driver(&self) -> Arc<dyn Vmm> {
        let driver = self.qemu(ONE);
        driver.keep_warm();
        until_warm(&driver).await;
        Arc::new(driver)
    }

    fn crash_warm_vms(&self) {
        process::holders(&self.templates()).into_iter().for_each(process::end);
    }

    fn slots(&self) -> &SlotPool {
        &self.slots
    }

    fn directory(&self) -> &Path {
        &self.data
    }

    async fn volume(&self, name: &str) -> (PathBuf, Passphrase) {
        let id = self
            .create_volume(&format!("vol_{}", name.replace('-', "")), Filesystem::Raw, true)
            .await;
        let writer = self.volumes().open_writer(&id, "test").await.unwrap();
        let passphrase = writer.key().unwrap().passphrase();
        let path = writer.path().to_owned();
        writer.release();
        (path, Passphrase::new(passphrase.to_string()))
    }

    fn tap(&self, name: &str) -> Option<OwnedFd> {
        Some(self.network.create_tap(name).unwrap())
    }
}

impl Drop for QemuHost {
    /// What a check that failed has left.
    fn drop(&mut self) {
        end_unassigned(&self.templates(), &self.slots);
        let killed = kill_machines(&self.data.join("machines"), &self.slots);
        let cleaned = CgroupRoot::remove(&self.cgroups);
        if !std::thread::panicking() {
            assert_eq!(killed.unwrap(), 0, "VMs are left");
            cleaned.unwrap();
        }
    }
}

caddis_vmm::driver_contract!(QemuHost::new().await);
