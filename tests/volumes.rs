//! Volumes of real VMs: what programs see of them, and what is left of what they wrote.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState, MachineSpec,
    host::{AgentStream, Connector, ExecCommand, GuestEvent, Session},
    spec::{FileSpec, GATEWAY_V4, GATEWAY_V6, MountSpec, NetworkSpec, VolumeFilesystem},
};
use caddis_testkit::{DEADLINE, run};
use caddis_vmm::{
    Backing, Disk, DiskFormat, DiskRole, LaunchSpec, Passphrase, Pause, PoolUse, StartKind, Vm,
    Vmm, VolumeDisk, contract::Fixture,
};
use caddis_volume::{Filesystem, Growth, SizeGib, VolumeId};
use tokio::{sync::mpsc, time::timeout};

use crate::driver::{NONE, ONE, QemuHost, until_warm};

mod input_output;
mod snapshots;

const ROOT_BYTES: u64 = 1 << 30;
const GIB: u64 = 1 << 30;
/// Ends with 7 on SIGINT; what it has started goes on writing to the volume meanwhile.
const BUSY: &str = "trap 'exit 7' INT; mkdir -p /data/below; mount -t tmpfs none /data/below; \
                    (cd /data; while :; do echo x >>busy; done) & \
                    setsid sh -c 'exec >/data/held; while :; do echo y; done' & \
                    echo ready; while :; do sleep 1; done";

/// A file system of its own for the volumes, which can be filled.
struct Small(PathBuf);

impl Small {
    /// Moves all volumes of a host there.
    fn mount(host: &QemuHost) -> Result<Self> {
        let (place, made) = (host.data.join("volumes"), host.data.join("made"));
        run(["cp", "-a", &place.to_string_lossy(), &made.to_string_lossy()])?;
        let words = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs"];
        run(words.into_iter().chain([&*place.to_string_lossy()]))?;
        let small = Self(place);
        run(["cp", "-a", &made.join(".").to_string_lossy(), &small.0.to_string_lossy()])?;
        Ok(small)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What is still there is said by the host's own end.
        let _ = run(["umount", "-l", &self.0.to_string_lossy()]);
    }
}

struct Connect(Arc<dyn Vm>);

#[async_trait]
impl Connector for Connect {
    async fn connect(&self) -> std::io::Result<Box<dyn AgentStream>> {
        Ok(Box::new(self.0.connect_agent().await.map_err(std::io::Error::other)?))
    }
}

/// A volume of a machine: which, where, and what it holds.
pub struct Mount<'a> {
    volume: &'a VolumeId,
    path: &'a str,
    filesystem: VolumeFilesystem,
}

pub fn ext4<'a>(volume: &'a VolumeId, path: &'a str) -> Mount<'a> {
    Mount { volume, path, filesystem: VolumeFilesystem::Ext4 }
}

pub fn raw_disk<'a>(volume: &'a VolumeId, path: &'a str) -> Mount<'a> {
    Mount { volume, path, filesystem: VolumeFilesystem::Raw }
}

/// A machine, with a root disk of busybox.
pub struct Machine<'a> {
    host: &'a QemuHost,
    driver: &'a dyn Vmm,
    pub spec: LaunchSpec,
    user: &'a str,
    argv: Vec<String>,
    files: Vec<FileSpec>,
    /// Its program is process 1 of namespaces of its own.
    is_process_1: bool,
    /// What its first volume is restored from.
    backing: Option<Backing>,
}

impl<'a> Machine<'a> {
    pub fn new(host: &'a QemuHost, driver: &'a dyn Vmm, id: &str) -> Result<Self> {
        let directory = host.data.join("machines").join(id);
        fs::create_dir_all(&directory)?;
        let format = DiskFormat::Overlay(base(host)?);
        let disk =
            Disk { role: DiskRole::Root, format, path: directory.join("root"), size: ROOT_BYTES };
        let spec = LaunchSpec {
            machine_id: id.to_owned(),
            directory,
            vcpus: 1,
            memory_mib: 256,
            cpu_weight: 100,
            disks: vec![disk],
            volumes: Vec::new(),
            volume_limits: None,
            mac: "02:00:00:00:00:02".to_owned(),
            kernel_args: Vec::new(),
            not_warm: false,
            saved: None,
        };
        let argv = ["sleep", "1000000"].map(str::to_owned).to_vec();
        let (files, backing) = (Vec::new(), None);
        Ok(Self { host, driver, spec, user: "", argv, files, is_process_1: false, backing })
    }

