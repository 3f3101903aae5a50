//! Makes the VM the machine that the host says it is.

use std::{
    fs,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use base64::Engine as _;
use caddis_guest_protocol::{MachineSpec, spec::FileSpec};
use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, sethostname},
};

use crate::{
    clock, devices, entropy,
    image_files::{self, Mode},
    kernel::mount_special,
    limits::Limits,
    modprobe, network,
    spawn::DEFAULT_PATH,
    timing::Timing,
    users,
};

/// Where the root disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// Open files of all processes, which the kernel derives from the memory.
const ALL_OPEN_FILES: &str = "/proc/sys/fs/file-max";

/// What running programs needs to know of the machine.
pub struct Prepared {
    /// As whom programs run.
    pub user: users::User,
    /// Environment, complete.
    pub env: Vec<(String, String)>,
    /// Limits of each of its processes.
    pub limits: Limits,
    /// Warnings for the machine's log.
    pub warnings: Vec<String>,
}

/// Whose root disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The machine's.
    Own,
    /// A stand-in: what the initrd holds is needed once more.
    Rehearsed,
}

/// Prepares everything up to the start of the program. The error is for the user.
pub fn prepare(spec: &MachineSpec, timing: &mut Timing) -> Result<Prepared, String> {
    take_identity(spec)?;
    timing.step("identity");
    devices::bind()?;
    timing.step("devices");
    network::configure(&spec.network)?;
    timing.step("network");
    prepare_root(spec, Root::Own, timing)
}

/// Before anything draws random bytes or asks for the time.
pub fn take_identity(spec: &MachineSpec) -> Result<(), String> {
    renew(&spec.entropy, spec.time_ns)
}

/// Mixes in random bytes (base64) of the host and sets the clock.
pub fn renew(entropy: &str, time_ns: u64) -> Result<(), String> {
    let bytes = decode("entropy", entropy)?;
    if !bytes.is_empty() {
        entropy::add(&bytes)?;
    }
    clock::set(time_ns)
}

/// Prepares what is about files.
pub fn prepare_root(spec: &MachineSpec, root: Root, timing: &mut Timing) -> Result<Prepared, String> {
    let mut warnings = Vec::new();
    let device = disk(&spec.root_serial)?;
    mount_root(&device, root, timing)?;
    if spec.grow_root
        && let Err(warning) = grow(&device)
    {
        warnings.push(warning);
    }
    let limits = Limits::of(spec)?;
    timing.step("root");
    names(spec)?;
    for file in &spec.files {
        write_file(file)?;
    }
    let user = users::resolve(&spec.user)?;
    let env = complete(&spec.env, &user);
    timing.step("files");
    Ok(Prepared { user, env, limits, warnings })
}

/// An environment with what every program has.
pub fn complete(env: &[(String, String)], user: &users::User) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    for (key, value) in [("PATH", DEFAULT_PATH), ("HOME", user.home.as_str())] {
        if !env.iter().any(|(known, _)| known == key) {
            env.push((key.to_owned(), value.to_owned()));
        }
    }
    env
}

