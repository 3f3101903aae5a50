//! Init as the program that the kernel calls when it wants a module (`kernel.modprobe`). The
//! modules are on a disk of their own that no driver has until then: a VM that asks for none pays
//! nothing for it.
//!
//! ```text
//! kernel: request_module("fs-overlay") ▸ modprobe -q -- fs-overlay
//!         ▸ the first time: disk to its driver, mount
//!         ▸ which modules, and what before them ▸ finit_module for each
//! ```
//! It is an ordinary process, so that a slow disk holds up nobody but who asked. Images' own
//! `modprobe` finds the same modules below `/lib/modules`, where they are mounted, too, from then
//! on.

use std::{
    collections::HashSet,
    ffi::{CString, OsStr, OsString},
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod},
};

use crate::{devices, kernel::say};

mod index;

use index::Index;

/// Its name, by which init knows that it was called as this.
pub const NAME: &str = "modprobe";
/// Where what is ours lies: on the kernel's own file system for devices, since root file systems
/// are the machines'.
const PROGRAM: &str = "/dev/.caddis/modprobe";
/// Where the modules are mounted.
const MODULES: &str = "/dev/.caddis/modules";
/// Held while they are made reachable.
const LOCK: &str = "/dev/.caddis/lock";
/// The kernel's setting; missing in a kernel that has no modules.
const SETTING: &str = "/proc/sys/kernel/modprobe";
/// Device nodes whose modules this kernel has, in the initrd.
const NODES: &str = "/modules/nodes";
/// Nodes whose drivers are built into the kernel are made by it, for root alone.
const FOR_ALL: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Has the kernel ask us for modules, where there are some, and makes the device nodes that have it
/// ask.
pub fn offer() -> Result<(), String> {
    for node in FOR_ALL {
        // Most often it is not there yet.
        let _ = fs::set_permissions(node, std::os::unix::fs::PermissionsExt::from_mode(0o666));
    }
    if devices::modules_disk().is_none() || !Path::new(SETTING).exists() {
        return Ok(());
    }
    make_nodes()?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: std::io::Error| format!("can't {what}: {error}")
    };
    fs::create_dir_all(MODULES).map_err(failed("make a directory for modules"))?;
    File::create(PROGRAM).map_err(failed("make a place for modprobe"))?;
    // What is mounted stays when the root is switched and the initrd's own name for it is gone.
    let none = None::<&str>;
    mount(Some("/proc/self/exe"), PROGRAM, none, MsFlags::MS_BIND, none)
        .and_then(|()| {
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(none, PROGRAM, none, read_only, none)
        })
        .map_err(|error| format!("can't mount modprobe: {error}"))?;
    fs::write(SETTING, PROGRAM).map_err(failed("tell the kernel of modprobe"))
}

fn make_nodes() -> Result<(), String> {
    let list = fs::read_to_string(NODES).unwrap_or_default();
    for line in list.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [path, major, minor, mode] = words[..] else {
            return Err(format!("{NODES} is damaged: {line}"));
        };
        let damaged =
            |error: &dyn std::fmt::Display| format!("{NODES} is damaged: {line}: {error}");
        let (major, minor) =
            (major.parse().map_err(|e| damaged(&e))?, minor.parse().map_err(|e| damaged(&e))?);
        let mode = u32::from_str_radix(mode, 8).map_err(|e| damaged(&e))?;
        let path = Path::new("/dev").join(path);
        // Where it can't be made, making the node says so.
        let _ = path.parent().map(fs::create_dir_all);
        let none = Mode::empty();
        match mknod(&path, SFlag::S_IFCHR, none, makedev(major, minor)) {
            // The kernel has it already.
            Err(Errno::EEXIST) => continue,
            Err(error) => return Err(format!("can't make {}: {error}", path.display())),
            Ok(()) => {}
        }
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(|error| format!("can't set up {}: {error}", path.display()))?;
    }
    Ok(())
}

/// Runs it: `modprobe [-q] [-a] [--] NAME… [PARAMETER=VALUE…]`, or `modprobe --mount`, which only
/// makes modules reachable.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let words: Vec<_> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    let (flags, words): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|word| word.starts_with('-'));
    let quiet = flags.iter().any(|flag| flag == "-q" || flag == "--quiet");
    if let Some(flag) = flags.iter().find(|flag| !KNOWN_FLAGS.contains(&flag.as_str())) {
        eprintln!(
            "modprobe: there is no {flag} here; install kmod in the image for a complete modprobe"
        );
        return 1;
    }
    let (parameters, names): (Vec<_>, Vec<_>) =
        words.into_iter().partition(|word| word.contains('='));
    let index = match reach() {
        Ok(_) if flags.iter().any(|flag| flag == MOUNT_FLAG) => return 0,
        Ok(()) => Index::read(Path::new(MODULES)),
        Err(error) => Err(error),
    };
    let mut code = 0;
    for name in &names {
        let loaded = index.as_ref().map_err(|error| Failure::Broken(error.clone()));
        if let Err(failure) = loaded.and_then(|index| load(index, name, &parameters.join(" "))) {
            code = 1;
            match failure {
                // The kernel asks for much that does not exist.
                Failure::Unknown if quiet => {}
                Failure::Unknown => {
                    eprintln!("modprobe: there is no module {name} for this kernel")
                }
                Failure::Broken(reason) => {
                    say(&format!("can't load the module {name}: {reason}"));
                    eprintln!("modprobe: can't load the module {name}: {reason}");
                }
            }
        }
    }
    code
}

