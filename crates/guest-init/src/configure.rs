//! Makes the VM the machine that the host says it is.

use std::{fs, os::unix::net::UnixListener, path::Path};

use base64::Engine as _;
use caddis_guest_protocol::{MachineSpec, spec::FileSpec};
use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, sethostname},
};

use crate::{
    api, clock, devices, entropy, filesystem,
    image_files::{self, Mode},
    kernel::mount_special,
    limits::Limits,
    modprobe, network,
    program::CGROUP,
    spawn::DEFAULT_PATH,
    timing::Timing,
    users,
};

/// Where the root disk is mounted before it becomes the root.
pub const NEW_ROOT: &str = "/newroot";

/// Mounts that every root has.
const SPECIAL: [&str; 3] = ["dev", "proc", "sys"];

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
    /// Where programs ask for holds.
    pub api: Option<UnixListener>,
    /// Warnings for the machine's log.
    pub warnings: Vec<String>,
}

/// Prepares everything up to the start of the program. The error is for the user.
pub fn prepare(spec: &MachineSpec, timing: &mut Timing) -> Result<Prepared, String> {
    take_identity(spec)?;
    timing.step("identity");
    network::configure(&spec.network)?;
    timing.step("network");
    prepare_root(spec, timing)
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
fn prepare_root(spec: &MachineSpec, timing: &mut Timing) -> Result<Prepared, String> {
    mount_root(&devices::root_disk(spec.root_size)?)?;
    timing.step("mount");
    move_special()?;
    enter_root()?;
    let grown = if spec.grow_root { grow(spec.root_size) } else { Ok(()) };
    timing.step("root");
    let mut prepared = fill_root(spec, timing)?;
    prepared.warnings.extend(grown.err());
    Ok(prepared)
}

/// Writes what a machine has of its own into its root.
pub fn fill_root(spec: &MachineSpec, timing: &mut Timing) -> Result<Prepared, String> {
    let limits = Limits::of(spec)?;
    names(spec)?;
    // Else one of them may be on a volume, and they are written when those are mounted.
    if spec.mounts.is_empty() {
        spec.files.iter().try_for_each(write_file)?;
    }
    let user = users::resolve(&spec.user)?;
    let env = complete(&spec.env, &user);
    // A program that does without is no worse off than elsewhere.
    let (api, warnings) = match api::bind(Path::new(api::DIRECTORY)) {
        Ok(api) => (Some(api), Vec::new()),
        Err(warning) => (None, vec![warning]),
    };
    timing.step("files");
    Ok(Prepared { user, env, limits, api, warnings })
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

/// Mounts the root disk.
pub fn mount_root(device: &Path) -> Result<(), String> {
    // The rest of the inode tables was zeroed when the disk was made.
    mount(Some(device), NEW_ROOT, Some("ext4"), MsFlags::MS_RELATIME, Some("noinit_itable"))
        .map_err(|error| format!("can't mount the root disk: {error}"))
}

/// What the kernel shows of itself goes to the new root.
pub fn move_special() -> Result<(), String> {
    for name in SPECIAL {
        let (from, to) = (format!("/{name}"), format!("{NEW_ROOT}/{name}"));
        match fs::symlink_metadata(&to) {
            Ok(there) if there.is_dir() => {}
            // Container engines refuse links too: what is mounted would be elsewhere.
            Ok(there) => {
                let kind = image_files::name(there.file_type());
                return Err(format!("/{name} is {kind} in the image, where a directory is needed"));
            }
            Err(_) => {
                fs::create_dir(&to).map_err(|e| format!("can't make /{name} in the image: {e}"))?
            }
        }
        move_mount(&from, &to)?;
    }
    Ok(())
}

/// And back.
pub fn move_special_back() -> Result<(), String> {
    SPECIAL
        .iter()
        .try_for_each(|name| move_mount(&format!("{NEW_ROOT}/{name}"), &format!("/{name}")))
}

fn move_mount(from: &str, to: &str) -> Result<(), String> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|error| format!("can't move the mount {from} to {to}: {error}"))
}

/// Makes the new root the root.
fn enter_root() -> Result<(), String> {
    let failed = |error: nix::Error| format!("can't enter the new root: {error}");
    chdir(NEW_ROOT).map_err(failed)?;
    move_mount(".", "/")?;
    chroot(".").and_then(|()| chdir("/")).map_err(failed)
}

/// Does what is the same for every machine, before it is known which one this is. Returns warnings.
///
/// # Errors
/// When a file system that programs expect can't be mounted.
pub fn prepare_early() -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    fs::create_dir_all(NEW_ROOT).map_err(|e| format!("can't make {NEW_ROOT}: {e}"))?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let pts = "mode=0620,gid=5,ptmxmode=666";
    mount_special("devpts", "/dev/pts", quiet | MsFlags::MS_NOATIME, Some(pts))?;
    mount_special("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=1777"))?;
    if let Err(warning) = mount_special("mqueue", "/dev/mqueue", quiet | MsFlags::MS_NODEV, None) {
        warnings.push(warning);
    }
    let cgroups = |options| {
        mount_special("cgroup2", "/sys/fs/cgroup", quiet | MsFlags::MS_NODEV, Some(options))
    };
    // The second option, of Linux 6.0, lets a program join a cgroup without waiting for a grace
    // period of RCU: 16 ms of each exec.
    cgroups("nsdelegate,favordynmods").or_else(|_| cgroups("nsdelegate"))?;
    let control = "/sys/fs/cgroup/cgroup.subtree_control";
    for controller in ["memory", "pids", "cpu", "cpuset", "io"] {
        if let Err(error) = fs::write(control, format!("+{controller}")) {
            warnings.push(format!("no cgroup controller {controller}: {error}"));
        }
    }
    if let Err(error) = fs::create_dir(Path::new("/sys/fs/cgroup").join(CGROUP)) {
        warnings.push(format!("no cgroup of the machine's programs: {error}"));
    }
    // They take memory, and that is what bounds them. Where it can't be set, there are fewer.
    let _ = fs::write(ALL_OPEN_FILES, i64::MAX.to_string());
    network::prepare()?;
    if let Err(warning) = modprobe::offer() {
        warnings.push(warning);
    }
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let _ = std::os::unix::fs::symlink(format!("/proc/self/{target}"), format!("/dev/{name}"));
    }
    Ok(warnings)
}

/// Host name and the files that every machine has of its own.
fn names(spec: &MachineSpec) -> Result<(), String> {
    sethostname(&spec.hostname).map_err(|e| format!("can't set the host name: {e}"))?;
    for FileSpec { path, content, only_in_place, .. } in &spec.own_files {
        let path = Path::new(path);
        if !only_in_place || fs::symlink_metadata(path).is_ok_and(|file| file.is_file()) {
            image_files::write(path, &decode(&path.display().to_string(), content)?, Mode::Kept)?;
        }
    }
    Ok(())
}

/// Writes a file that the machine's configuration has.
pub fn write_file(file: &FileSpec) -> Result<(), String> {
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
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|e| format!("{what} is not base64: {e}"))
}

/// Grows the root file system to so many bytes.
fn grow(bytes: u64) -> Result<(), String> {
    let failed =
        |error: &dyn std::fmt::Display| format!("can't grow the root file system: {error}");
    let block = nix::sys::statvfs::statvfs("/").map_err(|e| failed(&e))?.block_size();
    let root = fs::File::open("/").map_err(|e| failed(&e))?;
    filesystem::grow(&root, bytes / block.max(1)).map_err(|e| failed(&e))
}
