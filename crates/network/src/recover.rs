//! A namespace whose mount went with the mounts that its server had to itself: the taps of VMs that
//! go on are still in it, and lead there.
#![expect(unsafe_code, reason = "the ioctl that opens a tap's namespace")]

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};
use rtnetlink::packet_route::link::LinkAttribute;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tracing::warn;

use crate::{
    NetworkError, UPLINK, installation::number_of, links::Links, namespace::Namespace,
    network::blocking,
};

nix::ioctl_none_bad!(tun_get_namespace, nix::request_code_none!(b'T', 227));

/// How many VMs of a data directory run. Blocks.
pub(crate) fn count(data_directory: &Path) -> usize {
    namespaces(data_directory).count()
}

/// The number that an installation has whose claim was lost, by the link that leads to its VMs;
/// none where none run.
pub(crate) async fn number(
    host: &Links,
    data_directory: &Path,
) -> Result<Option<u32>, NetworkError> {
    let directory = data_directory.to_owned();
    let opened = blocking(move || {
        let Some(namespace) = namespaces(&directory).next() else { return Ok(None) };
        let namespace = Namespace::open(&path_of(&namespace))?;
        let inner = Links::open_in(&namespace)?;
        Ok(Some((namespace, inner)))
    });
    let Some((_namespace, inner)) = opened.await? else { return Ok(None) };
    let Some(uplink) = inner.find(UPLINK).await? else { return Ok(None) };
    let other_end = uplink.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    let name = match other_end {
        Some(index) => host.name(index).await?,
        None => None,
    };
    Ok(name.as_deref().and_then(number_of))
}

fn path_of(descriptor: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// Mounts the namespace of the VMs of a data directory, if there are any. Whether it did. Blocks.
pub(crate) fn remount(place: &Path, data_directory: &Path) -> bool {
    let Some(namespace) = namespaces(data_directory).next() else { return false };
    let source = path_of(&namespace);
    let made = File::options().write(true).create(true).truncate(false).open(place);
    let mounted = made.and_then(|_| {
        Ok(mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    });
    match &mounted {
        Ok(()) => warn!(
            namespace = %place.display(),
            "mounted the network namespace of machines again, VMs are in it: don't run the server \
             in a mount namespace of its own"
        ),
        Err(error) => {
            warn!(%error, namespace = %place.display(), "can't remount the network namespace of \
                machines")
        }
    }
    mounted.is_ok()
}

/// Those of taps of processes that have a file of the directory open.
fn namespaces(data_directory: &Path) -> impl Iterator<Item = OwnedFd> {
    let numbered = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = numbered.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(move |pid| {
        let mut taps = Vec::new();
        let mut is_own = false;
        // It may end meanwhile, or belong to nobody we may look at.
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            is_own |= target.starts_with(data_directory);
            if target.as_os_str().as_bytes() == b"/dev/net/tun" {
                taps.extend(
                    entry.file_name().to_str().and_then(|number| number.parse::<i32>().ok()),
                );
            }
        }
        if is_own { taps.into_iter().find_map(|tap| namespace_of(pid, tap)) } else { None }
    })
}

fn namespace_of(pid: i32, tap: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let tap = pidfd_getfd(&process, tap, PidfdGetfdFlags::empty()).ok()?;
    // SAFETY: the descriptor is open; the request has no argument.
    let namespace = unsafe { tun_get_namespace(tap.as_raw_fd()) }.ok()?;
    // SAFETY: the kernel has just made this descriptor for us.
    let namespace = unsafe { OwnedFd::from_raw_fd(namespace) };
    // Taps of an earlier release are in the host's own network.
    let own = fs::metadata("/proc/thread-self/ns/net").ok()?;
    let found = nix::sys::stat::fstat(&namespace).ok()?;
    (found.st_ino != own.ino()).then_some(namespace)
}
