//! Starting from a template: that it is used, that nobody can change it, that no two machines are
//! alike, and what happens when it can't be used.

use std::{
    collections::HashSet,
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use caddis_testkit::{DEADLINE, Host, Machine, Options, process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::stand::{APP, Stand, rounds};

/// `request` of a machine's newest event of a start or restart that succeeded.
async fn started(machine: &Machine) -> Result<Value> {
    let event = machine.events().await?.into_iter().find(|event| event["status"] == "started");
    event.map(|mut event| event["details"].take()).context("no start that succeeded")
}

/// Most that is translated for a VM that waits, and then for a start with a shell, KiB.
const MOST_WAITING: u64 = 20_000;
const MOST_STARTED: u64 = 4_200;
/// Most requests of a start to its disk, with those of the two warm-ups before it. Four of the
/// writes are for the directory and the socket of `/.fly/api`.
const MOST_READS: u64 = 45;
const MOST_WRITES: u64 = 25;

/// Prints the time of day to the microsecond.
const CLOCK: &str =
    "adjtimex | awk '/time.tv_sec/ { s = $NF } /time.tv_usec/ { printf \"%d.%06d\", s, $NF }'";

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The guest's clock is right to a tenth of a second.
async fn check_clock(machine: &Machine) -> Result<()> {
    let before = now();
    let clock = machine.shell(CLOCK).await?.trim().parse::<f64>()?;
    let after = now();
    let tolerance = Duration::from_millis(100);
    ensure!(
        clock > (before - tolerance).as_secs_f64(),
        "the guest's clock is late: {clock}, {before:?}"
    );
    ensure!(
        clock < (after + tolerance).as_secs_f64(),
        "the guest's clock is early: {clock}, {after:?}"
    );
    Ok(())
}

#[tokio::test]
async fn twenty_machines_of_one_template_are_twenty_different_ones() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.templates().await?;
    let script = "echo $(head -c 16 /dev/urandom | hexdump -ve '1/1 \"%02x\"') $(cat \
                  /proc/sys/kernel/random/boot_id \
                  /sys/class/net/eth0/address /etc/machine-id) $(hostname) $CADDIS_START_KIND; \
                  exec sleep 1000";
    let mut machines = Vec::new();
    for _ in 0..20 {
        machines.push(stand.script(script, json!({})).await?);
    }
    let mut seen = HashSet::new();
    for machine in &machines {
        machine.wait("started").await?;
        assert_eq!(started(machine).await?["start_kind"], "template");
        assert_eq!(machine.get().await?["start_kind"], "template");
        let line = machine.first_line().await?;
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(
            words.len(),
            6,
            "random bytes, boot id, MAC address, machine id, host name, start kind: {line}"
        );
        assert_eq!((words[4], words[5]), (machine.id(), "template"));
        for word in &words[..5] {
            assert!(seen.insert((*word).to_owned()), "{word} twice");
        }
        check_clock(machine).await?;
    }
    Ok(())
}

/// Where an emulator keeps the code that it has translated: how much of it there is, KiB.
fn translated(vm: i32) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{vm}/smaps"))?;
    let (mut sum, mut counts) = (0, false);
    for line in maps.lines() {
        if line.contains(" rwxp ") {
            counts = true;
        } else if line.contains('-')
            && line.split(' ').nth(1).is_some_and(|rights| rights.len() == 4)
        {
            counts = false;
        } else if counts && let Some(rss) = line.strip_prefix("Rss:") {
            sum += rss.trim().trim_end_matches(" kB").parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// What a start costs is what its guest runs for the first time, which an emulator translates, and
/// what it asks of its disk: counts that do not depend on the processor. Each bound is about a
/// tenth above what was counted; a start that needs more does something new, and that is to be
/// found before the bound is raised.
#[tokio::test]
async fn a_start_translates_reads_and_writes_no_more_than_it_did() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let server = &stand.server;
    server.until_pooled(1).await?;
    let [waiting] = server.waiting()[..] else { bail!("one waits, not {:?}", server.waiting()) };
    let before = translated(waiting)?;
    let machine = stand.script("echo ready; exec sleep 1000", json!({})).await?;
    assert_eq!(machine.first_line().await?, "ready");
    assert_eq!(server.vm(&machine)?, waiting, "it was the one that waited");
    let after = translated(waiting)?;
    // Reads, then what was read, and the same of writes: Documentation/block/stat.rst.
    let counts = machine.shell("cat /sys/block/vda/stat").await?;
    let counts: Vec<u64> = counts.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    println!("{before} KiB translated before, {after} after; disk: {counts:?}");
    if std::env::var("CADDIS_TEST_ACCELERATOR").as_deref() != Ok("kvm") {
        ensure!(
            (1000..=MOST_WAITING).contains(&before),
            "{before} KiB of code were translated for a VM that waits"
        );
        let own = after.saturating_sub(before);
        ensure!(
            (100..=MOST_STARTED).contains(&own),
            "{own} KiB of code were translated for a start"
        );
    }
    ensure!(counts[0] <= MOST_READS, "{} reads", counts[0]);
    ensure!(counts[4] <= MOST_WRITES, "{} writes", counts[4]);
    Ok(())
}

/// A machine whose root has another size than the template's starts from that all the same, and has
/// that size.
async fn check_size(pool: usize, expected: &str) -> Result<()> {
    let host = Host::new().await?;
    let arguments = vec!["--pool".to_owned(), pool.to_string()];
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    stand.server.templates().await?;
    if pool > 0 {
        stand.server.until_pooled(1).await?;
    }
    let machine = stand.script("exec sleep 1000", json!({ "rootfs": { "size_gb": 12 } })).await?;
    machine.wait("started").await?;
    let details = started(&machine).await?;
    assert_eq!(
        (&details["start_kind"], &details["pool"]),
        (&json!("template"), &json!(expected)),
        "{details}"
    );
    let size =
        machine.shell("cat /sys/block/vda/size; df -k / | awk 'END { print $(NF-4) }'").await?;
    let numbers: Vec<u64> = size.lines().filter_map(|line| line.trim().parse().ok()).collect();
    ensure!(numbers.len() == 2 && numbers[0] * 512 == 12 << 30, "{size}");
    ensure!(numbers[1] > 11 << 20, "the file system has {} KiB", numbers[1]);
    Ok(())
}

#[tokio::test]
async fn a_vm_that_waited_is_told_of_a_root_of_another_size() -> Result<()> {
    check_size(1, "hit").await
}

#[tokio::test]
async fn a_vm_from_the_template_is_told_of_a_root_of_another_size() -> Result<()> {
    check_size(0, "off").await
}

/// Contents of the template in the server's memory.
fn template_in_memory(server: i32) -> Result<Vec<u8>> {
    let mut descriptors = process::descriptors(server).into_iter();
    let (number, _) = descriptors
        .find(|(_, target)| {
            target.starts_with("/memfd:caddis-template ")
                || target.ends_with("caddis-template (deleted)")
        })
        .context("the server holds no template")?;
    let mut contents = Vec::new();
    fs::File::open(format!("/proc/{server}/fd/{number}"))?.read_to_end(&mut contents)?;
    Ok(contents)
}

#[tokio::test]
async fn a_template_stays_as_it_is_whatever_its_machines_do() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let files = stand.server.templates().await?;
    let server = stand.server.pid()?;
    let (before, on_disk) = (template_in_memory(server)?, fs::read(&files[0])?);
    assert_eq!(fs::metadata(&files[0])?.permissions().mode() & 0o777, 0o600);
    let script = "dd if=/dev/zero of=/dev/shm/a bs=1M; rm /dev/shm/a; echo 3 \
                  >/proc/sys/vm/drop_caches; \
                  dd if=/dev/urandom of=/dev/shm/a bs=1M count=40; echo filled; exec sleep 1000";
    let machines = [stand.script(script, json!({})).await?, stand.script(script, json!({})).await?];
    for machine in &machines {
        machine.logged("filled").await?;
        assert_eq!(started(machine).await?["start_kind"], "template");
        let vm = stand.server.vm(machine)?;
        let maps = fs::read_to_string(format!("/proc/{vm}/maps"))?;
        let of_template: Vec<_> =
            maps.lines().filter(|line| line.contains("caddis-template")).collect();
        assert!(!of_template.is_empty(), "its memory is the template's");
        assert!(
            of_template.iter().all(|line| line.contains("p ")),
            "copied on write, not shared: {of_template:#?}"
        );
    }
    let after = template_in_memory(server)?;
    assert!(before == after, "the template in memory has changed");
    assert!(on_disk == fs::read(&files[0])?, "the template on disk has changed");
    let own: Vec<_> = process::descriptors(server)
        .into_iter()
        .filter(|(_, t)| t.contains("caddis-template"))
        .collect();
    for (number, _) in own {
        // Whoever could write to it could change every machine that starts from it.
        let written =
            fs::OpenOptions::new().write(true).open(format!("/proc/{server}/fd/{number}"));
        let refused = written.and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
        assert!(refused.is_err(), "it is sealed");
    }
    Ok(())
}

/// A QEMU that gives each VM a balloon which reports free pages.
const WITH_BALLOON: &str = "#!/bin/sh\ncase \" $* \" in *' -machine '*) exec \
                            qemu-system-x86_64 \"$@\" \
                            -device virtio-balloon-device,free-page-reporting=on;; esac\nexec \
                            qemu-system-x86_64 \"$@\"\n";

#[tokio::test]
async fn a_template_stays_as_it_is_when_its_machines_give_memory_back() -> Result<()> {
    let host = Host::new().await?;
    let qemu = host.path("qemu");
    fs::write(&qemu, WITH_BALLOON)?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    let arguments = vec!["--qemu".to_owned(), qemu.display().to_string()];
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    stand.server.templates().await?;
    let before = template_in_memory(stand.server.pid()?)?;
    let modules = caddis_testkit::target_directory().join("kernel/modules/kernel/drivers/virtio");
    let module =
        fs::read(modules.join("virtio_balloon.ko")).context("Debian's kernel has this module")?;
    let module = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, module);
    let files = json!([{ "guest_path": "/balloon.ko", "raw_value": module }]);
    let script = "insmod /balloon.ko; echo 1 >/sys/bus/virtio/drivers_probe 2>/dev/null; \
                  for d in /sys/bus/virtio/devices/*; do grep -q 0x0005 $d/device && \
                  echo ${d##*/} >/sys/bus/virtio/drivers/virtio_balloon/bind; done; \
                  dd if=/dev/urandom of=/dev/shm/a bs=1M count=100; rm /dev/shm/a; echo 3 \
                  >/proc/sys/vm/drop_caches; \
                  echo freed; exec sleep 1000";
    let machine = stand.script(script, json!({ "files": files })).await?;
    machine.logged("freed").await?;
    assert_eq!(started(&machine).await?["start_kind"], "template");
    // Pages that stay free are reported after two seconds; QEMU says that it could not give back
    // those of sealed memory.
    let vm = stand.server.vm(&machine)?;
    let deadline = std::time::Instant::now() + DEADLINE;
    let said = || fs::read_to_string(format!("/proc/{vm}/fd/2")).unwrap_or_default();
    while !said().contains("fallocate") {
        ensure!(
            std::time::Instant::now() < deadline,
            "no page is reported: {}",
            machine.shell("dmesg | tail").await?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = template_in_memory(stand.server.pid()?)?;
    assert!(before == after, "the template has changed");
    machine.destroy().await?;
    // And the next machine is as good as the first.
    let machine = stand.script("echo up; exec sleep 1000", json!({})).await?;
    machine.logged("up").await?;
    Ok(())
}

#[tokio::test]
async fn vms_that_wait_become_machines_and_go_with_their_server() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    stand.server.until_pooled(1).await?;
    let waiting = stand.server.waiting();
    let machine = stand.script("echo up; exec sleep 1000", json!({})).await?;
    machine.logged("up").await?;
    machine.wait("started").await?;
    let start = started(&machine).await?;
    assert_eq!((&start["start_kind"], &start["pool"]), (&json!("template"), &json!("hit")));
    assert_eq!(stand.server.vms(), waiting, "it is the VM that waited");
    let held = process::descriptors(waiting[0]);
    assert!(
        !held.iter().any(|(_, target)| target.contains("warm-up")),
        "nothing is left of the warm-up disk: {held:#?}"
    );
    stand.server.until_pooled(2).await?;

    // Killed, the server leaves those that wait; the next one ends them, and adopts the machine's.
    stand.server.kill().await?;
    let left = stand.server.waiting();
    stand.server.launch().await?;
    machine.wait("started").await?;
    assert_eq!(stand.server.vms(), waiting);
    assert_eq!(machine.shell("echo still there").await?.trim(), "still there");
    for pid in left {
        assert!(!stand.server.waiting().contains(&pid), "{pid} waits for nobody");
    }
    assert!(stand.server.terminate().await?.success());
    assert_eq!(stand.server.waiting(), Vec::<i32>::new(), "an orderly end leaves none");
    assert_eq!(stand.server.vms(), waiting);
    stand.server.launch().await?;
    machine.destroy().await
}

#[tokio::test]
async fn without_a_pool_machines_start_from_the_template_all_the_same() -> Result<()> {
    let host = Host::new().await?;
    let arguments = vec!["--pool".to_owned(), "0".to_owned()];
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    stand.server.templates().await?;
    let machine = stand.script("echo up; exec sleep 1000", json!({})).await?;
    machine.logged("up").await?;
    machine.wait("started").await?;
    let start = started(&machine).await?;
    assert_eq!((&start["start_kind"], &start["pool"]), (&json!("template"), &json!("off")));
    assert_eq!(stand.server.waiting(), Vec::<i32>::new());
    Ok(())
}

#[tokio::test]
async fn a_damaged_template_is_built_anew_and_a_good_one_used_again() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let files = stand.server.templates().await?;
    let built = fs::metadata(&files[0])?.len();
    stand.server.terminate().await?;
    let inode = fs::metadata(&files[0])?.ino();

    stand.server.launch().await?;
    let machine = start_by_template(&stand).await?;
    assert_eq!(fs::metadata(&files[0])?.ino(), inode, "the good one was read");
    machine.destroy().await?;
    stand.server.terminate().await?;

    let mut bytes = fs::read(&files[0])?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&files[0], &bytes)?;
    stand.server.launch().await?;
    start_by_template(&stand).await?;
    assert!(stand.server.log().contains("template unusable, rebuilding it"), "it is told");
    let anew = fs::read(&files[0])?;
    assert!(anew != bytes && (anew.len() as u64).abs_diff(built) < built / 4, "and written anew");
    Ok(())
}

