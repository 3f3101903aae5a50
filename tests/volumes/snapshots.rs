//! Snapshots, clones and restores of volumes whose machine runs, without a server.

use std::{
    collections::BTreeSet,
    io,
    ops::Range,
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    },
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use caddis_snapshot::{SnapshotError, nbd};
use caddis_vmm::{Hydration, PointInTime, VmmError, VolumeExport};

use tokio::net::UnixListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::*;

/// How long the guest may hold its file systems still, at most.
const FREEZE: Duration = Duration::from_secs(100);
/// Between two looks at what tells nobody.
const LOOK: Duration = Duration::from_millis(100);

/// An empty image for a snapshot of a volume, in a file that has no name any more.
async fn point(
    host: &QemuHost,
    id: &str,
    previous: Option<&str>,
    encrypted: bool,
) -> Result<PointInTime> {
    let volume = host.create_volume(&format!("vol_kept{id}"), Filesystem::Raw, encrypted).await;
    let writer = host.volumes().open_writer(&volume, "a test").await?;
    let passphrase = writer.key().map(|key| Passphrase::new(key.passphrase().to_string()));
    writer.release();
    let path = disk_of(host, &volume);
    let fleecing = OwnedFd::from(fs::File::options().read(true).write(true).open(&path)?);
    fs::remove_file(&path)?;
    let previous = previous.map(str::to_owned);
    Ok(PointInTime { id: id.to_owned(), previous, fleecing, passphrase })
}

fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(' ').map(str::to_owned)
}

/// All that an export holds, in a file of that name.
fn read(host: &QemuHost, export: &VolumeExport, name: &str) -> Result<PathBuf> {
    let to = host.data.join(name);
    let (socket, name) = (export.socket.display(), &export.name);
    let from = format!("nbd+unix:///{name}?socket={socket}");
    run(words(&format!("qemu-img convert -f raw -O raw {from} {}", to.display())))?;
    Ok(to)
}

/// Where something has changed, offset and length.
fn changed(export: &VolumeExport) -> Result<Vec<(u64, u64)>> {
    let bitmap = export.changed.as_ref().context("it is known")?;
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export={},\
         x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
        export.socket.display(),
        export.name
    );
    let map = run(words(&format!("qemu-img map --output=json --image-opts {options}")))?;
    let map: Vec<serde_json::Value> = serde_json::from_str(&map)?;
    // qemu-img shows what is marked as a hole.
    let marked = map.iter().filter(|extent| extent["data"] == false);
    let number = |value: &serde_json::Value| value.as_u64().context("a number");
    marked.map(|extent| Ok((number(&extent["start"])?, number(&extent["length"])?))).collect()
}

