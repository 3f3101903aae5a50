//! Slots: a leased uid, the name of a tap and the name of a cgroup, bound to a machine while its VM
//! lives.
//!
//! A slot is held by an exclusive lock on the file of its number. The lock belongs to an open file
//! description, and the VM process inherits that: so a slot stays taken while a VM lives, also when
//! the server that leased it is gone.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use tracing::debug;

use crate::{VmmError, cgroup::CgroupRoot};

/// Where slots are and how many there are. All servers of a host must agree on it.
#[derive(Debug, Clone)]
pub struct SlotPoolConfig {
    /// Directory of the lock files. One per host, and gone after a reboot.
    pub directory: PathBuf,
    /// Uid (and gid) of slot 0. The range `first_uid..first_uid + count` must belong to nobody
    /// else.
    pub first_uid: u32,
    /// Number of slots, so of VMs on this host.
    pub count: u32,
    /// Cgroup that the slots' cgroups are made in, as a path below the mount of the cgroup file
    /// system.
    pub cgroup_parent: String,
}

impl Default for SlotPoolConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/run/caddis/slots"),
            // Above what Debian gives to people and services (60000), below what subuid ranges
            // (from 100000 in steps of 65536) reach on a host with a few users, and far below
            // systemd's 0x70000000 for containers.
            first_uid: 600_000,
            count: 1000,
            // The name of a unit of systemd, which then leaves what is in it alone.
            cgroup_parent: "caddis.slice".to_owned(),
        }
    }
}

/// One leased slot. Dropping the last clone gives it back, unless the VM process still holds its
/// lock.
#[derive(Debug, Clone)]
pub struct Slot {
    inner: Arc<SlotInner>,
}

#[derive(Debug)]
struct SlotInner {
    index: u32,
    uid: u32,
    /// Holds the lock.
    lock: File,
    cgroups: Option<CgroupRoot>,
}

impl Slot {
    /// Number of the slot, from 0.
    pub fn index(&self) -> u32 {
        self.inner.index
    }

    /// The uid and gid its VM process runs as; no other process of the host has them at the same
    /// time.
    pub fn uid(&self) -> u32 {
        self.inner.uid
    }

    /// Name of its tap device, at most 15 characters.
    pub fn tap_name(&self) -> String {
        format!("caddis{}", self.inner.index)
    }

    /// Name of its cgroup below the pool's.
    pub fn cgroup_name(&self) -> String {
        cgroup_name(self.inner.index)
    }

    /// The descriptor that holds the lock, for a VM process to inherit.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.inner.lock.as_fd()
    }

    /// The cgroups of the pool; none for the slots of a fake host.
    pub(crate) fn cgroups(&self) -> Option<&CgroupRoot> {
        self.inner.cgroups.as_ref()
    }
}

const CGROUP_PREFIX: &str = "slot-";

fn cgroup_name(index: u32) -> String {
    format!("{CGROUP_PREFIX}{index}")
}

/// All slots of the host. Several servers on one host (tests, demo) share them safely: a slot is
/// held by an exclusive lock on a file.
#[derive(Debug, Clone)]
pub struct SlotPool {
    config: Arc<SlotPoolConfig>,
    cgroups: Option<CgroupRoot>,
}

impl SlotPool {
    /// Opens the host's pool, making its directory if it isn't there.
    ///
    /// # Errors
    /// [`VmmError::Unusable`] when the host has no usable cgroups, [`VmmError::Io`] when the
    /// directory can't be made.
    pub fn open(config: SlotPoolConfig) -> Result<Self, VmmError> {
        let cgroups = CgroupRoot::detect(&config.cgroup_parent)?;
        Self::with_cgroups(config, Some(cgroups))
    }

    /// A pool whose slots can't run processes, for tests with [`crate::fake`] drivers: needs no
    /// rights.
    ///
    /// # Errors
    /// [`VmmError::Io`] when the directory can't be made.
    pub fn open_without_cgroups(config: SlotPoolConfig) -> Result<Self, VmmError> {
        Self::with_cgroups(config, None)
    }

