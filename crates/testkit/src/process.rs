//! What `/proc` says of the processes that belong to a server, and their end.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Processes other than this one that hold a file in `directory` open, work in it, or name it in
/// their arguments.
pub fn holders(directory: &Path) -> BTreeSet<i32> {
    let numbered = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbered.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| pid != nix::unistd::getpid().as_raw() && holds(pid, directory)).collect()
}

fn holds(pid: i32, directory: &Path) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let points_in =
        |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(directory));
    if points_in(&proc.join("cwd"))
        || descriptors(pid).iter().any(|(_, target)| Path::new(target).starts_with(directory))
    {
        return true;
    }
    let arguments = std::fs::read(proc.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&arguments).contains(&*directory.to_string_lossy())
}

/// Open descriptors of a process: number and what `/proc/PID/fd` shows of it.
pub fn descriptors(pid: i32) -> Vec<(u32, String)> {
    let directory = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let mut all: Vec<_> = directory
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect();
    all.sort();
    all
}

/// A line of `/proc/PID/status`, e.g. `CapEff`.
pub fn status(pid: i32, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

/// Name of a process's program, at most 15 characters.
pub fn name(pid: i32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// Directories of the control groups that a process is in, other than the roots.
pub fn control_groups(pid: i32) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut directories = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if path == "/" {
            continue;
        }
        let bases = match controllers {
            "" => vec!["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/unified".to_owned()],
            _ => vec![format!("/sys/fs/cgroup/{}", controllers.trim_start_matches("name="))],
        };
        directories.extend(
            bases
                .iter()
                .map(|base| PathBuf::from(format!("{base}{path}")))
                .filter(|path| path.is_dir()),
        );
    }
    directories
}

/// Makes this process the parent of processes whose parent dies, so that the VMs of a killed server
/// can be awaited.
pub(crate) fn adopt_orphans() {
    // It can only fail on kernels before 3.4.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// Kills a process, waits for its end and removes the control group it left. For our own children
/// and orphans.
pub fn end(pid: i32) {
    let groups = control_groups(pid);
    let own = control_groups(nix::unistd::getpid().as_raw());
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    reap(pid);
    for group in groups.iter().filter(|group| !own.contains(group)) {
        // Another process may be in it, or a server may have removed it.
        let _ = std::fs::remove_dir(group);
    }
}

/// Asks a child to end (SIGTERM), and waits for that. False when it does not in time.
pub(crate) fn ends_in(pid: i32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    while Instant::now() < deadline {
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => {
                std::thread::sleep(Duration::from_millis(10))
            }
            // Reaped, here or by who waits for all children.
            _ => return true,
        }
    }
    false
}

/// Waits for the end of a child or orphan.
pub fn reap(pid: i32) {
    while waitpid(Pid::from_raw(pid), None) == Err(Errno::EINTR) {}
}
