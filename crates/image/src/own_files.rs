//! Files that every machine has of its own, in place of whatever its image has there. A root disk
//! keeps a block for each, so that they can be written before a machine starts, from outside:
//! nothing is left to do for it then.

use std::{
    fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use caddis_ext4::{Filled, Patch, Replacement};

/// Directories that something is mounted on or written to.
const DIRECTORIES: [&str; 4] = ["dev", "etc", "proc", "sys"];
/// Files, and whether they are made where an image has none.
const FILES: [(&str, bool); 4] = [
    ("etc/hostname", true),
    ("etc/hosts", true),
    ("etc/machine-id", false),
    ("etc/resolv.conf", true),
];
/// What is in them until they are written: as much as a block of the root disk.
const CONTENT: [u8; 4096] = [b'\n'; 4096];
/// Of what an image does not have, so that the same image gives the same disk.
const TIME: Duration = Duration::from_secs(1);

/// Has an image's tree keep room for them, where nothing but a plain file is in the way. What can't
/// be kept is written by the guest.
pub(crate) fn reserve(tree: &Path) -> io::Result<()> {
    let kept = time_of(tree)?;
    for name in DIRECTORIES {
        let path = tree.join(name);
        match DirBuilder::new().create(&path) {
            Ok(()) => {
                // Whatever the umask is.
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                File::open(&path)?.set_modified(SystemTime::UNIX_EPOCH + TIME)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    File::open(tree)?.set_times(kept)?;
    let directory = tree.join("etc");
    if !fs::symlink_metadata(&directory)?.is_dir() {
        return Ok(());
    }
    let kept = time_of(&directory)?;
    for (name, is_made) in FILES {
        let (path, mut options) = (tree.join(name), OpenOptions::new());
        let (time, is_new) = match fs::symlink_metadata(&path) {
            Ok(there) if there.is_file() && there.nlink() == 1 => {
                options.truncate(true);
                (time_of(&path)?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_made => {
                options.create_new(true);
                (FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + TIME), true)
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => continue,
        };
        let mut file = options.write(true).custom_flags(libc::O_NOFOLLOW).open(&path)?;
        io::Write::write_all(&mut file, &CONTENT)?;
        if is_new {
            file.set_permissions(Permissions::from_mode(0o644))?;
        }
        file.set_times(time)?;
    }
    File::open(&directory)?.set_times(kept)
}

fn time_of(path: &Path) -> io::Result<FileTimes> {
    Ok(FileTimes::new().set_modified(fs::symlink_metadata(path)?.modified()?))
}

/// A file in a machine's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Absolute path.
    pub path: &'static str,
    /// All of it.
    pub content: String,
    /// It is not made where the image has none.
    pub only_in_place: bool,
}

impl OwnFile {
    /// What has to be written over the root disk for this file to be in the root.
    pub(crate) fn replacement(
        &self,
        disk: &Filled<'_>,
        time: SystemTime,
    ) -> io::Result<Replacement> {
        let names: Vec<_> = self.path.split('/').filter(|name| !name.is_empty()).collect();
        disk.replace(&names, self.content.as_bytes(), time).map_err(io::Error::other)
    }
}

/// What has to be written over a root disk for these files to be in the root, as far as it keeps
/// room for them. Blocks.
///
/// # Errors
/// When the root disk can't be read.
pub fn patches(disk: &Path, files: &[OwnFile]) -> io::Result<Vec<Patch>> {
    let (disk, now) = (File::open(disk)?, SystemTime::now());
    let filled = Filled::open(&disk).map_err(io::Error::other)?;
    let mut patches = Vec::new();
    for file in files {
        if let Replacement::Of(of_file) = file.replacement(&filled, now)? {
            patches.extend(of_file);
        }
    }
    Ok(patches)
}

/// Those that the guest has to write: for which the root disk keeps no room, or all of them where
/// the root was `used` since they were written. Blocks.
///
/// # Errors
/// When the root disk can't be read.
pub fn unwritten(disk: &Path, files: Vec<OwnFile>, used: bool) -> io::Result<Vec<OwnFile>> {
    let disk = File::open(disk)?;
    let filled = Filled::open(&disk).map_err(io::Error::other)?;
    let mut left = Vec::new();
    for file in files {
        let is_left = match file.replacement(&filled, SystemTime::UNIX_EPOCH)? {
            Replacement::Of(_) => used,
            Replacement::Missing => !file.only_in_place,
            Replacement::Impossible => true,
        };
        if is_left {
            left.push(file);
        }
    }
    Ok(left)
}
