//! What a VM boots: an uncompressed kernel, and an initrd of our init and the modules that reach
//! the disks.
//!
//! Both are derived from the distribution's kernel package and kept in a directory under names that
//! are digests of their contents or sources; so they are made once, and made anew when anything
//! they depend on has changed.

use std::{
    borrow::Cow,
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use tracing::info;

use crate::VmmError;

mod compression;
mod cpio;
mod disk;
mod modules;
mod nodes;
mod vmlinux;
mod warm_up_disk;

pub use disk::ModulesDisk;
pub(crate) use warm_up_disk::PROGRAM as WARM_UP_PROGRAM;

/// Modules without which a VM has no disk, network or control channel; those built into the kernel
/// are skipped.
const NEEDED: [&str; 7] =
    ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4"];

/// Modules loaded when the kernel has them. ext4 asks for crc32c by itself, which init has no
/// program to load on demand.
const WANTED: [&str; 3] = ["virtio_rng", "ipv6", "crc32c_generic"];

/// What to boot.
#[derive(Debug, Clone)]
pub struct BootSource {
    /// A bzImage (compressed with gzip, lz4, xz or zstd) or a vmlinux with the PVH note.
    pub kernel: PathBuf,
    /// Directory of the kernel's modules: `lib/modules/VERSION` itself, or a directory that has it
    /// below.
    pub modules: PathBuf,
    /// The init program, static.
    pub init: Cow<'static, [u8]>,
    /// Further modules to load at boot, with what they depend on.
    pub extra_modules: Vec<String>,
}

/// What was made of it.
#[derive(Debug, Clone)]
pub struct BootFiles {
    /// Uncompressed kernel.
    pub kernel: PathBuf,
    /// Initrd, a cpio archive.
    pub initrd: PathBuf,
    /// A small ext4 that VMs which wait for a machine mount once, to have done it before.
    pub warm_up_disk: PathBuf,
    /// Another, with a journal, that they mount as a volume.
    pub warm_up_volume: PathBuf,
    /// All modules of the kernel; `None` where all that it has is built in.
    pub modules: Option<Arc<ModulesDisk>>,
    /// Release of the kernel, as `uname -r` says it.
    pub release: String,
    /// Bytes that both take.
    pub size: u64,
}

/// Makes kernel and initrd in `directory`, or finds them there. Blocks.
///
/// # Errors
/// [`VmmError::Unusable`] naming the file that can't be used and what to do.
pub fn prepare(source: &BootSource, directory: &Path) -> Result<BootFiles, VmmError> {
    fs::create_dir_all(directory)
        .map_err(VmmError::io(format!("create the directory {}", directory.display())))?;
    let image = fs::read(&source.kernel).map_err(|error| VmmError::Unusable {
        path: source.kernel.clone(),
        reason: format!(
            "{error}; set the guest kernel with --kernel, or get one: apt-get install \
                         linux-image-cloud-amd64"
        ),
    })?;
    let kernel = directory.join(format!("vmlinux-{}", digest(&image)));
    let release = vmlinux::release(&image).map_err(|reason| unusable(&source.kernel, reason))?;
    let mut size = fs::metadata(&kernel).map_or(0, |file| file.len());
    if size == 0 {
        let unpacked =
            vmlinux::extract(&image).map_err(|reason| unusable(&source.kernel, reason))?;
        size = unpacked.len() as u64;
        write(&kernel, &unpacked)?;
        info!(path = %kernel.display(), %release, "kernel unpacked");
    }
    let tree = modules::Tree::open(&source.modules, &release)
        .map_err(|reason| unusable(&source.modules, reason))?;
    let archive = build_initrd(source, &tree)?;
    let initrd = directory.join(format!("initrd-{}", digest(&archive)));
    if !initrd.exists() {
        write(&initrd, &archive)?;
    }
    let init = digest(&source.init);
    let warm_up_disk = directory.join(format!("warm-up-root-{init}"));
    if !warm_up_disk.exists() {
        warm_up_disk::build(&source.init, &warm_up_disk)?;
    }
    let warm_up_volume = directory.join(format!("warm-up-volume-{init}"));
    if !warm_up_volume.exists() {
        warm_up_disk::build_volume(&warm_up_volume)?;
    }
    let modules = disk::find(tree, &kernel, directory)?;
    let of_modules = modules.iter().flat_map(|disk| [disk.path().to_owned(), disk.chosen()]);
    let made = [&kernel, &initrd, &warm_up_disk, &warm_up_volume];
    let kept: Vec<_> = made.into_iter().cloned().chain(of_modules).collect();
    remove_others(directory, &kept);
    let size = size + archive.len() as u64;
    Ok(BootFiles { size, kernel, initrd, warm_up_disk, warm_up_volume, modules, release })
}

fn build_initrd(source: &BootSource, tree: &modules::Tree) -> Result<Vec<u8>, VmmError> {
    let extra = source.extra_modules.iter().map(String::as_str);
    let needed = NEEDED.into_iter().chain(extra).collect::<Vec<_>>();
    let modules =
        tree.load_order(&needed, &WANTED).map_err(|reason| unusable(&source.modules, reason))?;
    let mut archive = cpio::Archive::default();
    archive.file("init", 0o755, &source.init);
    archive.directory("modules");
    let mut order = String::new();
    for module in modules {
        let name = format!("{}.ko", module.name);
        archive.file(&format!("modules/{name}"), 0o644, &module.content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("modules/nodes", 0o644, nodes::of(tree).as_bytes());
    Ok(archive.finish())
}

fn unusable(path: &Path, reason: String) -> VmmError {
    VmmError::Unusable { path: path.to_owned(), reason }
}

fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Whole or not at all, also when the host dies meanwhile. Readable by all: VM processes open it by
/// descriptor, as their own uid.
fn write(path: &Path, content: &[u8]) -> Result<(), VmmError> {
    let temporary = path.with_extension(format!("new.{}", std::process::id()));
    let attempt = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|error| {
        // What is left of a failed attempt would only be in the way.
        let _ = fs::remove_file(&temporary);
        VmmError::io(format!("write {}", path.display()))(error)
    })
}

/// Running VMs have read theirs long ago, or have it open.
fn remove_others(directory: &Path, kept: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // An earlier version called its warm-up disk `rehearsal-…`.
        let ours = ["vmlinux-", "initrd-", "warm-up-", "rehearsal-", disk::PREFIX]
            .iter()
            .any(|prefix| name.starts_with(prefix));
        if ours && !kept.contains(&path) {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}
