//! The UDP socket that peers send to. Datagrams of one size for one peer go out in one call, and
//! come in so where the host's card puts them together; answers leave from the address that was
//! asked.
#![expect(unsafe_code, reason = "options of sockets that no library knows")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt,
        sockopt::{RcvBufForce, SndBufForce},
    },
};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Type};

use crate::{
    WireGuardError,
    tunnel::{Buffer, Pool},
};

/// Room for datagrams that were not read or not sent yet, bytes, as far as the host grants it.
const ROOM: usize = 4 << 20;
/// Datagrams that the kernel takes in one call (`UDP_MAX_SEGMENTS`).
const MOST: usize = 64;
/// Their bytes, which must fit into one packet with all headers.
const MOST_BYTES: usize = 65_000;
/// Bytes of what may come in at once.
const LARGEST: usize = 65_536;

/// Where a peer is, and the host's address that it sends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) remote: SocketAddr,
    /// None lets the kernel choose.
    pub(crate) local: Option<IpAddr>,
}

/// The socket that peers send to. It does not block.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Opens the socket that peers send to, in the calling thread's network namespace. The unspecified
/// IPv6 address takes IPv4, too.
///
/// # Errors
/// When the address is in use or not the host's.
pub fn open_socket(address: SocketAddr) -> Result<Socket, WireGuardError> {
    open(address).map_err(WireGuardError::io(format!("listen for WireGuard on UDP {address}")))
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // Where it is not granted more is lost in bursts.
    if setsockopt(&socket, RcvBufForce, &ROOM).is_err() {
        let _ = socket.set_recv_buffer_size(ROOM);
    }
    if setsockopt(&socket, SndBufForce, &ROOM).is_err() {
        let _ = socket.set_send_buffer_size(ROOM);
    }
    socket.bind(&address.into())?;
    let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
    // That was for QUIC, which wants no fragments. Here they may be made on the way, as those of
    // the kernel's WireGuard: a path whose errors are filtered would lose large datagrams.
    set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    if address.is_ipv6() {
        let (level, wanted) = (libc::IPPROTO_IPV6, libc::IPV6_PMTUDISC_WANT);
        set(&socket, level, libc::IPV6_MTU_DISCOVER, wanted)?;
        set(&socket, level, libc::IPV6_DONTFRAG, 0)?;
    }
    Ok(Socket { socket: socket.into(), state })
}

fn set(
    socket: &socket2::Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the value an int that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What datagrams are received with.
pub(crate) struct Receiver {
    pool: Pool,
    memory: Vec<u8>,
    about: [RecvMeta; BATCH_SIZE],
}

impl Receiver {
    pub(crate) fn new() -> Self {
        // Memory is the kernel's until something is written there: mostly the first 1500 bytes of
        // each part.
        let memory = vec![0; BATCH_SIZE * LARGEST];
        Self { pool: Pool::new(MOST), memory, about: [RecvMeta::default(); BATCH_SIZE] }
    }

    /// Takes what has come, up to a number of datagrams; none when there is nothing. Those that are
    /// larger than a buffer are left out.
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
    ) -> Option<impl Iterator<Item = (Buffer, Endpoint)>> {
        let Self { pool, memory, about } = self;
        let pool = &*pool;
        let mut parts = memory.chunks_exact_mut(LARGEST);
        let mut parts: [_; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(parts.next().unwrap_or_default()));
        // What goes wrong is about an earlier datagram, which met a closed port or the like.
        let count = socket.state.recv(UdpSockRef::from(&socket.socket), &mut parts, about).ok()?;
        Some(memory.chunks_exact(LARGEST).zip(&*about).take(count).flat_map(
            move |(part, about)| {
                let endpoint = Endpoint { remote: about.addr, local: about.dst_ip };
                let whole = part.get(..about.len).unwrap_or_default();
                whole.chunks(about.stride.max(1)).filter_map(move |datagram| {
                    let mut buffer = pool.get();
                    buffer.get_mut(..datagram.len())?.copy_from_slice(datagram);
                    buffer.truncate(datagram.len());
                    Some((buffer, endpoint))
                })
            },
        ))
    }
}

impl Socket {
    /// Sends datagrams. What can't be sent is lost, as on any way.
    pub(crate) fn send(&self, datagrams: &mut Vec<(Buffer, Endpoint)>) {
        let mut rest = &datagrams[..];
        while !rest.is_empty() {
            let (together, others) = rest.split_at(run(rest));
            if is_refused(self.send_together(together)) {
                self.send_alone(together);
            }
            rest = others;
        }
        datagrams.clear();
    }

    /// Sends what the kernel does not take together: the path is too narrow, and each is cut on its
    /// way, or the source is no address of the host any more.
    fn send_alone(&self, datagrams: &[(Buffer, Endpoint)]) {
        for datagram in datagrams.chunks(1) {
            if is_refused(self.send_together(datagram))
                && let [(bytes, endpoint)] = datagram
            {
                let _ = self.socket.send_to(bytes, endpoint.remote);
            }
        }
    }

    /// Sends datagrams of one run in one call. Not by [`UdpSocketState::send`], which sends each
    /// alone for ever after one path was too narrow.
    fn send_together(&self, datagrams: &[(Buffer, Endpoint)]) -> nix::Result<()> {
        let Some((first, endpoint)) = datagrams.first() else { return Ok(()) };
        let mut parts = [IoSlice::new(&[]); MOST];
        for (part, (datagram, _)) in parts.iter_mut().zip(datagrams) {
            *part = IoSlice::new(datagram);
        }
        let parts = parts.get(..datagrams.len()).unwrap_or_default();
        let size = first.len() as u16;
        let (v4, v6);
        let mut control = Vec::with_capacity(2);
        if datagrams.len() > 1 {
            control.push(ControlMessage::UdpGsoSegments(&size));
        }
        match endpoint.local {
            Some(IpAddr::V4(address)) => {
                let (ipi_spec_dst, ipi_addr) = (in_addr(address), libc::in_addr { s_addr: 0 });
                v4 = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr };
                control.push(ControlMessage::Ipv4PacketInfo(&v4));
            }
            Some(IpAddr::V6(address)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: address.octets() };
                v6 = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
                control.push(ControlMessage::Ipv6PacketInfo(&v6));
            }
            None => {}
        }
        let to = SockaddrStorage::from(endpoint.remote);
        let flags = MsgFlags::MSG_DONTWAIT;
        sendmsg(self.socket.as_raw_fd(), parts, &control, flags, Some(&to)).map(|_| ())
    }
}

/// Whether sending in another way may help, which it does not where there is no room.
fn is_refused(outcome: nix::Result<()>) -> bool {
    !matches!(outcome, Ok(()) | Err(Errno::EAGAIN | Errno::ENOBUFS))
}

fn in_addr(address: std::net::Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) }
}

/// How many of the first datagrams go out in one call: those for one peer and of one size, of which
/// the last may be smaller.
fn run(datagrams: &[(Buffer, Endpoint)]) -> usize {
    let Some((first, to)) = datagrams.first() else { return 0 };
    let (size, most) = (first.len(), MOST.min(MOST_BYTES / first.len().max(1)).max(1));
    let mut count = 1;
    for (next, endpoint) in datagrams.iter().take(most).skip(1) {
        if endpoint != to || next.len() > size || next.is_empty() {
            break;
        }
        count += 1;
        if next.len() < size {
            break;
        }
    }
    count
}

#[cfg(test)]
mod tests;