/// Starts machines until one comes from a template, which takes some time after the server's start.
async fn start_by_template(stand: &Stand<'_>) -> Result<Machine> {
    let machine = stand.script("exec sleep 1000", json!({})).await?;
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        machine.wait("started").await?;
        let start = started(&machine).await?;
        if start["start_kind"] == "template" {
            return Ok(machine);
        }
        ensure!(std::time::Instant::now() < deadline, "no start from a template: {start}");
        let event = machine.newest_event().await?;
        machine.post("/restart?force_stop=true", Value::Null).await?.ok()?;
        machine.wait_after(&event, "started").await?;
    }
}

#[tokio::test]
async fn a_template_that_can_not_be_restored_means_a_cold_boot_that_says_so() -> Result<()> {
    let host = Host::new().await?;
    // A QEMU that boots, but restores nothing.
    let qemu = host.path("qemu");
    fs::write(
        &qemu,
        "#!/bin/sh\ncase \" $* \" in *' -incoming '*) echo 'out of order' >&2; exit 1;; \
         esac\nexec qemu-system-x86_64 \"$@\"\n",
    )?;
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755))?;
    let arguments = vec!["--qemu".to_owned(), qemu.display().to_string()];
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    // What is to wait for machines finds it out first; the template is gone then.
    stand.server.until_logged("no warm VM", 1).await?;
    let machine = stand.script("echo up; exec sleep 1000", json!({})).await?;
    machine.logged("up").await?;
    machine.wait("started").await?;
    let start = started(&machine).await?;
    assert_eq!(start["start_kind"], "cold");
    let reason = start["start_reason"].as_str().unwrap_or_default();
    assert!(
        reason.contains("could not be restored") && reason.contains("out of order"),
        "{reason}"
    );
    assert_eq!(machine.get().await?["start_kind"], "cold");
    Ok(())
}

