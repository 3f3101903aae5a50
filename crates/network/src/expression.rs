//! Chains, rules, sets and the expressions of rules, as messages of nf_tables.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{APPEND, CREATE, LIST_ITEM, Message, NESTED, attribute, text};

const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const POSTROUTING: u32 = 4;

/// Register for verdicts.
const VERDICT: u32 = 0;
/// The first register for data, 16 bytes.
pub(crate) const REGISTER: u32 = 1;
pub(crate) const META_MARK: u32 = 3;
pub(crate) const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
pub(crate) const META_NFPROTO: u32 = 15;
pub(crate) const META_L4PROTO: u32 = 16;
pub(crate) const EQUAL: u32 = 0;
pub(crate) const NOT_EQUAL: u32 = 1;
pub(crate) const DROP: i32 = 0;
pub(crate) const ACCEPT: i32 = 1;
const JUMP: i32 = -3;

/// A set of keys, or a map where it has data. Types are those by which nft shows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) flags: u32,
    /// Type and bytes.
    pub(crate) key: (u32, u32),
    pub(crate) data: Option<(u32, u32)>,
    /// Most elements, where rules add them.
    pub(crate) size: Option<u32>,
}

/// Elements of a map.
pub(crate) const MAP: u32 = 0x08;
/// Elements are added by rules.
pub(crate) const DYNAMIC: u32 = 0x20;

/// Elements in one message: what holds them has a length of 16 bits.
const ELEMENTS: usize = 400;

impl Set {
    /// Makes it in a table. `number` is another one for each set of a transaction.
    pub(crate) fn create(&self, table: &str, id: u32) -> Message {
        let mut body = [
            attribute(1, &text(table)),
            attribute(2, &text(self.name)),
            number(3, self.flags),
            number(4, self.key.0),
            number(5, self.key.1),
        ]
        .concat();
        if let Some((kind, length)) = self.data {
            body.extend([number(6, kind), number(7, length)].concat());
        }
        if let Some(size) = self.size {
            body.extend(attribute(9 | NESTED, &number(1, size)));
        }
        body.extend(number(10, id));
        Message { kind: NEW_SET, flags: CREATE, body }
    }

    /// Adds or removes elements, each a key with what it leads to.
    pub(crate) fn change(
        &self,
        table: &str,
        add: bool,
        elements: &[(Vec<u8>, Vec<u8>)],
    ) -> Vec<Message> {
        let element = |(key, value): &(Vec<u8>, Vec<u8>)| {
            let mut element = data(1, key);
            if self.data.is_some() {
                element.extend(data(2, value));
            }
            attribute(LIST_ITEM, &element)
        };
        let message = |elements: &[(Vec<u8>, Vec<u8>)]| {
            let list: Vec<u8> = elements.iter().flat_map(element).collect();
            let body = [
                attribute(1, &text(table)),
                attribute(2, &text(self.name)),
                attribute(3 | NESTED, &list),
            ];
            let (kind, flags) = if add { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
            Message { kind, flags, body: body.concat() }
        };
        elements.chunks(ELEMENTS).map(message).collect()
    }
}

/// A chain that packets come to at a hook.
pub(crate) fn chain(table: &str, chain: &str, kind: &str, hook: u32, priority: i32) -> Message {
    let hook = [attribute(1, &hook.to_be_bytes()), attribute(2, &priority.to_be_bytes())].concat();
    let body = [
        attribute(1, &text(table)),
        attribute(3, &text(chain)),
        attribute(4 | NESTED, &hook),
        attribute(7, &text(kind)),
    ];
    Message { kind: NEW_CHAIN, flags: CREATE, body: body.concat() }
}

/// A chain that rules jump to.
pub(crate) fn inner_chain(table: &str, chain: &str) -> Message {
    let body = [attribute(1, &text(table)), attribute(3, &text(chain))].concat();
    Message { kind: NEW_CHAIN, flags: CREATE, body }
}

pub(crate) fn rule(table: &str, chain: &str, expressions: &[Vec<u8>]) -> Message {
    let body = [
        attribute(1, &text(table)),
        attribute(2, &text(chain)),
        attribute(4 | NESTED, &expressions.concat()),
    ];
    Message { kind: NEW_RULE, flags: CREATE | APPEND, body: body.concat() }
}

pub(crate) fn expression(name: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = [attribute(1, &text(name)), attribute(2 | NESTED, &attributes.concat())];
    attribute(LIST_ITEM, &body.concat())
}

pub(crate) fn number(kind: u16, value: u32) -> Vec<u8> {
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
pub(crate) fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

pub(crate) fn compare(how: u32, value: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, REGISTER), number(2, how), data(3, value)])
}

/// Goes on only with packets that come in over a link, or with all others.
pub(crate) fn from_link(how: u32, link: &str) -> Vec<u8> {
    [meta(META_IIFNAME), compare(how, &name(link))].concat()
}

/// Goes on only with packets that go out over a link.
pub(crate) fn to_link(link: &str) -> Vec<u8> {
    [meta(META_OIFNAME), compare(EQUAL, &name(link))].concat()
}

/// Goes on only with packets of a family, of which `NFPROTO` has the number of `AF`.
pub(crate) fn family(family: i32) -> Vec<u8> {
    [meta(META_NFPROTO), compare(EQUAL, &[family as u8])].concat()
}

