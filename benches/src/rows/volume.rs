//! Sequential and random I/O of volumes, in the clear and encrypted, by programs in machines;
//! beside it the same file of the one in the clear under plain QEMU, with the same kernel. What is
//! compared is how long the same script takes by the guest's clock.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    rc::Rc,
};

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use serde_json::json;
use tokio::process::Command;

use super::kernel;
use crate::{
    bench::Bench,
    machine::{APP, Machine, PROGRAM, config, json},
    progress,
    report::Promise,
    server::{IMAGE, Pool, Server, accelerator},
};

/// What is done with a directory of the volume; each step says the time since the guest's boot.
const SCRIPT: &str = r#"
cd /data
at() { read up idle </proc/uptime; echo "at $1 $up"; }
if ! [ -d small ]; then
    mkdir small
    text=0123456789abcdef
    for n in 1 2 3 4 5 6 7; do text=$text$text; done
    n=0; while [ $n -lt 4001 ]; do echo $text >small/$n; n=$((n + 1)); done
fi
order= n=0
while [ $n -lt 4001 ]; do order="$order small/$((n * 1613 % 4001))"; n=$((n + 1)); done
sync; at begin
dd if=/dev/zero of=large bs=1M count=256 conv=fsync 2>/dev/null; at write
echo 3 >/proc/sys/vm/drop_caches; at -
dd if=large of=/dev/null bs=1M 2>/dev/null; at read
echo 3 >/proc/sys/vm/drop_caches; at -
cat $order >/dev/null; at random-read
dd if=/dev/zero of=direct bs=4k count=8000 oflag=direct 2>/dev/null; at direct-write
rm large direct; sync
"#;
/// First program of the plain VM.
const INIT: &str = "#!/bin/sh
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in $(cat /modules/order); do insmod /modules/$module; done
mkdir -p /data
mount -t ext4 /dev/vda /data && sh /script >/dev/ttyS0
umount /data
reboot -f
";
/// What the script says the end of.
const STEPS: [(&str, &str); 4] = [
    ("write", "sequential writes"),
    ("read", "sequential reads"),
    ("random-read", "reads of 4 KiB here and there"),
    ("direct-write", "writes of 4 KiB, one after the other, past the guest's cache"),
];

/// Seconds of each step.
type Times = HashMap<String, f64>;

/// Measures the row.
///
/// # Errors
/// When a volume can't be made, or a side does not work.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::Off).await?;
    let clear = Side::new(&server, false).await?;
    let secret = Side::new(&server, true).await?;
    let initrd = initrd(&server, bench.work())?;
    let (runs, mut all) = (bench.repeat(10, 2), [Vec::new(), Vec::new(), Vec::new()]);
    // The first run of each makes the files.
    for run in 0..=runs {
        progress::run("volume", run, runs + 1);
        let times =
            [clear.run().await?, secret.run().await?, plain(&server, &initrd, &clear.disk).await?];
        if run > 0 {
            all.iter_mut().zip(times).for_each(|(all, times)| all.push(times));
        }
    }
    for (step, text) in STEPS {
        let [clear, secret, plain] = [0, 1, 2].map(|side| {
            let of_step = |times: &Times| times.get(step).map(|seconds| seconds * 1000.0);
            all[side].iter().filter_map(of_step).collect::<Vec<_>>()
        });
        let text = format!("{text}, plain QEMU");
        bench.report.samples(&format!("plain-{step}"), &text, "ms", Promise::None, &plain);
        for (name, times, least) in [("volume", clear, 0.9), ("encrypted", secret, 0.7)] {
            let text = format!("speed of {name}, {step}, against the same file under plain QEMU");
            let key = format!("{name}-{step}/plain");
            bench.report.ratio(&key, &text, Promise::AtLeast(least), &plain, &times);
        }
    }
    Ok(())
}

/// A machine with a volume, stopped.
struct Side {
    server: Rc<Server>,
    machine: Machine,
    /// Its file.
    disk: PathBuf,
}

impl Side {
    async fn new(server: &Rc<Server>, encrypted: bool) -> Result<Self> {
        let volume = json!({ "name": "bench", "size_gb": 1, "encrypted": encrypted }).to_string();
        let volumes = format!("/v1/apps/{APP}/volumes");
        let volume = json(&server.http().send(Method::POST, &volumes, &volume).await?)?;
        let id = volume["id"].as_str().context("a volume without an id")?.to_owned();
        let mut config = config(IMAGE, PROGRAM);
        config["mounts"] = json!([{ "volume": id, "path": "/data" }]);
        let machine = Machine::create(server.http(), &config).await?;
        machine.wait("started").await?;
        machine.stop().await?;
        let disk = server.data().join("volumes/volumes").join(id).join("disk.qcow2");
        Ok(Self { server: server.clone(), machine, disk })
    }