    fn with_cgroups(config: SlotPoolConfig, cgroups: Option<CgroupRoot>) -> Result<Self, VmmError> {
        let attempted = format!("create the slot directory {}", config.directory.display());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&config.directory)
            .map_err(VmmError::io(attempted))?;
        Ok(Self { config: Arc::new(config), cgroups })
    }

    /// Leases the lowest free slot.
    ///
    /// # Errors
    /// [`VmmError::NoSlot`] when all are taken.
    pub fn lease(&self) -> Result<Slot, VmmError> {
        for index in 0..self.config.count {
            let Some(lock) = self.try_lock(index)? else { continue };
            if let Some(cgroups) = &self.cgroups {
                // A VM that died together with its server leaves its cgroup. The lock says nobody
                // uses it.
                let cgroup = cgroups.slot(&cgroup_name(index));
                if cgroup.exists()
                    && let Err(error) = cgroup.remove()
                {
                    debug!(slot = index, %error, "slot passed over, its cgroup is in use");
                    continue;
                }
            }
            return Ok(self.slot(index, lock));
        }
        Err(VmmError::NoSlot { count: self.config.count })
    }

    /// Leases the slot of that number, `None` when it is taken.
    ///
    /// # Errors
    /// [`VmmError::NoSlot`] when the pool has no slot of that number.
    pub fn lease_exact(&self, index: u32) -> Result<Option<Slot>, VmmError> {
        self.check(index)?;
        Ok(self.try_lock(index)?.map(|lock| self.slot(index, lock)))
    }

    /// The slot of a VM that an earlier server started, with the descriptor by which that VM holds
    /// the lock: so it stays taken until both have let go of it.
    pub(crate) fn adopt(&self, index: u32, held: OwnedFd) -> Result<Slot, VmmError> {
        self.check(index)?;
        Ok(self.slot(index, File::from(held)))
    }

    fn check(&self, index: u32) -> Result<(), VmmError> {
        if index < self.config.count {
            Ok(())
        } else {
            Err(VmmError::NoSlot { count: self.config.count })
        }
    }

    /// The numbers of all slots that are taken now, by whatever server or VM.
    ///
    /// # Errors
    /// [`VmmError::Io`] when the directory can't be read.
    pub fn list(&self) -> Result<Vec<u32>, VmmError> {
        let attempted = || format!("list the slots in {}", self.config.directory.display());
        let mut taken = Vec::new();
        for entry in std::fs::read_dir(&self.config.directory).map_err(VmmError::io(attempted()))? {
            let name = entry.map_err(VmmError::io(attempted()))?.file_name();
            let Some(index) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            if self.try_lock(index)?.is_none() {
                taken.push(index);
            }
        }
        taken.sort_unstable();
        Ok(taken)
    }

    /// Removes the cgroups of slots that nobody holds, and their parent with the last. How many are
    /// held.
    ///
    /// # Errors
    /// [`VmmError::Io`] when the host refuses.
    pub fn clean(&self) -> Result<usize, VmmError> {
        let Some(cgroups) = &self.cgroups else { return Ok(0) };
        let mut held = 0;
        for name in cgroups.list()? {
            let index = name.strip_prefix(CGROUP_PREFIX).and_then(|number| number.parse().ok());
            // Held while it is removed, so that no server takes the slot meanwhile.
            match index.map(|index| self.try_lock(index)).transpose()? {
                Some(Some(_lock)) if cgroups.slot(&name).remove().is_ok() => {}
                _ => held += 1,
            }
        }
        if held == 0 {
            cgroups.remove_parent()?;
        }
        Ok(held)
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.config.count
    }

    fn slot(&self, index: u32, lock: File) -> Slot {
        let uid = self.config.first_uid + index;
        Slot { inner: Arc::new(SlotInner { index, uid, lock, cgroups: self.cgroups.clone() }) }
    }

    fn try_lock(&self, index: u32) -> Result<Option<File>, VmmError> {
        let path = self.config.directory.join(index.to_string());
        let attempted = || format!("lock the slot {}", path.display());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(VmmError::io(attempted()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(VmmError::io(attempted())(io::Error::from(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(directory: &std::path::Path, count: u32) -> SlotPool {
        let directory = directory.join("slots");
        SlotPool::open_without_cgroups(SlotPoolConfig { directory, count, ..Default::default() })
            .unwrap()
    }

    #[test]
    fn two_pools_of_one_host_never_lease_the_same_slot() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (pool(directory.path(), 3), pool(directory.path(), 3));
        let (a, b, c) = (one.lease().unwrap(), two.lease().unwrap(), one.lease().unwrap());
        assert_eq!([a.index(), b.index(), c.index()], [0, 1, 2]);
        assert_eq!(b.uid(), 600_001);
        assert_eq!(two.list().unwrap(), [0, 1, 2]);
        assert!(matches!(two.lease(), Err(VmmError::NoSlot { count: 3 })));
        drop(b);
        assert_eq!(one.lease().unwrap().index(), 1);
    }

    #[test]
    fn a_slot_is_free_again_only_when_its_last_clone_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path(), 1);
        let slot = pool.lease().unwrap();
        let clone = slot.clone();
        drop(slot);
        assert!(pool.lease().is_err());
        drop(clone);
        assert!(pool.lease().is_ok());
    }

    #[test]
    fn an_adopted_slot_stays_taken_until_both_its_holders_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let (vm, server) = (pool(directory.path(), 1), pool(directory.path(), 1));
        let held = vm.lease().unwrap();
        assert!(server.lease_exact(0).unwrap().is_none());
        let adopted = server.adopt(0, held.lock().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(adopted.uid(), held.uid());
        drop(held);
        assert!(vm.lease().is_err());
        drop(adopted);
        assert!(vm.lease_exact(0).unwrap().is_some());
        assert!(server.lease_exact(1).is_err());
    }
}
