//! Volumes: mounted, grown, held still and unmounted. All of this may wait for a disk and so
//! happens in processes of its own ([`crate::task`]).

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use caddis_guest_protocol::{
    MachineSpec,
    message::VolumeUsage,
    spec::{MountSpec, VolumeFilesystem},
};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mknod},
};

use crate::{
    configure, devices, filesystem, image_files,
    task::{Late, Task},
    users::User,
};

pub mod hold;
mod superblock;
mod table;

use superblock::Superblock;

/// Where the kernel shows itself: what is there is not the machine's to cover.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What is mounted over and over at one place is unmounted so often at most.
const MOST_MOUNTS: usize = 100;

/// Time to mount what is in the host's memory.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(30);
/// Time that what is unmounted has to be written out and given up by the kernel, and between looks.
const LINGER_TIMEOUT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(2);

/// A file system that can't be relied on is not written to any more: it is mounted read-only from
/// its first error on, which programs are told by EROFS.
const OPTIONS: &str = "errors=remount-ro";

/// Those with a file system.
fn with_filesystem(mounts: &[MountSpec]) -> impl DoubleEndedIterator<Item = &MountSpec> {
    mounts.iter().filter(|mount| mount.filesystem == VolumeFilesystem::Ext4)
}

/// Makes all volumes available, and writes the files that the machine's configuration has, which
/// may be on one of them. Gives warnings, a JSON list. What was mounted before a failure stays.
pub fn mount_all(spec: &MachineSpec, user: &User) -> Result<String, String> {
    let mut mounts: Vec<_> = spec.mounts.iter().collect();
    // What is below another one is mounted after it.
    mounts.sort_by_key(|mount| Path::new("/").join(&mount.path));
    let mut warnings = Vec::new();
    for mount in mounts {
        let outcome = match mount.filesystem {
            VolumeFilesystem::Ext4 => mount_one(mount, user),
            VolumeFilesystem::Raw => offer_disk(mount, user).map(|()| Vec::new()),
        };
        let failed = |error| format!("can't mount the volume at {}: {error}", mount.path);
        warnings.extend(outcome.map_err(failed)?);
    }
    for file in &spec.files {
        configure::write_file(file)?;
    }
    serde_json::to_string(&warnings).map_err(|error| error.to_string())
}

/// Makes volumes available as a start does, and takes them away again.
pub fn warm_up(spec: &MachineSpec, user: &User) -> Result<(), String> {
    if spec.mounts.is_empty() {
        return Ok(());
    }
    let mounted = Task::start("mounting the volumes", WARM_UP_TIMEOUT, Late::Killed, || {
        mount_all(spec, user)
    })?;
    mounted.wait()?;
    release(&spec.mounts).map(drop)
}

/// Whether a volume may be at a path, which has no links.
fn check_place(path: &Path, filesystem: VolumeFilesystem) -> Result<(), String> {
    let kernels = KERNELS.iter().find(|kernels| path.starts_with(kernels));
    match kernels {
        _ if path == Path::new("/") => Err("that is the root disk's place".to_owned()),
        // A disk is among its like there.
        Some(&"/dev") if filesystem == VolumeFilesystem::Raw => Ok(()),
        Some(kernels) => Err(format!("{kernels} is the kernel's")),
        None => Ok(()),
    }
}

fn mount_one(spec: &MountSpec, user: &User) -> Result<Vec<String>, String> {
    let disk = devices::volume_disk(spec.volume, spec.size)?;
    let place = image_files::make_directories(&Path::new("/").join(&spec.path))?;
    check_place(&place, spec.filesystem)?;
    let superblock = Superblock::read(&disk)?;
    mount(Some(&disk), &place, Some("ext4"), MsFlags::MS_RELATIME, Some(OPTIONS))
        .map_err(explain)?;
    let mut warnings = Vec::new();
    let at = &spec.path;
    if superblock.had_errors {
        warnings.push(format!("the file system of the volume at {at} has had errors"));
    }
    let root = File::open(&place).map_err(|error| format!("can't open its root: {error}"))?;
    let wanted = spec.size / superblock.block_size;
    if wanted > superblock.blocks
        && let Err(error) = filesystem::grow(&root, wanted)
    {
        warnings.push(format!("can't grow the file system of the volume at {at}: {error}"));
    }
    let owner = root.metadata().map(|root| (root.uid(), root.gid()));
    if owner.ok() != Some((user.uid, user.gid))
        && let Err(error) = chown(&place, Some(user.uid), Some(user.gid))
    {
        warnings.push(format!("can't give the volume at {at} to its user: {error}"));
    }
    Ok(warnings)
}

/// Why a file system that is ext4 by its first bytes can't be mounted.
fn explain(error: Errno) -> String {
    match error {
        Errno::EUCLEAN | Errno::EINVAL | Errno::EBADMSG | Errno::EIO | Errno::ENXIO => format!(
            "its ext4 file system is damaged ({error}): attach it as a raw volume to repair it, or \
             restore a snapshot"
        ),
        error => error.to_string(),
    }
}

