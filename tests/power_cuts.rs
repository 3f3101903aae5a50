//! Power cuts at any moment and faults of the host's disk, below the volume of a real VM: what a
//! program was told is on the disk is there, the file system is whole, and no fault is passed on.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::{DEADLINE, Output, run};
use caddis_vmm::{DiskFormat, Pause, Vmm};
use caddis_volume::Filesystem;
use nix::libc;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::time::timeout;

use crate::{
    driver::{NONE, QemuHost},
    stand::rounds,
    volumes::{Machine, Mount, Running, disk_of, ext4, on_a_host, raw_disk},
};

mod layer;
mod log;

use layer::Layers;
use log::Log;

/// Of the moments between two flushes that are tried.
const SEED: u64 = 21;
/// Between two looks whether a VM stands still.
const LOOK: Duration = Duration::from_millis(20);
/// What fio writes to a file beside each row, and finds again there.
const FIO: &str = "--output-format=terse --size=64k --bs=4k --rw=randwrite --verify=crc32c \
                   --verify_state_save=0";

/// A machine whose root disk has a database and fio beside busybox.
fn machine<'a>(host: &'a QemuHost, driver: &'a dyn Vmm) -> Result<Machine<'a>> {
    let mut machine = Machine::new(host, driver, "m1")?;
    let (tree, image) = (host.data.join("tree"), host.data.join("programs.img"));
    if !image.exists() {
        let copy = |file: &str| -> Result<()> {
            let to = tree.join(file.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a directory")?)?;
            fs::copy(file, to).with_context(|| format!("copying {file}")).map(drop)
        };
        for program in ["/usr/bin/sqlite3", "/usr/bin/fio"] {
            copy(program)?;
            let libraries = run(["ldd", program])?;
            libraries.split_whitespace().filter(|word| word.starts_with('/')).try_for_each(copy)?;
        }
        let words = ["mke2fs", "-q", "-t", "ext4", "-d"].map(str::to_owned);
        let rest = [tree.to_string_lossy(), image.to_string_lossy(), "256M".into()];
        run(words.into_iter().chain(rest.map(|word| word.into_owned())))?;
    }
    machine.spec.disks[0].format = DiskFormat::Overlay(image);
    Ok(machine)
}

async fn begin(machine: &Machine<'_>, mount: Mount<'_>, secret: bool) -> Result<(Running, Layers)> {
    let (vm, mounts) = machine.launch(&[mount]).await?;
    let layers = Layers::connect(&machine.spec.directory, secret)?;
    let running = machine.configure(vm, mounts).await?;
    ensure!(running.failure.is_none(), "{:?}", running.failure);
    Ok((running, layers))
}

/// What fio is told of a file of a directory: each file has its own order of blocks, and content.
fn file(directory: &str, number: usize) -> String {
    format!("--name=file-{number} --filename={directory}/file-{number} --randseed={number}")
}

/// Adds a row to a database and a file of fio's beside it, both synced when it returns: `extra`,
/// since a rollback journal is removed to commit, and `full` does not sync the directory of that.
/// The blocks of the file are written in any order, several at a time, and synced now and then.
async fn write(vm: &Running, number: usize) -> Result<()> {
    // Every second file by the page cache.
    let direct = number % 2;
    let file = file("/data", number);
    let line = format!(
        "sqlite3 /data/db 'pragma synchronous = extra; \
         insert into rows values ({number}, randomblob(3000))' && \
         fio {FIO} {file} --ioengine=libaio --iodepth=4 --direct={direct} --fdatasync=8 \
         --do_verify=0 --end_fsync=1 && sync /data/file-{number} /data"
    );
    vm.shell(&line).await.map(drop)
}

fn outcome(words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Output> {
    let mut words = words.into_iter();
    let program = words.next().context("a program")?;
    Ok(Command::new(program).args(words).output()?.into())
}

/// A copy of a volume's file as it was at the end of an unexpected night.
struct Remains<'a> {
    disk: PathBuf,
    raw: PathBuf,
    tree: PathBuf,
    /// What opens it, if it is encrypted.
    passphrase: Option<&'a str>,
    /// What fio has found to be right of its files. Each is written once.
    files: Vec<Vec<u8>>,
}

impl<'a> Remains<'a> {
    fn new(host: &QemuHost, passphrase: Option<&'a str>) -> Self {
        let [disk, raw, tree] =
            ["remains.qcow2", "remains", "found"].map(|name| host.data.join(name));
        Self { disk, raw, tree, passphrase, files: Vec::new() }
    }

    /// What a command of `qemu-img` says of it, with what stands before and behind it.
    fn qemu_img(&self, before: &[&str], behind: &[&str]) -> Result<Output> {
        let mut options = format!("driver=qcow2,file.filename={}", self.disk.display());
        let mut words = vec!["qemu-img".to_owned()];
        words.extend(before.iter().map(|word| (*word).to_owned()));
        if let Some(passphrase) = self.passphrase {
            words.extend(["--object".to_owned(), format!("secret,id=key,data={passphrase}")]);
            options += ",encrypt.format=luks,encrypt.key-secret=key";
        }
        words.extend(["--image-opts".to_owned(), options]);
        words.extend(behind.iter().map(|word| (*word).to_owned()));
        outcome(words)
    }

    /// Mounts it, as far as a host does without a kernel for it, and looks for all rows and files
    /// up to a number. More may be there.
    fn have(&self, written: Option<usize>) -> Result<()> {
        // 3: clusters that nobody uses.
        let checked = self.qemu_img(&["check", "-q"], &[])?;
        ensure!(matches!(checked.code, Some(0 | 3)), "qemu-img check: {checked:?}");
        let raw = self.raw.to_string_lossy();
        let converted = self.qemu_img(&["convert", "-O", "raw"], &[&raw])?;
        ensure!(converted.code == Some(0), "{converted:?}");
        // From the journal, and what was deleted while it was open; anything else is refused.
        let replayed = outcome(["e2fsck", "-p", &raw])?;
        ensure!(matches!(replayed.code, Some(0 | 1)), "e2fsck -p: {replayed:?}");
        run(["e2fsck", "-f", "-n", &raw])?;
        let Some(written) = written else { return Ok(()) };
        let _ = fs::remove_dir_all(&self.tree);
        fs::create_dir(&self.tree)?;
        run(["debugfs", "-R", &format!("rdump / {}", self.tree.display()), &raw])?;
        let database = self.tree.join("db");
        let query = "pragma integrity_check; select count(*), max(n) from rows;";
        let said = run(["sqlite3", &database.to_string_lossy(), query])?;
        let (verdict, numbers) = said.trim().split_once('\n').context("two lines")?;
        let (count, last) = numbers.split_once('|').context("two numbers")?;
        ensure!(verdict == "ok" && count.parse::<usize>()? >= written, "{said}, not {written}");
        ensure!(written == 0 || count == last, "{said}");
        for (number, expected) in (1..=written).zip(&self.files) {
            ensure!(self.file(number)? == *expected, "file {number}");
        }
        Ok(())
    }

    fn file(&self, number: usize) -> Result<Vec<u8>> {
        Ok(fs::read(self.tree.join(format!("file-{number}")))?)
    }

    /// Has fio verify all files of its up to a number, after [`Self::have`]: what they hold.
    fn verified(&self, written: usize) -> Result<Vec<Vec<u8>>> {
        let tree = self.tree.to_string_lossy();
        let files = (1..=written).map(|number| format!(" {} {FIO}", file(&tree, number)));
        let files: Vec<_> = files.map(|file| format!("{file} --verify_only=1")).collect();
        run(format!("fio --thread{}", files.concat()).split(' '))?;
        (1..=written).map(|number| self.file(number)).collect()
    }
}

/// What was written when the log had so many bytes.
fn written_at(acknowledged: &[u64], end: u64) -> Option<usize> {
    acknowledged.iter().take_while(|length| **length <= end).count().checked_sub(1)
}

/// Cuts the power after each flush, and at moments in between, when any of what was not flushed yet
/// may be missing.
fn cut_everywhere(
    host: &QemuHost,
    initial: &Path,
    log: &Log,
    acknowledged: &[u64],
    passphrase: Option<&str>,
) -> Result<()> {
    let mut remains = Remains::new(host, passphrase);
    // With all of it there. fio takes long to start, so it is not asked again for each cut.
    fs::copy(initial, &remains.disk)?;
    let disk = File::options().read(true).write(true).open(&remains.disk)?;
    log.entries.iter().try_for_each(|entry| log.apply(entry, &disk))?;
    let rows = acknowledged.len() - 1;
    remains.have(Some(rows))?;
    remains.files = remains.verified(rows)?;

    let (base, mut random) = (host.data.join("flushed.qcow2"), StdRng::seed_from_u64(SEED));
    fs::copy(initial, &base)?;
    let flushed = File::options().read(true).write(true).open(&base)?;
    let samples = rounds(1, 4);
    let (mut pending, mut cuts) = (Vec::new(), 0);
    let mut guaranteed = written_at(acknowledged, 0);
    let mut cut = |entries: &[log::Entry], written: Option<usize>, what: &str| -> Result<()> {
        run(["cp", "--sparse=always", &base.to_string_lossy(), &remains.disk.to_string_lossy()])?;
        let disk = File::options().read(true).write(true).open(&remains.disk)?;
        entries.iter().try_for_each(|entry| log.apply(entry, &disk))?;
        cuts += 1;
        remains.have(written).with_context(|| format!("cut {cuts}, {what}, with {written:?}"))
    };
    for entry in &log.entries {
        if !entry.is_flush() {
            pending.push(*entry);
            continue;
        }
        // Without any of them it is what it was after the last flush, with all what comes next.
        let mut tried = BTreeSet::from([vec![false; pending.len()], vec![true; pending.len()]]);
        for _ in 0..samples {
            let length = random.random_range(0..=pending.len());
            let first = (0..pending.len()).map(|index| index < length).collect();
            let some = |entry: &log::Entry| entry.is_durable() || random.random_bool(0.5);
            let some = pending.iter().map(some).collect();
            for (chosen, what) in [(first, "in order"), (some, "out of order")] {
                if !tried.insert(Vec::clone(&chosen)) {
                    continue;
                }
                let chosen = pending.iter().zip(chosen).filter(|(_, chosen)| *chosen);
                let entries: Vec<_> = chosen.map(|(entry, _)| *entry).collect();
                cut(&entries, guaranteed, what)?;
            }
        }
        let before = std::mem::replace(&mut guaranteed, written_at(acknowledged, entry.end));
        if !pending.is_empty() || guaranteed != before {
            pending.drain(..).try_for_each(|entry| log.apply(&entry, &flushed))?;
            cut(&[], guaranteed, "after a flush")?;
        }
    }
    eprintln!("{cuts} power cuts in {} entries", log.entries.len());
    ensure!(guaranteed == Some(rows), "{guaranteed:?} of {acknowledged:?}");
    Ok(())
}

#[tokio::test]
async fn whenever_the_power_is_cut_what_was_synced_to_a_volume_is_there() {
    on_a_host(async |host| {
        let rows = rounds(3, 20) as usize;
        let driver = host.qemu(NONE);
        let machine = machine(host, &driver)?;
        for (name, secret, journal) in [("vol_plain", false, "delete"), ("vol_secret", true, "wal")]
        {
            let volume = host.create_volume(name, Filesystem::Ext4, secret).await;
            let (initial, path) = (host.data.join("initial.qcow2"), host.data.join("log"));
            fs::copy(disk_of(host, &volume), &initial)?;
            let file = File::create_new(&path)?;
            let (vm, mounts) = machine.launch(&[ext4(&volume, "/data")]).await?;
            let mut layers = Layers::connect(&machine.spec.directory, secret)?;
            layers.log_to(File::options().read(true).write(true).open(&path)?)?;
            let vm = machine.configure(vm, mounts).await?;
            ensure!(vm.failure.is_none(), "{:?}", vm.failure);
            let create = format!(
                "sqlite3 /data/db 'pragma journal_mode = {journal}; pragma synchronous = extra; \
                 create table rows (n integer primary key, x blob)'"
            );
            vm.shell(&create).await?;
            let mut acknowledged = vec![file.metadata()?.len()];
            for number in 1..=rows {
                write(&vm, number).await?;
                acknowledged.push(file.metadata()?.len());
            }
            vm.kill().await?;
            let writer = machine.open(&volume).await?;
            let passphrase = writer.key().map(|key| key.passphrase().to_string());
            writer.release();
            let log = Log::read(&path)?;
            cut_everywhere(host, &initial, &log, &acknowledged, passphrase.as_deref())?;
            fs::remove_file(&path)?;
        }
        driver.close().await;
        Ok(())
    })
    .await;
}

/// Has a VM go on that stands still for the reason that is expected. How many did.
fn goes_on(layers: &mut Layers, expected: bool) -> Result<u32> {
    let Some(is_full) = layers.stopped()? else { return Ok(0) };
    ensure!(is_full == expected, "for want of room: {is_full}");
    layers.qmp.execute("cont", json!({}), &[])?;
    Ok(1)
}

#[tokio::test]
async fn a_fault_of_the_disk_at_any_request_stops_the_vm_and_is_never_the_guest_s() {
    on_a_host(async |host| {
        let each = rounds(3, 24);
        let driver = host.qemu(NONE);
        let machine = machine(host, &driver)?;
        let volume = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let (vm, mut layers) = begin(&machine, ext4(&volume, "/data"), true).await?;
        vm.shell("sqlite3 /data/db 'create table rows (n integer primary key, x blob)'").await?;
        let (mut number, mut hit) = (0, 0);
        for (errno, expected) in [(libc::ENOSPC, true), (libc::EIO, false)] {
            // Of data, of tables of the qcow2, of its allocation, and of a flush.
            for event in ["write_aio", "l2_update", "refblock_update_part", "flush_to_disk"] {
                for count in 1..=each {
                    layers.fail(event, count, &[errno])?;
                    number += 1;
                    let mut written = std::pin::pin!(write(&vm, number));
                    loop {
                        // It ends though nothing failed where it has fewer of these.
                        if let Ok(written) = timeout(LOOK, &mut written).await {
                            written?;
                            break;
                        }
                        hit += goes_on(&mut layers, expected)?;
                    }
                    layers.work()?;
                    // What the kernel writes by itself may have met it.
                    hit += goes_on(&mut layers, expected)?;
                }
            }
        }
        eprintln!("{hit} faults of {number}");
        ensure!(hit as usize > number / 4, "{hit} faults of {number}");
        let table = vm
            .shell("grep /data /proc/mounts; dmesg | grep -i -E 'i/o error|ext4.*error' || true")
            .await?;
        ensure!(table.lines().count() == 1 && table.contains("rw,"), "{table}");
        vm.kill().await?;
        let writer = machine.open(&volume).await?;
        let passphrase = writer.key().map(|key| key.passphrase().to_string());
        writer.release();
        let remains = Remains::new(host, passphrase.as_deref());
        fs::copy(disk_of(host, &volume), &remains.disk)?;
        remains.have(Some(number))?;
        remains.verified(number)?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn why_a_vm_stands_still_is_told_of_each_fault_whatever_has_failed_before() {
    on_a_host(async |host| {
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let volume = host.create_volume("vol_a", Filesystem::Raw, false).await;
        let (vm, mut layers) = begin(&machine, raw_disk(&volume, "/srv/disk"), false).await?;
        // In place, so that one request at a time fails.
        let write = |letter: char| {
            format!(
                "yes {letter} | dd of=/srv/disk bs=4096 count=1 iflag=fullblock conv=fsync \
                 2>/dev/null"
            )
        };
        vm.shell(&write('a')).await?;
        // The first is seen by this test, the second by nobody, and the others by the listener.
        let (full, error) = (libc::ENOSPC, libc::EIO);
        layers.fail("write_aio", 1, &[full, error, error, full, error])?;
        let line = write('b');
        let written = vm.shell(&line);
        let told = async {
            while goes_on(&mut layers, true)? == 0 {
                tokio::time::sleep(LOOK).await;
            }
            while layers.stopped()? != Some(false) {
                tokio::time::sleep(LOOK).await;
            }
            let status = layers.qmp.device("volume0")?["io-status"].take();
            ensure!(status == "nospace", "QEMU tells of the first error only: {status}");
            drop(layers);
            let mut pause = vm.vm.pause();
            // What nobody has seen is taken for the first until the VM is told to go on.
            let (full, error) = (Some(Pause::DiskFull), Some(Pause::DiskError));
            for expected in [full, error, full, error] {
                let told = pause.wait_for(|pause| *pause == expected);
                timeout(DEADLINE, told).await.with_context(|| format!("{expected:?}"))??;
                vm.vm.unpause().await?;
            }
            timeout(DEADLINE, pause.wait_for(Option::is_none)).await??;
            anyhow::Ok(())
        };
        tokio::try_join!(written, told)?;
        ensure!(vm.shell("head -c 3 /srv/disk").await? == "b\nb");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}
