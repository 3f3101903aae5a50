//! What every driver has to do, as checks over any driver: `tests/contract.rs` runs them over the
//! fake, the end-to-end tests run them over QEMU, and a new driver has to pass them too.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a check fails by panicking")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState,
    host::{Connector, GuestEvent, Session},
};
use tokio::time::timeout;

use crate::{
    Disk, DiskFormat, DiskRole, Hydration, LaunchSpec, Passphrase, PointInTime, PoolUse, Slot,
    SlotPool, StartKind, Vm, VmExit, Vmm, VmmError, VolumeDisk,
};

mod volumes;
mod warm;

pub use volumes::*;
pub use warm::*;

/// How long anything may take on a busy host.
const DEADLINE: Duration = Duration::from_secs(120);
const ROOT_BYTES: u64 = 1 << 30;
const DISK_BYTES: u64 = 64 << 20;

/// A host to try a driver on. Nothing else uses its slots.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// A driver, over what earlier ones left running. It keeps no warm VMs.
    async fn driver(&self) -> Arc<dyn Vmm>;

    /// A driver that has a warm VM for machines of one CPU and 256 MiB.
    async fn warm_driver(&self) -> Arc<dyn Vmm>;

    /// Ends the warm VMs that there are, as nobody asked for.
    fn crash_warm_vms(&self);

    /// Has saving take longer than it takes to cancel it.
    fn slow_saving(&self) {}

    /// The slots of the drivers.
    fn slots(&self) -> &SlotPool;

    /// A directory for files; machines have theirs in `machines`.
    fn directory(&self) -> &Path;

    /// Makes an encrypted volume of [`VOLUME_BYTES`]: its file, and what opens it.
    async fn volume(&self, name: &str) -> (PathBuf, Passphrase);

    /// Makes a tap of this name; `None` where there are none.
    fn tap(&self, name: &str) -> Option<OwnedFd>;
}

/// Makes a test of each check, over the fixture that an expression gives.
#[macro_export]
macro_rules! driver_contract {
    ($fixture:expr) => {
        $crate::driver_contract! { $fixture;
            every_waiter_hears_the_same_end,
            a_guest_that_powers_off_ends_its_vm,
            a_machine_has_one_vm_at_most,
            the_next_driver_adopts_what_runs,
            a_saved_machine_resumes_once,
            a_cancelled_save_leaves_nothing_and_the_vm_goes_on,
            what_is_saved_can_be_removed,
            a_missing_disk_is_named_and_nothing_is_left,
            a_seat_that_is_dropped_is_given_back,
            a_machine_may_have_any_of_the_disks,
            a_disk_that_no_machine_can_have_is_refused,
            closing_ends_only_vms_without_a_machine,
            a_warm_vm_becomes_the_machine_s,
            a_warm_vm_that_cannot_be_used_is_gone,
            a_warm_vm_that_died_is_replaced_in_its_place,
            a_volume_belongs_to_its_vm_as_long_as_that_lives,
            volumes_grow_also_when_the_vm_was_adopted,
            a_machine_with_volumes_resumes_with_them,
            a_machine_with_volumes_goes_on_after_it_was_saved,
            a_warm_vm_gets_the_volumes_of_its_machine,
            a_volume_that_cannot_be_opened_is_an_error_and_leaves_nothing,
            a_snapshot_is_open_until_it_is_ended_and_the_next_knows_what_has_changed,
            a_snapshot_that_is_open_ends_with_its_vm_and_by_the_next_server,
            a_machine_is_not_saved_while_a_snapshot_is_open,
            a_volume_in_use_is_cloned_where_the_file_system_can,
            a_volume_without_a_backing_is_whole,
        }
    };
    ($fixture:expr; $($check:ident),* $(,)?) => {
        $(#[tokio::test] async fn $check() { $crate::contract::$check(&$fixture).await })*
    };
}

/// A machine, as its worker knows it.
struct Machine<'a> {
    fixture: &'a dyn Fixture,
    spec: LaunchSpec,
}

