//! Copies of the file of a volume that is in use, by reflink.
//!
//! The VM stands still meanwhile, since what is in the file and what QEMU knows of it in memory are
//! the same only then. That it stands still because of this is in its record: a server that is
//! killed here has the next one let the VM go on.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use serde_json::{Value, json};

use super::{
    layout::{Names, Nodes, Part},
    own_set,
};
use crate::{
    VmmError, lock,
    process::Process,
    qemu::{disks::over, qmp::Qmp, suspend::RUNNING},
    record::Record,
    volume,
};

/// Copies the file of a volume to an empty one.
pub(in crate::qemu) fn clone(
    qmp: &mut Qmp,
    process: &Process,
    directory: &Path,
    index: u8,
    to: &OwnedFd,
) -> Result<(), VmmError> {
    let names = Names::of(index);
    let failed = || names.failed("clone");
    let nodes = Nodes::query(qmp).map_err(failed())?;
    nodes.size(&names)?;
    if nodes.has(&names, Part::Backing) {
        return Err(names.refused(volume::RESTORING));
    }
    let status = qmp.status().map_err(failed())?;
    if status != RUNNING {
        // Who has it stand still has it go on.
        let text = format!("the VM is not running but {status}");
        return Err(failed()(io::Error::other(text)));
    }
    let below = if nodes.has(&names, Part::Filter) { Part::Filter } else { Part::Machine };
    let mut record = Record::read(directory)
        .ok_or_else(|| failed()(io::Error::other("the record of the VM is lost")))?;
    record.cloning = true;
    record.write(directory)?;
    let copied = qmp.execute("stop", json!({})).and_then(|_| {
        // Tells whether all that QEMU knows could be written, which stopping does not.
        let options = json!({ "options": [over(names.role(), json!(names.part(below)))] });
        qmp.execute("blockdev-reopen", options)?;
        copy(qmp, process, &names, to.as_fd())
    });
    let going = qmp.execute("cont", json!({}));
    if going.is_ok() {
        record.cloning = false;
        record.write(directory)?;
    }
    copied.and(going).map(drop).map_err(failed())
}

fn copy(qmp: &mut Qmp, process: &Process, names: &Names, to: BorrowedFd<'_>) -> io::Result<()> {
    let number = number(qmp, names)?;
    // With the descriptor comes the lock of the volume's one writer: no child is to have it.
    let _guard = lock::no_fork();
    let from = process.descriptor(number)?;
    rustix::fs::ioctl_ficlone(to, &from).map_err(|error| match error {
        rustix::io::Errno::NOTTY | rustix::io::Errno::INVAL => io::ErrorKind::Unsupported.into(),
        error => error.into(),
    })
}

/// Which number the volume's file has in the process.
fn number(qmp: &mut Qmp, names: &Names) -> io::Result<i32> {
    let own = own_set(names);
    let sets = qmp.execute("query-fdsets", json!({}))?;
    let mut sets = sets.as_array().into_iter().flatten();
    let set = sets.find(|set| set["fdset-id"] == json!(own));
    let number = set.and_then(|set| set.pointer("/fds/0/fd").and_then(Value::as_i64));
    number
        .and_then(|number| i32::try_from(number).ok())
        .ok_or_else(|| io::Error::other("QEMU does not have the volume's file"))
}
