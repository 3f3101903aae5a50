//! Disks and network interfaces: their drivers are loaded early and get their devices late, when it is known which
//! machine this is. A VM that is saved before that can be restored with other disks and another network behind the same
//! devices, of which the kernel then learns everything anew.

use std::{fs, io, path::Path};

/// Drivers that wait, by module.
pub const LATE: [&str; 2] = ["virtio_blk", "virtio_net"];

/// What `device` of a virtio device says for them: network card 1, block device 2 (virtio 1.2, section 5).
const KINDS: [(&str, &str); 2] = [("0x0001", "virtio_net"), ("0x0002", "virtio_blk")];

const BUS: &str = "/sys/bus/virtio";

/// From here on no driver takes a device by itself; those that have, because they are part of the kernel, let go.
pub fn hold() -> Result<(), String> {
    write(&format!("{BUS}/drivers_autoprobe"), "0")?;
    for (device, driver) in devices()? {
        if Path::new(&format!("{BUS}/drivers/{driver}/{device}")).exists() {
            write(&format!("{BUS}/drivers/{driver}/unbind"), &device)?;
        }
    }
    Ok(())
}

/// Gives the drivers their devices.
pub fn bind() -> Result<(), String> {
    for (device, driver) in devices()? {
        write(&format!("{BUS}/drivers/{driver}/bind"), &device)?;
    }
    Ok(())
}

/// Disks and network cards, each with the driver it is for.
fn devices() -> Result<Vec<(String, &'static str)>, String> {
    let list = || {
        let mut found = Vec::new();
        for entry in fs::read_dir(format!("{BUS}/devices"))? {
            let entry = entry?;
            let kind = fs::read_to_string(entry.path().join("device"))?;
            if let Some((_, driver)) = KINDS.iter().find(|(known, _)| *known == kind.trim()) {
                found.push((entry.file_name().to_string_lossy().into_owned(), *driver));
            }
        }
        io::Result::Ok(found)
    };
    list().map_err(|error| format!("can't list the devices: {error}"))
}

fn write(path: &str, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("can't write {text} to {path}: {error}"))
}
