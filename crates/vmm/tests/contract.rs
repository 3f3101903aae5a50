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
    Backing, Hydration, LaunchSpec, Passphrase, PointInTime, SlotPool, Vmm, VmmError, VolumeDisk,
    contract::{Fixture, begin},
    fake::{FakeHost, FakeVmm, Faults, VolumeCall, create_volume, snapshot_socket},
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

/// What tests of the worker steer.
#[tokio::test]
async fn a_test_says_how_far_a_restored_volume_is_and_what_fails() {
    let fake = Fake::new();
    let driver = fake.driver().await;
    let file = Arc::new(tempfile::tempfile_in(fake.directory()).unwrap().into());
    let socket = fake.directory().join("backing/nbd.sock");
    let backing = Some(Backing { socket });
    let volume = VolumeDisk { index: 0, file, passphrase: None, size: 1 << 30, backing };
    let spec = LaunchSpec {
        machine_id: "m1".to_owned(),
        directory: fake.directory().to_owned(),
        vcpus: 1,
        memory_mib: 256,
        cpu_weight: 100,
        disks: Vec::new(),
        volumes: vec![volume],
        volume_limits: None,
        mac: "02:00:00:00:00:02".to_owned(),
        kernel_args: Vec::new(),
        not_warm: false,
        saved: None,
    };
    let vm = driver.prepare(spec).await.unwrap().launch(None).await.unwrap();
    let point = |id: &str| PointInTime {
        id: id.to_owned(),
        previous: None,
        fleecing: tempfile::tempfile().unwrap().into(),
        passphrase: None,
    };
    assert!(begin(vm.as_ref(), 0, point("a")).await.is_err(), "it is being restored");
    assert!(vm.save(fake.directory()).await.is_err(), "it is being restored");
    let stalled = Hydration::Stalled { reason: "away".to_owned() };
    for now in [Hydration::Running { done: 1, total: 2 }, stalled, Hydration::Done] {
        fake.host.set_hydration("m1", 0, now.clone());
        assert_eq!(vm.hydrate(0).await.unwrap(), now);
    }
    fake.with(Faults { failing_snapshots: 1, no_reflinks: true, ..Faults::default() });
    assert!(begin(vm.as_ref(), 0, point("b")).await.is_err(), "it was told to fail");
    let export = begin(vm.as_ref(), 0, point("c")).await.unwrap();
    assert_eq!(export.socket, snapshot_socket(fake.directory()));
    let copy = tempfile::tempfile().unwrap().into();
    let error = vm.clone_volume(0, copy).await.unwrap_err();
    assert!(matches!(error, VmmError::Io { source, .. } if source.kind()
        == std::io::ErrorKind::Unsupported));
    vm.end_snapshot(0, true).await.unwrap();
    let calls = fake.host.volume_calls("m1");
    assert_eq!(calls.len(), 12, "{calls:?}");
    assert_eq!(calls.last(), Some(&VolumeCall::EndSnapshot { index: 0, is_taken: true }));
    vm.kill().await.unwrap();
    vm.wait().await;
}