#[tokio::test]
async fn kernel_arguments_of_a_machine_mean_a_cold_boot_that_says_so() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.templates().await?;
    let more = json!({ "guest": { "kernel_args": ["caddis.test=1"] } });
    let machine = stand.script("cat /proc/cmdline; exec sleep 1000", more).await?;
    machine.wait("started").await?;
    let start = started(&machine).await?;
    assert_eq!(start["start_kind"], "cold");
    assert!(start["start_reason"].as_str().unwrap_or_default().contains("kernel_args"), "{start}");
    assert!(machine.first_line().await?.ends_with("caddis.test=1"));
    Ok(())
}

/// System calls of the server, from now on.
struct Trace {
    strace: std::process::Child,
    output: PathBuf,
}

impl Trace {
    async fn of(server: i32, calls: &str, output: PathBuf) -> Result<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", &format!("trace={calls}"), "-o"]).arg(&output);
        command.args(["-p", &server.to_string()]).stderr(Stdio::null());
        let trace = Self {
            strace: command.spawn().context("strace is missing: apt-get install strace")?,
            output,
        };
        let deadline = std::time::Instant::now() + DEADLINE;
        // It attaches to one thread after the other.
        while !Self::attached(server) {
            if std::time::Instant::now() > deadline {
                bail!("strace does not attach to the server");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(trace)
    }

    fn attached(server: i32) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{server}/task")) else { return false };
        threads.flatten().all(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            status
                .lines()
                .any(|line| line.starts_with("TracerPid:") && line.trim_end() != "TracerPid:\t0")
        })
    }

    /// Its lines so far, complete.
    fn end(mut self) -> Result<Vec<String>> {
        kill(Pid::from_raw(self.strace.id().cast_signed()), Signal::SIGINT)?;
        self.strace.wait()?;
        Ok(fs::read_to_string(&self.output)?.lines().map(str::to_owned).collect())
    }
}