/// Goes on only with packets of a protocol of the transport layer.
pub(crate) fn protocol(how: u32, protocol: i32) -> Vec<u8> {
    [meta(META_L4PROTO), compare(how, &[protocol as u8])].concat()
}

pub(crate) fn verdict(code: i32) -> Vec<u8> {
    immediate(&attribute(1, &code.to_be_bytes()))
}

/// Goes through a chain, and on here if that says nothing.
pub(crate) fn jump(chain: &str) -> Vec<u8> {
    immediate(&[attribute(1, &JUMP.to_be_bytes()), attribute(2, &text(chain))].concat())
}

fn immediate(verdict: &[u8]) -> Vec<u8> {
    let verdict = attribute(2 | NESTED, verdict);
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

/// Sets a bit of the mark.
pub(crate) fn set_mark(bit: u32) -> Vec<u8> {
    let set = expression("meta", &[number(3, REGISTER), number(2, META_MARK)]);
    [meta(META_MARK), bitwise(&(!bit).to_ne_bytes(), &bit.to_ne_bytes()), set].concat()
}

/// Goes on only with packets of connections that are new.
pub(crate) fn is_new() -> Vec<u8> {
    state(NEW, NOT_EQUAL)
}

/// Goes on only with packets that belong to no connection, as those of TCP out of its order.
pub(crate) fn is_of_none() -> Vec<u8> {
    state(NEW | ESTABLISHED | RELATED, EQUAL)
}

/// `NF_CT_STATE_BIT` of what the kernel knows of a packet.
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;

fn state(bits: u32, how: u32) -> Vec<u8> {
    let load = expression("ct", &[number(1, REGISTER), number(2, 0)]);
    let zero = 0_u32.to_ne_bytes();
    [load, bitwise(&bits.to_ne_bytes(), &zero), compare(how, &zero)].concat()
}

/// Loads bytes of a header: 1 is that of the network layer, 2 that of the transport layer.
pub(crate) fn payload(register: u32, header: u32, offset: u32, length: u32) -> Vec<u8> {
    let attributes = [number(1, register), number(2, header), number(3, offset), number(4, length)];
    expression("payload", &attributes)
}

/// Has both ends of a connection over TCP send no larger segments than fit through the smaller of
/// the ways to them, where they would. For packets that open a connection.
pub(crate) fn clamp_segments() -> Vec<u8> {
    /// Flags of TCP: where they are, `SYN`, and those of which it is the only one.
    const FLAGS: u32 = 13;
    const SYN: u8 = 2;
    const SYN_RST: u8 = 6;
    /// What the kernel knows of the ways: `NFT_RT_TCPMSS`.
    const LARGEST_SEGMENT: u32 = 3;
    const TO_NETWORK_ORDER: u32 = 1;
    /// The option of TCP, where its value is, and its length; `NFT_EXTHDR_OP_TCPOPT`.
    const OPTION: u8 = 2;
    const OFFSET: u32 = 2;
    const LENGTH: u32 = 2;
    const OF_TCP: u32 = 1;
    [
        protocol(EQUAL, libc::IPPROTO_TCP),
        payload(REGISTER, 2, FLAGS, 1),
        bitwise(&[SYN_RST], &[0]),
        compare(EQUAL, &[SYN]),
        expression("rt", &[number(1, REGISTER), number(2, LARGEST_SEGMENT)]),
        expression(
            "byteorder",
            &[
                number(1, REGISTER),
                number(2, REGISTER),
                number(3, TO_NETWORK_ORDER),
                number(4, LENGTH),
                number(5, LENGTH),
            ],
        ),
        expression(
            "exthdr",
            &[
                attribute(2, &[OPTION]),
                number(3, OFFSET),
                number(4, LENGTH),
                number(6, OF_TCP),
                number(7, REGISTER),
            ],
        ),
    ]
    .concat()
}

/// Goes on only with packets to that network.
pub(crate) fn destination(network: IpNet) -> Vec<u8> {
    is_within(network, if network.addr().is_ipv4() { 16 } else { 24 })
}

/// Goes on only with packets from that network.
pub(crate) fn source(network: IpNet) -> Vec<u8> {
    is_within(network, if network.addr().is_ipv4() { 12 } else { 8 })
}

/// The same of the address that begins there in the header.
fn is_within(network: IpNet, offset: u32) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let of = if network.addr().is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let (address, mask) = (octets(network.network()), octets(network.netmask()));
    let length = address.len() as u32;
    let load = payload(REGISTER, 1, offset, length);
    let masked = bitwise(&mask, &vec![0; mask.len()]);
    [family(of), load, masked, compare(EQUAL, &address)].concat()
}

/// Goes on only with what is in a set, whose data then is in a register.
pub(crate) fn lookup(set: &Set, register: u32) -> Vec<u8> {
    let mut attributes = vec![attribute(1, &text(set.name)), number(2, register)];
    if set.data.is_some() {
        attributes.push(number(3, register));
    }
    expression("lookup", &attributes)
}

/// Answers with ICMP: administratively prohibited.
pub(crate) fn reject() -> Vec<u8> {
    /// Of either family.
    const ICMPX: u32 = 2;
    const PROHIBITED: u8 = 3;
    expression("reject", &[number(1, ICMPX), attribute(2, &[PROHIBITED])])
}
