//! The tree of files that is copied, by descriptors that never leave it.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags},
    io::Errno,
};

use crate::inode::Time;

/// A directory of the tree.
#[derive(Debug)]
pub(crate) struct Directory(OwnedFd);

/// What a file is, besides its content.
#[derive(Debug, Clone)]
pub(crate) struct Metadata {
    pub(crate) kind: FileType,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) size: u64,
    pub(crate) time: Time,
    /// Major and minor number, of devices.
    pub(crate) device: (u32, u32),
    /// Names that lead to it.
    pub(crate) links: u64,
    pub(crate) identity: Identity,
    /// Whether it takes less room than its size.
    pub(crate) sparse: bool,
}

/// File system and inode.
pub(crate) type Identity = (u64, u64);

/// Names and values of extended attributes.
pub(crate) type Seen = Vec<(Vec<u8>, Vec<u8>)>;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Directory {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?))
    }

    pub(crate) fn child(&self, name: &[u8]) -> io::Result<Self> {
        Ok(Self(rustix::fs::openat(&self.0, name, DIRECTORY, Mode::empty())?))
    }

    /// The directory above.
    pub(crate) fn parent(&self) -> io::Result<Self> {
        self.child(b"..")
    }

    /// All names but `.` and `..`, sorted.
    pub(crate) fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        Ok(rustix::fs::fstat(&self.0)?.into())
    }

    pub(crate) fn look(&self, name: &[u8]) -> io::Result<Metadata> {
        Ok(rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?.into())
    }

    pub(crate) fn file(&self, name: &[u8]) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.0, name, flags, Mode::empty())?.into())
    }

    pub(crate) fn link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, name, Vec::new())?.into_bytes())
    }

    pub(crate) fn attributes(&self) -> io::Result<Seen> {
        attributes_of(&self.0)
    }

    /// Of a file that can't be opened for them: a link, a device.
    pub(crate) fn attributes_of(&self, name: &[u8]) -> io::Result<Seen> {
        let mut path = format!("/proc/self/fd/{}/", self.0.as_fd().as_raw_fd()).into_bytes();
        path.extend(name);
        let path = CString::new(path)?;
        attributes(
            |buffer| rustix::fs::llistxattr(&path, buffer),
            |name, buffer| rustix::fs::lgetxattr(&path, name, buffer),
        )
    }
}

/// The extended attributes of an open file.
pub(crate) fn attributes_of(file: impl AsFd) -> io::Result<Seen> {
    attributes(
        |buffer| rustix::fs::flistxattr(&file, buffer),
        |name, buffer| rustix::fs::fgetxattr(&file, name, buffer),
    )
}

/// Longest list of names, and longest value, that Linux has.
const LONGEST: usize = 64 << 10;

fn attributes(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&[u8], &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Seen> {
    let mut names = [0; 1024];
    let names = match list(&mut names) {
        Ok(length) => names[..length].to_vec(),
        Err(Errno::NOTSUP) => Vec::new(),
        Err(Errno::RANGE) => whole(&list)?,
        Err(error) => return Err(error.into()),
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| Ok((name.to_vec(), whole(|buffer| get(name, buffer))?))).collect()
}

fn whole(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LONGEST];
    let length = read(&mut bytes)?;
    bytes.truncate(length);
    Ok(bytes)
}

impl From<rustix::fs::Stat> for Metadata {
    fn from(stat: rustix::fs::Stat) -> Self {
        Self {
            kind: FileType::from_raw_mode(stat.st_mode),
            // Type and permissions are sixteen bits.
            mode: (stat.st_mode & 0xffff) as u16,
            user: stat.st_uid,
            group: stat.st_gid,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            time: Time {
                seconds: stat.st_mtime,
                nanoseconds: (stat.st_mtime_nsec % 1_000_000_000) as u32,
            },
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            links: stat.st_nlink,
            identity: (stat.st_dev, stat.st_ino),
            sparse: stat.st_blocks.saturating_mul(512) < stat.st_size,
        }
    }
}