impl<'a> Machine<'a> {
    /// One with a blank root disk.
    fn new(fixture: &'a dyn Fixture, driver: &dyn Vmm, id: &str) -> Self {
        let directory = fixture.directory().join("machines").join(id);
        fs::create_dir_all(&directory).unwrap();
        let base = fixture.directory().join("base");
        File::create(&base).unwrap().set_len(1 << 20).unwrap();
        let disk = Disk {
            role: DiskRole::Root,
            format: DiskFormat::Overlay(base),
            path: directory.join("root"),
            size: ROOT_BYTES,
        };
        driver.create_disk(&disk, &[]).unwrap();
        let spec = LaunchSpec {
            machine_id: id.to_owned(),
            directory,
            vcpus: 1,
            memory_mib: 256,
            cpu_weight: 100,
            disks: vec![disk],
            volumes: Vec::new(),
            volume_limits: None,
            mac: "02:00:00:00:00:02".to_owned(),
            kernel_args: Vec::new(),
            not_warm: false,
            saved: None,
        };
        Self { fixture, spec }
    }

    /// Further disks, of each kind.
    fn add_disks(&mut self, driver: &dyn Vmm) {
        for (role, format) in
            [(DiskRole::Swap, DiskFormat::Raw), (DiskRole::Cache, DiskFormat::Qcow2)]
        {
            let path = self.directory().join(role.name());
            let disk = Disk { role, format, path, size: DISK_BYTES };
            driver.create_disk(&disk, &[]).unwrap();
            self.spec.disks.push(disk);
        }
    }

    fn directory(&self) -> PathBuf {
        self.spec.directory.clone()
    }

    async fn try_launch(&self, driver: &dyn Vmm) -> Result<Arc<dyn Vm>, VmmError> {
        self.try_launch_with(driver, Vec::new()).await
    }

    /// With volumes, of which it keeps no copy.
    async fn try_launch_with(
        &self,
        driver: &dyn Vmm,
        volumes: Vec<VolumeDisk>,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let seat = driver.prepare(LaunchSpec { volumes, ..self.spec.clone() }).await?;
        // As the worker does until it has disconnected what did not start.
        let slot: Slot = seat.slot().clone();
        let tap = if seat.has_tap() { None } else { self.fixture.tap(&slot.tap_name()) };
        timeout(DEADLINE, seat.launch(tap)).await.expect("it is launched in time")
    }

    async fn launch(&self, driver: &dyn Vmm) -> Arc<dyn Vm> {
        let vm = self.try_launch(driver).await.unwrap();
        answers(&vm).await;
        vm
    }

    /// Where it was saved is where it resumes from.
    async fn resume(&mut self, driver: &dyn Vmm) -> Arc<dyn Vm> {
        self.spec.saved = Some(self.directory());
        self.launch(driver).await
    }

    async fn adopt(&self, driver: &dyn Vmm) -> Option<Arc<dyn Vm>> {
        driver.adopt(&self.spec.machine_id, &self.spec.directory).await.unwrap()
    }

    /// Names of the files of the machine and its VM, but for the lock, which stays.
    fn files(&self) -> BTreeSet<String> {
        let names = fs::read_dir(&self.spec.directory).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect()
    }
}

struct Agent(Arc<dyn Vm>);

#[async_trait]
impl Connector for Agent {
    async fn connect(&self) -> io::Result<Box<dyn caddis_guest_protocol::host::AgentStream>> {
        Ok(Box::new(self.0.connect_agent().await.map_err(io::Error::other)?))
    }
}

/// Opens a session with a guest that waits to hear which machine it is.
async fn session(vm: &Arc<dyn Vm>) -> Session {
    let (session, mut events) = Session::open(Arc::new(Agent(vm.clone())), 0);
    let welcome = async {
        loop {
            match events.recv().await.expect("the guest says what it does") {
                GuestEvent::Welcome { status, .. } => return status,
                _ => continue,
            }
        }
    };
    let status = timeout(DEADLINE, welcome).await.expect("the guest answers in time");
    assert_eq!(status, GuestState::Waiting);
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    session
}

async fn answers(vm: &Arc<dyn Vm>) {
    session(vm).await.close();
}

async fn end(vm: &Arc<dyn Vm>) {
    vm.kill().await.unwrap();
    assert_eq!(timeout(DEADLINE, vm.wait()).await.expect("it ends in time"), VmExit::Ended);
}

/// Nobody holds a slot any more, once the VMs that are still dropped are, and programs have begun
/// that other tests start: until then they have what this process has open.
async fn assert_no_slots(fixture: &dyn Fixture) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let held = fixture.slots().list().unwrap();
        if held.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "slots are held: {held:?}");
        tokio::task::yield_now().await;
    }
}

