//! Tap devices. They are not persistent: one exists as long as a process has it open, which is its
//! VM.
#![expect(unsafe_code, reason = "the ioctl that makes a tap")]

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use crate::GATEWAY_MAC;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
// The driver takes it on the tap's own descriptor, too.
nix::ioctl_write_ptr_bad!(tun_set_mac, libc::SIOCSIFHWADDR, libc::ifreq);

/// Makes a tap of this name, at most 15 bytes long, in the calling thread's namespace. Fails when
/// there is one already.
pub(crate) fn create(name: &str) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name of a tap is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // All below 2^15 but IFF_TUN_EXCL, which is the top bit: the kernel reads the field as
    // unsigned.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and the request a valid ifreq that outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    let mut address = [0; 14];
    for (to, from) in address.iter_mut().zip(GATEWAY_MAC) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr =
        libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: address };
    // SAFETY: as before.
    unsafe { tun_set_mac(device.as_raw_fd(), &raw const request) }?;
    Ok(device.into())
}
