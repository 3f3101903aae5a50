//! QEMU and the kernel alone, from exec to the panic for want of a first program: what a cold boot
//! can't be faster than.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::{
    bench::Bench,
    cpu::milliseconds,
    progress,
    report::Promise,
    server::{Pool, accelerator},
};

/// As the driver has it for VMs (`caddis-vmm`, boot arguments), with a first program that isn't
/// there.
pub(super) const KERNEL_ARGUMENTS: &str = "quiet cryptomgr.notests 8250.nr_uarts=1 \
     i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd \
     random.trust_cpu=on no_timer_check lsm= audit=0 mitigations=off reboot=t panic=-1 \
     tsc=reliable rdinit=/none root=/dev/none";

/// Measures the row.
///
/// # Errors
/// When QEMU does not start.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let boot = bench.server(Pool::Off).await?.data().join("boot");
    let (kernel, initrd) = (file(&boot, "vmlinux-")?, file(&boot, "initrd-")?);
    let arguments = format!("{KERNEL_ARGUMENTS} tsc_early_khz={}", clock_khz()?);
    let (runs, mut times) = (bench.repeat(20, 3), Vec::new());
    for run in 0..runs {
        progress::run("kernel", run, runs);
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "microvm,acpi=on,ioapic2=on", "-m", "256M"]);
        command.args(match accelerator() {
            "kvm" => ["-accel", "kvm", "-cpu", "host"],
            _ => ["-accel", "tcg,tb-size=64", "-cpu", "max"],
        });
        command
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &arguments]);
        command.args(["-no-reboot", "-nodefaults", "-no-user-config", "-display", "none"]);
        command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null());
        let began = Instant::now();
        let status = command.status().await.context("starting QEMU")?;
        anyhow::ensure!(status.success(), "QEMU: {status}");
        times.push(milliseconds(began));
    }
    let text = "QEMU and the same kernel alone, no disk, network or program";
    bench.report.samples("kernel", text, "ms", Promise::None, &times);
    Ok(())
}

pub(super) fn file(directory: &Path, prefix: &str) -> Result<PathBuf> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let fits = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    };
    let found = entries.flatten().map(|entry| entry.path()).find(fits);
    found.with_context(|| format!("no {prefix}… in {}", directory.display()))
}

/// Without it the kernel measures the clock itself, and on a busy host wrongly.
pub(super) fn clock_khz() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let line = text
        .lines()
        .find(|line| line.starts_with("cpu MHz"))
        .context("no cpu MHz in /proc/cpuinfo")?;
    let mhz: f64 = line.rsplit(':').next().unwrap_or_default().trim().parse().context("cpu MHz")?;
    Ok((mhz * 1000.0) as u64)
}