    async fn run(&self) -> Result<Times> {
        self.machine.post("start", "").await?;
        self.machine.wait("started").await?;
        let exec = json!({ "command": ["sh", "-c", SCRIPT], "timeout": 60 }).to_string();
        let path = format!("/v1/apps/{APP}/machines/{}/exec", self.machine.id());
        let answer = json(&self.server.http().send(Method::POST, &path, &exec).await?)?;
        self.machine.stop().await?;
        times(answer["stdout"].as_str().unwrap_or_default())
    }
}

/// The same under QEMU alone, with the disk as it is.
async fn plain(server: &Server, initrd: &Path, disk: &Path) -> Result<Times> {
    let kernel = kernel::file(&server.data().join("boot"), "vmlinux-")?;
    let drive = json!({
        "driver": "qcow2", "node-name": "disk", "discard": "unmap",
        "file": { "driver": "file", "filename": disk, "discard": "unmap" },
    });
    let arguments = format!(
        "{} tsc_early_khz={}",
        kernel::KERNEL_ARGUMENTS.replace("/none root", "/begin root"),
        kernel::clock_khz()?
    );
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "microvm,acpi=on,ioapic2=on", "-m", "256M"]);
    command.args(match accelerator() {
        "kvm" => ["-accel", "kvm", "-cpu", "host"],
        _ => ["-accel", "tcg,tb-size=64", "-cpu", "max"],
    });
    command.arg("-kernel").arg(&kernel).arg("-initrd").arg(initrd).args(["-append", &arguments]);
    command.args(["-blockdev", &drive.to_string(), "-device", "virtio-blk-device,drive=disk"]);
    command.args(["-no-reboot", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-serial", "stdio"]);
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
    let output = command.output().await.context("starting QEMU")?;
    ensure!(output.status.success(), "QEMU: {}", String::from_utf8_lossy(&output.stderr).trim());
    times(&String::from_utf8_lossy(&output.stdout))
}

/// Reads what the script has said.
fn times(said: &str) -> Result<Times> {
    let (mut times, mut last) = (Times::new(), 0.0);
    for line in said.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let ["at", step, at] = words[..] else { continue };
        let at: f64 = at.parse().with_context(|| format!("no time in {line}"))?;
        times.insert(step.to_owned(), at - last);
        last = at;
    }
    ensure!(STEPS.iter().all(|(step, _)| times.contains_key(*step)), "the script said: {said}");
    Ok(times)
}

/// The initrd of VMs, which has the modules that a disk needs, and behind it what the plain VM
/// runs.
fn initrd(server: &Server, work: &Path) -> Result<PathBuf> {
    let mut initrd = fs::read(kernel::file(&server.data().join("boot"), "initrd-")?)?;
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    let mut add = |name: &str, mode: u32, content: &[u8]| {
        let length = name.len() + 1;
        let (mode, size) = (mode as usize, content.len());
        let numbers = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        // newc of the kernel's buffer-format.rst: 13 numbers of eight digits.
        let numbers = numbers.map(|number| format!("{number:08x}")).concat();
        initrd.extend([b"070701", numbers.as_bytes(), name.as_bytes(), &[0]].concat());
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend(content);
        initrd.resize(initrd.len().next_multiple_of(4), 0);
    };
    let busybox = fs::read("/bin/busybox").context("apt-get install busybox-static")?;
    for directory in ["bin", "proc", "sys", "dev"] {
        add(directory, 0o40755, b"");
    }
    add("bin/busybox", 0o100_755, &busybox);
    for tool in
        ["sh", "mount", "umount", "cat", "insmod", "mkdir", "reboot", "dd", "sync", "rm", "echo"]
    {
        add(&format!("bin/{tool}"), 0o120_777, b"busybox");
    }
    add("script", 0o100_644, SCRIPT.as_bytes());
    add("begin", 0o100_755, INIT.as_bytes());
    add("TRAILER!!!", 0, b"");
    let path = work.join("plain.initrd");
    fs::write(&path, initrd)?;
    Ok(path)
}
