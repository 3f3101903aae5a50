//! What a machine has in its directory on the host. The VMM keeps files of its own beside these.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use caddis_api::MachineId;

/// The files of a machine: the only place that knows their names.
#[derive(Debug, Clone)]
pub struct MachineFiles {
    directory: PathBuf,
}

impl MachineFiles {
    /// Those of a machine of the worker with this directory.
    pub fn of(worker: &Path, machine: &MachineId) -> Self {
        Self { directory: worker.join("machines").join(machine.as_str()) }
    }

    /// Where all of them are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The overlay over the image's root disk.
    pub fn overlay(&self) -> PathBuf {
        self.directory.join("root.qcow2")
    }

    /// What the machine is saved to.
    pub fn snapshot(&self) -> PathBuf {
        self.directory.join("memory.snapshot")
    }

    /// The same until it is whole.
    fn half_snapshot(&self) -> PathBuf {
        self.directory.join("memory.new")
    }

    /// Makes the directory, where there is none.
    pub fn make_directory(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)
    }

    /// Removes what the machine was saved to.
    pub fn remove_snapshot(&self) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.snapshot()))?;
        missing_is_fine(fs::remove_file(self.half_snapshot()))
    }

    /// Removes what belongs to one run of the machine: its overlay, and what it was saved to.
    pub fn remove_run(&self) -> io::Result<()> {
        self.remove_snapshot()?;
        missing_is_fine(fs::remove_file(self.overlay()))
    }

    /// Removes the directory with all that is in it.
    pub fn remove_all(&self) -> io::Result<()> {
        missing_is_fine(fs::remove_dir_all(&self.directory))
    }
}

fn missing_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
