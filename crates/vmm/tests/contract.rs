//! The fake driver does what every driver has to do.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use caddis_vmm::{
    Passphrase, SlotPool, Vmm,
    contract::Fixture,
    fake::{FakeHost, FakeVmm, Faults, create_volume},
    slot::SlotPoolConfig,
};

struct Fake {
    host: FakeHost,
    slots: SlotPool,
    directory: tempfile::TempDir,
}

impl Fake {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let slots = directory.path().join("slots");
        let config = SlotPoolConfig { directory: slots, count: 8, ..SlotPoolConfig::default() };
        let slots = SlotPool::open_without_cgroups(config).unwrap();
        Self { host: FakeHost::default(), slots, directory }
    }

    fn with(&self, faults: Faults) -> Arc<dyn Vmm> {
        self.host.set_faults(faults);
        Arc::new(FakeVmm::new(self.host.clone(), self.slots.clone()))
    }
}

#[async_trait]
impl Fixture for Fake {
    async fn driver(&self) -> Arc<dyn Vmm> {
        self.with(Faults::default())
    }

    async fn warm_driver(&self) -> Arc<dyn Vmm> {
        self.with(Faults { pool: true, ..Faults::default() })
    }

    fn crash_warm_vms(&self) {
        self.with(Faults::default());
    }

    fn slow_saving(&self) {
        self.with(Faults { save_delay: Duration::from_secs(600), ..Faults::default() });
    }

    fn slots(&self) -> &SlotPool {
        &self.slots
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    async fn volume(&self, name: &str) -> (PathBuf, Passphrase) {
        let passphrase = Passphrase::new(format!("of {name}"));
        let path = self.directory.path().join(format!("{name}.volume"));
        create_volume(&path, &passphrase).unwrap();
        (path, passphrase)
    }

    fn tap(&self, _: &str) -> Option<OwnedFd> {
        None
    }
}

caddis_vmm::driver_contract!(Fake::new());