#[tokio::test]
async fn a_start_runs_no_program_but_the_vm_and_syncs_twice_at_most() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.templates().await?;
    let machine =
        stand.script("exec sleep 1000", json!({ "stop_config": { "signal": "SIGKILL" } })).await?;
    machine.wait("started").await?;
    let server = stand.server.pid()?;
    machine.stop().await?;
    machine.wait("stopped").await?;

    let trace = Trace::of(server, "fsync,fdatasync,sync,syncfs", host.path("syncs")).await?;
    machine.start().await?;
    machine.wait("started").await?;
    let syncs: Vec<_> = trace.end()?.into_iter().filter(|line| line.contains("sync(")).collect();
    assert!((1..=2).contains(&syncs.len()), "syncs of a start: {syncs:#?}");

    let trace = Trace::of(server, "execve,execveat", host.path("programs")).await?;
    let starts = 20;
    for _ in 0..starts {
        machine.stop().await?;
        machine.wait("stopped").await?;
        machine.start().await?;
        machine.wait("started").await?;
        assert_eq!(started(&machine).await?["start_kind"], "template");
    }
    let programs: Vec<_> = trace.end()?.into_iter().filter(|line| line.contains("= 0")).collect();
    // One for each VM that takes the place of one which waited, or, where starts came too quickly,
    // for the machine itself.
    assert!(programs.len() >= starts / 2, "{programs:#?}");
    assert!(programs.iter().all(|line| line.contains("qemu-system-x86_64")), "{programs:#?}");
    Ok(())
}

