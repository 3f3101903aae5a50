//! What the machine's programs may have of the VM's memory, and what they need not have right now.
//! The kernel's own bookkeeping does both: the memory controller of the programs' cgroup.

use std::{fs, path::PathBuf};

use caddis_guest_protocol::message::MemoryInfo;

use crate::program::CGROUP;

/// Least that programs are left with, MiB.
const LEAST_MIB: u64 = 16;
const MIB: u64 = 1 << 20;

/// Sets a limit (MiB) where one is given, takes back so much (MiB) where that is asked for, and
/// says what is the case.
pub fn manage(limit: Option<u64>, reclaim: Option<u64>) -> Result<MemoryInfo, String> {
    if let Some(limit) = limit {
        set_limit(limit)?;
    }
    let reclaimed_mib = reclaim.map_or(Ok(0), take_back)?;
    let limit_mib = number("memory.max")?.map(|bytes| bytes / MIB);
    let used = number("memory.current")?.unwrap_or(0);
    let free = available()?;
    let left = limit_mib.map_or(free, |limit| free.min((limit * MIB).saturating_sub(used)));
    Ok(MemoryInfo { limit_mib, available_mib: left / MIB, reclaimed_mib })
}

/// Never by killing anything: programs that need more keep the limit they had.
fn set_limit(limit: u64) -> Result<(), String> {
    if limit < LEAST_MIB {
        return Err(format!("programs need at least {LEAST_MIB} MiB"));
    }
    let limit = limit * MIB;
    let excess = number("memory.current")?.unwrap_or(0).saturating_sub(limit);
    if excess > 0 {
        take_back(excess.div_ceil(MIB))?;
        let used = number("memory.current")?.unwrap_or(0);
        if used > limit {
            return Err(format!("programs use {} MiB that can't be reclaimed", used.div_ceil(MIB)));
        }
    }
    write("memory.max", &limit.to_string())
}

/// Has the kernel write back and drop what it can, and says how much that was, MiB.
fn take_back(mib: u64) -> Result<u64, String> {
    let before = number("memory.current")?.unwrap_or(0);
    // Refused when it was not all to be had; what was had counts.
    match fs::write(path("memory.reclaim"), mib.saturating_mul(MIB).to_string()) {
        Err(error) if error.raw_os_error() != Some(libc::EAGAIN) => {
            return Err(format!("this kernel can't reclaim memory: {error}"));
        }
        _ => {}
    }
    Ok(before.saturating_sub(number("memory.current")?.unwrap_or(0)) / MIB)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/sys/fs/cgroup").join(CGROUP).join(name)
}

fn write(name: &str, value: &str) -> Result<(), String> {
    fs::write(path(name), value).map_err(|e| format!("can't set {name} of the programs: {e}"))
}

/// `None` where there is no limit.
fn number(name: &str) -> Result<Option<u64>, String> {
    let text = fs::read_to_string(path(name))
        .map_err(|e| format!("can't read {name} of the programs: {e}"))?;
    Ok(text.trim().parse().ok())
}

/// What could be had without swapping, bytes.
fn available() -> Result<u64, String> {
    let text = fs::read_to_string("/proc/meminfo")
        .map_err(|e| format!("can't read /proc/meminfo: {e}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| "/proc/meminfo does not say what is available".to_owned())
}
