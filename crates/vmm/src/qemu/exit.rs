//! Waits for the end of a VM process, finds out why it ended, and removes what is left of it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tracing::debug;

use super::launch::clear;
use crate::{
    Slot, VmExit,
    capture::Capture,
    process::{Status, Watch},
};

/// What is needed once the process has ended.
pub(super) struct Watched {
    pub(super) directory: PathBuf,
    pub(super) slot: Slot,
    pub(super) killed: Arc<AtomicBool>,
    /// Its memory is a file on the host's disk.
    pub(super) resumed: bool,
    pub(super) captures: Mutex<Option<(Option<Capture>, Option<Capture>)>>,
}

impl Watched {
    pub(super) async fn ended(self, watcher: Watch) -> VmExit {
        let status = watcher.ended().await;
        let clearing = spawn_blocking(move || self.conclude(status));
        clearing.await.unwrap_or_else(|error| VmExit::Crashed { message: error.to_string() })
    }

    /// Finds out why it ended and removes what is left. Blocks.
    fn conclude(self, status: Status) -> VmExit {
        let name = self.slot.cgroup_name();
        let on_tmpfs = rustix::fs::statfs(&self.directory).is_ok_and(|found| found.f_type == TMPFS);
        let cgroups = self.slot.cgroups();
        let oom_kills = cgroups.map_or(0, |cgroups| cgroups.slot(&name).oom_kills());
        clear(&self.directory, cgroups, &name);
        let captures = self.captures.into_inner();
        let (output, console) = captures.unwrap_or_default();
        let tail =
            |capture: Option<Capture>| capture.map(|capture| capture.tail()).unwrap_or_default();
        let (output, console) = (tail(output), tail(console));
        let directory = self.directory.display();
        debug!(%directory, ?status, oom_kills, output, console, "VM process ended");
        let exit = why(status, self.killed.load(Ordering::Relaxed), oom_kills, &output, &console);
        match exit {
            VmExit::Crashed { .. } if self.resumed && status == Status::Killed(libc::SIGBUS) => {
                lost_memory(on_tmpfs)
            }
            exit => exit,
        }
    }
}

/// What a kernel writes to its console, however quiet, before it resets or powers off.
const SWITCHED_OFF: &str = "reboot: ";
/// What QEMU says when somebody on the host ends it.
const TOLD_TO_END: &str = "terminating on signal";
/// A page of memory that lies in a file could not be had. On tmpfs that is for want of room: there
/// also what was empty when the machine was saved takes some as soon as it is read. How full it was
/// can't be seen any more: the file went with the process.
fn lost_memory(on_tmpfs: bool) -> VmExit {
    let what = "the machine was resumed, and its memory is in its snapshot";
    if on_tmpfs {
        let message = format!(
            "the disk of the host is full: {what}, which needs space on tmpfs; free space, or keep \
                               the data directory on a disk"
        );
        return VmExit::DiskFull { message };
    }
    VmExit::Crashed {
        message: format!(
            "{what}, which can't be read any more (SIGBUS): see the host's kernel log"
        ),
    }
}

/// What `statfs` calls tmpfs.
const TMPFS: i64 = 0x0102_1994;

/// Why a VM process has ended. Pure.
fn why(status: Status, killed: bool, oom_kills: u64, output: &str, console: &str) -> VmExit {
    if killed {
        return VmExit::Ended;
    }
    let crashed = |message: String| VmExit::Crashed { message };
    match status {
        _ if oom_kills > 0 => VmExit::HostOom,
        _ if console.contains("Kernel panic") => crashed(console.to_owned()),
        // It takes the signals that end programs for a wish of whoever runs it.
        Status::Exited(0) if output.contains(TOLD_TO_END) => crashed(output.to_owned()),
        Status::Exited(0) => VmExit::Ended,
        // No child of this server: the kernel's last words tell whether it was told to end.
        Status::Unknown if console.contains(SWITCHED_OFF) => VmExit::Ended,
        Status::Unknown if output.is_empty() => {
            crashed("the VM process ended for an unknown reason".to_owned())
        }
        Status::Unknown => crashed(output.to_owned()),
        Status::Exited(code) if output.is_empty() => {
            crashed(format!("QEMU exited with code {code}"))
        }
        Status::Exited(_) => crashed(output.to_owned()),
        Status::Killed(signal) => {
            crashed(format!("QEMU was killed by signal {signal} {output}").trim().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_resumed_machine_that_could_not_be_had_is_told_as_that() {
        let full = lost_memory(true);
        assert!(
            matches!(&full, VmExit::DiskFull { message } if message.contains("disk of the host is \
                full")),
            "{full:?}"
        );
        let other = lost_memory(false);
        assert!(
            matches!(&other, VmExit::Crashed { message } if message.contains("can't be read")),
            "{other:?}"
        );
    }

    #[test]
    fn the_end_of_a_vm_is_explained() {
        let crashed = |message: &str| VmExit::Crashed { message: message.to_owned() };
        for (status, killed, ooms, output, console, expected) in [
            (Status::Exited(0), false, 0, "", "", VmExit::Ended),
            (
                Status::Exited(0),
                false,
                0,
                "terminating on signal 15",
                "",
                crashed("terminating on signal 15"),
            ),
            (Status::Killed(9), true, 0, "", "", VmExit::Ended),
            (Status::Killed(9), false, 1, "", "", VmExit::HostOom),
            (Status::Killed(9), false, 0, "", "", crashed("QEMU was killed by signal 9")),
            (Status::Exited(1), false, 0, "no such device", "", crashed("no such device")),
            (Status::Exited(1), false, 0, "", "", crashed("QEMU exited with code 1")),
            (Status::Exited(0), false, 0, "", "Kernel panic - x", crashed("Kernel panic - x")),
            (Status::Unknown, false, 0, "a warning", "[ 9.1] reboot: Power down", VmExit::Ended),
            (Status::Unknown, true, 0, "", "", VmExit::Ended),
            (Status::Unknown, false, 0, "a warning", "", crashed("a warning")),
            (
                Status::Unknown,
                false,
                0,
                "",
                "",
                crashed("the VM process ended for an unknown reason"),
            ),
        ] {
            assert_eq!(why(status, killed, ooms, output, console), expected);
        }
    }
}