#[tokio::test]
async fn the_command_line_shows_where_the_time_of_a_start_went() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    stand.server.templates().await?;
    let machine =
        stand.script("exec sleep 1000", json!({ "stop_config": { "signal": "SIGKILL" } })).await?;
    machine.wait("started").await?;
    machine.stop().await?;
    machine.wait("stopped").await?;
    let shown =
        stand.server.cli(&["machine", "start", machine.id(), "-a", APP, "--timing"]).await?;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let words: Vec<Vec<_>> =
        shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(words[1].starts_with(&["Start:", "template", "(pool:"]), "{}", shown.stdout);
    for step in [["host", "launch"], ["guest", "root"], ["guest", "spawn"]] {
        let line = words
            .iter()
            .find(|words| words.starts_with(&step))
            .with_context(|| format!("{step:?}"))?;
        assert!(line[2].parse::<f64>()? > 0.0, "{line:?}");
    }
    assert!(
        words.last().is_some_and(|line| line.starts_with(&["host", "total"])),
        "{}",
        shown.stdout
    );
    Ok(())
}

#[tokio::test]
async fn a_guest_whose_processor_clock_runs_wrong_keeps_the_time_of_its_host() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let measured = fs::read_to_string(stand.server.data_directory().join("templates/tsc"))?;
    let khz: u64 = measured.split_whitespace().nth(1).context("the rate of the TSC")?.parse()?;
    // Left alone, it would be 130 or 140 ms off in the end.
    let (millionths, seconds) = if rounds(0, 1) == 0 { (1000, 130) } else { (200, 700) };
    // A guest that takes a tick for longer than it is has a clock that is fast.
    let wrong = khz - khz * millionths / 1_000_000;
    let more = json!({ "guest": { "kernel_args": [format!("tsc_early_khz={wrong}")] } });
    let machine = stand.script("exec sleep 10000", more).await?;
    machine.wait("started").await?;
    check_clock(&machine).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    check_clock(&machine).await
}

