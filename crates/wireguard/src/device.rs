//! What the server moves packets with: a TUN device and a UDP socket.
#![expect(unsafe_code, reason = "the ioctl that makes a TUN device, and an option of sockets")]

use std::{
    fs::OpenOptions,
    io,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
};

use socket2::{Domain, Socket, Type};

use crate::WireGuardError;

nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);

/// Room for datagrams that were not read or not sent yet, bytes, as far as the host grants it.
const ROOM: usize = 4 << 20;

/// Makes a TUN device of this name, at most 15 bytes long, in the calling thread's network
/// namespace. It is gone when it is closed.
///
/// # Errors
/// When there is one already, or the host refuses.
pub fn create_device(name: &str) -> Result<OwnedFd, WireGuardError> {
    create(name).map_err(WireGuardError::io(format!("create the TUN device {name}")))
}

fn create(name: &str) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // All below 2^15 but IFF_TUN_EXCL, which is the top bit: the kernel reads the field as
    // unsigned.
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open and the request a valid ifreq that outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(device.into())
}

/// Opens the socket that peers send to, in the calling thread's network namespace. The unspecified
/// IPv6 address takes IPv4, too.
///
/// # Errors
/// When the address is in use or not the host's.
pub fn open_socket(address: SocketAddr) -> Result<UdpSocket, WireGuardError> {
    open(address).map_err(WireGuardError::io(format!("listen for WireGuard on UDP {address}")))
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Where it is not granted more is lost in bursts.
    let _ = socket.set_recv_buffer_size(ROOM);
    let _ = socket.set_send_buffer_size(ROOM);
    // Datagrams over IPv4 may be fragmented on their way, as those of the kernel's WireGuard: a
    // path whose errors are filtered would lose the large ones.
    let never = libc::IP_PMTUDISC_DONT;
    // SAFETY: the descriptor is open, and the value an int that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const never).cast(),
            size_of_val(&never) as libc::socklen_t,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}