    pub async fn launch(&self, mounts: &[Mount<'_>]) -> Result<(Arc<dyn Vm>, Vec<MountSpec>)> {
        let (mut spec, mut specs) = (self.spec.clone(), Vec::new());
        if spec.saved.is_none() {
            self.driver.create_disk(&spec.disks[0], &[])?;
        }
        for (index, mount) in (0..).zip(mounts) {
            let writer = self.open(mount.volume).await?;
            let key = writer.key().map(|key| Passphrase::new(key.passphrase().to_string()));
            let size = writer.volume().size.bytes();
            specs.push(MountSpec {
                volume: index,
                path: mount.path.to_owned(),
                filesystem: mount.filesystem,
                size,
            });
            let file = Arc::new(writer.into_descriptor());
            let backing = self.backing.clone().filter(|_| index == 0);
            spec.volumes.push(VolumeDisk { index, file, passphrase: key, size, backing });
        }
        let seat = self.driver.prepare(spec).await?;
        let tap = if seat.has_tap() { None } else { self.host.tap(&seat.slot().tap_name()) };
        Ok((timeout(DEADLINE, seat.launch(tap)).await??, specs))
    }

    /// Opens a volume, which may still be in the hands of a process that is being started.
    pub async fn open(&self, volume: &VolumeId) -> Result<caddis_volume::Writer> {
        let opened = async {
            loop {
                match self.host.volumes().open_writer(volume, "a test").await {
                    Err(caddis_volume::VolumeError::InUse { .. }) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    outcome => return outcome,
                }
            }
        };
        Ok(timeout(DEADLINE, opened).await??)
    }

    /// Starts it, and waits until its program runs or never will.
    async fn start(&self, mounts: &[Mount<'_>]) -> Result<Running> {
        let (vm, mounts) = self.launch(mounts).await?;
        self.configure(vm, mounts).await
    }

    /// Tells a VM that was launched that it is this machine, and waits likewise.
    pub async fn configure(&self, vm: Arc<dyn Vm>, mounts: Vec<MountSpec>) -> Result<Running> {
        let (session, mut events) = Session::open(Arc::new(Connect(vm.clone())), 0);
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        session
            .configure(MachineSpec {
                machine_id: self.spec.machine_id.clone(),
                hostname: "machine".to_owned(),
                argv: self.argv.clone(),
                user: self.user.to_owned(),
                root_size: ROOT_BYTES,
                time_ns: u64::try_from(since.as_nanos())?,
                mounts,
                files: self.files.clone(),
                pid_namespace: Some(self.is_process_1),
                network: NetworkSpec {
                    mac: self.spec.mac.clone(),
                    ipv4: [192, 0, 2, 3].into(),
                    ipv4_gateway: GATEWAY_V4,
                    ipv6: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 3].into(),
                    ipv6_gateway: GATEWAY_V6,
                    ..NetworkSpec::default()
                },
                ..MachineSpec::default()
            })
            .await?;
        let begun = async {
            while let Some(event) = events.recv().await {
                match event {
                    GuestEvent::Started { steps, .. } => {
                        eprintln!("{:?}, in the guest {steps:?}", vm.start_steps());
                        return None;
                    }
                    GuestEvent::Finished(GuestState::Failed { message }) => return Some(message),
                    _ => {}
                }
            }
            Some("the session has ended".to_owned())
        };
        let failure = timeout(DEADLINE, begun).await?;
        Ok(Running { vm, session, events, failure })
    }
}

/// A VM whose program runs, or failed to.
pub struct Running {
    pub vm: Arc<dyn Vm>,
    session: Session,
    events: mpsc::Receiver<GuestEvent>,
    pub failure: Option<String>,
}

impl Running {
    async fn try_shell(&self, line: &str) -> Result<(i32, String)> {
        let command = ExecCommand {
            argv: ["sh", "-c", line].map(str::to_owned).to_vec(),
            user: Some("root".to_owned()),
            output_limit: 1 << 20,
            ..ExecCommand::default()
        };
        let outcome = match timeout(DEADLINE, self.session.exec(command)).await? {
            Ok(outcome) => outcome,
            Err(error) => {
                let pause = *self.vm.pause().borrow();
                let end = timeout(Duration::from_millis(10), self.vm.wait()).await;
                return Err(error).context(format!("{line}: {pause:?} {end:?}"));
            }
        };
        let said = [outcome.stdout, outcome.stderr].concat();
        Ok((outcome.code, String::from_utf8(said)?.trim().to_owned()))
    }