/// Whoever waits for a VM hears how it ended, and nothing of it is left.
pub async fn every_waiter_hears_the_same_end(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let before = machine.files();
    let vm = machine.launch(driver.as_ref()).await;
    assert!(fixture.slots().list().unwrap().contains(&vm.slot().index()));
    assert!(vm.memory_used().await.unwrap() > 0);
    let waiter = tokio::spawn({
        let vm = vm.clone();
        async move { vm.wait().await }
    });
    end(&vm).await;
    assert_eq!(waiter.await.unwrap(), VmExit::Ended);
    assert_eq!(vm.wait().await, VmExit::Ended, "also who asks later");
    vm.kill().await.expect("killing it once more is no error");
    assert!(vm.connect_agent().await.is_err());
    assert!(machine.adopt(driver.as_ref()).await.is_none());
    assert_eq!(machine.files(), before);
    driver.close().await;
    drop(vm);
    assert_no_slots(fixture).await;
}

/// A guest's own end is no crash.
pub async fn a_guest_that_powers_off_ends_its_vm(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let vm = machine.try_launch(driver.as_ref()).await.unwrap();
    session(&vm).await.power_off().await;
    assert_eq!(timeout(DEADLINE, vm.wait()).await.expect("it ends in time"), VmExit::Ended);
    driver.close().await;
}

/// A second launch of a machine that runs is refused and does the first no harm.
pub async fn a_machine_has_one_vm_at_most(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let vm = machine.launch(driver.as_ref()).await;
    let second = machine.try_launch(driver.as_ref()).await.err().expect("it is refused");
    assert!(matches!(second, VmmError::AlreadyRunning { machine_id } if machine_id == "m1"));
    answers(&vm).await;
    assert!(machine.adopt(driver.as_ref()).await.is_some(), "the first is found as before");
    driver.close().await;
    assert_eq!(fixture.slots().list().unwrap(), [vm.slot().index()]);
    end(&vm).await;
}

/// VMs outlive their driver.
pub async fn the_next_driver_adopts_what_runs(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let other = Machine::new(fixture, driver.as_ref(), "m2");
    let vm = machine.launch(driver.as_ref()).await;
    let (pid, slot, start) = (vm.pid(), vm.slot().index(), vm.start().clone());
    driver.close().await;
    drop((vm, driver));

    let driver = fixture.driver().await;
    assert!(other.adopt(driver.as_ref()).await.is_none());
    let vm = machine.adopt(driver.as_ref()).await.expect("it runs");
    assert_eq!((vm.pid(), vm.slot().index(), vm.start()), (pid, slot, &start));
    assert!(vm.start_steps().is_empty());
    answers(&vm).await;
    assert!(vm.can_save());
    vm.save(&machine.directory()).await.unwrap();
    assert!(driver.is_saved(&machine.directory()));
    driver.close().await;
    end(&vm).await;
    assert!(machine.adopt(driver.as_ref()).await.is_none());
    drop(vm);
    assert_no_slots(fixture).await;
}

/// What is saved is used up by a resume. Where nothing is, the machine starts, and says why.
pub async fn a_saved_machine_resumes_once(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    let vm = machine.launch(driver.as_ref()).await;
    assert!(vm.can_save());
    assert!(!driver.is_saved(&machine.directory()));
    vm.save(&machine.directory()).await.unwrap();
    assert!(driver.is_saved(&machine.directory()));
    end(&vm).await;

    let vm = machine.resume(driver.as_ref()).await;
    assert_eq!(vm.start().kind, StartKind::Resume, "{}", vm.start().reason);
    assert!(!driver.is_saved(&machine.directory()), "it is used up");
    end(&vm).await;

    let vm = machine.resume(driver.as_ref()).await;
    assert_ne!(vm.start().kind, StartKind::Resume);
    assert!(vm.start().reason.contains("could not be resumed"), "{}", vm.start().reason);
    end(&vm).await;
    driver.close().await;
}

/// Nobody waits for a save any more: nothing is saved, and the VM goes on when it is told to.
pub async fn a_cancelled_save_leaves_nothing_and_the_vm_goes_on(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    let vm = machine.launch(driver.as_ref()).await;
    let before = machine.files();
    fixture.slow_saving();
    let directory = machine.directory();
    let saved = timeout(Duration::ZERO, vm.save(&directory)).await;
    assert!(saved.is_err(), "it takes longer");
    vm.unpause().await.unwrap();
    answers(&vm).await;
    assert!(!driver.is_saved(&directory));
    assert_eq!(machine.files(), before);
    vm.unpause().await.expect("once more is no error");
    end(&vm).await;
    let vm = machine.resume(driver.as_ref()).await;
    assert_ne!(vm.start().kind, StartKind::Resume);
    end(&vm).await;
    driver.close().await;
}

