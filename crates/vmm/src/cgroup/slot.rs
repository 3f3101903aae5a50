//! The cgroup of one slot.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use super::{Version, make, open_for_writing, write};
use crate::VmmError;

/// What a VM may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory, page cache included; no swap beyond it.
    pub memory: u64,
    /// Weight against other VMs, 1-10000, 100 is the default.
    pub cpu_weight: u32,
    /// Number of threads.
    pub threads: u32,
}

/// A cgroup that need not exist.
#[derive(Debug, Clone)]
pub struct SlotCgroup {
    version: Version,
    directories: Vec<PathBuf>,
}

impl SlotCgroup {
    pub(super) fn new(version: Version, directories: Vec<PathBuf>) -> Self {
        Self { version, directories }
    }

    /// Where it is: one directory, or with v1 one per controller.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Whether any part of it is there.
    pub fn exists(&self) -> bool {
        self.directories.iter().any(|directory| directory.exists())
    }

    /// Makes it with these limits.
    ///
    /// # Errors
    /// [`VmmError::Io`] naming the file that could not be written.
    pub fn create(&self, limits: Limits) -> Result<(), VmmError> {
        for directory in &self.directories {
            make(directory)?;
        }
        let memory = limits.memory.to_string();
        match self.version {
            Version::V1 => {
                write(&self.memory("memory.limit_in_bytes"), &memory)?;
                // Only there when the kernel accounts for swap.
                let with_swap = self.memory("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    write(&with_swap, &memory)?;
                }
            }
            Version::V2 => {
                write(&self.memory("memory.max"), &memory)?;
                let swap = self.memory("memory.swap.max");
                if swap.exists() {
                    write(&swap, "0")?;
                }
            }
        }
        self.set_cpu_weight(limits.cpu_weight)?;
        write(&self.last().join("pids.max"), &limits.threads.to_string())
    }

    /// Changes its weight, see [`Limits`].
    ///
    /// # Errors
    /// [`VmmError::Io`] naming the file that could not be written.
    pub fn set_cpu_weight(&self, weight: u32) -> Result<(), VmmError> {
        match self.version {
            Version::V1 => write(&self.cpu("cpu.shares"), &shares(weight).to_string()),
            Version::V2 => write(&self.cpu("cpu.weight"), &weight.clamp(1, 10_000).to_string()),
        }
    }

    /// The files into which a process writes `0` to join.
    pub(crate) fn cgroup_procs(&self) -> Result<Vec<File>, VmmError> {
        let open = |directory: &PathBuf| {
            let path = directory.join("cgroup.procs");
            open_for_writing(&path).map_err(VmmError::io(format!("open {}", path.display())))
        };
        self.directories.iter().map(open).collect()
    }

    /// How often the host's kernel killed in it for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let name = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let text = std::fs::read_to_string(self.memory(name)).unwrap_or_default();
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
            .unwrap_or(0)
    }

    /// Removes it. Succeeds when it isn't there.
    ///
    /// # Errors
    /// [`VmmError::Io`] when a process is still in it.
    pub fn remove(&self) -> Result<(), VmmError> {
        for directory in &self.directories {
            match std::fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(
                        VmmError::io(format!("remove the cgroup {}", directory.display()))(error),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Most memory ever used in it, bytes; none where the kernel doesn't say (v2 before 5.19).
    pub fn memory_peak(&self) -> Option<u64> {
        let name = match self.version {
            Version::V1 => "memory.max_usage_in_bytes",
            Version::V2 => "memory.peak",
        };
        std::fs::read_to_string(self.memory(name)).ok()?.trim().parse().ok()
    }

    // With v1 the directories stand in the order of `CONTROLLERS`, with v2 there is one for all.
    fn memory(&self, file: &str) -> PathBuf {
        self.directories.first().map_or_else(PathBuf::new, |directory| directory.join(file))
    }

    fn cpu(&self, file: &str) -> PathBuf {
        self.directories
            .get(1)
            .or(self.directories.first())
            .map_or_else(PathBuf::new, |path| path.join(file))
    }

    fn last(&self) -> &Path {
        self.directories.last().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// v1 counts in shares, of which 1024 are what v2 calls a weight of 100.
fn shares(weight: u32) -> u32 {
    (weight.clamp(1, 10_000) * 1024 / 100).max(2)
}
