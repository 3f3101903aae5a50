//! Connections of machines that were refused because the machine's block of ports of an egress
//! address has no port left for their destination. The packet filter tells of them over nflog.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv},
};
use tokio::sync::watch;

use crate::netlink::{Socket, attribute, find_attribute, messages};

const SUBSYSTEM: u16 = 4;
const PACKET: u16 = SUBSYSTEM << 8;
const CONFIG: u16 = SUBSYSTEM << 8 | 1;
/// `NFULNL_CFG_CMD_BIND`, as its attribute.
const BIND: (u16, u8) = (1, 1);
/// `NFULA_CFG_MODE`: packets are told, not only that there was one.
const MODE: u16 = 2;
const COPY_PACKET: u8 = 2;
/// Bytes that are told of each.
const RANGE: u32 = 40;
const PAYLOAD: u16 = 9;

/// How many connections of each machine were told as refused, by its address, since the server
/// began; of very many at once not all are.
pub type Refused = HashMap<IpAddr, u64>;

/// Listens in the group, in the network namespace of the calling thread.
fn listen(group: u16) -> io::Result<OwnedFd> {
    let mut socket = Socket::open()?;
    let mode = [&RANGE.to_be_bytes()[..], &[COPY_PACKET, 0]].concat();
    for body in [attribute(BIND.0, &[BIND.1]), attribute(MODE, &mode)] {
        match socket.configure(CONFIG, group, &body)? {
            0 => {}
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
    socket.into_stream()
}

/// Counts what is told until it is dropped.
#[derive(Debug)]
pub(crate) struct Counter {
    _alive: OwnedFd,
    refused: watch::Receiver<Refused>,
}

impl Counter {
    /// One of what is told in a group; none where the kernel does not tell.
    pub(crate) fn of_group(group: u16) -> Option<Self> {
        let failed = |error: &io::Error| {
            tracing::warn!(%error, group, "can't learn which machines have no ports left");
        };
        listen(group).and_then(Self::start).inspect_err(failed).ok()
    }

    /// Begins to count, in a thread that sleeps until something is told.
    fn start(socket: OwnedFd) -> io::Result<Self> {
        let (end, alive) = io::pipe()?;
        let (counts, refused) = watch::channel(Refused::default());
        let body = move || count(&socket, &end.into(), &counts);
        thread::Builder::new().name("network-refused".to_owned()).spawn(body)?;
        Ok(Self { _alive: alive.into(), refused })
    }

    pub(crate) fn refused(&self) -> watch::Receiver<Refused> {
        self.refused.clone()
    }
}

fn count(socket: &OwnedFd, end: &OwnedFd, counts: &watch::Sender<Refused>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let mut events = [end, socket].map(|it| PollFd::new(it.as_fd(), PollFlags::POLLIN));
        // Interrupted, there is nothing to read.
        let _ = poll(&mut events, PollTimeout::NONE);
        if events[0].revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => note(buffer.get(..length).unwrap_or_default(), counts),
            // There was more than was kept for us.
            Err(Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "can't learn which machines have no ports left");
                return;
            }
        }
    }
}

fn note(received: &[u8], counts: &watch::Sender<Refused>) {
    let packets = messages(received).filter(|(header, _)| header.kind == PACKET);
    let sources: Vec<_> =
        packets.filter_map(|(_, body)| source(find_attribute(body.get(4..)?, PAYLOAD)?)).collect();
    if sources.is_empty() {
        return;
    }
    counts.send_modify(|counts| {
        for source in sources {
            *counts.entry(source).or_default() += 1;
        }
    });
}

/// Who has sent a packet.
fn source(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(*packet.get(12..)?.first_chunk::<4>()?)),
        6 => Some(IpAddr::from(*packet.get(8..)?.first_chunk::<16>()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_of_a_packet_is_found_in_both_families_and_none_in_nonsense() {
        let v4 = [&[0x45; 12][..], &[10, 201, 0, 7], &[192, 0, 2, 1]].concat();
        assert_eq!(source(&v4), Some("10.201.0.7".parse().unwrap()));
        let address: std::net::Ipv6Addr = "fdaa:0:5::7".parse().unwrap();
        let v6 = [&[0x60; 8][..], &address.octets(), &[0; 16]].concat();
        assert_eq!(source(&v6), Some(address.into()));
        for nonsense in [&[][..], &[0x45; 15], &[0x60; 23], &[0x15; 40]] {
            assert_eq!(source(nonsense), None);
        }
    }
}
