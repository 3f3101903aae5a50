//! The warm-up of a VM that is no machine's: its init does what a start does, on disks that are in
//! memory.
//!
//! ```text
//! root:    over the warm-up disk from the start on, until a machine's takes its place
//! volume:  over nothing ▸ over the warm-up volume ▸ warm-up ▸ of no size ▸ over nothing
//! ```

use std::{
    fs,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::Path,
    time::Duration,
};

use caddis_guest_protocol::{
    MachineSpec,
    spec::{GATEWAY_V4, GATEWAY_V6, MountSpec, NetworkSpec, VolumeFilesystem},
};
use serde_json::json;

use super::{
    disks::{DEFAULT_ROOT_BYTES, over, sets},
    qmp::Qmp,
    template::{build::MAC, file},
    unassigned::UnassignedVm,
};
use crate::{DiskRole, VmmError, boot::WARM_UP_PROGRAM};

/// Where the warm-up volume is.
const ROLE: DiskRole = DiskRole::Volume(0);
/// Its node, and the one that is there before and afterwards.
const NODE: &str = "warm-up-volume";
const NOTHING: &str = "no-volume";
/// What is copied at once, bytes; where it is zeroes it is left out.
const BLOCK: usize = 64 << 10;

/// What a warm-up does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What has to do with files and programs.
    Files,
    /// And the network.
    All {
        /// And a volume of so many bytes.
        volume: Option<u64>,
    },
}

/// Has its init do as if it were told which machine it is.
pub(super) async fn warm_up(
    vm: &UnassignedVm,
    part: Part,
    patience: Duration,
) -> Result<(), VmmError> {
    let session = vm.session(patience).await?;
    let warmed_up = session.warm_up(warm_up_spec(part), patience).await;
    session.close();
    let refused =
        |error| VmmError::DiedAtStart { message: vm.said(&format!("its warm-up failed: {error}")) };
    warmed_up.map(|_| ()).map_err(refused)
}

/// Memory with a file system like that of a machine. Blocks.
pub(super) fn warm_up_disk(image: &Path) -> io::Result<OwnedFd> {
    // As large as that of most machines, and empty but for its beginning.
    copy(image, DEFAULT_ROOT_BYTES)
}

fn copy(image: &Path, size: u64) -> io::Result<OwnedFd> {
    let mut image = fs::File::open(image)?;
    let memory = file::memory("caddis-warm-up", size)?;
    let (to, mut at) = (fs::File::from(memory.try_clone()?), 0);
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        let count = image.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
        if count == 0 {
            return Ok(memory);
        }
        if block.iter().any(|byte| *byte != 0) {
            to.write_all_at(&block, at)?;
        }
        at += count as u64;
    }
}

/// Puts a volume in memory behind its device. Gives its size, bytes.
pub(super) fn attach_volume(qmp: &mut Qmp, image: &Path) -> io::Result<u64> {
    let size = fs::metadata(image)?.len();
    let [_, set] = sets(ROLE);
    qmp.add_descriptor(set, copy(image, size)?.as_fd())?;
    let name = format!("/dev/fdset/{set}");
    let file = json!({
        "driver": "file", "node-name": NODE, "filename": name, "locking": "off",
        "cache": { "direct": false, "no-flush": true },
    });
    qmp.execute("blockdev-add", file)?;
    put_behind_device(qmp, NODE)?;
    resize(qmp, size)?;
    Ok(size)
}

/// Takes it away again: the device has no size, and nothing behind it.
pub(super) fn detach_volume(qmp: &mut Qmp) -> io::Result<()> {
    resize(qmp, 0)?;
    let nothing = json!({ "driver": "null-co", "node-name": NOTHING, "size": 0 });
    qmp.execute("blockdev-add", nothing)?;
    put_behind_device(qmp, NOTHING)?;
    qmp.execute("blockdev-del", json!({ "node-name": NODE }))?;
    let [_, set] = sets(ROLE);
    qmp.execute("remove-fd", json!({ "fdset-id": set })).map(drop)
}

fn put_behind_device(qmp: &mut Qmp, node: &str) -> io::Result<()> {
    let options = json!({ "options": [over(ROLE, json!(node))] });
    qmp.execute("blockdev-reopen", options).map(drop)
}

/// Upon which the guest is told.
fn resize(qmp: &mut Qmp, size: u64) -> io::Result<()> {
    let options = json!({ "node-name": ROLE.name(), "size": size });
    qmp.execute("block_resize", options).map(drop)
}

/// A machine that is none: addresses for documentation, a program that is only read, and random
/// bytes of its own, so that what the kernel draws from here on is this VM's alone.
fn warm_up_spec(part: Part) -> MachineSpec {
    use base64::Engine as _;
    let mut entropy = [0; 64];
    // Fails only where the kernel has no such call.
    let _ = rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty());
    let (mac, volume) = match part {
        Part::Files => (String::new(), None),
        Part::All { volume } => (MAC.to_owned(), volume),
    };
    let mount = |size| MountSpec {
        volume: 0,
        path: "/mnt".to_owned(),
        filesystem: VolumeFilesystem::Ext4,
        size,
    };
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    MachineSpec {
        hostname: "warm-up".to_owned(),
        argv: vec![WARM_UP_PROGRAM.to_owned()],
        root_size: DEFAULT_ROOT_BYTES,
        mounts: volume.map(mount).into_iter().collect(),
        time_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        entropy: base64::engine::general_purpose::STANDARD.encode(entropy),
        network: NetworkSpec {
            mac,
            ipv4: [192, 0, 2, 2].into(),
            ipv4_gateway: GATEWAY_V4,
            ipv6: [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2].into(),
            ipv6_gateway: GATEWAY_V6,
            ..NetworkSpec::default()
        },
        ..MachineSpec::default()
    }
}
