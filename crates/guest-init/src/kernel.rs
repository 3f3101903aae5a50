//! What is asked of the kernel before there is a root file system, and at the very end.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// Modules in the initrd, and the file that says in which order to load them.
const MODULES: &str = "/modules";

/// Writes a line to the kernel's log, and so to the console.
pub fn say(line: &str) {
    // Whatever a program has put in its place.
    if let Ok(mut log) =
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")
    {
        // In one piece, since each write is a line of its own. There is nobody left to tell when it
        // fails.
        let _ = log.write_all(format!("<3>caddis: {line}\n").as_bytes());
    }
}

/// Mounts what the kernel shows of itself.
pub fn mount_early() -> Result<(), String> {
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount_special(kind, target, MsFlags::empty(), None)?;
    }
    Ok(())
}

/// Has the kernel not take its time where it waits for its processors to have seen a change: under
/// an emulator those waits are a good part of giving devices to drivers and bringing up the
/// network. Where it can't be set, it only takes longer.
pub fn hurry(on: bool) {
    let _ = fs::write("/sys/kernel/rcu_expedited", if on { "1" } else { "0" });
}

/// Mounts a file system without a device, making its directory.
pub fn mount_special(
    kind: &str,
    target: &str,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), String> {
    // Most are there already; if not, the mount says so.
    let _ = fs::create_dir_all(target);
    match mount(Some(kind), target, Some(kind), flags, data) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(format!("can't mount {kind} on {target}: {error}")),
    }
}

/// Loads the modules of the initrd, in order, and gives disks and network to their drivers.
pub fn load_modules() -> Result<(), String> {
    let order = fs::read_to_string(Path::new(MODULES).join("order")).unwrap_or_default();
    let late = |name: &&str| {
        crate::devices::LATE.iter().any(|driver| name.strip_suffix(".ko") == Some(driver))
    };
    let (first, last): (Vec<_>, Vec<_>) = order.lines().partition(|name| !late(name));
    insert(&first)?;
    // IPv6 may be one of them, and the card none yet.
    crate::network::set_defaults();
    crate::devices::hold()?;
    insert(&last)?;
    crate::devices::bind()
}

/// Gives back the memory that the initrd's files take, once nobody needs them.
pub fn empty_initrd() {
    // Where they can't be removed, they only take that.
    let _ = fs::remove_dir_all(MODULES);
}

fn insert(names: &[&str]) -> Result<(), String> {
    for name in names {
        let path = Path::new(MODULES).join(name);
        let file =
            File::open(&path).map_err(|error| format!("can't open {}: {error}", path.display()))?;
        match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(format!("can't load the module {name}: {error}")),
        }
    }
    Ok(())
}

/// Ends everything and the VM.
pub fn end() -> ! {
    // All but ourselves.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    loop {
        // By a reset, which the VMM takes for the end: quicker than ACPI's way.
        let _ = reboot(RebootMode::RB_AUTOBOOT);
    }
}
