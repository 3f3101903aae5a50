//! `vm.json` in a machine's directory: which process is the machine's VM.
//!
//! The lock proves *that* a VM runs, the record says *which* process it is. It is written twice:
//! before the fork with the slot alone, so that a cgroup is never left unaccounted for, and right
//! after it with the process. A server killed in between leaves a held lock and a record without a
//! process; then the holder of the lock is searched for.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Start, VmmError};

const FILE: &str = "vm.json";

/// The record's own version, so that a later server knows what it reads.
const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    format: u32,
    pub(crate) machine_id: String,
    /// Number of the slot it runs in.
    pub(crate) slot: u32,
    /// The host's boot that it runs in.
    pub(crate) boot_id: String,
    /// Seconds since the Unix epoch.
    pub(crate) started_at: u64,
    /// The program's own words for its version.
    pub(crate) vmm_version: String,
    /// How it was started.
    #[serde(default = "unknown")]
    pub(crate) start: Start,
    /// What saving it takes; none in records of releases that did not say all of it.
    #[serde(default)]
    pub(crate) saving: Option<Saving>,
    /// Whether it has volumes.
    #[serde(default)]
    pub(crate) has_volumes: bool,
    /// It stands still for as long as a volume of it is cloned.
    #[serde(default)]
    pub(crate) cloning: bool,
    /// It has what it needs to run: a VM that is to be restored waits for that, and for ever when
    /// its server is killed.
    #[serde(default = "whole")]
    pub(crate) complete: bool,
    /// None until it has been started.
    pub(crate) process: Option<ProcessId>,
}

/// What saving a VM takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saving {
    /// What a snapshot of it depends on.
    pub(crate) key: String,
    /// Guest memory, bytes.
    pub(crate) memory: u64,
    /// Files of its disks, which are written through.
    pub(crate) disks: Vec<PathBuf>,
}

/// Records of releases that had no other.
fn unknown() -> Start {
    Start::cold("")
}

/// Records of releases that did not say.
fn whole() -> bool {
    true
}

/// A process id alone may be used again by another process; with the start time it is unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub(crate) start_time: u64,
}

impl Record {
    pub(crate) fn new(
        machine_id: &str,
        slot: u32,
        vmm_version: &str,
        start: Start,
        saving: Saving,
    ) -> Result<Self, VmmError> {
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            format: FORMAT,
            machine_id: machine_id.to_owned(),
            slot,
            boot_id: boot_id()?,
            started_at: now.as_secs(),
            vmm_version: vmm_version.to_owned(),
            start,
            saving: Some(saving),
            has_volumes: false,
            cloning: false,
            complete: false,
            process: None,
        })
    }

    /// The record in a machine's directory; none when there is none that can be read.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let text = fs::read(directory.join(FILE)).ok()?;
        serde_json::from_slice::<Self>(&text).ok().filter(|record| record.format == FORMAT)
    }

    /// Writes it, whole or not at all. Not synced: it need not survive the host, since no VM does.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), VmmError> {
        let (path, new) = (directory.join(FILE), directory.join(format!("{FILE}.new")));
        let attempt = || {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(&new, &path)
        };
        attempt().map_err(VmmError::io(format!("write {}", path.display())))
    }

    pub(crate) fn remove(directory: &Path) -> io::Result<()> {
        for name in [FILE.to_owned(), format!("{FILE}.new")] {
            match fs::remove_file(directory.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The id of the host's boot.
pub(crate) fn boot_id() -> Result<String, VmmError> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    let text =
        fs::read_to_string(&path).map_err(VmmError::io(format!("read {}", path.display())))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_is_no_record() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(directory.path()), None);
        let saving = Saving { key: "k".to_owned(), memory: 1 << 28, disks: vec!["/root".into()] };
        let start = Start::template(crate::PoolUse::Hit);
        let mut record = Record::new("4d891", 7, "7.2", start, saving).unwrap();
        record.process = Some(ProcessId { pid: 1, start_time: 2 });
        record.write(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()), Some(record.clone()));
        let mut older = serde_json::to_value(&record).unwrap();
        older.as_object_mut().unwrap().remove("saving");
        older["key"] = "k".into();
        fs::write(directory.path().join(FILE), older.to_string()).unwrap();
        let found = Record::read(directory.path()).unwrap();
        assert_eq!(
            (found.process, found.saving),
            (record.process, None),
            "it is adopted, not saved"
        );
        fs::write(directory.path().join(FILE), "{\"format\":1,").unwrap();
        assert_eq!(Record::read(directory.path()), None);
        record.format = 2;
        record.write(directory.path()).unwrap();
        assert_eq!(Record::read(directory.path()), None, "a later format is not guessed at");
        Record::remove(directory.path()).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
