//! Egress addresses of machines, as elements of maps: no rule is changed for one.
//!
//! ```text
//! machine4  machine : address                      all its ports
//! app4      machine : address . first . last port  a block of ports of the app's address
//! fixed4    machine                                has one of both: nothing of it leaves otherwise
//! busy4     machine . to . protocol . port         how many connections there are
//! ```
//! and the same with a 6. That a machine has an address is told twice, by a map and by `fixed`: who
//! flushes one of them does not make it leave under the host's address, as `masquerade` would.
//!
//! NAT finds no port where a machine has as many connections to one address and port as its block
//! has ports, and then the kernel drops the packet without a word. So these are refused before, and
//! told to the server.

use std::net::IpAddr;

use crate::{
    egress::{Assignment, Assignments},
    expression::{
        DROP, DYNAMIC, EQUAL, FORWARD, MAP, REGISTER, Set, chain, expression, family, from_link,
        inner_chain, is_new, jump, lookup, number, payload, protocol, reject, rule, verdict,
    },
    netlink::{Message, NESTED, attribute, text},
};

/// The types of nft.
const IPV4: (u32, u32) = (7, 4);
const IPV6: (u32, u32) = (8, 16);
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
/// Bits of each type in the number of a concatenation.
const TYPE_BITS: u32 = 6;

/// Destinations of all machines whose connections are counted at once.
const MOST_BUSY: u32 = 65_536;
/// Connections of a machine to one address and port over one protocol. A block has one port more,
/// but for the first, in which 0 is none.
const MOST_CONNECTIONS: u32 = 1023;

const LIMITING: &str = "limiting";
const EXHAUSTED: &str = "exhausted";
const FILTER: i32 = 0;

/// Refused connections that are told in a second; all are counted.
const TOLD_PER_SECOND: u64 = 50;

/// Those of one family.
#[derive(Debug)]
pub(super) struct EgressSets {
    family: i32,
    own: Set,
    shared: Set,
    fixed: Set,
    busy: Set,
    /// Where the source is in the header, and the destination.
    offsets: (u32, u32),
    /// The number of the first of its sets.
    id: u32,
}

const fn concatenation(first: u32, second: u32, third: u32) -> u32 {
    (first << (2 * TYPE_BITS)) | (second << TYPE_BITS) | third
}

