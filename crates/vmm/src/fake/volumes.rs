//! Volumes of fake VMs: their descriptors are held, and their locks with them. Snapshots are states
//! without contents: where they are to be read, a test listens itself ([`snapshot_socket`]).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

use super::{FakeHost, FakeVm};
use crate::{
    BegunSnapshot, DiskRole, Hydration, Passphrase, PreparedSnapshot, VmmError, VolumeDisk,
    VolumeExport, volume,
};

/// Begins a file that says which passphrase opens it.
const ENCRYPTED: &str = "fake encrypted volume ";
/// What is read of it, bytes.
const LONGEST: usize = 1024;

/// Makes a file that the fake driver takes for a volume which only this passphrase opens. Any other
/// file is one that each launch can open.
///
/// # Errors
/// What the file system says.
pub fn create_volume(path: &Path, passphrase: &Passphrase) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(format!("{ENCRYPTED}{}", passphrase.reveal()).as_bytes())
}

impl FakeHost {
    /// What QEMU does with volumes at a launch.
    pub(super) fn open_volumes(&self, volumes: &[VolumeDisk]) -> Result<(), VmmError> {
        let Some(first) = volumes.first() else { return Ok(()) };
        let refused = |volume: &VolumeDisk, reason: &str| VmmError::InvalidDisk {
            name: volume.role().name(),
            reason: reason.to_owned(),
        };
        {
            let mut faults = self.faults.lock();
            if faults.failing_volumes > 0 {
                faults.failing_volumes -= 1;
                return Err(refused(first, "told to fail"));
            }
        }
        for volume in volumes {
            let file = volume.file.try_clone().map_err(VmmError::io("open a volume"))?;
            let begin = beginning(file).map_err(VmmError::io("read a volume"))?;
            let wanted = begin.strip_prefix(ENCRYPTED);
            let given = volume.passphrase.as_ref().map(Passphrase::reveal);
            if wanted.is_some_and(|wanted| given != Some(wanted)) {
                return Err(refused(volume, "invalid passphrase"));
            }
        }
        Ok(())
    }
}

fn beginning(file: OwnedFd) -> io::Result<String> {
    let mut bytes = [0; LONGEST];
    let count = File::from(file).read_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
}

/// Where the snapshots of a machine with this directory can be read, in exports by the name of
/// their volume (`volume0`). Nothing listens there unless a test does.
pub fn snapshot_socket(directory: &Path) -> PathBuf {
    directory.join("nbd.sock")
}

/// What was asked of a volume, whether or not it could be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeCall {
    /// [`crate::Vm::prepare_snapshot`].
    PrepareSnapshot {
        /// Number of the volume.
        index: u8,
    },
    /// [`crate::Vm::begin_snapshot`].
    BeginSnapshot {
        /// Number of the volume.
        index: u8,
        /// Id of the snapshot.
        id: String,
        /// Id of the one before.
        previous: Option<String>,
    },
    /// [`crate::Vm::export_snapshot`].
    ExportSnapshot {
        /// Number of the volume.
        index: u8,
    },
    /// [`crate::Vm::end_snapshot`].
    EndSnapshot {
        /// Number of the volume.
        index: u8,
        /// Whether the snapshot was taken.
        is_taken: bool,
    },
    /// [`crate::Vm::clone_volume`].
    Clone {
        /// Number of the volume.
        index: u8,
    },
    /// [`crate::Vm::hydrate`].
    Hydrate {
        /// Number of the volume.
        index: u8,
    },
}

/// What was asked of a volume of a VM.
#[derive(Debug)]
pub(super) struct Asked {
    machine_id: String,
    call: VolumeCall,
    /// Its guest held its volumes still.
    is_frozen: bool,
}

/// Snapshots of a volume.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Id of the one that is open.
    open: Option<String>,
    /// Id of the last one that was taken: what has changed since is known.
    taken: Option<String>,
}

impl FakeHost {
    /// What was asked of the volumes of a machine's VMs, in order; progress is asked for often.
    pub fn volume_calls(&self, machine_id: &str) -> Vec<VolumeCall> {
        self.volume_calls_where(|asked| asked.machine_id == machine_id)
    }

