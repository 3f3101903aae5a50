//! Cgroups of VMs: one per slot, bounding its memory and number of threads and weighing its
//! processor time.
//!
//! A host has cgroup v2 (`memory.max`), v1 (one tree per controller), or both at once with the
//! controllers divided between them. What is mounted decides; everything past the choice is files
//! below a directory.

use std::{
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::VmmError;

mod detect;
mod slot;

pub use detect::Version;
pub use slot::{Limits, SlotCgroup};

/// The controllers a VM needs.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];

/// The cgroup that holds the slots' cgroups.
#[derive(Debug, Clone)]
pub struct CgroupRoot {
    layout: Arc<Layout>,
}

#[derive(Debug)]
struct Layout {
    version: Version,
    parent: String,
    mounts: Vec<PathBuf>,
    /// v2: one directory. v1: one for each of [`CONTROLLERS`], in that order.
    directories: Vec<PathBuf>,
}

impl CgroupRoot {
    /// Finds the host's cgroups and makes `parent` in them, a path below their mount.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] when a controller is missing or may not be used.
    pub fn detect(parent: &str) -> Result<Self, VmmError> {
        let path = "/proc/self/mountinfo";
        let mounts = std::fs::read_to_string(path).map_err(VmmError::io(format!("read {path}")))?;
        if detect::are_hidden(&mounts) {
            let reason = detect::HIDDEN.to_owned();
            return Err(VmmError::Unusable { path: PathBuf::from("/sys/fs/cgroup"), reason });
        }
        Self::from_mounts(&mounts, parent)
    }

    /// Removes `parent`, and what is left of slots in it. Succeeds when it isn't there.
    ///
    /// # Errors
    /// [`VmmError::Io`] when a process is still in it, [`VmmError::Unusable`] as [`Self::detect`].
    pub fn remove(parent: &str) -> Result<(), VmmError> {
        let root = Self::detect(parent)?;
        for name in root.list()? {
            root.slot(&name).remove()?;
        }
        root.remove_parent()
    }

    /// Removes the cgroup that held the slots', when there are none.
    ///
    /// # Errors
    /// [`VmmError::Io`] when one is in it.
    pub(crate) fn remove_parent(&self) -> Result<(), VmmError> {
        SlotCgroup::new(self.layout.version, self.layout.directories.clone()).remove()
    }

    fn from_mounts(mountinfo: &str, parent: &str) -> Result<Self, VmmError> {
        let unusable =
            |reason: String| VmmError::Unusable { path: PathBuf::from("/sys/fs/cgroup"), reason };
        let plain = Path::new(parent)
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        if parent.is_empty() || !plain {
            return Err(unusable(format!(
                "the cgroup parent must be a plain relative path, not '{parent}'"
            )));
        }
        let found = detect::find(mountinfo, &CONTROLLERS).map_err(unusable)?;
        let directories = found.mounts.iter().map(|mount| mount.join(parent)).collect::<Vec<_>>();
        let parent = parent.to_owned();
        let root = Self {
            layout: Arc::new(Layout {
                version: found.version,
                parent,
                mounts: found.mounts,
                directories,
            }),
        };
        root.ensure()?;
        Ok(root)
    }

    /// Makes it, if it isn't there: another server of this host may have tidied up since it was
    /// found.
    ///
    /// # Errors
    /// [`VmmError::Io`] naming what could not be made.
    pub fn ensure(&self) -> Result<(), VmmError> {
        let layout = &self.layout;
        match layout.version {
            Version::V1 => layout.directories.iter().try_for_each(|directory| make(directory)),
            Version::V2 => {
                layout.mounts.iter().try_for_each(|mount| delegate(mount, &layout.parent))
            }
        }
    }

    /// Which interface the host offers.
    pub fn version(&self) -> Version {
        self.layout.version
    }

    /// The cgroup of that name below this one; it need not exist.
    pub fn slot(&self, name: &str) -> SlotCgroup {
        let directories =
            self.layout.directories.iter().map(|directory| directory.join(name)).collect();
        SlotCgroup::new(self.layout.version, directories)
    }

    /// Names of the cgroups that exist below this one, which need not exist itself.
    ///
    /// # Errors
    /// [`VmmError::Io`] when the directory can't be read.
    pub fn list(&self) -> Result<Vec<String>, VmmError> {
        let mut names = Vec::new();
        for directory in &self.layout.directories {
            let attempted = || format!("list the cgroups in {}", directory.display());
            let entries = match std::fs::read_dir(directory) {
                // The last server of this host that ended has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(VmmError::io(attempted()))?,
            };
            for entry in entries {
                let entry = entry.map_err(VmmError::io(attempted()))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// v2 gives a cgroup the controllers that its parent passes on, so each level down to `parent` must
/// pass them on.
fn delegate(mount: &Path, parent: &str) -> Result<(), VmmError> {
    let mut directory = mount.to_owned();
    let mut parts = Path::new(parent).components();
    loop {
        let control = directory.join("cgroup.subtree_control");
        let passed = std::fs::read_to_string(&control).unwrap_or_default();
        for controller in CONTROLLERS {
            if !passed.split_whitespace().any(|name| name == controller) {
                write(&control, &format!("+{controller}"))?;
            }
        }
        let Some(part) = parts.next() else { return Ok(()) };
        directory.push(part);
        make(&directory)?;
    }
}

fn make(directory: &Path) -> Result<(), VmmError> {
    std::fs::create_dir_all(directory)
        .map_err(VmmError::io(format!("create the cgroup {}", directory.display())))
}

/// Writes a control file in one call, as cgroup files want it.
fn write(path: &Path, value: &str) -> Result<(), VmmError> {
    let outcome = open_for_writing(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    outcome.map_err(VmmError::io(format!("write '{value}' to {}", path.display())))
}

fn open_for_writing(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

#[cfg(test)]
mod tests;
