//! Files of an image, read and replaced. Whatever an image has at a path, be it a FIFO, a device or
//! a link to nowhere, nothing here waits for anybody: init has one thread.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, FileType, Metadata, OpenOptions, Permissions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{
            DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::{Component, Path, PathBuf},
};

/// What is read of a file at most, bytes.
const LARGEST_READ: u64 = 16 << 20;
/// Links that are followed on the way to a file, as many as the kernel does.
const MOST_LINKS: usize = 40;

/// Reads a regular file, through links. What is none is an error, not waited for.
pub fn read(path: &str) -> Result<String, String> {
    let failed = |error: io::Error| format!("can't read {path}: {error}");
    // Only once it is known what it is, since opening a FIFO or a device may wait for another end.
    let place =
        OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map_err(failed)?;
    let kind = place.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        return Err(format!("can't read {path}: in the image it is {}, not a file", name(kind)));
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_READ).read_to_end(&mut bytes).map_err(failed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whose permissions and owner a file gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Those of the image's file where there is one, else 0644.
    Kept,
    /// These bits, and root.
    Set(u32),
}

/// Writes a file in place of whatever the image has there, as container engines mount theirs over
/// it: what is not a plain file with one name is removed first, so that nothing is written through
/// a link. Missing directories are made. Only a directory that is not empty is an error.
pub fn write(path: &Path, content: &[u8], mode: Mode) -> Result<(), String> {
    let path = real_path(path)?;
    let failed = |error: io::Error| format!("can't write {}: {error}", path.display());
    let there = match fs::symlink_metadata(&path) {
        Ok(there) => Some(there),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let keeps = |there: &Metadata| mode == Mode::Kept && there.is_file() && there.nlink() == 1;
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    match &there {
        Some(there) if keeps(there) => options.truncate(true),
        Some(there) if there.is_dir() => {
            fs::remove_dir(&path).map_err(|error| {
                let path = path.display();
                format!(
                    "can't write {path}: the image has a directory there that can't be \
                         replaced: {error}"
                )
            })?;
            options.create_new(true)
        }
        Some(_) => {
            fs::remove_file(&path).map_err(failed)?;
            options.create_new(true)
        }
        None => options.create_new(true),
    };
    let mut file = options.mode(0o644).open(&path).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    match mode {
        Mode::Kept => Ok(()),
        // What was asked for, whatever the umask.
        Mode::Set(bits) => file.set_permissions(Permissions::from_mode(bits)).map_err(failed),
    }
}

/// The path with all links but a last one resolved, and the directories on the way made that are
/// missing: also those that a link leads to.
fn real_path(path: &Path) -> Result<PathBuf, String> {
    let name = path
        .file_name()
        .ok_or_else(|| format!("can't write {}: it names no file", path.display()))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(make_directories(parent)?.join(name))
}

/// Makes a directory and those above it, as far as they are missing, and gives the path without
/// links.
pub fn make_directories(directory: &Path) -> Result<PathBuf, String> {
    let mut real = PathBuf::from("/");
    let mut links = 0;
    let parts = |path: &Path| {
        path.components().map(|part| part.as_os_str().to_owned()).collect::<VecDeque<_>>()
    };
    let mut left = parts(directory);
    while let Some(part) = left.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(part)) => real.push(part),
            Some(Component::ParentDir) => {
                real.pop();
                continue;
            }
            Some(Component::RootDir) => {
                real = PathBuf::from("/");
                continue;
            }
            _ => continue,
        }
        let failed =
            |error: io::Error| format!("can't make the directory {}: {error}", real.display());
        let kind = match fs::symlink_metadata(&real) {
            Ok(there) => there.file_type(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new().mode(0o755).create(&real).map_err(failed)?;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if kind.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return Err(format!(
                    "can't make the directory {}: too many links",
                    directory.display()
                ));
            }
            let target = fs::read_link(&real).map_err(failed)?;
            real.pop();
            let mut ahead = parts(&target);
            ahead.append(&mut left);
            left = ahead;
        } else if !kind.is_dir() {
            let (real, kind) = (real.display(), self::name(kind));
            return Err(format!("{real} is {kind} in the image, where a directory is needed"));
        }
    }
    Ok(real)
}

