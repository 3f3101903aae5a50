//! The host's part of the packet filter: a table of each installation, which lets what machines
//! send to the outside pass the host, and masquerades it. Everything else is refused in the
//! installation's own namespace before.
//!
//! It is written over netlink, in one transaction that takes a fraction of a millisecond: another
//! program may take it away at any time, and then it has to be back at once.
//!
//! ```text
//! marking  prerouting, after destination NAT  iif LINK: what may leave is marked
//! leaving  postrouting                        iif LINK: masquerade
//! ```
//! The routing rules (see `rules.rs`) let nothing in from the link that has no mark. So without
//! this table nothing passes, and nothing leaves under an address of a machine.

use std::{io, net::IpAddr};

use ipnet::IpNet;

use crate::{
    HOST_V4, HOST_V6, NetworkError,
    filter::denied,
    netlink::{APPEND, CREATE, LIST_ITEM, Message, NESTED, Socket, attribute, text},
};

/// The bit that says that a packet may pass.
pub(crate) const MARK: u32 = 0x1000;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const PREROUTING: u32 = 0;
const POSTROUTING: u32 = 4;
/// After destination NAT (-100): what counts is where a packet really goes.
const AFTER_DNAT: i32 = -90;
const SOURCE_NAT: i32 = 100;

const MARKING: &str = "marking";
const LEAVING: &str = "leaving";

/// Register for verdicts, and one for data.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// Loads the table of a link, in the place of what is there. Blocks.
pub(crate) fn load(socket: &mut Socket, link: &str, allowed: &[IpNet]) -> Result<(), NetworkError> {
    commit(socket, &table(link, allowed), format!("load the host's table {link}"))
}

/// Removes it; succeeds when it isn't there. Blocks.
pub(crate) fn unload(socket: &mut Socket, table: &str) -> Result<(), NetworkError> {
    commit(socket, &removal(table), format!("remove the host's table {table}"))
}

/// Whether there is such a table. Blocks.
pub(crate) fn is_loaded(table: &str) -> Result<bool, NetworkError> {
    let failed = || NetworkError::io(format!("look for the host's table {table}"));
    let mut socket = Socket::open().map_err(failed())?;
    socket.has_table(&text(table)).map_err(failed())
}

fn commit(
    socket: &mut Socket,
    messages: &[Message],
    attempted: String,
) -> Result<(), NetworkError> {
    match socket.commit(messages).map_err(NetworkError::io(attempted.clone()))? {
        0 => Ok(()),
        code => Err(NetworkError::io(attempted)(io::Error::from_raw_os_error(code))),
    }
}

/// What is added first can be removed in any case.
fn removal(table: &str) -> Vec<Message> {
    let name = attribute(1, &text(table));
    vec![
        Message { kind: NEW_TABLE, flags: CREATE, body: name.clone() },
        Message { kind: DELETE_TABLE, flags: 0, body: name },
    ]
}

fn table(link: &str, allowed: &[IpNet]) -> Vec<Message> {
    let mut messages = removal(link);
    messages.push(Message { kind: NEW_TABLE, flags: CREATE, body: attribute(1, &text(link)) });
    messages.push(chain(link, MARKING, "filter", PREROUTING, AFTER_DNAT));
    messages.push(chain(link, LEAVING, "nat", POSTROUTING, SOURCE_NAT));
    let mut mark =
        |expressions: &[Vec<u8>]| messages.push(rule(link, MARKING, &expressions.concat()));
    mark(&[meta(META_IIFNAME), compare(NOT_EQUAL, &name(link)), verdict(ACCEPT)]);
    for host in [IpAddr::from(HOST_V4), HOST_V6.into()] {
        // Answers to the host itself, which the namespace lets out and nothing else to this
        // address.
        mark(&[destination(IpNet::from(host)), verdict(ACCEPT)]);
    }
    for network in allowed {
        mark(&[destination(*network), set_mark(), verdict(ACCEPT)]);
    }
    for network in denied() {
        mark(&[destination(network), verdict(DROP)]);
    }
    mark(&[set_mark()]);
    let leaving =
        [meta(META_IIFNAME), compare(EQUAL, &name(link)), expression("masq", &[])].concat();
    messages.push(rule(link, LEAVING, &leaving));
    messages
}

fn chain(table: &str, chain: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let hook = [attribute(1, &hook.to_be_bytes()), attribute(2, &priority.to_be_bytes())].concat();
    let body = [
        attribute(1, &text(table)),
        attribute(3, &text(chain)),
        attribute(4 | NESTED, &hook),
        attribute(7, &text(kind)),
    ];
    Message { kind: NEW_CHAIN, flags: CREATE, body: body.concat() }
}

fn rule(table: &str, chain: &str, expressions: &[u8]) -> Message {
    let body = [
        attribute(1, &text(table)),
        attribute(2, &text(chain)),
        attribute(4 | NESTED, expressions),
    ];
    Message { kind: NEW_RULE, flags: CREATE | APPEND, body: body.concat() }
}

fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [attribute(1, &text(name)), attribute(2 | NESTED, &attributes.concat())];
    attribute(LIST_ITEM, &body.concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn data(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, &attribute(1, value))
}

/// The name of an interface, as long as the kernel compares it.
fn name(link: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(link.bytes()) {
        *to = from;
    }
    name
}

/// Loads something that is known of a packet.
fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

fn compare(how: u32, value: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, REGISTER), number(2, how), data(3, value)])
}

fn verdict(code: u32) -> Vec<u8> {
    let verdict = attribute(2 | NESTED, &number(1, code));
    expression("immediate", &[number(1, VERDICT), attribute(2 | NESTED, &verdict)])
}

/// `register & mask ^ bits`.
fn bitwise(mask: &[u8], bits: &[u8]) -> Vec<u8> {
    let length = mask.len() as u32;
    expression(
        "bitwise",
        &[
            number(1, REGISTER),
            number(2, REGISTER),
            number(3, length),
            data(4, mask),
            data(5, bits),
        ],
    )
}

fn set_mark() -> Vec<u8> {
    let set = expression("meta", &[number(3, REGISTER), number(2, META_MARK)]);
    [meta(META_MARK), bitwise(&(!MARK).to_ne_bytes(), &MARK.to_ne_bytes()), set].concat()
}

/// Goes on only with packets to that network.
fn destination(network: IpNet) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (protocol, offset) = match network {
        IpNet::V4(_) => (libc::AF_INET, 16),
        IpNet::V6(_) => (libc::AF_INET6, 24),
    };
    let (address, mask) = (octets(network.network()), octets(network.netmask()));
    let length = address.len() as u32;
    // Base 1 is the header of the network layer.
    let load = expression(
        "payload",
        &[number(1, REGISTER), number(2, 1), number(3, offset), number(4, length)],
    );
    // The numbers of NFPROTO are those of AF.
    let protocol = [protocol as u8];
    [
        meta(META_NFPROTO),
        compare(EQUAL, &protocol),
        load,
        bitwise(&mask, &vec![0; mask.len()]),
        compare(EQUAL, &address),
    ]
    .concat()
}
