//! The directory that layers are unpacked into, and the only code that touches files in it.
//!
//! Every path from an image is resolved by the kernel as if this directory were `/` (`openat2` with
//! `RESOLVE_IN_ROOT`): symbolic links in the middle work as they would in the running machine, and
//! nothing leads outside. The last component is never followed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{FileStat, Mode, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use crate::ImageError;

/// Directories within each other. Deep enough for anything real; keeps recursion, here and in
/// mke2fs, bounded.
const DEEPEST: usize = 256;
/// Of directories that no layer has an entry for.
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);

/// A directory inside the tree.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) descriptor: OwnedFd,
    /// Where it really is, symbolic links resolved, on the host.
    pub(crate) location: PathBuf,
}

impl Directory {
    /// What this name in it is, the last component not followed; `None` when there is nothing.
    pub(crate) fn look(&self, name: &OsStr) -> Result<Option<FileStat>, Errno> {
        match fstatat(&self.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    root: Rc<Directory>,
    /// The directory asked for last: entries of one directory come one after the other.
    recent: Option<(PathBuf, Rc<Directory>)>,
    /// Directories made that no entry was for.
    implied: u64,
}

impl Tree {
    /// Takes hold of an existing directory.
    pub(crate) fn open(path: &Path) -> Result<Self, ImageError> {
        let failed = |error: Errno| ImageError::io("open", path, error.into());
        let descriptor =
            open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(failed)?;
        let location =
            location_of(&descriptor).map_err(|error| ImageError::io("find", path, error))?;
        Ok(Self { root: Rc::new(Directory { descriptor, location }), recent: None, implied: 0 })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> Rc<Directory> {
        Rc::clone(&self.root)
    }

    /// Forgets what was looked up: to be called after anything that may have been a directory or a
    /// link was removed.
    pub(crate) fn forget(&mut self) {
        self.recent = None;
    }

    /// Opens a directory by its path in the image. `None` when it is not there, or something on the
    /// way is no directory.
    pub(crate) fn directory(&mut self, path: &Path) -> Result<Option<Rc<Directory>>, ImageError> {
        if path.as_os_str().is_empty() {
            return Ok(Some(self.root()));
        }
        if let Some((known, directory)) = &self.recent
            && known == path
        {
            return Ok(Some(Rc::clone(directory)));
        }
        let how =
            OpenHow::new().flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(
                ResolveFlag::RESOLVE_IN_ROOT
                    | ResolveFlag::RESOLVE_NO_MAGICLINKS
                    | ResolveFlag::RESOLVE_NO_XDEV,
            );
        let descriptor = match openat2(&self.root.descriptor, path, how) {
            Ok(descriptor) => descriptor,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(error) => return Err(bad_path(path, error)),
        };
        let location =
            location_of(&descriptor).map_err(|error| ImageError::io("find", path, error))?;
        // The kernel has seen to it already; this costs nothing and would notice a kernel that has
        // not.
        let inside = location.strip_prefix(&self.root.location).map_err(|_| {
            ImageError::corrupt(
                format!("layer entry `{}`", path.display()),
                "it leads outside the image",
            )
        })?;
        if inside.components().count() >= DEEPEST {
            return Err(ImageError::unsupported(
                format!("layer entry `{}`", path.display()),
                format!("directories may be nested {DEEPEST} deep"),
            ));
        }
        let directory = Rc::new(Directory { descriptor, location });
        self.recent = Some((path.to_owned(), Rc::clone(&directory)));
        Ok(Some(directory))
    }

    /// How many directories were made without an entry of their own since this was asked.
    pub(crate) fn take_implied(&mut self) -> u64 {
        std::mem::take(&mut self.implied)
    }

    /// Opens a directory by its path in the image, making what is missing on the way.
    pub(crate) fn make_directory(&mut self, path: &Path) -> Result<Rc<Directory>, ImageError> {
        if let Some(directory) = self.directory(path)? {
            return Ok(directory);
        }
        let mut parent = self.root();
        let mut so_far = PathBuf::new();
        for name in path {
            so_far.push(name);
            match mkdirat(&parent.descriptor, name, DIRECTORY_MODE) {
                Ok(()) => self.implied += 1,
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(bad_path(&so_far, error)),
            }
            parent = self.directory(&so_far)?.ok_or_else(|| {
                let reason = "a part of its path is not a directory, or a link that leads nowhere";
                ImageError::corrupt(format!("layer entry `{}`", path.display()), reason)
            })?;
        }
        Ok(parent)
    }
}

/// Removes whatever this name is, with all below it.
pub(crate) fn remove(parent: &Directory, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(&parent.descriptor, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(()),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error),
    }
    let directory = child(parent, name)?;
    for name in names(&directory)? {
        remove(&directory, &name)?;
    }
    unlinkat(&parent.descriptor, name, UnlinkatFlags::RemoveDir)
}

/// A directory directly below another; no link is followed.
pub(crate) fn child(parent: &Directory, name: &OsStr) -> Result<Directory, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_XDEV,
        );
    let descriptor = openat2(&parent.descriptor, name, how)?;
    Ok(Directory { descriptor, location: parent.location.join(name) })
}

/// Names in a directory.
pub(crate) fn names(directory: &Directory) -> Result<Vec<OsString>, Errno> {
    let mut entries = Dir::openat(
        &directory.descriptor,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// A new file for writing; fails when anything of that name is there.
pub(crate) fn create_file(parent: &Directory, name: &OsStr) -> Result<File, Errno> {
    let how = OpenHow::new()
        .flags(
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        )
        .mode(Mode::from_bits_truncate(0o600))
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(File::from(openat2(&parent.descriptor, name, how)?))
}

fn location_of(descriptor: &OwnedFd) -> std::io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

/// What the kernel says about a path that an image gave.
pub(crate) fn bad_path(path: &Path, error: Errno) -> ImageError {
    let what = format!("layer entry `{}`", path.display());
    match error {
        Errno::ENOTDIR => ImageError::corrupt(what, "a part of its path is not a directory"),
        Errno::ELOOP => ImageError::corrupt(what, "too many symbolic links in its path"),
        Errno::ENAMETOOLONG => ImageError::corrupt(what, "its name is too long"),
        Errno::EXDEV => ImageError::corrupt(what, "it leads outside the image"),
        error => ImageError::io("unpack layer entry", path, error.into()),
    }
}
