//! Saves running VMs to a file, and has them go on.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use super::launch::{PIPE, QMP_SOCKET};
use crate::{VmmError, qmp::Qmp, snapshot};

/// Bytes per second at which QEMU saves: as fast as it can.
const BANDWIDTH: u64 = 1 << 40;
/// QEMU's words for a VM that was saved whole: it must go on before it can be saved again.
const SAVED: &str = "postmigrate";

/// Stops the VM with this directory and saves it. `overlay` is its disk, written through meanwhile. Ends soon after
/// `cancelled` is set. Blocks.
pub(super) fn save(
    directory: &Path,
    file: &Path,
    key: &str,
    overlay: &Path,
    cancelled: &AtomicBool,
) -> Result<(), VmmError> {
    let attempt = || {
        let mut qmp = Qmp::connect(directory, QMP_SOCKET)?;
        qmp.leave_out_shared_memory()?;
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH }))?;
        if qmp.status()? == SAVED {
            qmp.execute("cont", json!({}))?;
        }
        qmp.execute("stop", json!({}))?;
        let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // A smaller one is only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&theirs, PIPE);
        let overlay = File::open(overlay)?;
        std::thread::scope(|scope| {
            // Most of what is on the disk; QEMU writes the rest when it has saved the memory.
            let written_through = scope.spawn(|| overlay.sync_data());
            let writing = scope.spawn(|| snapshot::write(file, key, File::from(ours), cancelled));
            let begun = qmp.save(theirs.as_fd());
            // QEMU has its own: the stream ends with that one.
            drop(theirs);
            let saved = begun.and_then(|()| qmp.migrated());
            let panicked = |_| Err(io::Error::other("writing the snapshot panicked"));
            let written = writing.join().unwrap_or_else(panicked);
            let through = written_through.join().unwrap_or_else(panicked);
            // Where the file could not be written, that is why QEMU could not go on.
            written.and(saved).and(through)
        })?;
        if cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was called off"));
        }
        overlay.sync_data()?;
        snapshot::keep(file)
    };
    attempt().map_err(|error| {
        snapshot::remove_new(file);
        VmmError::NotSaved { reason: error.to_string() }
    })
}

/// Has the VM with this directory go on, if it stands still. Blocks.
pub(super) fn go_on(directory: &Path) -> Result<(), VmmError> {
    let attempt = || {
        let mut qmp = Qmp::connect(directory, QMP_SOCKET)?;
        if qmp.status()? != "running" {
            qmp.execute("cont", json!({}))?;
        }
        io::Result::Ok(())
    };
    attempt().map_err(VmmError::io("let a VM go on"))
}
