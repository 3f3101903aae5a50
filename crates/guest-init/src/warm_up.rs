//! The warm-up of a VM that waits for a machine: what a start does is done once, with a disk and
//! addresses that are no machine's, and undone. The second time is quicker: the kernel has set up
//! what it only sets up once, and an emulator has translated the code that runs then. It does what
//! a start does and little else, since whatever undoes it is translated for nothing.

use std::fs::{self, File};

use caddis_guest_protocol::MachineSpec;
use nix::{
    mount::umount,
    unistd::{chroot, fchdir},
};

use crate::{
    configure::{self, NEW_ROOT},
    devices,
    launcher::Launcher,
    network,
    timing::Timing,
    volumes,
};

/// Does what a start with this configuration does, and undoes it. Afterwards nobody uses the disks,
/// and the network card is up without addresses.
///
/// # Errors
/// What failed, of the warm-up or of undoing it.
pub fn run(spec: &MachineSpec, launcher: Option<&mut Launcher>) -> Result<(), String> {
    configure::take_identity(spec)?;
    let warmed_up = network::configure(&spec.network)
        .and_then(|()| files(spec))
        .and_then(|()| launcher.map_or(Ok(()), Launcher::warm_up));
    let withdrawn = network::withdraw(&spec.network);
    warmed_up.and(withdrawn)
}

/// Mounts, writes, and reads a program.
fn files(spec: &MachineSpec) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't warm up with files: {error}");
    let outside = File::open("/").map_err(|error| failed(&error))?;
    configure::mount_root(&devices::root_disk(spec.root_size)?)?;
    let warmed_up = configure::move_special().and_then(|()| {
        let inside = chroot(NEW_ROOT).map_err(|error| failed(&error)).and_then(|()| {
            let prepared = configure::fill_root(spec, &mut Timing::unused())
                .and_then(|prepared| volumes::warm_up(spec, &prepared.user));
            let read = spec.argv.first().map_or(Ok(Vec::new()), fs::read).map(drop);
            fchdir(&outside).and_then(|()| chroot(".")).map_err(|error| failed(&error))?;
            prepared.and(read.map_err(|error| failed(&error)))
        });
        inside.and(configure::move_special_back())
    });
    warmed_up.and(umount(NEW_ROOT).map_err(|error| failed(&error)))
}
