//! What is read and written of volumes: synced when the guest says so, no faster than is allowed,
//! and not lost where the disk is full.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStderr, Command, Stdio},
};

use caddis_vmm::IoLimits;

use super::*;
use crate::qmp::Qmp;

/// `fdatasync` of a process, counted.
struct Counted {
    strace: Child,
    output: PathBuf,
    /// What it says of each new thread; it ends when nobody can read that.
    _said: BufReader<ChildStderr>,
}

impl Counted {
    async fn begin(host: &QemuHost, pid: u32) -> Result<Self> {
        let output = host.data.join("strace");
        let mut strace = Command::new("strace")
            .args(["-f", "-y", "-e", "trace=fdatasync,fsync,sync_file_range", "-o"])
            .arg(&output)
            .args(["-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .context("scripts/setup.sh installs what tests need")?;
        // It says so when it is there.
        let said = strace.stderr.take().context("its standard error")?;
        let attached = tokio::task::spawn_blocking(move || {
            let (mut said, mut line) = (BufReader::new(said), String::new());
            said.read_line(&mut line).map(|_| (said, line))
        });
        let (said, line) = attached.await??;
        ensure!(line.contains("attached"), "strace says: {line}");
        Ok(Self { strace, output, _said: said })
    }

    fn end(mut self) -> Result<usize> {
        let pid = i32::try_from(self.strace.id())?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGINT)?;
        self.strace.wait()?;
        let text = fs::read_to_string(&self.output)?;
        Ok(text
            .lines()
            .filter(|line| line.contains("fdatasync(") && line.contains("qcow2"))
            .count())
    }
}

#[tokio::test]
async fn a_sync_of_a_program_is_one_of_the_volume_s_file_and_of_no_other() {
    on_a_host(async |host| {
    const SYNCS: usize = 40;
    let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
    let driver = host.qemu(NONE);
    let machine = Machine::new(host, &driver, "m1")?;
    let vm = machine.start(&[ext4(&volume, "/data")]).await?;
    ensure!(vm.failure.is_none(), "{:?}", vm.failure);
    let write = |place: &str| {
        format!(
            "for n in $(seq {SYNCS}); do dd if=/dev/zero of={place}/$n bs=4k count=1 conv=fsync \
             2>/dev/null; done"
        )
    };
    let counted = Counted::begin(host, vm.vm.pid()).await?;
    vm.shell(&write("/tmp")).await?;
    let of_root = counted.end()?;
    let counted = Counted::begin(host, vm.vm.pid()).await?;
    vm.shell(&write("/data")).await?;
    let of_volume = counted.end()?;
    ensure!(of_volume >= SYNCS, "{of_volume} of {SYNCS}");
    // The journal of the volume, which is written every few seconds, may be in between.
    ensure!(
        of_root < of_volume / 2,
        "{of_root} of {of_volume}: the root disk is blank at the next start"
    );
    vm.kill().await?;
    driver.close().await;
    Ok(())
}).await;
}

#[tokio::test]
async fn the_volumes_of_a_machine_are_limited_together_and_nothing_else_is() {
    on_a_host(async |host| {
        let first = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let second = host.create_volume("vol_b", Filesystem::Ext4, false).await;
        let driver = host.qemu(ONE);
        driver.keep_warm();
        let mut machine = Machine::new(host, &driver, "m1")?;
        let (iops, bytes_per_second) = (400, 3 << 20);
        for (limits, kind) in [
            (Some(IoLimits { iops, bytes_per_second }), StartKind::Template),
            (Some(IoLimits { iops, bytes_per_second }), StartKind::Cold),
            (None, StartKind::Template),
        ] {
            machine.spec.volume_limits = limits;
            let is_cold = kind == StartKind::Cold;
            machine.spec.kernel_args =
                is_cold.then(|| "loglevel=3".to_owned()).into_iter().collect();
            until_warm(&driver).await;
            let (vm, mounts) =
                machine.launch(&[ext4(&first, "/data"), ext4(&second, "/b")]).await?;
            ensure!(vm.start().kind == kind, "{:?}", vm.start());
            let mut qmp = Qmp::connect(&machine.spec.directory)?;
            for node in ["volume0", "volume1", "root"] {
                let device = qmp.device(node)?["inserted"].take();
                let found = (device["iops"].as_u64(), device["bps"].as_u64());
                let expected = match limits {
                    Some(_) if node != "root" => (Some(400), Some(3 << 20)),
                    _ => (Some(0), Some(0)),
                };
                ensure!(found == expected, "{kind:?} {node}: {device:#}");
                let group = if expected.0 == Some(0) { None } else { Some("volumes") };
                ensure!(device["group"].as_str() == group, "{device:#}");
            }
            drop(qmp);
            let vm = machine.configure(vm, mounts).await?;
            ensure!(vm.failure.is_none(), "{:?}", vm.failure);
            vm.shell("dd if=/dev/zero of=/data/a bs=64k count=8 conv=fsync 2>/dev/null").await?;
            vm.kill().await?;
        }
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn on_a_full_disk_programs_wait_until_there_is_room() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let small = Small::mount(host)?;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let filler = small.0.join("filler");
        let mut file = fs::File::create(&filler)?;
        while file.write_all(&[1; 4096]).is_ok() {}
        let line = "(dd if=/dev/urandom of=/tmp/a bs=1M count=8; cp /tmp/a /data/a; sync; \
                echo 3 >/proc/sys/vm/drop_caches; cmp /tmp/a /data/a && echo same >/tmp/said) \
                >/dev/null 2>&1 &";
        vm.shell(line).await?;
        let mut pause = vm.vm.pause();
        timeout(DEADLINE, pause.wait_for(|pause| *pause == Some(Pause::DiskFull))).await??;
        fs::remove_file(&filler)?;
        drop(file);
        vm.vm.unpause().await?;
        vm.shell("while ! [ -e /tmp/said ]; do sleep 0.1; done").await?;
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}
