//! Finds the VM process that an earlier server started for a machine. Blocks.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    descriptor,
    launch::{Running, clear, end},
    suspend,
};
use crate::{Slot, SlotPool, VmmError, capture::Capture, lock, process::Process, record::Record};

/// How long a VM process that was killed may take to let go of its lock.
const DYING: Duration = Duration::from_secs(10);
/// Nothing tells when another process lets go of a lock.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The VM process that holds a directory's lock, if one does; what a dead one left is removed.
pub(super) fn find(
    directory: &Path,
    slots: &SlotPool,
    machine_id: &str,
) -> Result<Option<(Running, Slot)>, VmmError> {
    let deadline = Instant::now() + DYING;
    loop {
        match look_for(directory, slots, machine_id) {
            // One on its way out, killed by the last server, shows nothing any more before its lock
            // is free.
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            found => return found,
        }
    }
}

fn look_for(
    directory: &Path,
    slots: &SlotPool,
    machine_id: &str,
) -> Result<Option<(Running, Slot)>, VmmError> {
    if !directory.exists() {
        return Ok(None);
    }
    let record = Record::read(directory);
    {
        let _guard = lock::no_fork();
        if let Some(_lock) = lock::try_lock(directory)? {
            // Nobody runs. The slot may be another's by now; its cgroup is removed only while we
            // hold it.
            let slot =
                record.as_ref().and_then(|record| slots.lease_exact(record.slot).ok().flatten());
            let cgroups = slot.as_ref().and_then(Slot::cgroups);
            clear(directory, cgroups, &slot.as_ref().map(Slot::cgroup_name).unwrap_or_default());
            return Ok(None);
        }
    }
    let recorded = record.as_ref().and_then(|record| record.process).and_then(Process::reopen);
    let recorded = recorded.filter(|process| lock::is_held_by(directory, process.id.pid));
    let process = match recorded {
        Some(process) => process,
        // The server was killed between the fork and the record of it.
        None => {
            let attempted = || format!("find the VM process of machine {machine_id}");
            let holders = lock::holders(directory).map_err(VmmError::io(attempted()))?;
            let first = holders
                .first()
                .ok_or_else(|| io::Error::other("its lock is held, but by no process"));
            let pid = *first.map_err(VmmError::io(attempted()))?;
            Process::open(pid).map_err(VmmError::io(attempted()))?
        }
    };
    if record.as_ref().is_some_and(|record| !record.complete) {
        // It was never restored, and nobody is there to do it.
        end(&process);
        if lock::is_held_by(directory, process.id.pid) {
            let attempted =
                format!("end the VM process {} that was never restored", process.id.pid);
            return Err(VmmError::io(attempted)(io::ErrorKind::TimedOut.into()));
        }
        return look_for(directory, slots, machine_id);
    }
    let pid = process.id.pid;
    let attempted = || format!("adopt the VM process {pid} of machine {machine_id}");
    let lost = || io::Error::other("its record is lost");
    let mut record = record.ok_or_else(lost).map_err(VmmError::io(attempted()))?;
    if record.cloning {
        suspend::unpause(&process, directory)?;
        record.cloning = false;
        record.write(directory)?;
    }
    let Record { slot: index, start: kind, saving, has_volumes, .. } = record;
    let held = process.descriptor(descriptor::SLOT).map_err(VmmError::io(attempted()))?;
    let slot = slots.adopt(index, held)?;
    let capture = |number| Capture::adopt(pid, number).ok();
    let (output, console) = (capture(descriptor::OUTPUT), capture(descriptor::CONSOLE));
    let steps = Vec::new();
    Ok(Some((Running { process, output, console, kind, saving, has_volumes, steps }, slot)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SlotPoolConfig;

    #[test]
    fn a_vm_on_its_way_out_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let config = SlotPoolConfig {
            directory: directory.path().join("slots"),
            ..SlotPoolConfig::default()
        };
        let slots = SlotPool::open_without_cgroups(config).unwrap();
        // By this process, which counts as none.
        let held = lock::try_lock(directory.path()).unwrap().unwrap();
        let holder = std::thread::spawn(move || {
            std::thread::sleep(LOOK_AGAIN * 10);
            drop(held);
        });
        assert!(find(directory.path(), &slots, "m").unwrap().is_none());
        holder.join().unwrap();
    }
}
