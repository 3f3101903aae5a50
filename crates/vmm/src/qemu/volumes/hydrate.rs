//! Volumes that are being restored: what their file has not yet is read from an NBD server of the
//! worker, and a job copies all of it.
//!
//! The process can reach no path. It is given the directory that the server's socket is in, open,
//! and finds the socket through that, also when it connects once more.
//!
//! Between the volume and the connection is a `quorum` node with that one child. It is there for
//! what it does with errors: with QEMU 7.2 a read of the guest *succeeds* with whatever is in its
//! memory, while the job runs, where the connection can't say what is allocated
//! (`cor_co_preadv_part` takes the error for the end of the backing). Quorum answers "data" then,
//! and the read that follows fails as it should.

use std::{fs::OpenOptions, io, os::fd::AsFd as _, os::unix::fs::OpenOptionsExt as _};

use rustix::fs::OFlags;
use serde_json::{Value, json};

use super::layout::{Names, Nodes, Part};
use crate::{Backing, Hydration, VmmError, process::Process, qemu::qmp::Qmp};

/// How long a read waits for the server to be back, seconds, before it fails and the VM is paused.
/// Whatever waits for the volume to be quiet waits as long.
const RECONNECT_SECONDS: u64 = 5;

/// Opens what a volume is read from; the node's name.
pub(super) fn open(
    qmp: &mut Qmp,
    process: &Process,
    names: &Names,
    backing: &Backing,
) -> io::Result<String> {
    let invalid = |what: &str| {
        let text = format!("the socket {} {what}", backing.socket.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let directory = backing.socket.parent().ok_or_else(|| invalid("is in no directory"))?;
    let name = backing.socket.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| invalid("has no name that QEMU can be told"))?;
    // The socket can be found through it, and nothing else of it be read.
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let directory =
        OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(directory)?;
    let (server, node) = (names.part(Part::Server), names.part(Part::Backing));
    // Not into a set: of those QEMU closes what no file is open from.
    qmp.give(&server, directory.as_fd())?;
    let number = process.number_of(&directory)?;
    let connection = json!({
        "driver": "nbd", "node-name": server, "read-only": true, "export": names.slot,
        "server": { "type": "unix", "path": format!("/proc/self/fd/{number}/{name}") },
        "reconnect-delay": RECONNECT_SECONDS,
    });
    qmp.execute("blockdev-add", connection)?;
    let honest = json!({
        "driver": "quorum", "node-name": node, "read-only": true, "vote-threshold": 1,
        "children": [server],
    });
    qmp.execute("blockdev-add", honest)?;
    Ok(node)
}

/// Has a volume copy all of its backing, and says how far it is.
pub(in crate::qemu) fn hydrate(qmp: &mut Qmp, index: u8) -> Result<Hydration, VmmError> {
    let names = Names::of(index);
    let failed = || names.failed("restore");
    let nodes = Nodes::query(qmp).map_err(failed())?;
    let size = nodes.size(&names)?;
    if !nodes.has(&names, Part::Server) {
        return Ok(Hydration::Done);
    }
    let job = job(qmp, &names).map_err(failed())?;
    match job {
        Some(job) => follow(qmp, &names, &job),
        None if nodes.is_backed(&names) => begin(qmp, &names, size),
        None => let_go(qmp, &names, &nodes),
    }
    .map_err(failed())
}

fn job(qmp: &mut Qmp, names: &Names) -> io::Result<Option<Value>> {
    let jobs = qmp.execute("query-block-jobs", json!({}))?;
    let mut jobs = jobs.as_array().into_iter().flatten();
    Ok(jobs.find(|job| job["device"] == json!(names.part(Part::Hydrate))).cloned())
}

/// When the job is done the volume has no backing any more, in memory or in its file.
fn begin(qmp: &mut Qmp, names: &Names, size: u64) -> io::Result<Hydration> {
    let stream = json!({
        "job-id": names.part(Part::Hydrate), "device": names.part(Part::Machine),
        "filter-node-name": names.part(Part::Stream), "on-error": "stop",
    });
    qmp.execute("block-stream", stream)?;
    Ok(Hydration::Running { done: 0, total: size })
}

/// One that stands still goes on from where it was. Whether it does is what `status` tells: that a
/// VM goes on resets `io-status`, and nothing else.
fn follow(qmp: &mut Qmp, names: &Names, job: &Value) -> io::Result<Hydration> {
    let number = |field: &str| job.get(field).and_then(Value::as_u64).unwrap_or_default();
    let running = Hydration::Running { done: number("offset"), total: number("len") };
    if job["status"] != json!("paused") {
        return Ok(running);
    }
    let reason = match job.get("io-status").and_then(Value::as_str) {
        Some("nospace") => "there is no room on the host for what is copied",
        _ => "its backing can't be read",
    };
    match qmp.execute("block-job-resume", json!({ "device": names.part(Part::Hydrate) })) {
        // QEMU has it wait for a moment, for another reason.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(running),
        resumed => resumed.map(|_| Hydration::Stalled { reason: reason.to_owned() }),
    }
}

fn let_go(qmp: &mut Qmp, names: &Names, nodes: &Nodes) -> io::Result<Hydration> {
    for part in [Part::Backing, Part::Server] {
        if nodes.has(names, part) {
            qmp.execute("blockdev-del", json!({ "node-name": names.part(part) }))?;
        }
    }
    qmp.take_back(&names.part(Part::Server))?;
    Ok(Hydration::Done)
}