/// Has the host come up again: the next server is told another boot id.
async fn reboot(stand: &mut Stand<'_>, number: u32) -> Result<()> {
    fs::write(
        stand.server.boot_id_file(),
        format!("9999999{number}-2222-4333-8444-555555555555\n"),
    )?;
    stand.server.launch().await
}

#[tokio::test]
async fn after_a_drain_and_after_a_reboot_all_machines_start_from_the_templates_on_disk()
-> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let script = "trap 'exit 0' INT; echo ready; sleep 1000 & wait";
    // The second shape's template is built because of the first start of it.
    let large = json!({ "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 512 } });
    let mut machines = vec![stand.script(script, large).await?];
    for _ in 0..3 {
        machines.push(stand.script(script, json!({})).await?);
    }
    for machine in &machines {
        machine.logged("ready").await?;
    }
    stand.server.templates_ready(2).await?;

    let mut before = Vec::new();
    for machine in &machines {
        before.push(machine.newest_event().await?);
    }
    let data = stand.server.data_directory();
    let drained =
        stand.server.cli(&["host", "drain", "--data-dir", &data.to_string_lossy()]).await?;
    ensure!(drained.code == Some(0), "{drained:?}");
    ensure!(stand.server.terminate().await?.success(), "an orderly end");
    reboot(&mut stand, 1).await?;
    for (machine, before) in machines.iter().zip(&mut before) {
        machine.wait_after(before, "started").await?;
        assert_eq!(
            started(machine).await?["start_kind"],
            "template",
            "after a drain: {:#?}",
            machine.events().await?
        );
        *before = machine.newest_event().await?;
    }

    stand.server.kill().await?;
    for vm in stand.server.vms() {
        process::end(vm);
    }
    reboot(&mut stand, 2).await?;
    for (machine, before) in machines.iter().zip(&before) {
        machine.wait_after(before, "started").await?;
        assert_eq!(
            started(machine).await?["start_kind"],
            "template",
            "after a reboot: {:#?}",
            machine.events().await?
        );
    }
    Ok(())
}
