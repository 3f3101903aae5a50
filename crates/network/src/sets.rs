//! Elements of the filter's set `own6`, changed over netlink.
//!
//! An element is a pair of intervals: packets from the one network to the other may pass between
//! VMs. Both are the same network here.

use std::{io, net::Ipv6Addr};

use crate::{
    NetworkError,
    filter::{OWN6, TABLE},
    netlink::{CREATE, LIST_ITEM, Message, NESTED, Socket, attribute, text},
};

/// What to do with an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3 | NESTED;
const ELEMENT_KEY: u16 = 1 | NESTED;
const ELEMENT_KEY_END: u16 = 10 | NESTED;
const DATA_VALUE: u16 = 1;

/// Lets the machines of a network meet, or no longer. Adding what is there and removing what isn't
/// is no error. Blocks for the kernel's answer.
pub(crate) fn change(
    socket: &mut Socket,
    change: Change,
    network: ipnet::Ipv6Net,
) -> Result<(), NetworkError> {
    let outcome = socket.commit(&[message(change, network)]);
    let attempted = format!("change the packet filter's set {OWN6} for the network {network}");
    match outcome.map_err(NetworkError::io(attempted.clone()))? {
        0 => Ok(()),
        code if change == Change::Remove && code == libc::ENOENT => Ok(()),
        code if change == Change::Add && code == libc::EEXIST => Ok(()),
        code => Err(NetworkError::io(attempted)(io::Error::from_raw_os_error(code))),
    }
}

fn message(change: Change, network: ipnet::Ipv6Net) -> Message {
    let (kind, flags) =
        if change == Change::Add { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
    let pair =
        |address: Ipv6Addr| attribute(DATA_VALUE, &[address.octets(), address.octets()].concat());
    let element = [
        attribute(ELEMENT_KEY, &pair(network.network())),
        attribute(ELEMENT_KEY_END, &pair(network.broadcast())),
    ]
    .concat();
    let body = [
        attribute(LIST_TABLE, &text(TABLE)),
        attribute(LIST_SET, &text(OWN6)),
        attribute(LIST_ELEMENTS, &attribute(LIST_ITEM, &element)),
    ]
    .concat();
    Message { kind, flags, body }
}