    /// Those of them during which the guest held its volumes still.
    pub fn volume_calls_while_frozen(&self, machine_id: &str) -> Vec<VolumeCall> {
        self.volume_calls_where(|asked| asked.machine_id == machine_id && asked.is_frozen)
    }

    fn volume_calls_where(&self, is: impl Fn(&Asked) -> bool) -> Vec<VolumeCall> {
        let all = self.volume_calls.lock();
        all.iter().filter(|asked| is(asked)).map(|asked| asked.call.clone()).collect()
    }

    /// Says how far a volume with a backing is, until it is said anew. Without it nothing of it is
    /// copied at the first call and all at the second.
    pub fn set_hydration(&self, machine_id: &str, index: u8, hydration: Hydration) {
        self.hydrations.lock().insert((machine_id.to_owned(), index), hydration);
    }
}

impl FakeVm {
    /// Has the volumes be another's.
    pub(super) fn let_go(&self) {
        self.volumes.lock().clear();
        self.snapshots.lock().clear();
    }

    /// Notes what is asked, and has it done where there is a volume of this number.
    fn asked<T>(
        &self,
        call: VolumeCall,
        index: u8,
        work: impl FnOnce(&mut VolumeDisk) -> Result<T, VmmError>,
    ) -> Result<T, VmmError> {
        let machine_id = self.machine_id.clone();
        let is_frozen = self.guest.frozen_volumes().is_some();
        self.host.volume_calls.lock().push(Asked { machine_id, call, is_frozen });
        if self.exit.borrow().is_some() {
            let gone = io::ErrorKind::ConnectionRefused.into();
            return Err(VmmError::io("connect to the VM process")(gone));
        }
        let mut volumes = self.volumes.lock();
        match volumes.iter_mut().find(|volume| volume.index == index) {
            Some(volume) => work(volume),
            None => Err(refused(index, volume::MISSING)),
        }
    }

    /// What is in the way of it is told at its instant.
    pub(super) fn prepare(
        &self,
        index: u8,
        id: String,
        previous: Option<String>,
    ) -> Result<PreparedSnapshot, VmmError> {
        self.asked(VolumeCall::PrepareSnapshot { index }, index, |_| {
            Ok(PreparedSnapshot { id, previous, bitmaps: Vec::new(), line: None })
        })
    }

    pub(super) fn begin(
        &self,
        index: u8,
        prepared: PreparedSnapshot,
    ) -> Result<BegunSnapshot, VmmError> {
        let (id, previous) = (prepared.id.clone(), prepared.previous.clone());
        self.asked(VolumeCall::BeginSnapshot { index, id, previous }, index, |volume| {
            if volume.backing.is_some() {
                return Err(refused(index, volume::RESTORING));
            }
            let mut snapshots = self.snapshots.lock();
            let snapshots = snapshots.entry(index).or_default();
            if snapshots.open.is_some() {
                return Err(refused(index, volume::SNAPSHOT_OPEN));
            }
            if counted(&mut self.host.faults.lock().failing_snapshots) {
                return Err(VmmError::io("snapshot a volume")(io::Error::other("told to fail")));
            }
            snapshots.open = Some(prepared.id.clone());
            Ok(BegunSnapshot(prepared))
        })
    }

    pub(super) fn export(
        &self,
        index: u8,
        BegunSnapshot(begun): BegunSnapshot,
    ) -> Result<VolumeExport, VmmError> {
        self.asked(VolumeCall::ExportSnapshot { index }, index, |_| {
            let mut snapshots = self.snapshots.lock();
            let taken = snapshots.entry(index).or_default().taken.as_deref();
            let changed = begun.previous.filter(|id| taken == Some(id));
            Ok(VolumeExport {
                socket: snapshot_socket(&self.directory),
                name: DiskRole::Volume(index).name(),
                changed: changed.map(|id| format!("since-{id}")),
            })
        })
    }