/// Has a copy of `before` be what it is with all extents taken from `after`.
fn bring_up_to_date(before: &Path, after: &Path, extents: &[(u64, u64)]) -> Result<()> {
    let to = fs::File::options().write(true).open(before)?;
    let from = fs::File::open(after)?;
    for (offset, length) in extents {
        let mut bytes = vec![0; usize::try_from(*length)?];
        from.read_exact_at(&mut bytes, *offset)?;
        to.write_all_at(&bytes, *offset)?;
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> Result<()> {
    run(["cmp", &one.to_string_lossy(), &other.to_string_lossy()]).map(drop)
}

/// The sum of a file in an image of a file system that has no errors.
fn sum_in(host: &QemuHost, image: &Path, file: &str) -> Result<String> {
    run(["e2fsck", "-fn", &image.to_string_lossy()])?;
    let out = host.data.join("dumped");
    let dump = format!("dump {file} {}", out.display());
    run(["debugfs", "-R", &dump, &image.to_string_lossy()])?;
    let sum = run(["md5sum", &out.to_string_lossy()])?;
    Ok(sum.split(' ').next().unwrap_or_default().to_owned())
}

impl Running {
    /// A snapshot of its file system as it is now.
    async fn snapshot(&self, index: u8, point: PointInTime) -> Result<VolumeExport> {
        let prepared = self.vm.prepare_snapshot(index, point).await?;
        self.session.freeze_volumes(FREEZE).await?;
        let begun = self.vm.begin_snapshot(index, prepared).await;
        self.session.thaw_volumes(DEADLINE).await?;
        Ok(self.vm.export_snapshot(index, begun?).await?)
    }

    async fn sum(&self, path: &str) -> Result<String> {
        self.shell(&format!("md5sum <{path} | cut -d' ' -f1")).await
    }
}

/// Files that a process may write to, by device and inode.
fn writable(pid: u32) -> Result<BTreeSet<(u64, u64)>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let number = entry.file_name();
        let info = format!("/proc/{pid}/fdinfo/{}", number.to_string_lossy());
        // It may be closed by now.
        let (Ok(info), Ok(file)) = (fs::read_to_string(info), fs::metadata(entry.path())) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.context("flags")?.trim(), 8)?;
        if flags & 0o3 != 0 && file.is_file() {
            found.insert((file.dev(), file.ino()));
        }
    }
    Ok(found)
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[tokio::test]
async fn a_snapshot_holds_its_instant_while_the_guest_writes_on_and_the_next_only_what_changed() {
    on_a_host(async |host| {
        let secret = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let plain = host.create_volume("vol_b", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let vm = machine.start(&[ext4(&secret, "/secret"), ext4(&plain, "/plain")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let before = writable(vm.vm.pid())?;
        for (index, place, encrypted) in [(0, "/secret", true), (1, "/plain", false)] {
            let of = |name: &str| format!("{name}{index}");
            let fill = format!("dd if=/dev/urandom of={place}/a bs=1M count=24 2>/dev/null");
            vm.shell(&fill).await?;
            let sum = vm.sum(&format!("{place}/a")).await?;
            let first = of("first");
            let export = vm.snapshot(index, point(host, &first, None, encrypted).await?).await?;
            // All of it, and what the file system knows of it.
            let overwrite = format!(
                "dd if=/dev/urandom of={place}/a bs=1M count=24 conv=notrunc,fsync 2>/dev/null; \
                 echo later >{place}/b; sync; rm {place}/b; sync; \
                 fstrim {place} 2>/dev/null || true"
            );
            vm.shell(&overwrite).await?;
            let instant = read(host, &export, "instant")?;
            ensure!(sum_in(host, &instant, "/a")? == sum, "it is as it was");
            let listed = run(["debugfs", "-R", "ls -p /", &instant.to_string_lossy()])?;
            ensure!(!listed.contains("/b/"));
            vm.vm.end_snapshot(index, true).await?;

            for (round, is_taken) in [("second", false), ("third", true)] {
                vm.shell(&format!("dd if=/dev/urandom of={place}/{round} bs=1M count=2")).await?;
                let sum = vm.sum(&format!("{place}/{round}")).await?;
                let id = of(round);
                let point = point(host, &id, Some(&first), encrypted).await?;
                let export = vm.snapshot(index, point).await?;
                vm.shell(&overwrite).await?;
                let extents = changed(&export)?;
                let bytes: u64 = extents.iter().map(|(_, length)| length).sum();
                // What was overwritten since the first, and this; not all that the volume holds.
                ensure!((26 << 20..GIB / 2).contains(&bytes), "{bytes}: {extents:?}");
                let whole = read(host, &export, "whole")?;
                ensure!(sum_in(host, &whole, &format!("/{round}"))? == sum);
                let copy = host.data.join("copy");
                fs::copy(&instant, &copy)?;
                bring_up_to_date(&copy, &whole, &extents)?;
                same(&copy, &whole)?;
                vm.vm.end_snapshot(index, is_taken).await?;
            }
            // Nothing of them is held any more.
            let held = writable(vm.vm.pid())?;
            ensure!(held == before, "{held:?} {before:?}");
        }
        vm.kill().await?;
        run(["qemu-img", "check", &disk_of(host, &plain).to_string_lossy()])?;
        is_journaled(&raw(host, &plain)?)?;
        driver.close().await;
        Ok(())
    })
    .await;
}

/// Whether what its journal has makes it whole.
fn is_journaled(image: &Path) -> Result<()> {
    let image = image.to_string_lossy();
    run(["e2fsck", "-E", "journal_only", "-p", &image])?;
    run(["e2fsck", "-fn", &image]).map(drop)
}

#[tokio::test]
async fn a_snapshot_that_has_no_room_breaks_and_the_guest_does_not_notice() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.shell("dd if=/dev/urandom of=/data/a bs=1M count=32").await?;
        vm.snapshot(0, point(host, "first", None, false).await?).await?;
        vm.vm.end_snapshot(0, true).await?;
        vm.shell("dd if=/dev/urandom of=/data/b bs=1M count=1").await?;

        let place = host.data.join("small");
        fs::create_dir(&place)?;
        run(words(&format!("mount -t tmpfs -o size=4m tmpfs {}", place.display())))?;
        let small = Small(place.clone());
        let image = place.join("image");
        run(words(&format!("qemu-img create -q -f qcow2 {} 1G", image.display())))?;
        let fleecing = fs::File::options().read(true).write(true).open(&image)?.into();
        let (id, previous) = ("second".to_owned(), Some("first".to_owned()));
        let export =
            vm.snapshot(0, PointInTime { id, previous, fleecing, passphrase: None }).await?;
        vm.shell("dd if=/dev/urandom of=/data/a bs=1M count=32 conv=notrunc,fsync").await?;
        ensure!(vm.vm.pause().borrow().is_none(), "the guest writes");
        let error = read(host, &export, "broken").unwrap_err().to_string();
        ensure!(error.contains("error while reading"), "{error}");
        vm.vm.end_snapshot(0, false).await?;
        // Without -l: nobody has the image open.
        fs::remove_file(&image)?;
        run(["umount", &place.to_string_lossy()])?;
        std::mem::forget(small);

        let export = vm.snapshot(0, point(host, "third", Some("first"), false).await?).await?;
        let bytes: u64 = changed(&export)?.iter().map(|(_, length)| length).sum();
        ensure!(bytes >= 33 << 20, "{bytes}: also what was written during the one that broke");
        let whole = read(host, &export, "whole")?;
        ensure!(sum_in(host, &whole, "/a")? == vm.sum("/data/a").await?);
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_vm_can_write_to_its_own_volumes_only_and_leaves_nothing_of_a_snapshot() {
    on_a_host(async |host| {
        let one = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let two = host.create_volume("vol_b", Filesystem::Ext4, true).await;
        let driver = host.qemu(NONE);
        let (first, second) =
            (Machine::new(host, &driver, "m1")?, Machine::new(host, &driver, "m2")?);
        let directory = first.spec.directory.clone();
        let names = || -> Result<BTreeSet<String>> {
            let entries = fs::read_dir(&directory)?;
            let names = entries.flatten().map(|entry| entry.file_name());
            Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
        };
        let a = first.start(&[ext4(&one, "/data")]).await?;
        let b = second.start(&[ext4(&two, "/data")]).await?;
        ensure!(a.failure.is_none() && b.failure.is_none());
        let running = names()?;
        let point = point(host, "first", None, true).await?;
        let kept = fs::File::from(point.fleecing.try_clone()?).metadata()?;
        let kept = (kept.dev(), kept.ino());
        a.snapshot(0, point).await?;
        let socket = fs::metadata(directory.join("nbd.sock"))?;
        ensure!((socket.uid(), socket.mode() & 0o777) == (0, 0o600), "{socket:?}");
        let (disk_a, disk_b) = (identity(&disk_of(host, &one))?, identity(&disk_of(host, &two))?);
        let (of_a, of_b) = (writable(a.vm.pid())?, writable(b.vm.pid())?);
        ensure!(of_a.contains(&disk_a) && !of_a.contains(&disk_b) && of_a.contains(&kept));
        ensure!(of_b.contains(&disk_b) && !of_b.contains(&disk_a) && !of_b.contains(&kept));
        // It writes what it knows of the volume before it ends, whatever else is open.
        a.shell("dd if=/dev/urandom of=/data/a bs=1M count=4 conv=fsync").await?;
        a.kill().await?;
        let left = names()?;
        ensure!(left.is_subset(&running) && !left.contains("nbd.sock"), "{left:?}");
        run(["qemu-img", "check", &disk_of(host, &one).to_string_lossy()])?;
        b.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

/// An XFS for the volumes, whose files can share what they hold.
fn with_reflinks(host: &QemuHost) -> Result<Small> {
    let (place, made, disk) =
        (host.data.join("volumes"), host.data.join("made"), host.data.join("xfs"));
    fs::rename(&place, &made)?;
    fs::create_dir(&place)?;
    fs::File::create(&disk)?.set_len(2 * GIB)?;
    run(words(&format!("mkfs.xfs -q {}", disk.display())))?;
    run(words(&format!("mount -o loop {} {}", disk.display(), place.display())))?;
    let mounted = Small(place);
    run(words(&format!("cp -a {}/. {}", made.display(), mounted.0.display())))?;
    Ok(mounted)
}

#[tokio::test]
async fn a_clone_of_a_volume_in_use_is_whole_and_a_vm_that_stood_still_goes_on_standing() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let reflinks = with_reflinks(host)?;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let directory = machine.spec.directory.clone();
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let (clone, other) = (reflinks.0.join("clone"), reflinks.0.join("other"));
        let file = |path: &Path| fs::File::create(path).map(OwnedFd::from);
        for round in 0..3 {
            // Nobody has this flushed but the freeze and the clone.
            vm.shell("dd if=/dev/urandom of=/data/a bs=1M count=16").await?;
            let sum = vm.sum("/data/a").await?;
            vm.session.freeze_volumes(FREEZE).await?;
            let cloned = vm.vm.clone_volume(0, file(&clone)?).await;
            vm.session.thaw_volumes(DEADLINE).await?;
            cloned.with_context(|| format!("round {round}"))?;
            vm.shell("dd if=/dev/urandom of=/data/a bs=1M count=16 conv=notrunc,fsync").await?;
            run(["qemu-img", "check", "-f", "qcow2", &clone.to_string_lossy()])?;
            let raw = host.data.join("raw");
            let convert =
                format!("qemu-img convert -f qcow2 -O raw {} {}", clone.display(), raw.display());
            run(words(&convert))?;
            ensure!(sum_in(host, &raw, "/a")? == sum);
        }
        let elsewhere = vm.vm.clone_volume(0, file(&host.data.join("elsewhere"))?).await;
        ensure!(
            matches!(&elsewhere, Err(VmmError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::CrossesDevices),
            "{elsewhere:?}"
        );
        vm.shell("echo still here").await?;

        // It stands still because it was saved. That is not for the clone to change.
        vm.vm.save(&directory).await?;
        let refused = vm.vm.clone_volume(0, file(&other)?).await.unwrap_err().to_string();
        ensure!(refused.contains("the VM is not running"), "{refused}");
        ensure!(driver.is_saved(&directory));
        // A server that is killed while the VM stands still for a clone leaves this.
        let Running { vm: left, session, .. } = vm;
        session.close();
        drop(left);
        let path = directory.join("vm.json");
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        record["cloning"] = true.into();
        fs::write(&path, record.to_string())?;
        driver.remove_saved(&directory)?;
        let adopted = driver.adopt("m1", &directory).await?.context("it runs")?;
        let (session, mut events) = Session::open(Arc::new(Connect(adopted.clone())), 0);
        let welcome = async {
            while !matches!(events.recv().await, Some(GuestEvent::Welcome { .. }) | None) {}
        };
        timeout(DEADLINE, welcome).await.context("it goes on")?;
        session.close();
        adopted.kill().await?;
        timeout(DEADLINE, adopted.wait()).await?;
        driver.close().await;
        drop(reflinks);
        Ok(())
    })
    .await;
}

/// What a volume is restored from: a file system with a file `big`, the sum of that, and a
/// directory for the socket of a server.
fn source(host: &QemuHost) -> Result<(PathBuf, String, PathBuf)> {
    let (tree, source) = (host.data.join("restored"), host.data.join("source"));
    fs::create_dir(&tree)?;
    let dd = "dd if=/dev/urandom bs=1M status=none count=48";
    run(words(&format!("{dd} of={}", tree.join("big").display())))?;
    let sum = run(["md5sum", &tree.join("big").to_string_lossy()])?;
    let sum = sum.split(' ').next().unwrap_or_default().to_owned();
    let fill = format!("mke2fs -q -t ext4 -d {} {} 1G", tree.display(), source.display());
    run(words(&fill))?;
    let directory = host.data.join("backing");
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
    Ok((source, sum, directory))
}

/// What a volume is restored from, over NBD.
struct Server {
    child: Child,
}

impl Server {
    fn begin(source: &Path, backing: &Backing) -> Result<Self> {
        let directory = backing.socket.parent().context("a directory")?;
        let made = directory.with_extension("sock");
        let _ = fs::remove_file(&made);
        let line =
            format!("-t -r -e 4 -f raw -x volume0 -k {} {}", made.display(), source.display());
        let child = Command::new("qemu-nbd").args(words(&line)).stdin(Stdio::null()).spawn()?;
        let server = Self { child };
        while !made.exists() {
            std::thread::sleep(LOOK);
        }
        fs::set_permissions(&made, fs::Permissions::from_mode(0o666))?;
        fs::rename(&made, &backing.socket)?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_volume_is_used_while_it_is_restored_and_waits_for_a_server_that_is_away() {
    on_a_host(async |host| {
        let (source, sum, directory) = source(host)?;
        let backing = Backing { socket: directory.join("nbd.sock") };
        let server = Server::begin(&source, &backing)?;

        let volume = host.create_volume("vol_a", Filesystem::Raw, false).await;
        let driver = host.qemu(NONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        machine.backing = Some(backing.clone());
        let own = machine.spec.directory.clone();
        let refused = machine.launch(&[ext4(&volume, "/data")]).await.err().context("refused")?;
        ensure!(refused.to_string().contains("extended L2 entries"), "{refused}");
        let disk = disk_of(host, &volume);
        run(words(&format!("qemu-img create -q -f qcow2 {} 1G", disk.display())))?;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.shell("head -c 1000000 /data/big >/dev/null; echo new >/data/new; sync").await?;
        let refused = vm.vm.prepare_snapshot(0, point(host, "first", None, false).await?).await;
        ensure!(matches!(refused, Err(VmmError::InvalidDisk { .. })), "{refused:?}");
        let refused = vm.vm.save(&own).await.unwrap_err().to_string();
        ensure!(refused.contains("volume0: it is still being restored"), "{refused}");
        vm.vm.unpause().await?;

        drop(server);
        let mut pause = vm.vm.pause();
        vm.shell(
            "(md5sum </data/big | cut -d' ' -f1 >/data/sum; sync; echo >/tmp/done) \
             >/dev/null 2>&1 &",
        )
        .await?;
        ensure!(matches!(vm.vm.hydrate(0).await?, Hydration::Running { done: 0, .. }));
        let resized = vm.vm.resize_volume(0, 2 * GIB).await;
        ensure!(matches!(resized, Err(VmmError::InvalidDisk { .. })), "{resized:?}");
        let stalled = async {
            loop {
                match vm.vm.hydrate(0).await? {
                    Hydration::Running { .. } => tokio::time::sleep(LOOK).await,
                    other => return anyhow::Ok(other),
                }
            }
        };
        let stalled = timeout(DEADLINE, stalled).await??;
        ensure!(matches!(&stalled, Hydration::Stalled { reason } if reason.contains("read")));
        // No program has been told that its file can't be read.
        timeout(DEADLINE, pause.wait_for(|pause| *pause == Some(Pause::DiskError))).await??;

        let Running { vm: left, session, .. } = vm;
        session.close();
        drop((left, pause));
        let adopted = driver.adopt("m1", &own).await?.context("it runs")?;
        let server = Server::begin(&source, &backing)?;
        let whole = async {
            // As the worker has it go on.
            while adopted.hydrate(0).await? != Hydration::Done {
                adopted.unpause().await?;
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        timeout(DEADLINE, whole).await??;
        adopted.unpause().await?;
        drop(server);
        ensure!(adopted.hydrate(0).await? == Hydration::Done);
        adopted.resize_volume(0, 2 * GIB).await?;
        let (session, events) = Session::open(Arc::new(Connect(adopted.clone())), 0);
        let vm = Running { vm: adopted, session, events, failure: None };
        vm.shell("while ! [ -e /tmp/done ]; do sleep 0.1; done").await?;
        ensure!(vm.shell("cat /data/sum /data/new").await? == format!("{sum}\nnew"));
        vm.vm.save(&own).await?;
        driver.remove_saved(&own)?;
        vm.vm.unpause().await?;
        let held = fs::read_dir(format!("/proc/{}/fd", vm.vm.pid()))?.flatten();
        let held = held.filter_map(|entry| fs::read_link(entry.path()).ok());
        ensure!(!held.collect::<Vec<_>>().contains(&directory), "it has let go of it");
        vm.kill().await?;
        let raw = raw(host, &volume)?;
        is_journaled(&raw)?;
        ensure!(sum_in(host, &raw, "/big")? == sum);
        driver.close().await;
        Ok(())
    })
    .await;
}

/// An image of which a part is damaged for a time: nobody can say what it holds, or whether it is
/// zeroes.
struct Damaged {
    image: fs::File,
    part: Range<u64>,
    is_damaged: Arc<AtomicBool>,
}

impl Damaged {
    fn check(&self, offset: u64, length: u64) -> Result<(), SnapshotError> {
        let meets = offset < self.part.end && self.part.start < offset + length;
        if meets && self.is_damaged.load(Ordering::SeqCst) {
            return Err(SnapshotError::Source(io::Error::other("damaged")));
        }
        Ok(())
    }
}

#[async_trait]
impl nbd::Contents for Damaged {
    fn size(&self) -> u64 {
        GIB
    }

    async fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), SnapshotError> {
        self.check(offset, buffer.len() as u64)?;
        self.image.read_exact_at(buffer, offset).map_err(SnapshotError::Source)
    }

    async fn zeroes(&self, offset: u64, length: u64) -> Result<(bool, u64), SnapshotError> {
        let before = self.part.start.checked_sub(offset).filter(|before| *before > 0);
        let length = before.map_or(length, |before| before.min(length));
        self.check(offset, length)?;
        Ok((false, length))
    }
}

#[tokio::test]
async fn a_guest_reads_no_garbage_of_a_part_of_which_nobody_can_say_what_it_holds() {
    on_a_host(async |host| {
        let (source, sum, directory) = source(host)?;
        let blocks = run(["debugfs", "-R", "blocks /big", &source.to_string_lossy()])?;
        let block: u64 = blocks.split_whitespace().nth(6000).context("many blocks")?.parse()?;
        let is_damaged = Arc::new(AtomicBool::new(true));
        let contents = Damaged {
            image: fs::File::open(&source)?,
            part: block * 4096..(block + 16) * 4096,
            is_damaged: is_damaged.clone(),
        };
        let backing = Backing { socket: directory.join("nbd.sock") };
        let listener = UnixListener::bind(&backing.socket)?;
        fs::set_permissions(&backing.socket, fs::Permissions::from_mode(0o666))?;
        let serving = nbd::serve(listener, contents, |_| {}, CancellationToken::new());
        let _serving = AbortOnDropHandle::new(tokio::spawn(serving));

        let volume = host.create_volume("vol_a", Filesystem::Raw, false).await;
        let disk = disk_of(host, &volume);
        run(words(&format!("qemu-img create -q -f qcow2 {} 1G", disk.display())))?;
        let driver = host.qemu(NONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        machine.backing = Some(backing);
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        ensure!(matches!(vm.vm.hydrate(0).await?, Hydration::Running { .. }));
        let mut pause = vm.vm.pause();
        vm.shell("(md5sum </data/big >/tmp/sum; echo >/tmp/done) >/dev/null 2>&1 &").await?;
        timeout(DEADLINE, pause.wait_for(|pause| *pause == Some(Pause::DiskError))).await??;
        let stalled = async {
            while !matches!(vm.vm.hydrate(0).await?, Hydration::Stalled { .. }) {
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        timeout(DEADLINE, stalled).await??;

        is_damaged.store(false, Ordering::SeqCst);
        let whole = async {
            while vm.vm.hydrate(0).await? != Hydration::Done {
                vm.vm.unpause().await?;
                tokio::time::sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        timeout(DEADLINE, whole).await??;
        vm.vm.unpause().await?;
        let read = vm.shell("while ! [ -e /tmp/done ]; do sleep 0.1; done; cat /tmp/sum").await?;
        ensure!(read.starts_with(&sum), "{read}, not {sum}");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}
