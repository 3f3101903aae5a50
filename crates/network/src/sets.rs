//! Elements of the filter's set `own6`, changed over netlink: a batch of one message, as nf_tables wants it.
//!
//! An element is a pair of intervals: packets from the one network to the other may pass between VMs. Both are the
//! same network here.

use std::{
    io,
    net::Ipv6Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt::ReceiveTimeout,
};

use crate::{
    NetworkError,
    filter::{OWN6, TABLE},
};

/// What to do with an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const DELETE_ELEMENT: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
const NFPROTO_INET: u8 = 1;
const NLMSG_ERROR: u16 = 2;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;

const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3 | NESTED;
const LIST_ITEM: u16 = 1 | NESTED;
const ELEMENT_KEY: u16 = 1 | NESTED;
const ELEMENT_KEY_END: u16 = 10 | NESTED;
const DATA_VALUE: u16 = 1;

/// Sequence number of the message that is acknowledged.
const SEQUENCE: u32 = 2;

/// Lets the machines of a network meet, or no longer. Adding what is there and removing what isn't is no error.
/// Blocks for the kernel's answer.
pub(crate) fn change(change: Change, network: ipnet::Ipv6Net) -> Result<(), NetworkError> {
    let outcome = ask(&batch(change, network));
    let attempted = format!("change the packet filter's set {OWN6} for the network {network}");
    match outcome.map_err(NetworkError::io(attempted.clone()))? {
        0 => Ok(()),
        code if change == Change::Remove && code == libc::ENOENT => Ok(()),
        code if change == Change::Add && code == libc::EEXIST => Ok(()),
        code => Err(NetworkError::io(attempted)(io::Error::from_raw_os_error(code))),
    }
}

fn batch(change: Change, network: ipnet::Ipv6Net) -> Vec<u8> {
    let kind = if change == Change::Add { NEW_ELEMENT } else { DELETE_ELEMENT };
    let flags = REQUEST | ACKNOWLEDGE | if change == Change::Add { CREATE } else { 0 };
    let pair = |address: Ipv6Addr| attribute(DATA_VALUE, &[address.octets(), address.octets()].concat());
    let element =
        [attribute(ELEMENT_KEY, &pair(network.network())), attribute(ELEMENT_KEY_END, &pair(network.broadcast()))]
            .concat();
    let body = [
        attribute(LIST_TABLE, &text(TABLE)),
        attribute(LIST_SET, &text(OWN6)),
        attribute(LIST_ELEMENTS, &attribute(LIST_ITEM, &element)),
    ]
    .concat();
    [
        message(BATCH_BEGIN, REQUEST, 1, 0, NFNL_SUBSYS_NFTABLES, &[]),
        message(kind, flags, SEQUENCE, NFPROTO_INET, 0, &body),
        message(BATCH_END, REQUEST, 3, 0, NFNL_SUBSYS_NFTABLES, &[]),
    ]
    .concat()
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// A netlink message with the header of nfnetlink.
fn message(kind: u16, flags: u16, sequence: u32, family: u8, resource: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(20 + body.len());
    // Messages here are some hundred bytes.
    message.extend((20 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(body);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = Vec::with_capacity(4 + value.len() + 3);
    attribute.extend((4 + value.len() as u16).to_ne_bytes());
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Sends a batch; the answer is 0 or an error number.
fn ask(batch: &[u8]) -> io::Result<i32> {
    let netfilter = SockProtocol::NetlinkNetFilter;
    let socket: OwnedFd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(Duration::from_secs(5).as_secs() as i64, 0))?;
    send(socket.as_raw_fd(), batch, MsgFlags::empty())?;
    let mut buffer = vec![0; 8192];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        if let Some(code) = answer(buffer.get(..length).unwrap_or_default()) {
            return Ok(code);
        }
    }
}

/// The error number in the first answer that is one.
fn answer(mut bytes: &[u8]) -> Option<i32> {
    while let (Some(header), Some(code)) = (bytes.get(..16), bytes.get(16..20)) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NLMSG_ERROR {
            return Some(-i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
        }
        bytes = bytes.get(length.next_multiple_of(4).max(16)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_behind_other_messages_and_nonsense_is_none() {
        let other = message(NEW_ELEMENT, 0, 9, 0, 0, b"abcd");
        let error =
            |code: i32| message(NLMSG_ERROR, 0, SEQUENCE, 0, 0, &[]).into_iter().take(16).chain(code.to_ne_bytes());
        let denied: Vec<u8> = other.iter().copied().chain(error(-libc::EPERM)).collect();
        assert_eq!(answer(&denied), Some(libc::EPERM));
        assert_eq!(answer(&error(0).collect::<Vec<_>>()), Some(0));
        assert_eq!(answer(&other), None);
        assert_eq!(answer(&[0; 40]), None);
        assert_eq!(answer(&[1, 2, 3]), None);
    }

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        assert_eq!(attribute(1, b"abcde").len(), 12);
        assert_eq!(attribute(1, b"abcde")[0], 9);
    }
}