    pub async fn shell(&self, line: &str) -> Result<String> {
        let (code, said) = self.try_shell(line).await?;
        ensure!(code == 0, "{line}: {code}: {said}");
        Ok(said)
    }

    async fn size(&self) -> Result<u64> {
        let usage = self.session.volume_usage(DEADLINE).await?;
        let [volume] = usage[..] else { anyhow::bail!("{usage:?}") };
        ensure!(volume.blocks_free <= volume.blocks && volume.blocks_avail > 0, "{volume:?}");
        Ok(volume.blocks * volume.block_size)
    }

    /// How its program ended.
    async fn end(&mut self) -> Result<GuestState> {
        let end = async {
            loop {
                if let GuestEvent::Finished(state) = self.events.recv().await.context("it ended")? {
                    return anyhow::Ok(state);
                }
            }
        };
        timeout(DEADLINE, end).await?
    }

    /// As when its worker gives it up.
    async fn power_off(self) -> Result<()> {
        self.session.power_off().await;
        timeout(DEADLINE, self.vm.wait()).await?;
        self.session.close();
        Ok(())
    }

    /// As a crash of the host's process does it.
    pub async fn kill(self) -> Result<()> {
        self.session.close();
        self.vm.kill().await?;
        timeout(DEADLINE, self.vm.wait()).await?;
        Ok(())
    }
}

/// Has a test that fails say why before its host complains of what it has left.
pub async fn on_a_host(test: impl AsyncFnOnce(&QemuHost) -> Result<()>) {
    let host = QemuHost::new().await;
    if let Err(error) = test(&host).await {
        panic!("{error:?}");
    }
}

/// A root file system with busybox and its tools.
fn base(host: &QemuHost) -> Result<PathBuf> {
    let (tree, image) = (host.data.join("tree"), host.data.join("base.img"));
    if image.exists() {
        return Ok(image);
    }
    for directory in ["bin", "etc", "dev", "proc", "sys", "tmp", "data"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    for tool in run(["/bin/busybox", "--list"])?.lines().filter(|tool| *tool != "busybox") {
        symlink("busybox", tree.join("bin").join(tool))?;
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1001::/var/www:/bin/sh\n";
    fs::write(tree.join("etc/passwd"), users)?;
    // Out of the root, if it were not the guest's own.
    symlink("../../../../../../elsewhere", tree.join("escape"))?;
    run(["mkfifo", &tree.join("fifo").to_string_lossy()])?;
    let words = ["mke2fs", "-q", "-t", "ext4", "-d"].map(str::to_owned);
    let rest = [tree.to_string_lossy(), image.to_string_lossy(), "64M".into()];
    run(words.into_iter().chain(rest.map(|word| word.into_owned())))?;
    Ok(image)
}

pub fn disk_of(host: &QemuHost, volume: &VolumeId) -> PathBuf {
    host.data.join("volumes/volumes").join(volume.as_str()).join("disk.qcow2")
}

/// What a volume in the clear holds, byte by byte.
fn raw(host: &QemuHost, volume: &VolumeId) -> Result<PathBuf> {
    let raw = host.data.join("raw");
    let words = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"].map(str::to_owned);
    let paths = [disk_of(host, volume), raw.clone()];
    run(words.into_iter().chain(paths.map(|path| path.to_string_lossy().into_owned())))?;
    Ok(raw)
}

/// Whether its file system was left as it should be, and has no errors.
fn is_clean(image: &Path) -> Result<()> {
    let image = image.to_string_lossy();
    let shown = run(["dumpe2fs", "-h", &image])?;
    ensure!(shown.contains("Filesystem state:         clean"), "{shown}");
    ensure!(!shown.contains("needs_recovery"), "{shown}");
    run(["e2fsck", "-fn", &image]).map(drop)
}

fn contains(path: &Path, text: &str) -> Result<bool> {
    let bytes = fs::read(path)?;
    Ok(bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[tokio::test]
async fn what_was_synced_outlives_a_killed_vm_however_the_next_one_starts() {
    on_a_host(async |host| {
        let secret = host.create_volume("vol_secret", Filesystem::Ext4, true).await;
        let plain = host.create_volume("vol_plain", Filesystem::Ext4, false).await;
        let driver = host.qemu(ONE);
        driver.keep_warm();
        let mut machine = Machine::new(host, &driver, "m1")?;
        machine.user = "www";
        let template = |pool| Some((StartKind::Template, pool));
        let ways = [
            Some((StartKind::Cold, None)),
            template(Some(PoolUse::Empty)),
            template(Some(PoolUse::Hit)),
        ];
        for (round, way) in ways.into_iter().enumerate() {
            machine.spec.kernel_args = match way {
                Some((StartKind::Cold, _)) => vec!["loglevel=3".to_owned()],
                _ => Vec::new(),
            };
            machine.spec.not_warm = round == 1;
            if round > 0 {
                until_warm(&driver).await;
            }
            let mounts = [ext4(&secret, "/data"), ext4(&plain, "/escape/plain")];
            let vm = machine.start(&mounts).await?;
            ensure!(vm.failure.is_none(), "{:?}", vm.failure);
            let start = vm.vm.start();
            eprintln!("round {round}: {start:?}");
            ensure!(Some(start.kind) == way.map(|(kind, _)| kind), "{round}: {start:?}");
            let owner = vm.shell("stat -c %u:%g /data /elsewhere/plain").await?;
            ensure!(owner == "1000:1001\n1000:1001", "{owner}");
            let table = vm.shell("grep /data /proc/mounts").await?;
            ensure!(table.contains("errors=remount-ro") && table.contains("relatime"), "{table}");
            for number in 0..round {
                let read =
                    vm.shell(&format!("cat /data/{number} /elsewhere/plain/{number}")).await?;
                ensure!(read == format!("needle {number}\nneedle {number}"), "{read}");
            }
            for place in ["/data", "/elsewhere/plain"] {
                let write = format!(
                    "echo needle {round} | dd of={place}/{round} conv=fsync 2>/dev/null; \
                 dd if={place}/{round} of=/dev/null 2>/dev/null; \
                 sync -d {place}; sync {place}/{round}"
                );
                vm.shell(&write).await?;
            }
            vm.kill().await?;
        }
        assert!(contains(&disk_of(host, &plain), "needle 2")?);
        assert!(!contains(&disk_of(host, &secret), "needle")?, "it is encrypted");
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_vm_that_goes_on_after_it_was_saved_has_its_volumes_and_what_was_saved_is_no_more() {
    on_a_host(async |host| {
        let secret = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let plain = host.create_volume("vol_b", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let directory = machine.spec.directory.clone();
        let vm = machine.start(&[ext4(&secret, "/data"), ext4(&plain, "/more")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.shell("for place in /data /more; do echo before >$place/a; done; sync").await?;
        vm.vm.save(&directory).await?;
        ensure!(driver.is_saved(&directory));
        // Nobody waits for the second one. Its guest may have gone on for a moment, which the
        // first does not know of.
        let saved = timeout(Duration::ZERO, vm.vm.save(&directory)).await;
        ensure!(saved.is_err(), "it takes longer");
        vm.vm.unpause().await?;
        ensure!(!driver.is_saved(&directory), "the first is older than its volumes");
        let line = "echo 3 >/proc/sys/vm/drop_caches; for place in /data /more; do cat $place/a; \
                    echo after >$place/b; sync $place/b; done";
        ensure!(vm.shell(line).await? == "before\nbefore");
        vm.kill().await?;
        let vm = machine.start(&[ext4(&secret, "/data"), ext4(&plain, "/more")]).await?;
        ensure!(vm.shell("cat /data/b /more/b").await? == "after\nafter");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn an_end_that_is_told_leaves_volumes_clean_whatever_has_run() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        machine.argv = ["sh", "-c", BUSY].map(str::to_owned).to_vec();
        for still in [false, true] {
            // The end of such a one waits for all of its processes, so for those that stand still.
            machine.is_process_1 = !still;
            let mut vm = machine.start(&[ext4(&volume, "/data")]).await?;
            ensure!(vm.failure.is_none(), "{:?}", vm.failure);
            vm.shell("while ! [ -s /data/busy ] || ! [ -s /data/held ]; do sleep 0.1; done")
                .await?;
            if still {
                vm.session.freeze_volumes(Duration::from_secs(250)).await?;
            }
            vm.session.signal(2).await?;
            let end = vm.end().await?;
            ensure!(matches!(&end, GuestState::Exited(report) if report.code == 7), "{end:?}");
            let refused = vm.try_shell("true").await;
            ensure!(refused.is_err(), "{refused:?}");
            // The report says that it may be killed.
            vm.kill().await?;
            is_clean(&raw(host, &volume)?)?;
        }
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.power_off().await?;
        is_clean(&raw(host, &volume)?)?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_volume_grows_under_a_running_program_and_between_two_starts() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let size = vm.size().await?;
        ensure!((GIB * 8 / 10..GIB).contains(&size), "{size}");
        vm.shell("echo a >/data/a; sync").await?;
        let Growth::Resize { bytes } = host.volumes().grow(&volume, SizeGib::new(2)?).await? else {
            anyhow::bail!("it is in use");
        };
        vm.vm.resize_volume(0, bytes).await?;
        vm.session.grow_volume(0, bytes, DEADLINE).await?;
        let size = vm.size().await?;
        ensure!((2 * GIB * 8 / 10..2 * GIB).contains(&size), "{size}");
        let unknown = vm.session.grow_volume(1, bytes, DEADLINE).await;
        ensure!(unknown.is_err(), "there is one only");
        vm.power_off().await?;

        let grown = async {
            loop {
                match host.volumes().grow(&volume, SizeGib::new(3)?).await? {
                    Growth::Done => return anyhow::Ok(()),
                    Growth::Resize { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(DEADLINE, grown).await??;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let size = vm.size().await?;
        ensure!((3 * GIB * 8 / 10..3 * GIB).contains(&size), "{size}");
        ensure!(vm.shell("cat /data/a").await? == "a");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_suspended_machine_goes_on_with_its_volume() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, true).await;
        let driver = host.qemu(ONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        let counter = "n=0; while :; do n=$((n+1)); echo $n >/data/count; done";
        machine.argv = ["sh", "-c", counter].map(str::to_owned).to_vec();
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.shell("echo before >/data/before").await?;
        vm.session.freeze(DEADLINE).await?;
        vm.vm.save(&machine.spec.directory).await?;
        vm.kill().await?;

        machine.spec.saved = Some(machine.spec.directory.clone());
        let (vm, _) = machine.launch(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.start().kind == StartKind::Resume, "{:?}", vm.start());
        let (session, events) = Session::open(Arc::new(Connect(vm.clone())), 0);
        session.thaw(String::new(), true, DEADLINE).await?;
        let vm = Running { vm, session, events, failure: None };
        vm.shell("a=$(cat /data/count); while [ \"$(cat /data/count)\" = \"$a\" ]; do :; done")
            .await?;
        ensure!(vm.shell("cat /data/before").await? == "before");
        vm.shell("echo after >/data/after; sync").await?;
        vm.kill().await?;

        machine.spec.saved = None;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        ensure!(vm.shell("cat /data/before /data/after").await? == "before\nafter");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_volume_may_be_below_another_and_files_of_the_configuration_are_on_it() {
    on_a_host(async |host| {
        let outer = host.create_volume("vol_outer", Filesystem::Ext4, false).await;
        let inner = host.create_volume("vol_inner", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        let (path, content) = ("/data/below/it/file".to_owned(), "dGV4dA==".to_owned());
        machine.files = vec![FileSpec { path, content, ..FileSpec::default() }];
        let vm = machine.start(&[ext4(&inner, "/data/below/it"), ext4(&outer, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        ensure!(vm.shell("cat /data/below/it/file").await? == "text");
        let usage = vm.session.volume_usage(DEADLINE).await?;
        ensure!(usage.len() == 2, "{usage:?}");
        vm.power_off().await?;
        for volume in [&outer, &inner] {
            is_clean(&raw(host, volume)?)?;
        }
        machine.files.clear();
        let vm = machine.start(&[ext4(&inner, "/elsewhere")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        ensure!(vm.shell("cat /elsewhere/file").await? == "text", "it was written to the volume");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_raw_volume_is_a_disk_of_the_machine_s_user() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Raw, true).await;
        let driver = host.qemu(NONE);
        let mut machine = Machine::new(host, &driver, "m1")?;
        machine.user = "www";
        let program = "[ \"$(head -c 5 /srv/disk)\" = hello ] && echo again; \
                   trap 'exit 0' INT; echo hello >/srv/disk; while :; do sleep 1; done";
        machine.argv = ["sh", "-c", program].map(str::to_owned).to_vec();
        let raw = || raw_disk(&volume, "/srv/disk");
        let mut vm = machine.start(&[raw()]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        let shown = vm.shell("stat -c '%F %u:%g %a' /srv/disk").await?;
        ensure!(shown == "block special file 1000:1001 600", "{shown}");
        ensure!(vm.session.volume_usage(DEADLINE).await?.is_empty());
        vm.shell("while [ \"$(head -c 5 /srv/disk)\" != hello ]; do sleep 0.1; done").await?;
        // It was not synced by anybody.
        vm.session.signal(2).await?;
        ensure!(matches!(vm.end().await?, GuestState::Exited(report) if report.code == 0));
        vm.kill().await?;
        let vm = machine.start(&[raw()]).await?;
        ensure!(vm.shell("head -c 5 /srv/disk").await? == "hello");
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_program_does_not_start_without_its_data_and_the_reason_is_told() {
    on_a_host(async |host| {
        let [empty, damaged, good] = ["vol_empty", "vol_damaged", "vol_good"].map(|name| {
            let filesystem = if name == "vol_empty" { Filesystem::Raw } else { Filesystem::Ext4 };
            (name, filesystem)
        });
        let empty = host.create_volume(empty.0, empty.1, false).await;
        let damaged = host.create_volume(damaged.0, damaged.1, false).await;
        let good = host.create_volume(good.0, good.1, false).await;
        let disk = disk_of(host, &damaged).to_string_lossy().into_owned();
        // Descriptors of groups, behind the superblock.
        run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 4096 65536", &disk])?;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let first = || ext4(&good, "/data");
        for (mounts, expected) in [
            (vec![first(), ext4(&empty, "/more")], "at /more: there is no ext4 file system on it"),
            (vec![first(), ext4(&damaged, "/more")], "at /more: its ext4 file system is damaged"),
            (vec![first(), ext4(&damaged, "/fifo")], "at /fifo: /fifo is a FIFO in the image"),
            (vec![first(), ext4(&damaged, "/proc/x")], "at /proc/x: "),
        ] {
            let vm = machine.start(&mounts).await?;
            let failure = vm.failure.clone().context("it does not start")?;
            ensure!(failure.contains(expected), "{failure}");
            vm.kill().await?;
            is_clean(&raw(host, &good)?)?;
        }
        driver.close().await;
        Ok(())
    })
    .await;
}

/// Kills processes that are copies of init, and tells which.
const KILL_HOLDER: &str = "for p in /proc/[0-9]*; do if [ $p != /proc/1 ] && \
                           cmp -s $p/cmdline /proc/1/cmdline; then kill -9 ${p#/proc/} && \
                           echo $p; fi; done";

#[tokio::test]
async fn file_systems_stand_still_until_they_are_let_go_and_never_for_longer_than_said() {
    on_a_host(async |host| {
        let volume = host.create_volume("vol_a", Filesystem::Ext4, false).await;
        let driver = host.qemu(NONE);
        let machine = Machine::new(host, &driver, "m1")?;
        let vm = machine.start(&[ext4(&volume, "/data")]).await?;
        ensure!(vm.failure.is_none(), "{:?}", vm.failure);
        vm.shell("echo a >/data/a").await?;
        vm.session.freeze_volumes(Duration::from_secs(200)).await?;
        // What was written is there, and nothing is under way.
        is_clean_but_mounted(host, &volume)?;
        vm.shell("(echo b >/data/b; echo written >/tmp/b) >/dev/null 2>&1 &").await?;
        ensure!(vm.shell("sleep 1; cat /tmp/b 2>/dev/null || true").await?.is_empty());
        ensure!(vm.size().await? > 0, "it is not in the way of looking");
        let still = vm.session.thaw_volumes(DEADLINE).await?.context("not told")?;
        ensure!((1..200).contains(&still.as_secs()), "they stood still for {still:?}");
        vm.shell("while ! [ -e /tmp/b ]; do sleep 0.1; done; cat /data/b").await?;

        // Whoever is root in the machine can kill what holds them.
        vm.session.freeze_volumes(Duration::from_secs(200)).await?;
        let killed = vm.shell(KILL_HOLDER).await?;
        ensure!(killed.lines().count() == 1, "{killed}");
        vm.session.thaw_volumes(DEADLINE).await?.context("not told")?;
        vm.shell("echo c >/data/c").await?;

        vm.session.freeze_volumes(Duration::from_secs(20)).await?;
        vm.shell("echo c >/data/c; cat /data/c").await?;
        ensure!(vm.session.thaw_volumes(DEADLINE).await.is_err(), "they went on before");
        // Also when they stand still just when that is given up.
        for milliseconds in (0..100).step_by(4) {
            let held = vm.session.freeze_volumes(Duration::from_millis(milliseconds)).await;
            let line = format!("echo {milliseconds} >/data/d; cat /data/d");
            let said = vm.shell(&line).await.with_context(|| format!("{held:?}"))?;
            ensure!(said == milliseconds.to_string(), "{said}");
        }
        vm.kill().await?;
        driver.close().await;
        Ok(())
    })
    .await;
}

/// As a snapshot sees it: the journal has nothing that is not in its place.
fn is_clean_but_mounted(host: &QemuHost, volume: &VolumeId) -> Result<()> {
    let copy = host.data.join("copy.qcow2");
    fs::copy(disk_of(host, volume), &copy)?;
    let raw = host.data.join("copy");
    let words = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw"].map(str::to_owned);
    let paths = [copy, raw.clone()].map(|path| path.to_string_lossy().into_owned());
    run(words.into_iter().chain(paths))?;
    run(["e2fsck", "-fn", &raw.to_string_lossy()]).map(drop)?;
    let shown = run(["debugfs", "-R", "cat /a", &raw.to_string_lossy()])?;
    ensure!(shown.trim() == "a", "{shown}");
    Ok(())
}
