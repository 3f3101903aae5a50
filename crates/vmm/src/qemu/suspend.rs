//! Saves running VMs to a file, and has them go on.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, fcntl_setpipe_size, pipe_with},
};
use serde_json::json;

use super::{
    descriptor,
    guest_memory::GuestMemory,
    launch::QMP_SOCKET,
    pause::IO_ERROR,
    qmp::Qmp,
    snapshot::{self, Content, LARGEST_STATE},
    volumes::Nodes,
};
use crate::{VmmError, process::Process, record::Saving};

/// Bytes that the pipe for device state holds. QEMU has far more to say, and waits with the rest.
const PIPE: usize = 4096;

/// How often a QEMU that has nothing to say yet is not waited for any more.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A VM that is to be saved.
pub(super) struct Standing<'a> {
    pub(super) process: &'a Process,
    pub(super) directory: &'a Path,
    /// Who it runs as.
    pub(super) uid: u32,
    /// What is saved of it.
    pub(super) saving: &'a Saving,
}

impl Standing<'_> {
    /// Stops the VM and saves it to a file; its disks are written through meanwhile. Ends soon
    /// after
    /// `cancelled` is set. Blocks.
    pub(super) fn save(&self, file: &Path, cancelled: &AtomicBool) -> Result<(), VmmError> {
        self.try_save(file, cancelled).map_err(|error| {
            snapshot::remove_new(file);
            VmmError::NotSaved { reason: error.to_string() }
        })
    }

    fn try_save(&self, file: &Path, cancelled: &AtomicBool) -> io::Result<()> {
        let mut qmp = Qmp::connect(self.process, self.directory, QMP_SOCKET)?;
        if let Some(reason) = Nodes::query(&mut qmp)?.in_the_way_of_saving() {
            return Err(io::Error::other(reason));
        }
        match qmp.status()?.as_str() {
            RUNNING => {}
            IO_ERROR => {
                return Err(io::Error::other("it is paused because its disk can't be written"));
            }
            // It was saved before, and has let go of its disks since. To have them again it goes on
            // for a moment, after which what it was saved to would be older than its disks.
            _ => {
                file.parent().map_or(Ok(()), snapshot::remove)?;
                qmp.execute("cont", json!({}))?;
            }
        }
        qmp.execute("stop", json!({}))?;
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&theirs, PIPE)?;
        rustix::fs::fchown(&theirs, Some(rustix::fs::Uid::from_raw(self.uid)), None)?;
        qmp.give("state", theirs.as_fd())?;
        let number = self.process.number_of(&theirs)?;
        // The state ends when QEMU closes its own.
        drop(theirs);
        let disks = open(&self.saving.disks)?;
        std::thread::scope(|scope| {
            // Most of what is on the disks; QEMU writes the rest when it saves the devices.
            let written_through = scope.spawn(|| write_through(&disks));
            let saving = scope.spawn(move || qmp.save_devices(number));
            let written = self.write(file, File::from(ours), cancelled);
            let panicked = |_| Err(io::Error::other("a thread panicked"));
            let saved = saving.join().unwrap_or_else(panicked);
            let through = written_through.join().unwrap_or_else(panicked);
            match (written, saved) {
                // QEMU's pipe breaks when the file can't be written, and ends at once when QEMU
                // refuses.
                (Err(error), Err(_)) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
                (written, saved) => saved.and(written).and(through),
            }
        })?;
        if cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("it was cancelled"));
        }
        write_through(&disks)?;
        snapshot::keep(file)
    }

    fn write(&self, file: &Path, mut pipe: File, cancelled: &AtomicBool) -> io::Result<()> {
        let Saving { key, memory: size, .. } = self.saving;
        while poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&LOOK_INTERVAL))? == 0 {
            if cancelled.load(Ordering::Relaxed) {
                return Err(io::Error::other("it was cancelled"));
            }
        }
        // From here on QEMU does nothing but wait until we read on.
        let mut first = [0];
        pipe.read_exact(&mut first)?;
        let memory = GuestMemory::of(self.process, descriptor::MEMORY, *size)?;
        let mut state = || {
            let mut state = first.to_vec();
            // One that was taken over could go on for ever.
            Read::by_ref(&mut pipe).take(LARGEST_STATE).read_to_end(&mut state)?;
            if state.len() <= PIPE || state.len() as u64 > LARGEST_STATE {
                return Err(io::Error::other("QEMU saved an unexpected device state"));
            }
            Ok(state)
        };
        let read = |offset: u64, buffer: &mut [u8]| memory.read(offset, buffer);
        snapshot::write(
            file,
            key,
            Content { size: *size, memory: &read, state: &mut state },
            cancelled,
        )
    }
}

fn open(disks: &[PathBuf]) -> io::Result<Vec<File>> {
    disks.iter().map(File::open).collect()
}

fn write_through(disks: &[File]) -> io::Result<()> {
    disks.iter().try_for_each(File::sync_data)
}

/// QEMU's word for a VM that does not stand still.
pub(super) const RUNNING: &str = "running";

/// Has the VM with this directory go on, if it stands still, but not because of its disk: whether
/// it does is the answer. Blocks.
pub(super) fn unpause(process: &Process, directory: &Path) -> Result<bool, VmmError> {
    let attempt = || {
        let mut qmp = Qmp::connect(process, directory, QMP_SOCKET)?;
        let status = qmp.status()?;
        if status != RUNNING && status != IO_ERROR {
            qmp.execute("cont", json!({}))?;
        }
        io::Result::Ok(status == IO_ERROR)
    };
    attempt().map_err(VmmError::io("resume a VM"))
}
