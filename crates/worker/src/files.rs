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

    /// The root disk, in whatever format the VMM makes it: machines that are suspended have it
    /// under this name.
    pub fn root_disk(&self) -> PathBuf {
        self.directory.join("root.qcow2")
    }

    /// Makes the directory, where there is none.
    pub fn make_directory(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)
    }

    /// Removes the root disk.
    pub fn remove_root_disk(&self) -> io::Result<()> {
        missing_is_fine(fs::remove_file(self.root_disk()))
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