/// The device of a disk by its serial number.
fn disk(serial: &str) -> Result<PathBuf, String> {
    let disks = fs::read_dir("/sys/block").map_err(|e| format!("can't list disks: {e}"))?;
    for entry in disks.flatten() {
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(format!("no disk has the serial number {serial}"))
}

/// Mounts the root disk and makes it the root.
fn mount_root(device: &Path, root: Root, timing: &mut Timing) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: nix::Error| format!("can't {what}: {error}")
    };
    fs::create_dir_all(NEW_ROOT).map_err(|e| format!("can't make {NEW_ROOT}: {e}"))?;
    // The rest of the inode tables was zeroed when the disk was made.
    mount(Some(device), NEW_ROOT, Some("ext4"), MsFlags::MS_RELATIME, Some("noinit_itable"))
        .map_err(failed("mount the root disk"))?;
    timing.step("mount");
    for name in ["dev", "proc", "sys"] {
        let target = format!("{NEW_ROOT}/{name}");
        match fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() => {}
            // Container engines refuse links too: what is mounted would be elsewhere.
            Ok(there) => {
                let kind = image_files::name(there.file_type());
                return Err(format!("/{name} is {kind} in the image, where a directory is needed"));
            }
            Err(_) => fs::create_dir(&target).map_err(|e| format!("can't make /{name} in the image: {e}"))?,
        }
        let source = format!("/{name}");
        mount(Some(source.as_str()), target.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(failed(&format!("move /{name} to the new root")))?;
    }
    if root == Root::Own {
        // What the initrd holds is memory that nobody can reach any more.
        let _ = fs::remove_dir_all("/modules");
        let _ = fs::remove_file("/init");
    }
    chdir(NEW_ROOT).map_err(failed("enter the new root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed("move the new root"))?;
    chroot(".").map_err(failed("switch the root"))?;
    chdir("/").map_err(failed("enter the root"))
}

/// Does what is the same for every machine, before it is known which one this is. Returns warnings.
///
/// # Errors
/// When a file system that programs expect can't be mounted.
pub fn prepare_early() -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let pts = "mode=0620,gid=5,ptmxmode=666";
    mount_special("devpts", "/dev/pts", quiet | MsFlags::MS_NOATIME, Some(pts))?;
    mount_special("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))?;
    if let Err(warning) = mount_special("mqueue", "/dev/mqueue", quiet | MsFlags::MS_NODEV, None) {
        warnings.push(warning);
    }
    mount_special("cgroup2", "/sys/fs/cgroup", quiet | MsFlags::MS_NODEV, Some("nsdelegate"))?;
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    for controller in ["memory", "pids", "cpu", "cpuset", "io"] {
        if let Err(error) = fs::write(control, format!("+{controller}")) {
            warnings.push(format!("no cgroup controller {controller}: {error}"));
        }
    }
    // They take memory, and that is what bounds them. Where it can't be set, there are fewer.
    let _ = fs::write(ALL_OPEN_FILES, i64::MAX.to_string());
    network::prepare()?;
    if let Err(warning) = modprobe::offer() {
        warnings.push(warning);
    }
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/{target}"), format!("/dev/{name}"));
    }
    Ok(warnings)
}

/// Host name and the files about names.
fn names(spec: &MachineSpec) -> Result<(), String> {
    sethostname(&spec.hostname).map_err(|e| format!("can't set the host name: {e}"))?;
    let mut hosts = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for (address, names) in &spec.network.hosts {
        hosts.push_str(&format!("{address} {names}\n"));
    }
    let mut resolv = String::new();
    for server in &spec.network.nameservers {
        resolv.push_str(&format!("nameserver {server}\n"));
    }
    for (keyword, words) in [("search", &spec.network.searches), ("options", &spec.network.options)] {
        if !words.is_empty() {
            resolv.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    }
    // Who has one of the image's would have the same as all others of the image.
    let id = Path::new("/etc/machine-id");
    if fs::symlink_metadata(id).is_ok_and(|file| file.is_file()) {
        image_files::write(id, format!("{:0>32}\n", spec.machine_id).as_bytes(), Mode::Kept)?;
    }
    for (path, content) in
        [("/etc/hostname", format!("{}\n", spec.hostname)), ("/etc/hosts", hosts), ("/etc/resolv.conf", resolv)]
    {
        image_files::write(Path::new(path), content.as_bytes(), Mode::Kept)?;
    }
    Ok(())
}

fn write_file(file: &FileSpec) -> Result<(), String> {
    let mode = if file.mode == 0 { 0o644 } else { file.mode & 0o7777 };
    let written = image_files::write(
        &Path::new("/").join(&file.path),
        &decode(&file.path, &file.content)?,
        // A new one, also where there is one that can't be written or is another's.
        Mode::Set(mode),
    );
    written.map_err(|error| format!("{} (config.files): {error}", file.path))
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, String> {
    base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("{what} is not base64: {e}"))
}

/// Grows the root file system to its disk.
fn grow(device: &Path) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't grow the root file system: {error}");
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sectors = fs::read_to_string(format!("/sys/block/{name}/size")).map_err(|e| failed(&e))?;
    let bytes = sectors.trim().parse::<u64>().map_err(|e| failed(&e))? * 512;
    let block = nix::sys::statvfs::statvfs("/").map_err(|e| failed(&e))?.block_size();
    let root = fs::File::open("/").map_err(|e| failed(&e))?;
    resize::ext4(root.as_raw_fd(), bytes / block.max(1)).map_err(|e| failed(&e))
}

mod resize {
    #![expect(unsafe_code, reason = "an ioctl")]

    use std::os::fd::RawFd;

    // EXT4_IOC_RESIZE_FS of the kernel's fs/ext4/ext4.h.
    nix::ioctl_write_ptr!(resize, b'f', 16, u64);

    /// Has a mounted ext4 grow to so many blocks.
    pub fn ext4(root: RawFd, blocks: u64) -> nix::Result<()> {
        // SAFETY: the descriptor is open and the number outlives the call.
        unsafe { resize(root, &raw const blocks) }.map(|_| ())
    }
}