/// A machine that is not to resume leaves nothing of what it was saved to.
pub async fn what_is_saved_can_be_removed(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    driver.remove_saved(&machine.directory()).expect("nothing to remove is no error");
    let vm = machine.launch(driver.as_ref()).await;
    let before = machine.files();
    vm.save(&machine.directory()).await.unwrap();
    driver.remove_saved(&machine.directory()).unwrap();
    assert!(!driver.is_saved(&machine.directory()));
    assert_eq!(machine.files(), before);
    vm.unpause().await.unwrap();
    answers(&vm).await;
    end(&vm).await;
    driver.close().await;
}

/// A launch that can't be carried out says what is wrong and leaves nothing.
pub async fn a_missing_disk_is_named_and_nothing_is_left(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    lose_its_disk(fixture, driver.as_ref()).await;
}

async fn lose_its_disk(fixture: &dyn Fixture, driver: &dyn Vmm) {
    let machine = Machine::new(fixture, driver, "m1");
    let [disk] = &machine.spec.disks[..] else { unreachable!() };
    fs::remove_file(&disk.path).unwrap();
    let error = machine.try_launch(driver).await.err().expect("there is no disk").to_string();
    assert!(error.contains(disk.path.to_str().unwrap()), "{error}");
    assert!(machine.files().is_empty(), "{:?}", machine.files());
    assert!(machine.adopt(driver).await.is_none());
    driver.create_disk(disk, &[]).unwrap();
    let vm = machine.launch(driver).await;
    end(&vm).await;
    driver.close().await;
    drop(vm);
    assert_no_slots(fixture).await;
}

/// As when the machine's network can't be connected.
pub async fn a_seat_that_is_dropped_is_given_back(fixture: &dyn Fixture) {
    for (id, is_warm) in [("m1", false), ("m2", true)] {
        let driver = if is_warm { fixture.warm_driver().await } else { fixture.driver().await };
        let machine = Machine::new(fixture, driver.as_ref(), id);
        let before = machine.files();
        let seat = driver.prepare(machine.spec.clone()).await.unwrap();
        assert_eq!(seat.has_tap(), is_warm);
        assert!(fixture.slots().list().unwrap().contains(&seat.slot().index()));
        drop(seat);
        driver.close().await;
        assert_no_slots(fixture).await;
        assert_eq!(machine.files(), before);
    }
}

/// Machines without and with further disks start alike, and go on with those that they had.
pub async fn a_machine_may_have_any_of_the_disks(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    machine.add_disks(driver.as_ref());
    let vm = machine.launch(driver.as_ref()).await;
    vm.save(&machine.directory()).await.unwrap();
    end(&vm).await;
    let vm = machine.resume(driver.as_ref()).await;
    assert_eq!(vm.start().kind, StartKind::Resume, "{}", vm.start().reason);
    end(&vm).await;
    driver.close().await;
}

/// Before anything is made for the VM; without that disk the machine starts.
pub async fn a_disk_that_no_machine_can_have_is_refused(fixture: &dyn Fixture) {
    let driver = fixture.driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    let before = machine.files();
    for role in [DiskRole::Volume(0), DiskRole::Volume(u8::MAX), DiskRole::Root] {
        let disk = Disk { role, ..machine.spec.disks[0].clone() };
        machine.spec.disks.push(disk);
        let error = machine.try_launch(driver.as_ref()).await.err().expect("it is refused");
        assert!(
            matches!(&error, VmmError::InvalidDisk { name, .. } if *name == role.name()),
            "{error}"
        );
        machine.spec.disks.pop();
    }
    assert_eq!(machine.files(), before);
    assert_no_slots(fixture).await;
    let vm = machine.launch(driver.as_ref()).await;
    end(&vm).await;
    driver.close().await;
}

/// What a driver has made for itself ends with it, and no machine's VM does.
pub async fn closing_ends_only_vms_without_a_machine(fixture: &dyn Fixture) {
    let driver = fixture.warm_driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let vm = machine.launch(driver.as_ref()).await;
    driver.close().await;
    assert_eq!(fixture.slots().list().unwrap(), [vm.slot().index()]);
    answers(&vm).await;
    end(&vm).await;
    drop(vm);
    assert_no_slots(fixture).await;
}