/// Patience with another that makes modules reachable, seconds.
const MOUNT_TIMEOUT_S: u32 = 10;

/// Has modules be reached and nothing else.
pub const MOUNT_FLAG: &str = "--mount";
const KNOWN_FLAGS: [&str; 9] =
    ["-q", "--quiet", "-a", "--all", "-v", "--verbose", "--", "-b", MOUNT_FLAG];

/// Whether the image has kmod's `modprobe`, which finds modules below `/lib/modules` only, and
/// without the kernel's asking.
pub fn is_in_image() -> bool {
    // As all distributions have it: a link.
    let is_kmod = |path: &str| {
        fs::read_link(path).is_ok_and(|path| path.file_name() == Some(OsStr::new("kmod")))
    };
    USUAL_PROGRAMS[..2].iter().any(|path| is_kmod(path))
}

/// Where images have a `modprobe` of their own.
const USUAL_PROGRAMS: [&str; 4] =
    ["/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe"];

/// Has modules be reached before anything asks for one, and waits for that. Where there are none it
/// does nothing.
pub fn mount_modules() {
    if Path::new(PROGRAM).exists() {
        // It has told the kernel's log what went wrong, and what needs modules goes on without.
        let _ = std::process::Command::new(PROGRAM).arg(MOUNT_FLAG).status();
    }
}

enum Failure {
    /// This kernel has nothing of that name.
    Unknown,
    Broken(String),
}

/// Mounts the disk with the modules unless that was done, and has an image's own `modprobe` find
/// them below `/lib/modules`, where the image has none of this kernel. Where nobody looks, nothing
/// is mounted: systemd has a unit that fails when there are modules and no kmod.
fn reach() -> Result<(), String> {
    let usual = PathBuf::from("/lib/modules").join(release()?);
    let is_there = |path: &Path| path.join("modules.dep").exists();
    let is_found =
        || is_there(&usual) || !USUAL_PROGRAMS.iter().any(|path| Path::new(path).exists());
    if is_there(Path::new(MODULES)) && is_found() {
        return Ok(());
    }
    // Several may be asked for at once. Should the kernel ask for one while another makes them
    // reachable, and that wait for it, both would wait for ever: one that waits for long gives up.
    nix::unistd::alarm::set(MOUNT_TIMEOUT_S);
    // A file that no other user can open, and so lock.
    let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(LOCK);
    let lock = lock.map_err(|error| format!("can't open {LOCK}: {error}"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| format!("can't lock: {error}"))?;
    nix::unistd::alarm::cancel();
    let none = None::<&str>;
    if !is_there(Path::new(MODULES)) {
        let disk = devices::bind_modules_disk()?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(&disk), MODULES, Some("ext4"), flags, none).map_err(|error| {
            format!("can't mount the kernel's modules, the host's log says why: {error}")
        })?;
    }
    if !is_found() {
        let bound = fs::create_dir_all(&usual).map_err(|error| error.to_string()).and_then(|()| {
            mount(Some(MODULES), &usual, none, MsFlags::MS_BIND, none)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = bound {
            say(&format!("can't mount modules on {}: {error}", usual.display()));
        }
    }
    Ok(())
}

fn release() -> Result<String, String> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_err(|e| format!("can't read the release: {e}"))?;
    Ok(text.trim().to_owned())
}

/// Loads what a name stands for, with all that it needs.
fn load(index: &Index, name: &str, parameters: &str) -> Result<(), Failure> {
    let modules = index.resolve(name);
    if modules.is_empty() {
        return if index.is_built_in(name) { Ok(()) } else { Err(Failure::Unknown) };
    }
    let mut seen = HashSet::new();
    modules
        .iter()
        .try_for_each(|module| with_needs(index, module, parameters, &mut seen))
        .map_err(Failure::Broken)
}

fn with_needs(
    index: &Index,
    module: &str,
    parameters: &str,
    seen: &mut HashSet<String>,
) -> Result<(), String> {
    if !seen.insert(module.to_owned()) || is_live(module) {
        return Ok(());
    }
    let Some((path, needs)) = index.file(module) else { return Ok(()) };
    let (before, after) = index.soft(module);
    for other in before {
        // Better with it, and it goes without.
        let _ = with_needs(index, &other, "", seen);
    }
    for need in needs {
        with_needs(index, &need, "", seen)?;
    }
    insert(
        module,
        &Path::new(MODULES).join(path),
        &[&configured(module), parameters].map(|part| part.trim()).join(" "),
    )?;
    for other in after {
        let _ = with_needs(index, &other, "", seen);
    }
    Ok(())
}

fn is_live(module: &str) -> bool {
    fs::read_to_string(format!("/sys/module/{module}/initstate"))
        .is_ok_and(|state| state.trim() == "live")
}

fn insert(module: &str, path: &Path, parameters: &str) -> Result<(), String> {
    let file =
        File::open(path).map_err(|error| format!("can't open {}: {error}", path.display()))?;
    let parameters =
        CString::new(parameters.trim()).map_err(|_| "a parameter has a zero byte".to_owned())?;
    match finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(format!("{module}: {error}")),
    }
}

/// What the kernel's command line says of a module: `MODULE.PARAMETER=VALUE`.
fn configured(module: &str) -> String {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let of = |word: &str| {
        let (name, parameter) = word.split_once('.')?;
        (index::normal(name) == module).then(|| parameter.to_owned())
    };
    line.split_whitespace().filter_map(of).collect::<Vec<_>>().join(" ")
}

/// Whether a program was called by this name.
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.is_some_and(|program| Path::new(program).file_name() == Some(OsStr::new(NAME)))
}
