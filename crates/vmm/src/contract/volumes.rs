//! Checks that are about volumes.

use std::{fs::OpenOptions, os::fd::OwnedFd};

use rustix::fs::{FlockOperation, flock};

use super::*;
use crate::VolumeExport;

/// Size of the volumes of a fixture.
pub const VOLUME_BYTES: u64 = 1 << 30;

/// Between two looks whether a lock is free: a process that is being started has copies of all
/// descriptors for a moment.
const LOOK: Duration = Duration::from_millis(5);

/// A volume of the fixture, as its worker knows it.
struct Volume {
    path: PathBuf,
    passphrase: Passphrase,
}

impl Volume {
    async fn new(fixture: &dyn Fixture, name: &str) -> Self {
        let (path, passphrase) = fixture.volume(name).await;
        Self { path, passphrase }
    }

    /// Its file, locked, if nobody else has it locked.
    fn try_open(&self) -> Option<OwnedFd> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then(|| file.into())
    }

    async fn open(&self) -> OwnedFd {
        let opened = async {
            loop {
                if let Some(file) = self.try_open() {
                    return file;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        timeout(DEADLINE, opened).await.expect("nobody has the volume any more")
    }

    /// For a launch, locked.
    async fn disk(&self, index: u8) -> VolumeDisk {
        let passphrase = Some(self.passphrase.clone());
        VolumeDisk {
            index,
            file: Arc::new(self.open().await),
            passphrase,
            size: VOLUME_BYTES,
            backing: None,
        }
    }

    /// For a snapshot of another, while nobody else has it: it is empty.
    fn point(&self, id: &str, previous: Option<&str>) -> PointInTime {
        let fleecing = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        PointInTime {
            id: id.to_owned(),
            previous: previous.map(str::to_owned),
            fleecing: fleecing.into(),
            passphrase: Some(self.passphrase.clone()),
        }
    }

    /// For a launch that can't open it.
    async fn locked_up(&self, index: u8) -> VolumeDisk {
        let wrong = Some(Passphrase::new("not it".to_owned()));
        VolumeDisk { passphrase: wrong, ..self.disk(index).await }
    }
}

/// A volume's lock goes to the VM and ends with it, however the VM ends.
pub async fn a_volume_belongs_to_its_vm_as_long_as_that_lives(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let volume = Volume::new(fixture, "one").await;
    let volumes = vec![volume.disk(0).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    answers(&vm).await;
    assert!(volume.try_open().is_none(), "it is the VM's");
    driver.close().await;
    drop(driver);
    assert!(volume.try_open().is_none(), "its server may be gone");
    end(&vm).await;
    drop((volume.open().await, vm));

    let driver = fixture.driver().await;
    let volumes = vec![volume.disk(1).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    session(&vm).await.power_off().await;
    assert_eq!(timeout(DEADLINE, vm.wait()).await.expect("it ends in time"), VmExit::Ended);
    drop(volume.open().await);
    driver.close().await;
}

/// Both volumes of a machine, and none that it does not have.
pub async fn volumes_grow_also_when_the_vm_was_adopted(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let (one, two) = (Volume::new(fixture, "one").await, Volume::new(fixture, "two").await);
    let volumes = vec![two.disk(1).await, one.disk(0).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    vm.resize_volume(0, 2 * VOLUME_BYTES).await.unwrap();
    vm.resize_volume(0, 2 * VOLUME_BYTES).await.expect("the same again is harmless");
    driver.close().await;
    drop((vm, driver));

    let driver = fixture.driver().await;
    let vm = machine.adopt(driver.as_ref()).await.expect("it runs");
    vm.resize_volume(1, 3 * VOLUME_BYTES).await.unwrap();
    for (index, bytes) in [(0, VOLUME_BYTES), (1, VOLUME_BYTES), (2, 4 * VOLUME_BYTES)] {
        let error = vm.resize_volume(index, bytes).await.unwrap_err();
        assert!(matches!(error, VmmError::InvalidDisk { .. }), "{error}");
    }
    answers(&vm).await;
    assert!(one.try_open().is_none() && two.try_open().is_none());
    end(&vm).await;
    drop(vm);
    let vm = machine.launch(driver.as_ref()).await;
    let error = vm.resize_volume(0, 2 * VOLUME_BYTES).await.unwrap_err();
    assert!(matches!(error, VmmError::InvalidDisk { .. }), "it has none: {error}");
    end(&vm).await;
    driver.close().await;
}

/// What is saved of a machine goes on with its volumes. Where one of them can't be opened, it is
/// still saved.
pub async fn a_machine_with_volumes_resumes_with_them(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    let volume = Volume::new(fixture, "one").await;
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(0).await]).await.unwrap();
    answers(&vm).await;
    vm.save(&machine.directory()).await.unwrap();
    end(&vm).await;
    drop(vm);

    machine.spec.saved = Some(machine.directory());
    let refused = machine.try_launch_with(driver.as_ref(), vec![volume.locked_up(0).await]).await;
    let error = refused.err().expect("it can't be opened");
    assert!(matches!(error, VmmError::InvalidDisk { .. }), "{error}");
    assert!(driver.is_saved(&machine.directory()));
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(0).await]).await.unwrap();
    assert_eq!(vm.start().kind, StartKind::Resume, "{}", vm.start().reason);
    answers(&vm).await;
    assert!(volume.try_open().is_none(), "it is the VM's");
    end(&vm).await;
    driver.close().await;
}

/// Nobody resumes what was saved: the VM that was saved has its volumes again, and is saved again.
pub async fn a_machine_with_volumes_goes_on_after_it_was_saved(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let directory = machine.directory();
    let (one, two) = (Volume::new(fixture, "one").await, Volume::new(fixture, "two").await);
    let volumes = vec![one.disk(0).await, two.disk(1).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    for _ in 0..2 {
        vm.save(&directory).await.unwrap();
        driver.remove_saved(&directory).unwrap();
        vm.unpause().await.unwrap();
        answers(&vm).await;
        assert!(one.try_open().is_none() && two.try_open().is_none(), "they are the VM's");
    }
    vm.resize_volume(1, 2 * VOLUME_BYTES).await.unwrap();
    vm.save(&directory).await.unwrap();
    vm.save(&directory).await.expect("one that stands still is saved once more");
    assert!(driver.is_saved(&directory));
    end(&vm).await;
    driver.close().await;
}

/// As any VM would.
pub async fn a_warm_vm_gets_the_volumes_of_its_machine(fixture: &dyn Fixture) {
    let driver = fixture.warm_driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let (one, two) = (Volume::new(fixture, "one").await, Volume::new(fixture, "two").await);
    let volumes = vec![one.disk(0).await, two.disk(1).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    assert_eq!((vm.start().kind, vm.start().pool), (StartKind::Template, Some(PoolUse::Hit)));
    answers(&vm).await;
    assert!(one.try_open().is_none() && two.try_open().is_none());
    vm.resize_volume(1, 2 * VOLUME_BYTES).await.unwrap();
    end(&vm).await;
    drop((one.open().await, two.open().await));
    driver.close().await;
}

/// Neither of the volumes is held then, and the machine can start when it is another passphrase.
pub async fn a_volume_that_cannot_be_opened_is_an_error_and_leaves_nothing(fixture: &dyn Fixture) {
    for (id, is_warm) in [("m1", false), ("m2", true)] {
        let driver = if is_warm { fixture.warm_driver().await } else { fixture.driver().await };
        let machine = Machine::new(fixture, driver.as_ref(), id);
        let before = machine.files();
        let one = Volume::new(fixture, &format!("{id}-one")).await;
        let two = Volume::new(fixture, &format!("{id}-two")).await;
        let volumes = vec![one.disk(0).await, two.locked_up(1).await];
        let refused = machine.try_launch_with(driver.as_ref(), volumes).await;
        let error = refused.err().expect("it can't be opened");
        assert!(
            matches!(&error, VmmError::InvalidDisk { name, .. } if name == "volume1"),
            "{error}"
        );
        assert!(!error.to_string().contains("not it"), "{error}");
        assert_eq!(machine.files(), before);
        assert!(machine.adopt(driver.as_ref()).await.is_none());
        let same = vec![one.disk(0).await, two.disk(0).await];
        let refused = machine.try_launch_with(driver.as_ref(), same).await;
        assert!(matches!(refused.err(), Some(VmmError::InvalidDisk { .. })), "one per slot");
        let volumes = vec![one.disk(0).await, two.disk(1).await];
        let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
        end(&vm).await;
        driver.close().await;
        drop(vm);
        assert_no_slots(fixture).await;
    }
}

fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, VmmError>, why: &str) {
    let error = outcome.expect_err(why);
    assert!(matches!(error, VmmError::InvalidDisk { .. }), "{why}: {error}");
}

/// A snapshot of a volume as it is now.
///
/// # Errors
/// Those of its steps.
pub async fn begin(vm: &dyn Vm, index: u8, point: PointInTime) -> Result<VolumeExport, VmmError> {
    let begun = vm.begin_snapshot(index, vm.prepare_snapshot(index, point).await?).await?;
    vm.export_snapshot(index, begun).await
}

/// One at a time of a volume. What has changed since the last one that was taken is known, also
/// when others were not taken meanwhile.
pub async fn a_snapshot_is_open_until_it_is_ended_and_the_next_knows_what_has_changed(
    fixture: &dyn Fixture,
) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let (one, two) = (Volume::new(fixture, "one").await, Volume::new(fixture, "two").await);
    let kept = Volume::new(fixture, "kept").await;
    let volumes = vec![one.disk(0).await, two.disk(1).await];
    let vm = machine.try_launch_with(driver.as_ref(), volumes).await.unwrap();
    answers(&vm).await;
    let before = machine.files();
    vm.end_snapshot(0, false).await.expect("there is none to end");
    let export = begin(vm.as_ref(), 0, kept.point("a", None)).await.unwrap();
    assert_eq!((export.name.as_str(), export.changed), ("volume0", None));
    assert!(export.socket.starts_with(machine.directory()), "{:?}", export.socket);
    assert_refused(begin(vm.as_ref(), 0, kept.point("b", None)).await, "one is open");
    assert_refused(begin(vm.as_ref(), 2, kept.point("b", None)).await, "it has none");
    assert_refused(vm.resize_volume(0, 2 * VOLUME_BYTES).await, "one is open");
    let other = Volume::new(fixture, "other").await;
    let second = begin(vm.as_ref(), 1, other.point("z", None)).await.unwrap();
    assert_eq!((second.name.as_str(), &second.socket), ("volume1", &export.socket));
    vm.end_snapshot(1, false).await.unwrap();
    vm.end_snapshot(0, true).await.unwrap();
    vm.end_snapshot(0, true).await.expect("once more is no error");
    assert_eq!(machine.files(), before);

    for (id, previous, changed, is_taken) in [
        ("b", Some("a"), Some("since-a"), false),
        ("c", Some("other"), None, false),
        ("c", Some("a"), Some("since-a"), true),
        ("d", Some("a"), None, false),
        ("d", Some("c"), Some("since-c"), true),
    ] {
        let export = begin(vm.as_ref(), 0, kept.point(id, previous)).await.unwrap();
        assert_eq!(export.changed.as_deref(), changed, "{id}");
        vm.end_snapshot(0, is_taken).await.unwrap();
    }
    vm.resize_volume(0, 2 * VOLUME_BYTES).await.expect("none is open");
    answers(&vm).await;
    assert_eq!(machine.files(), before);
    end(&vm).await;
    assert_refused_by_the_dead(&vm, &kept).await;
    driver.close().await;
}

async fn assert_refused_by_the_dead(vm: &Arc<dyn Vm>, kept: &Volume) {
    assert!(begin(vm.as_ref(), 0, kept.point("e", None)).await.is_err());
    assert!(vm.hydrate(0).await.is_err());
}

/// Whoever adopts the VM finds it, and what had changed before it is not forgotten.
pub async fn a_snapshot_that_is_open_ends_with_its_vm_and_by_the_next_server(
    fixture: &dyn Fixture,
) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let before = machine.files();
    let (volume, kept) = (Volume::new(fixture, "one").await, Volume::new(fixture, "kept").await);
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(1).await]).await.unwrap();
    answers(&vm).await;
    begin(vm.as_ref(), 1, kept.point("a", None)).await.unwrap();
    vm.end_snapshot(1, true).await.unwrap();
    begin(vm.as_ref(), 1, kept.point("b", Some("a"))).await.unwrap();
    driver.close().await;
    drop((vm, driver));

    let driver = fixture.driver().await;
    let vm = machine.adopt(driver.as_ref()).await.expect("it runs");
    assert_refused(begin(vm.as_ref(), 1, kept.point("c", Some("a"))).await, "one is open");
    vm.end_snapshot(1, false).await.unwrap();
    let export = begin(vm.as_ref(), 1, kept.point("c", Some("a"))).await.unwrap();
    assert_eq!(export.changed.as_deref(), Some("since-a"));
    answers(&vm).await;
    end(&vm).await;
    assert_eq!(machine.files(), before);
    drop((volume.open().await, vm));
    driver.close().await;
}

