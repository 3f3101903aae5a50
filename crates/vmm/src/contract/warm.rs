//! Checks that are about warm VMs.

use super::*;

/// A start takes the warm VM that there is, whatever disks its machine has. The VM is as any other
/// then.
pub async fn a_warm_vm_becomes_the_machine_s(fixture: &dyn Fixture) {
    let driver = fixture.warm_driver().await;
    let mut machine = Machine::new(fixture, driver.as_ref(), "m1");
    machine.add_disks(driver.as_ref());
    let vm = machine.launch(driver.as_ref()).await;
    assert_eq!((vm.start().kind, vm.start().pool), (StartKind::Template, Some(PoolUse::Hit)));
    let pid = vm.pid();
    driver.close().await;
    drop((vm, driver));

    let driver = fixture.driver().await;
    let vm = machine.adopt(driver.as_ref()).await.expect("it is the machine's");
    assert_eq!(vm.pid(), pid);
    vm.save(&machine.directory()).await.unwrap();
    end(&vm).await;
    let vm = machine.resume(driver.as_ref()).await;
    assert_eq!(vm.start().kind, StartKind::Resume, "{}", vm.start().reason);
    end(&vm).await;
    driver.close().await;
}

/// Where a warm VM can't become the machine's, the launch is as without one.
pub async fn a_warm_vm_that_cannot_be_used_is_gone(fixture: &dyn Fixture) {
    let driver = fixture.warm_driver().await;
    lose_its_disk(fixture, driver.as_ref()).await;
}

/// The network is connected to its tap by then: the launch goes on with that.
pub async fn a_warm_vm_that_died_is_replaced_in_its_place(fixture: &dyn Fixture) {
    let driver = fixture.warm_driver().await;
    let machine = Machine::new(fixture, driver.as_ref(), "m1");
    let seat = driver.prepare(machine.spec.clone()).await.unwrap();
    assert!(seat.has_tap());
    let slot = seat.slot().index();
    fixture.crash_warm_vms();
    let vm = timeout(DEADLINE, seat.launch(None)).await.expect("it is launched in time").unwrap();
    assert_eq!(vm.slot().index(), slot);
    assert_ne!(vm.start().pool, Some(PoolUse::Hit));
    answers(&vm).await;
    driver.close().await;
    assert_eq!(fixture.slots().list().unwrap(), [slot]);
    end(&vm).await;
    drop(vm);
    assert_no_slots(fixture).await;
}
