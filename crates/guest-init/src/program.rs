//! The machine's program: its streams and how it ended.

use std::{fs, path::Path};

use caddis_guest_protocol::message::ExitReport;
use nix::sys::wait::WaitStatus;

use crate::clock;

/// Its cgroup.
pub const CGROUP: &str = "program";

/// How a process ended: exit status or 128 + signal, and the signal. `None` when it has not.
pub fn end(status: WaitStatus) -> Option<(i32, Option<i32>)> {
    match status {
        WaitStatus::Exited(_, code) => Some((code, None)),
        WaitStatus::Signaled(_, signal, _) => Some((128 + signal as i32, Some(signal as i32))),
        _ => None,
    }
}

/// The report on the program's end.
pub fn report(code: i32, signal: Option<i32>) -> ExitReport {
    ExitReport { code, signal, oom_killed: oom_kills() > 0, exited_at_ns: clock::now_ns(), logs_complete: false }
}

/// How often the kernel has killed in the program's cgroup for want of memory.
fn oom_kills() -> u64 {
    let path = Path::new("/sys/fs/cgroup").join(CGROUP).join("memory.events");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