/// It goes on as if nobody had asked, and can be saved, with what is known of changes, afterwards.
pub async fn a_machine_is_not_saved_while_a_snapshot_is_open(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let directory = machine.directory();
    let (volume, kept) = (Volume::new(fixture, "one").await, Volume::new(fixture, "kept").await);
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(0).await]).await.unwrap();
    answers(&vm).await;
    begin(vm.as_ref(), 0, kept.point("a", None)).await.unwrap();
    let error = vm.save(&directory).await.expect_err("one is open").to_string();
    assert!(error.contains("volume0: a snapshot of it is being taken"), "{error}");
    assert!(!driver.is_saved(&directory));
    vm.unpause().await.unwrap();
    answers(&vm).await;
    vm.end_snapshot(0, true).await.unwrap();
    vm.save(&directory).await.unwrap();
    driver.remove_saved(&directory).unwrap();
    vm.unpause().await.unwrap();
    answers(&vm).await;
    let export = begin(vm.as_ref(), 0, kept.point("b", Some("a"))).await.unwrap();
    assert_eq!(export.changed.as_deref(), Some("since-a"));
    end(&vm).await;
    driver.close().await;
}

/// Elsewhere that is said, and the VM goes on all the same.
pub async fn a_volume_in_use_is_cloned_where_the_file_system_can(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let volume = Volume::new(fixture, "one").await;
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(0).await]).await.unwrap();
    answers(&vm).await;
    let path = fixture.directory().join("clone");
    let copy = || OwnedFd::from(File::create(&path).unwrap());
    assert_refused(vm.clone_volume(1, copy()).await, "it has none");
    match vm.clone_volume(0, copy()).await {
        Ok(()) => assert!(fs::read(&path).unwrap() == fs::read(&volume.path).unwrap()),
        Err(VmmError::Io { source, .. }) => {
            assert_eq!(source.kind(), io::ErrorKind::Unsupported, "{source}");
        }
        Err(error) => panic!("{error}"),
    }
    answers(&vm).await;
    assert!(volume.try_open().is_none(), "it is the VM's");
    end(&vm).await;
    drop(volume.open().await);
    driver.close().await;
}

/// There is nothing to copy.
pub async fn a_volume_without_a_backing_is_whole(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let volume = Volume::new(fixture, "one").await;
    let vm = machine.try_launch_with(driver.as_ref(), vec![volume.disk(0).await]).await.unwrap();
    assert_eq!(vm.hydrate(0).await.unwrap(), Hydration::Done);
    assert_refused(vm.hydrate(1).await, "it has none");
    end(&vm).await;
    driver.close().await;
}