/// What a file is, in words.
pub fn name(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_block_device() || kind.is_char_device() => "a device",
        _ => "a file",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use nix::{sys::stat::Mode as Bits, unistd::mkfifo};

    use super::*;

    #[test]
    fn whatever_is_at_a_path_is_replaced_and_nothing_is_written_through_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let other = root.join("other");
        let put = |kind: &str, path: &Path| match kind {
            "file" => fs::write(path, "longer than what is written").unwrap(),
            "fifo" => mkfifo(path, Bits::S_IRWXU).unwrap(),
            "socket" => drop(UnixListener::bind(path).unwrap()),
            "link to nowhere" => symlink(root.join("no/such"), path).unwrap(),
            "link" => symlink(&other, path).unwrap(),
            "hard link" => fs::hard_link(&other, path).unwrap(),
            "directory" => fs::create_dir(path).unwrap(),
            _ => {}
        };
        for name in [
            "nothing",
            "file",
            "fifo",
            "socket",
            "link to nowhere",
            "link",
            "hard link",
            "directory",
        ] {
            fs::write(&other, "untouched").unwrap();
            for mode in [Mode::Kept, Mode::Set(0o4750)] {
                let path = root.join(name);
                put(name, &path);
                write(&path, b"content", mode).unwrap();
                let metadata = fs::symlink_metadata(&path).unwrap();
                assert!(
                    metadata.is_file() && fs::read_to_string(&path).unwrap() == "content",
                    "{name}"
                );
                if let Mode::Set(bits) = mode {
                    assert_eq!(metadata.mode() & 0o7777, bits, "{name}");
                }
                assert_eq!(fs::read_to_string(&other).unwrap(), "untouched", "{name}");
                fs::remove_file(&path).unwrap();
            }
        }
        let full = root.join("full");
        fs::create_dir_all(full.join("deep")).unwrap();
        let refused = write(&full, b"x", Mode::Kept).unwrap_err();
        assert!(refused.contains("full") && refused.contains("directory"), "{refused}");
        assert!(full.join("deep").exists());
    }

    #[test]
    fn directories_are_made_where_links_lead_to_and_other_things_are_named() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        symlink(root.join("deep/er"), root.join("run")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        mkfifo(&root.join("fifo"), Bits::S_IRWXU).unwrap();
        fs::create_dir(root.join("sub")).unwrap();
        symlink("../away/etc", root.join("sub/etc")).unwrap();
        write(&root.join("run/lock/file"), b"1", Mode::Kept).unwrap();
        assert_eq!(fs::read_to_string(root.join("deep/er/lock/file")).unwrap(), "1");
        write(&root.join("sub/etc/hosts"), b"2", Mode::Kept).unwrap();
        assert_eq!(fs::read_to_string(root.join("away/etc/hosts")).unwrap(), "2");
        assert_eq!(make_directories(&root.join("sub/../run")).unwrap(), root.join("deep/er"));
        let fifo = write(&root.join("fifo/hosts"), b"1", Mode::Kept).unwrap_err();
        assert!(
            fifo.contains("fifo is a FIFO in the image, where a directory is needed"),
            "{fifo}"
        );
        assert!(make_directories(&root.join("loop/x")).unwrap_err().contains("too many links"));
    }

    #[test]
    fn only_files_are_read_and_nothing_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("file"), "text").unwrap();
        symlink("file", path("link")).unwrap();
        mkfifo(Path::new(&path("fifo")), Bits::S_IRWXU).unwrap();
        assert_eq!(read(&path("link")).unwrap(), "text");
        assert!(read(&path("fifo")).unwrap_err().contains("a FIFO, not a file"));
        assert!(read("/dev/zero").unwrap_err().contains("a device, not a file"));
        assert!(read(&path("none")).is_err());
    }
}