/// Has the disk itself appear at the path, in place of whatever the image has there.
fn offer_disk(spec: &MountSpec, user: &User) -> Result<(), String> {
    let disk = devices::volume_disk(spec.volume, spec.size)?;
    let path = Path::new("/").join(&spec.path);
    let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
        return Err("that is the root disk's place".to_owned());
    };
    let place = image_files::make_directories(parent)?.join(name);
    check_place(&place, spec.filesystem)?;
    let failed = |error: io::Error| format!("can't make {}: {error}", place.display());
    let device = fs::metadata(&disk).map_err(failed)?.rdev();
    match fs::symlink_metadata(&place) {
        Ok(there) if there.is_dir() => fs::remove_dir(&place),
        Ok(_) => fs::remove_file(&place),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(failed)?;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(&place, SFlag::S_IFBLK, mode, device).map_err(|error| failed(error.into()))?;
    fs::set_permissions(&place, Permissions::from_mode(mode.bits())).map_err(failed)?;
    chown(&place, Some(user.uid), Some(user.gid)).map_err(failed)
}

/// Opens the root of a volume's file system, wherever programs have moved it, and whatever they
/// have mounted over it.
fn open_root(spec: &MountSpec) -> Result<File, String> {
    let device = devices::volume_device(spec.volume)?;
    let opened = table::mounts_of(device)?.into_iter().find_map(|place| {
        let root = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_NONBLOCK)
            .open(place)
            .ok()?;
        root.metadata().is_ok_and(|root| root.dev() == device).then_some(root)
    });
    opened.ok_or_else(|| format!("the volume at {} is not mounted there any more", spec.path))
}

/// Has the file system of a volume grow to the size of its disk, once that is `size`.
pub fn grow(spec: &MountSpec, size: u64) -> Result<String, String> {
    let disk = devices::volume_disk(spec.volume, size)?;
    if spec.filesystem == VolumeFilesystem::Raw {
        return Ok(String::new());
    }
    let failed = |error: &dyn std::fmt::Display| {
        format!("can't grow the file system of the volume at {}: {error}", spec.path)
    };
    let root = open_root(spec)?;
    let superblock = Superblock::read(&disk).map_err(|error| failed(&error))?;
    filesystem::grow(&root, size / superblock.block_size).map_err(|error| failed(&error))?;
    Ok(String::new())
}

/// How full they are, a JSON list.
pub fn usage(mounts: &[MountSpec]) -> Result<String, String> {
    let of = |spec: &MountSpec| {
        let root = open_root(spec)?;
        let stat = nix::sys::statvfs::fstatvfs(&root)
            .map_err(|error| format!("can't look at the volume at {}: {error}", spec.path))?;
        Ok(VolumeUsage {
            volume: spec.volume,
            block_size: stat.fragment_size(),
            blocks: stat.blocks(),
            blocks_free: stat.blocks_free(),
            blocks_avail: stat.blocks_available(),
        })
    };
    let all: Result<Vec<_>, String> = with_filesystem(mounts).map(of).collect();
    serde_json::to_string(&all?).map_err(|error| error.to_string())
}

/// Unmounts all, when no process is left but init and this one, and writes out the others.
pub fn release(mounts: &[MountSpec]) -> Result<String, String> {
    // Programs may have died while they were held still.
    let _ = hold::thaw(mounts);
    let mut failures = Vec::new();
    for spec in mounts.iter().rev() {
        if let Err(error) = release_one(spec) {
            failures.push(format!("can't unmount the volume at {}: {error}", spec.path));
        }
    }
    if failures.is_empty() {
        return Ok(String::new());
    }
    // It is not as clean as it should be, but all that was written is there.
    nix::unistd::sync();
    Err(failures.join("; "))
}

fn release_one(spec: &MountSpec) -> Result<(), String> {
    let device = devices::volume_device(spec.volume)?;
    let disk = devices::volume_path(spec.volume)?;
    for _ in 0..MOST_MOUNTS {
        // The last one first: others may be mounted over it or below it.
        let Some(place) = table::mounts_of(device)?.pop() else { break };
        unmount(&place).map_err(|error| error.to_string())?;
    }
    // Refused as long as anything has it mounted. What programs have written to a raw one is
    // written out.
    let deadline = Instant::now() + LINGER_TIMEOUT;
    loop {
        match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&disk) {
            // The mounts of a namespace go some time after its last process, and nobody is told.
            Err(error)
                if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline =>
            {
                thread::sleep(LOOK);
            }
            opened => {
                let written = opened.and_then(|disk| disk.sync_all());
                return written.map_err(|error| format!("it is in use: {error}"));
            }
        }
    }
}

fn unmount(place: &PathBuf) -> nix::Result<()> {
    match umount2(place, MntFlags::empty()) {
        Err(Errno::EBUSY) => {}
        outcome => return outcome,
    }
    // Something of it is still used, a mount below it for instance. It is whole from here on.
    let none = None::<&str>;
    let read_only = mount(none, place, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none);
    umount2(place, MntFlags::MNT_DETACH).and(read_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_covers_neither_the_root_nor_the_kernel_s_own() {
        let (ext4, raw) = (VolumeFilesystem::Ext4, VolumeFilesystem::Raw);
        let check = |path: &str, filesystem| check_place(Path::new(path), filesystem);
        for path in ["/data", "/var/lib/postgresql", "/devices", "/process"] {
            assert_eq!((check(path, ext4), check(path, raw)), (Ok(()), Ok(())));
        }
        for path in ["/", "/proc", "/proc/1", "/sys/fs"] {
            assert!(check(path, ext4).is_err() && check(path, raw).is_err(), "{path}");
        }
        assert!(check("/dev/shm", ext4).is_err());
        assert_eq!(check("/dev/xvdb", raw), Ok(()));
    }

    #[test]
    fn a_damaged_file_system_is_told_as_that() {
        assert!(explain(Errno::EUCLEAN).contains("damaged"));
        assert!(!explain(Errno::ENOMEM).contains("damaged"));
    }
}
