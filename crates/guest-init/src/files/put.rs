//! Into the machine: under another name first, so that what appears under its own is whole.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::signal::{SigHandler, Signal},
};
use tar::Archive;

use super::{COMPLETE, CONTENT, failed};

/// Reads an archive from standard input.
pub fn put(path: &Path, name: &OsStr) -> Result<(), String> {
    ignore_hang_up();
    let target = read(path, name, io::stdin().lock())?;
    println!("{}", target.display());
    Ok(())
}

/// A client that is lost ends the input as well, and then what was copied so far is removed.
fn ignore_hang_up() {
    #[expect(unsafe_code, reason = "a signal's disposition")]
    // SAFETY: ignoring a signal runs no handler.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGHUP, SigHandler::SigIgn) };
}

/// Removed with all that is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes what an archive holds appear as `path`, or below it under its name where that is a
/// directory.
pub(super) fn read(path: &Path, name: &OsStr, archive: impl Read) -> Result<PathBuf, String> {
    let target = if path.is_dir() { path.join(name) } else { path.to_owned() };
    let cant = failed("write", &target);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(cant(io::Error::from_raw_os_error(libc::EEXIST)));
    }
    let parent =
        target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("/"));
    let scratch = Scratch(parent.join(format!(".caddis-put-{}", std::process::id())));
    DirBuilder::new().mode(0o700).create(&scratch.0).map_err(&cant)?;
    unpack(&scratch.0, archive)?;
    // Unlike rename(2), takes no other's place.
    renameat2(AT_FDCWD, &scratch.0.join(CONTENT), AT_FDCWD, &target, RenameFlags::RENAME_NOREPLACE)
        .map_err(|error| cant(error.into()))?;
    Ok(target.clone())
}

fn unpack(scratch: &Path, archive: impl Read) -> Result<(), String> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => "can't write: the machine's disk is full".to_owned(),
        _ => format!("can't unpack the received files: {}", root_cause(&error)),
    };
    let mut archive = Archive::new(archive);
    let mut directories: Vec<(PathBuf, u32)> = Vec::new();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        if name == Path::new(COMPLETE) {
            // Last, so that a directory that can't be written to is no hindrance; the deepest
            // first.
            for (path, mode) in directories.into_iter().rev() {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .map_err(failed("write", &path))?;
            }
            return Ok(());
        }
        let inside = name.starts_with(CONTENT)
            && name.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside {
            return Err(format!("can't unpack the received files: unexpected {}", name.display()));
        }
        let path = scratch.join(&name);
        if entry.header().entry_type().is_dir() {
            fs::create_dir(&path).map_err(broken)?;
            directories.push((path, entry.header().mode().map_err(broken)?));
        } else {
            entry.set_preserve_mtime(false);
            entry.unpack(&path).map_err(broken)?;
            if entry.header().entry_type().is_file() {
                let mode = entry.header().mode().map_err(broken)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                    .map_err(failed("write", &path))?;
            }
        }
    }
    Err("the transfer was cut off".to_owned())
}

fn root_cause(error: &io::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