    pub(super) fn end(&self, index: u8, is_taken: bool) -> Result<(), VmmError> {
        self.asked(VolumeCall::EndSnapshot { index, is_taken }, index, |_| {
            let mut snapshots = self.snapshots.lock();
            let snapshots = snapshots.entry(index).or_default();
            let ended = snapshots.open.take();
            if is_taken && ended.is_some() {
                snapshots.taken = ended;
            }
            Ok(())
        })
    }

    /// Copies, whatever the file system can.
    pub(super) fn clone_to(&self, index: u8, to: OwnedFd) -> Result<(), VmmError> {
        self.asked(VolumeCall::Clone { index }, index, |volume| {
            let failed = VmmError::io("clone a volume");
            let copy = || {
                let mut faults = self.host.faults.lock();
                if faults.no_reflinks {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                if counted(&mut faults.failing_clones) {
                    return Err(io::Error::other("told to fail"));
                }
                let (from, to) = (File::from(volume.file.try_clone()?), File::from(to));
                let length = from.metadata()?.len();
                to.set_len(length)?;
                let mut bytes = vec![0; COPIED];
                let mut at = 0;
                while at < length {
                    let read = from.read_at(&mut bytes, at)?;
                    to.write_all_at(&bytes[..read], at)?;
                    at += read.max(1) as u64;
                }
                Ok(())
            };
            copy().map_err(failed)
        })
    }

    pub(super) fn hydration(&self, index: u8) -> Result<Hydration, VmmError> {
        self.asked(VolumeCall::Hydrate { index }, index, |volume| {
            let all = Hydration::Running { done: 0, total: volume.size };
            let mut told = self.host.hydrations.lock();
            let now = match (&volume.backing, told.get(&(self.machine_id.clone(), index))) {
                (None, _) => return Ok(Hydration::Done),
                (Some(_), Some(told)) => told.clone(),
                (Some(_), None) => {
                    told.insert((self.machine_id.clone(), index), Hydration::Done);
                    all
                }
            };
            if now == Hydration::Done {
                volume.backing = None;
            }
            Ok(now)
        })
    }

    /// Why it can't be saved now.
    pub(super) fn in_the_way_of_saving(&self) -> Option<String> {
        let (volumes, snapshots) = (self.volumes.lock(), self.snapshots.lock());
        volumes.iter().find_map(|volume| {
            let open = snapshots.get(&volume.index).and_then(|snapshots| snapshots.open.as_ref());
            let reason = match (&volume.backing, open) {
                (Some(_), _) => volume::RESTORING,
                (None, Some(_)) => volume::SNAPSHOT_OPEN,
                (None, None) => return None,
            };
            Some(format!("{}: {reason}", volume.role().name()))
        })
    }

    pub(super) fn resize(&self, index: u8, bytes: u64) -> Result<(), VmmError> {
        let mut volumes = self.volumes.lock();
        let volume = volumes.iter_mut().find(|volume| volume.index == index);
        let volume = volume.ok_or_else(|| refused(index, volume::MISSING))?;
        if volume.size > bytes {
            return Err(refused(index, "it is larger, and is not made smaller"));
        }
        if self.snapshots.lock().get(&index).is_some_and(|snapshots| snapshots.open.is_some()) {
            return Err(refused(index, volume::SNAPSHOT_OPEN));
        }
        if counted(&mut self.host.faults.lock().failing_resizes) {
            return Err(VmmError::io("resize a volume")(io::Error::other("told to fail")));
        }
        volume.size = bytes;
        self.host.resizes.lock().push((self.machine_id.clone(), index, bytes));
        Ok(())
    }
}

/// Bytes that are copied at a time.
const COPIED: usize = 1 << 20;

fn refused(index: u8, reason: &str) -> VmmError {
    VmmError::InvalidDisk { name: DiskRole::Volume(index).name(), reason: reason.to_owned() }
}

/// Counts down how often something fails.
fn counted(left: &mut usize) -> bool {
    let fails = *left > 0;
    *left = left.saturating_sub(1);
    fails
}
