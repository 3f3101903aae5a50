//! Uses the cgroup code of `caddis-vmm` where cgroup v2 is, which need not be the host of the
//! tests: they run this in a VM, whose init mounts it.
#![forbid(unsafe_code)]

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use caddis_vmm::cgroup::{CgroupRoot, Limits, Version};

const PARENT: &str = "caddis-check.slice";
const MEMORY: u64 = 64 << 20;

fn main() -> Result<()> {
    let root = CgroupRoot::detect(PARENT)?;
    ensure!(root.version() == Version::V2, "this is not cgroup v2");
    let cgroup = root.slot("slot-0");
    cgroup.create(Limits { memory: MEMORY, cpu_weight: 200, threads: 32 })?;
    let directory = cgroup.directories().first().context("a cgroup without directory")?;
    for (file, expected) in
        [("memory.max", &*MEMORY.to_string()), ("cpu.weight", "200"), ("pids.max", "32")]
    {
        let found =
            fs::read_to_string(directory.join(file)).with_context(|| format!("reading {file}"))?;
        ensure!(found.trim() == expected, "{file} is {found}");
    }
    let greedy = format!("echo 0 >{}/cgroup.procs && exec tail /dev/zero", directory.display());
    let status = Command::new("sh").args(["-c", &greedy]).status()?;
    ensure!(
        !status.success() && cgroup.oom_kills() == 1,
        "memory is not bounded: {status}, {}",
        cgroup.oom_kills()
    );
    ensure!(cgroup.memory_peak().is_none_or(|peak| peak <= MEMORY), "more than the bound was used");
    cgroup.remove()?;
    CgroupRoot::remove(PARENT)?;
    ensure!(!cgroup.exists(), "it is still there");
    println!("cgroup v2 works");
    Ok(())
}
