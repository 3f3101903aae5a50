//! Disks and network interfaces. They get their drivers while the VM boots, before it is known
//! which machine it is: one that is saved then is restored with other disks behind the same
//! devices. All that the kernel remembers of a disk that nobody has opened is its size, and of a
//! change of that it is told.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::uevents::Uevents;

use caddis_guest_protocol::disks::{FIRST_VOLUME_TRANSPORT, MODULES_TRANSPORT, ROOT_TRANSPORT};

/// Drivers that are given their devices, by module.
pub const LATE: [&str; 2] = ["virtio_blk", "virtio_net"];

/// What `device` of a virtio device says for them: network card 1, block device 2 (virtio 1.2,
/// section 5).
const KINDS: [(&str, &str); 2] = [("0x0001", "virtio_net"), ("0x0002", "virtio_blk")];

/// Name of the root disk.
static ROOT: OnceLock<String> = OnceLock::new();
/// Names of the disks at the places of volumes.
static VOLUMES: [OnceLock<String>; 2] = [const { OnceLock::new() }; 2];

/// How long the host may take with the size of a volume.
const SIZE_TIMEOUT: Duration = Duration::from_secs(20);
/// Waits between looks at the size of a volume: the first, and the longest.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

const BUS: &str = "/sys/bus/virtio";

/// What a program that starts reads of its files at once, KiB: under an emulator a request costs
/// more than its bytes.
const READ_AHEAD_KIB: &str = "2048";

/// From here on no driver takes a device by itself: the disk with modules is to stay without.
pub fn hold() -> Result<(), String> {
    write(&format!("{BUS}/drivers_autoprobe"), "0")
}

fn is_bound(device: &str, driver: &str) -> bool {
    Path::new(&format!("{BUS}/drivers/{driver}/{device}")).exists()
}

/// Gives the drivers those devices that they don't have, in the order of their places, by which
/// disks get their names, and notes which disk is the root's.
pub fn bind() -> Result<(), String> {
    for Device { name, place, driver } in devices()? {
        if !is_bound(&name, driver) {
            write(&format!("{BUS}/drivers/{driver}/bind"), &name)?;
        }
        let volume = place.and_then(|place| place.checked_sub(FIRST_VOLUME_TRANSPORT));
        let volume = volume.and_then(|volume| VOLUMES.get(usize::try_from(volume).ok()?));
        let known = if place == Some(ROOT_TRANSPORT) { Some(&ROOT) } else { volume };
        if let Some(known) = known
            && let Some(disk) = block_device(&name)
        {
            known.get_or_init(|| disk);
        }
    }
    for disk in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let name = disk.file_name();
        if VOLUMES.iter().any(|volume| volume.get().is_some_and(|volume| name == volume.as_str())) {
            // A database that looks here and there would have all of this read each time.
            continue;
        }
        // Where it can't be set, programs only start later.
        let _ = fs::write(disk.path().join("queue/read_ahead_kb"), READ_AHEAD_KIB);
    }
    Ok(())
}

/// The name of the block device that a driver has made of a device.
fn block_device(name: &str) -> Option<String> {
    let mut disks =
        fs::read_dir(format!("{BUS}/devices/{name}/block")).into_iter().flatten().flatten();
    disks.next().map(|disk| disk.file_name().to_string_lossy().into_owned())
}

/// The transport that a device is on.
fn place(name: &str) -> Option<u32> {
    // The way back is that of the device, not of the link to it.
    let device = fs::canonicalize(format!("{BUS}/devices/{name}")).ok()?;
    fs::read_to_string(device.join("../firmware_node/uid")).ok()?.trim().parse().ok()
}

/// The disk with the kernel's modules, which stays without its driver until a module is asked for;
/// `None` where there is none. It is known by its place, since a disk says what it is to its driver
/// alone.
pub fn modules_disk() -> Option<&'static str> {
    static FOUND: OnceLock<Option<String>> = OnceLock::new();
    let find = || {
        let entries = fs::read_dir(format!("{BUS}/devices")).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.find(|name| place(name) == Some(MODULES_TRANSPORT))
    };
    FOUND.get_or_init(find).as_deref()
}

