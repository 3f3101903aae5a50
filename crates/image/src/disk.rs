//! From an unpacked tree to a root disk: mke2fs makes an empty file system, `caddis-ext4` fills it.
//!
//! (`mke2fs -d` could do both, but its time is quadratic in the files of a directory, it loses
//! fractions of seconds and what is after 2038, and it refuses an image with a file `lost+found`. A
//! guest finds what the image has; there is no `lost+found` of ours, since nothing repairs a disk
//! whose changes are gone with each stop.)
//!
//! The file system has no journal: its overlay is blank at each start, so there is never anything
//! to recover, and a journal would only double the writes that land in the overlay. (A root that
//! persists needs a base of its own.) Its features are spelled out, so that neither the host's
//! mke2fs.conf nor its version decides what guests get; inode tables are left to be zeroed lazily,
//! which on a sparse file means never.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use caddis_ext4::Error;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::{Digest, ImageError};

const BLOCK: u64 = 4096;
/// mke2fs's own default: one inode for so many bytes.
const BYTES_PER_INODE: u64 = 16_384;
/// Inodes left for the guest at least.
const SPARE_INODES: u64 = 65_536;

const CONFIGURATION: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";

/// Bytes written between questions whether to go on.
const ASK_EVERY: u64 = 64 << 20;

/// Makes `disk` an empty file system with room for so many files, and for the guest's own.
/// `cancelled` ends it. On an error, what there is of the file is worthless.
pub(crate) async fn make(
    disk: &Path,
    size: u64,
    digest: &Digest,
    files: u64,
    cancelled: &CancellationToken,
) -> Result<File, ImageError> {
    let failed = |error| ImageError::io("write the root disk", disk, error);
    let configuration = disk.with_extension("conf");
    fs::write(&configuration, CONFIGURATION).map_err(failed)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(disk)
        .map_err(failed)?;
    file.set_len(size).map_err(failed)?;

    let inodes = (size / BYTES_PER_INODE).max(files + SPARE_INODES);
    let uuid = uuid(digest);
    let mut child = Command::new(program())
        .env_clear()
        .env("LC_ALL", "C")
        .env("MKE2FS_CONFIG", &configuration)
        // The time of all that it makes: the same image gives the same disk, whenever it is built.
        .env("E2FSPROGS_FAKE_TIME", "1")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "root", "-U", &uuid])
        .args(["-E", &format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={uuid}")])
        .args(["-N", &inodes.to_string(), "-b", &BLOCK.to_string()])
        .arg(disk)
        .arg((size / BLOCK).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| program_failed(&error.to_string(), error.kind()))?;
    let stderr = child.stderr.take();
    let words = async {
        let mut words = String::new();
        if let Some(stderr) = stderr {
            use tokio::io::AsyncReadExt;
            // Enough for its message; more is of no use.
            let _ = stderr.take(16 << 10).read_to_string(&mut words).await;
        }
        words
    };
    let (words, status) = tokio::select! {
        (words, status) = async { tokio::join!(words, child.wait()) } => {
            (words, status.map_err(failed)?)
        }
        () = cancelled.cancelled() => {
            // Dropping the child kills it; what it wrote is in a directory that the caller removes.
            return Err(ImageError::Interrupted { what: "building the root disk".to_owned() });
        }
    };
    if status.success() { Ok(file) } else { Err(explain(&words, size)) }
}

/// Fills a root disk with the tree and makes it durable. Blocking. An error of `still_wanted`,
/// asked for each file, or of `has_room`, asked now and then, ends it.
pub(crate) fn fill(
    file: &File,
    disk: &Path,
    tree: &Path,
    size: u64,
    still_wanted: impl Fn() -> Result<(), ImageError>,
    has_room: impl Fn() -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("write the root disk", disk, error);
    let mut unasked = ASK_EVERY;
    let mut stopped = Ok(());
    let mut should_continue = |written| {
        unasked += written;
        stopped = still_wanted();
        if stopped.is_ok() && unasked >= ASK_EVERY {
            unasked = 0;
            stopped = has_room();
        }
        stopped.is_ok()
    };
    let filled = caddis_ext4::fill(file, tree, &mut should_continue);
    stopped?;
    filled.map_err(|error| match error {
        Error::Image { source, .. } => failed(source),
        Error::Source { path, source } => ImageError::io("copy to the root disk", &path, source),
        Error::NoBlocks | Error::NoInodes => does_not_fit(size),
        Error::Unsupported { path, reason } => {
            ImageError::unsupported(format!("the image's file `{}`", path.display()), reason)
        }
        Error::Unknown(_) | Error::Stopped => {
            program_failed(&error.to_string(), io::ErrorKind::Other)
        }
    })?;
    // Read-only for all: nothing ever writes to a base again.
    file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Moves a finished disk to its place; it is there completely or not at all, also after a power
/// cut.
pub(crate) fn publish(disk: &Path, place: &Path) -> Result<u64, ImageError> {
    let failed = |error| ImageError::io("put in place the root disk", place, error);
    fs::rename(disk, place).map_err(failed)?;
    if let Some(directory) = place.parent() {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    // st_blocks counts 512-byte units on every file system.
    Ok(fs::metadata(place).map_err(failed)?.blocks() * 512)
}

/// The program, also for services whose PATH lacks the system directories.
fn program() -> PathBuf {
    let places = ["/usr/sbin/mke2fs", "/sbin/mke2fs"];
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("mke2fs"))
}

fn program_failed(words: &str, kind: io::ErrorKind) -> ImageError {
    let reason = match kind {
        io::ErrorKind::NotFound => "it is not installed: apt-get install e2fsprogs".to_owned(),
        _ => words.to_owned(),
    };
    ImageError::Program {
        program: "mke2fs".to_owned(),
        what: "building the root disk".to_owned(),
        reason,
    }
}

fn does_not_fit(size: u64) -> ImageError {
    let limit = format!("it does not fit a root disk of {size} bytes; raise root_disk_size");
    ImageError::too_large("the unpacked image", limit)
}

fn explain(words: &str, size: u64) -> ImageError {
    // It breaks its lines where it likes.
    let words = &words.split_whitespace().collect::<Vec<_>>().join(" ");
    // Its tables of inodes alone take more.
    if words.contains("too big for a filesystem") || words.contains("filesystem too small") {
        return does_not_fit(size);
    }
    if words.contains("No space left") {
        return ImageError::NoSpace {
            what: "to build the root disk".to_owned(),
            reason: words.to_owned(),
        };
    }
    program_failed(words, io::ErrorKind::Other)
}

/// A UUID that is the same for the same image, on all hosts.
fn uuid(digest: &Digest) -> String {
    let hex = digest.hex();
    // Version 8 (RFC 9562): made of our own data.
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}
