//! From an unpacked tree to a root disk, with `mke2fs -d`.
//!
//! The file system has no journal: its overlay is blank at each start, so there is never anything to recover, and a
//! journal would only double the writes that land in the overlay. (A root that persists needs a base of its own.)
//! Its features are spelled out, so that neither the host's mke2fs.conf nor its version decides what guests get;
//! inode tables are left to be zeroed lazily, which on a sparse file means never.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::ImageError;

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

/// Builds `disk` from `tree`, both in the same private directory, and makes it durable. `entries` is at least the
/// number of files in the tree. On an error, what there is of the file is worthless.
pub(crate) async fn build(
    tree: &Path,
    disk: &Path,
    size: u64,
    digest: &str,
    entries: u64,
    cancelled: &CancellationToken,
) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("write the root disk", disk, error);
    let configuration = disk.with_extension("conf");
    fs::write(&configuration, CONFIGURATION).map_err(failed)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(disk).map_err(failed)?;
    file.set_len(size).map_err(failed)?;

    let inodes = (size / BYTES_PER_INODE).max(entries + SPARE_INODES);
    let uuid = uuid(digest);
    let mut child = Command::new(program())
        .env_clear()
        .env("LC_ALL", "C")
        .env("MKE2FS_CONFIG", &configuration)
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "root", "-U", &uuid])
        .args(["-E", &format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={uuid}")])
        .args(["-N", &inodes.to_string(), "-b", &BLOCK.to_string()])
        .arg("-d")
        .arg(tree)
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
        (words, status) = async { tokio::join!(words, child.wait()) } => (words, status.map_err(failed)?),
        () = cancelled.cancelled() => {
            // Dropping the child kills it; what it wrote is in a directory that the caller removes.
            return Err(ImageError::Interrupted { what: "building the root disk".to_owned() });
        }
    };
    if !status.success() {
        return Err(explain(words.trim(), size));
    }
    let disk = disk.to_owned();
    tokio::task::spawn_blocking(move || finish(&file, &disk))
        .await
        .unwrap_or_else(|_| Err(ImageError::Interrupted { what: "building the root disk".to_owned() }))
}

fn finish(file: &File, disk: &Path) -> Result<(), ImageError> {
    let failed = |error| ImageError::io("write the root disk", disk, error);
    // Read-only for all: nothing ever writes to a base again.
    file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Moves a finished disk to its place; it is there completely or not at all, also after a power cut.
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
    places.iter().map(PathBuf::from).find(|path| path.exists()).unwrap_or_else(|| PathBuf::from("mke2fs"))
}

fn program_failed(words: &str, kind: io::ErrorKind) -> ImageError {
    let reason = match kind {
        io::ErrorKind::NotFound => "it is not installed: apt-get install e2fsprogs".to_owned(),
        _ => words.to_owned(),
    };
    ImageError::Program { program: "mke2fs".to_owned(), what: "building the root disk".to_owned(), reason }
}

fn explain(words: &str, size: u64) -> ImageError {
    if words.contains("Could not allocate") || words.contains("ext2 filesystem too small") {
        return ImageError::too_large(
            "the unpacked image",
            format!("it does not fit a root disk of {size} bytes; raise root_disk_size"),
        );
    }
    if words.contains("No space left") {
        return ImageError::NoSpace { what: "to build the root disk".to_owned(), reason: words.to_owned() };
    }
    program_failed(words, io::ErrorKind::Other)
}

/// A UUID that is the same for the same image, on all hosts.
fn uuid(digest: &str) -> String {
    let hex = digest.trim_start_matches("sha256:");
    // Version 8 (RFC 9562): made of our own data.
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30])
}