/// Gives that disk to its driver, and says which block device it is then.
pub fn bind_modules_disk() -> Result<PathBuf, String> {
    let device = modules_disk().ok_or("the host gives this VM no modules")?;
    if !is_bound(device, "virtio_blk") {
        write(&format!("{BUS}/drivers/virtio_blk/bind"), device)?;
    }
    let disk = block_device(device).ok_or("the disk with modules has no block device")?;
    // Where it can't be set, modules only load slower.
    let _ = fs::write(format!("/sys/block/{disk}/queue/read_ahead_kb"), READ_AHEAD_KIB);
    Ok(Path::new("/dev").join(disk))
}

/// The root disk, once it has that size (bytes): the VM may have been saved with another behind the
/// same device, of whose size the kernel is told while it runs.
pub fn root_disk(size: u64) -> Result<PathBuf, String> {
    let name = ROOT.get().ok_or("there is no root disk")?;
    let path = format!("/sys/block/{name}/size");
    let sectors =
        || fs::read_to_string(&path).map_err(|error| format!("can't read {path}: {error}"));
    // In sectors of 512 bytes, whatever those of the disk are.
    let has_size =
        |sectors: &str| sectors.trim().parse::<u64>().is_ok_and(|sectors| sectors * 512 == size);
    if !has_size(&sectors()?) {
        let changes = Uevents::open()?;
        while !has_size(&sectors()?) {
            if !changes.wait() {
                return Err(format!(
                    "the root disk has {} sectors, not {size} bytes",
                    sectors()?.trim()
                ));
            }
        }
    }
    Ok(Path::new("/dev").join(name))
}

fn volume_name(volume: u8) -> Result<&'static str, String> {
    let name = VOLUMES.get(usize::from(volume)).and_then(OnceLock::get);
    name.map(String::as_str).ok_or_else(|| format!("there is no place for a volume {volume}"))
}

/// The disk at the place of a volume.
pub fn volume_path(volume: u8) -> Result<PathBuf, String> {
    volume_name(volume).map(|name| Path::new("/dev").join(name))
}

/// Its number.
pub fn volume_device(volume: u8) -> Result<u64, String> {
    let path = format!("/sys/block/{}/dev", volume_name(volume)?);
    let text = fs::read_to_string(&path).map_err(|error| format!("can't read {path}: {error}"))?;
    let number = text.trim().split_once(':').and_then(|(major, minor)| {
        Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
    });
    number.ok_or_else(|| format!("{path} says {}", text.trim()))
}

/// The disk at the place of a volume, once it has that size (bytes). Waits: for processes of their
/// own.
pub fn volume_disk(volume: u8, size: u64) -> Result<PathBuf, String> {
    let path = format!("/sys/block/{}/size", volume_name(volume)?);
    let deadline = Instant::now() + SIZE_TIMEOUT;
    let mut wait = LOOKS.0;
    loop {
        let sectors =
            fs::read_to_string(&path).map_err(|error| format!("can't read {path}: {error}"))?;
        let bytes = sectors.trim().parse::<u64>().unwrap_or(0) * 512;
        if bytes == size {
            return volume_path(volume);
        }
        if Instant::now() >= deadline {
            return Err(format!("its disk has {bytes} bytes, not {size}"));
        }
        // The kernel tells nobody when a disk that had no size gets one.
        thread::sleep(wait);
        wait = (wait * 2).min(LOOKS.1);
    }
}

/// A device that is given to a driver.
struct Device {
    name: String,
    /// Its transport.
    place: Option<u32>,
    driver: &'static str,
}

/// Disks and network cards but the disk with modules, in the order of their places.
fn devices() -> Result<Vec<Device>, String> {
    let modules = modules_disk();
    let list = || {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("{BUS}/devices"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if Some(name.as_str()) == modules {
                continue;
            }
            let kind = fs::read_to_string(entry.path().join("device"))?;
            if let Some((_, driver)) = KINDS.iter().find(|(known, _)| *known == kind.trim()) {
                found.push(Device { place: place(&name), name, driver });
            }
        }
        found.sort_by_key(|device| device.place);
        io::Result::Ok(found)
    };
    list().map_err(|error| format!("can't list the devices: {error}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("can't write {text} to {path}: {error}"))
}