const fn sets(address: (u32, u32), names: [&'static str; 4]) -> (Set, Set, Set, Set) {
    let block = (concatenation(address.0, SERVICE, SERVICE), address.1 + 8);
    let busy_type = (address.0 << (3 * TYPE_BITS)) | concatenation(address.0, PROTOCOL, SERVICE);
    let plain = Set { name: names[2], flags: 0, key: address, data: None, size: None };
    (
        Set { name: names[0], flags: MAP, data: Some(address), ..plain },
        Set { name: names[1], flags: MAP, data: Some(block), ..plain },
        plain,
        Set {
            name: names[3],
            flags: DYNAMIC,
            key: (busy_type, 2 * address.1 + 8),
            data: None,
            size: Some(MOST_BUSY),
        },
    )
}

const SETS4: (Set, Set, Set, Set) = sets(IPV4, ["machine4", "app4", "fixed4", "busy4"]);
const SETS6: (Set, Set, Set, Set) = sets(IPV6, ["machine6", "app6", "fixed6", "busy6"]);

impl EgressSets {
    pub(super) const V4: Self = Self {
        family: libc::AF_INET,
        own: SETS4.0,
        shared: SETS4.1,
        fixed: SETS4.2,
        busy: SETS4.3,
        offsets: (12, 16),
        id: 1,
    };
    pub(super) const V6: Self = Self {
        family: libc::AF_INET6,
        own: SETS6.0,
        shared: SETS6.1,
        fixed: SETS6.2,
        busy: SETS6.3,
        offsets: (8, 24),
        id: 5,
    };

    /// Makes the sets.
    pub(super) fn create(&self, table: &str) -> Vec<Message> {
        let sets = [&self.own, &self.shared, &self.fixed, &self.busy];
        let numbered = (self.id..).zip(sets);
        numbered.map(|(id, set)| set.create(table, id)).collect()
    }

    /// Registers of 4 bytes behind one with an address.
    fn behind_address(&self, place: u32) -> u32 {
        /// The first register of 4 bytes, which is also the first of 16.
        const FIRST: u32 = 8;
        FIRST + self.own.key.1 / 4 + place
    }

    fn source(&self) -> Vec<u8> {
        let (offset, length) = (self.offsets.0, self.own.key.1);
        [family(self.family), payload(REGISTER, 1, offset, length)].concat()
    }

    /// Rules that give packets the egress addresses of their machines, and drop those of machines
    /// that should have one.
    pub(super) fn translate(&self, table: &str, chain: &str) -> Vec<Message> {
        let to = |ports: &[Vec<u8>]| {
            // The type is that of source addresses.
            let address = [number(1, 0), number(2, self.family as u32), number(3, REGISTER)];
            expression("nat", &[&address[..], ports].concat())
        };
        let block = [number(5, self.behind_address(0)), number(6, self.behind_address(1))];
        [
            vec![self.source(), lookup(&self.own, REGISTER), to(&[])],
            vec![self.source(), lookup(&self.shared, REGISTER), to(&block)],
            vec![self.source(), lookup(&self.fixed, REGISTER), verdict(DROP)],
        ]
        .iter()
        .map(|expressions| rule(table, chain, expressions))
        .collect()
    }

    /// Goes on only with new connections that have a block of ports, and more of them to one place
    /// than that has ports.
    fn is_exhausted(&self, over: i32) -> Vec<u8> {
        let length = self.own.key.1;
        // What is looked up leaves its data in the register.
        let key = [
            payload(REGISTER, 1, self.offsets.0, length),
            payload(self.behind_address(0), 1, self.offsets.1, length),
            expression("meta", &[number(1, self.behind_address(length / 4)), number(2, 16)]),
            payload(self.behind_address(length / 4 + 1), 2, 2, 2),
        ];
        /// Matches more than the count.
        const OVER: u32 = 1;
        let count = [number(1, MOST_CONNECTIONS), number(2, OVER)].concat();
        let count = [attribute(1, &text("connlimit")), attribute(2 | NESTED, &count)].concat();
        // The operation is to add.
        let counted = expression(
            "dynset",
            &[
                attribute(1, &text(self.busy.name)),
                number(3, 0),
                number(4, REGISTER),
                attribute(7 | NESTED, &count),
            ],
        );
        [
            vec![protocol(EQUAL, over), self.source(), lookup(&self.shared, REGISTER)],
            key.to_vec(),
            vec![counted],
        ]
        .concat()
        .concat()
    }
}

/// Refuses connections for which there is no port, and tells of them.
pub(super) fn limit(table: &str, log_group: u16) -> Vec<Message> {
    let mut messages =
        vec![inner_chain(table, EXHAUSTED), chain(table, LIMITING, "filter", FORWARD, FILTER)];
    let per_second = expression(
        "limit",
        &[
            attribute(1, &TOLD_PER_SECOND.to_be_bytes()),
            attribute(2, &1_u64.to_be_bytes()),
            number(3, TOLD_PER_SECOND as u32),
        ],
    );
    /// Bytes of a packet that are told: its addresses.
    const TOLD: u32 = 40;
    let log = expression(
        "log",
        &[
            attribute(1, &log_group.to_be_bytes()),
            number(3, TOLD),
            attribute(4, &1_u16.to_be_bytes()),
        ],
    );
    messages.push(rule(table, EXHAUSTED, &[per_second, log]));
    messages.push(rule(table, EXHAUSTED, &[expression("counter", &[]), reject()]));
    for sets in [EgressSets::V4, EgressSets::V6] {
        for over in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            let expressions =
                [from_link(EQUAL, table), is_new(), sets.is_exhausted(over), jump(EXHAUSTED)];
            messages.push(rule(table, LIMITING, &expressions));
        }
    }
    messages
}

/// What leads from the elements of some assignments to those of others.
pub(super) fn changes(table: &str, before: &Assignments, after: &Assignments) -> Vec<Message> {
    let without = |these: &Assignments, others: &Assignments| -> Vec<Assignment> {
        these.iter().filter(|assignment| !others.contains(assignment)).cloned().collect()
    };
    let mut messages = Vec::new();
    for (add, changed) in [(false, without(before, after)), (true, without(after, before))] {
        for sets in [EgressSets::V4, EgressSets::V6] {
            let of_family: Vec<_> = changed
                .iter()
                .filter(|assignment| assignment.machine.is_ipv4() == (sets.id == 1))
                .collect();
            let (shared, own): (Vec<&Assignment>, Vec<_>) =
                of_family.iter().partition(|assignment| assignment.ports.is_some());
            for (set, assignments) in [(&sets.own, &own), (&sets.shared, &shared)] {
                let elements: Vec<_> = assignments.iter().map(|one| element(one)).collect();
                messages.extend(set.change(table, add, &elements));
            }
            let fixed: Vec<_> = of_family.iter().map(|one| element(one)).collect();
            messages.extend(sets.fixed.change(table, add, &fixed));
        }
    }
    messages
}

fn element(assignment: &Assignment) -> (Vec<u8>, Vec<u8>) {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut value = octets(assignment.address);
    if let Some((first, last)) = assignment.ports {
        // Each part is as long as a register.
        for port in [first, last] {
            value.extend(port.to_be_bytes());
            value.extend([0, 0]);
        }
    }
    (octets(assignment.machine), value)
}
