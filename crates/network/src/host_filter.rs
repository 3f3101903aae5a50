//! The host's part of the packet filter: a table of each installation, which lets what machines
//! send to the outside pass the host, and gives it an address of the outside. Everything else is
//! refused in the installation's own namespace before.
//!
//! It is written over netlink, in one transaction that takes a fraction of a millisecond: another
//! program may take it away at any time, and then it has to be back at once.
//!
//! ```text
//! marking   prerouting, after destination NAT  iif LINK: what may leave is marked
//! limiting  forward                            iif LINK: see `egress.rs`
//! sizing    forward                            iif or oif LINK: TCP segments fit through
//! arriving  input                              to an egress address: refused but for ICMP
//! leaving   postrouting                        iif LINK: to the machine's egress address if it has
//!                                              one, else masquerade
//! ```
//! The routing rules (see `rules.rs`) let nothing in from the link that has no mark. So without
//! this table nothing passes. What has its mark and meets no table at its end any more is dropped
//! by `untranslated.rs`, so that nothing leaves under an address of a machine.

mod egress;
pub(crate) mod untranslated;

use std::{io, net::IpAddr};

use ipnet::IpNet;

use self::egress::EgressSets;
use crate::{
    HOST_V4, HOST_V6, NetworkError,
    egress::Assignments,
    expression::{
        ACCEPT, DROP, EQUAL, FORWARD, INPUT, NOT_EQUAL, POSTROUTING, PREROUTING, chain,
        clamp_segments, destination, expression, from_link, is_of_none, protocol, reject, rule,
        set_mark, to_link, verdict,
    },
    filter::denied,
    netlink::{CREATE, Message, Socket, attribute, text},
};

/// The bit that says that a packet may pass.
pub(crate) const MARK: u32 = 0x1000;

const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;

/// After destination NAT (-100): what counts is where a packet really goes.
const AFTER_DNAT: i32 = -90;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

const MARKING: &str = "marking";
const SIZING: &str = "sizing";
const ARRIVING: &str = "arriving";
const LEAVING: &str = "leaving";

/// What is in the table of an installation.
#[derive(Debug, Clone)]
pub(crate) struct Content<'a> {
    /// Its link, by whose name the table goes.
    pub(crate) link: &'a str,
    /// Private ranges that machines may reach all the same.
    pub(crate) allowed: &'a [IpNet],
    /// Egress addresses that machines may have.
    pub(crate) pools: &'a [IpNet],
    /// Those that they have.
    pub(crate) egress: &'a Assignments,
    /// Where connections are told that find no free port.
    pub(crate) log_group: u16,
}

/// Loads the table, in the place of what is there. Blocks.
pub(crate) fn load(socket: &mut Socket, content: &Content<'_>) -> Result<(), NetworkError> {
    commit(socket, &table(content), format!("load the host's table {}", content.link))
}

/// Changes who has which egress address, in one transaction. Fails where another program has
/// changed the table. Blocks.
pub(crate) fn change_egress(
    socket: &mut Socket,
    link: &str,
    (before, after): (&Assignments, &Assignments),
) -> Result<(), NetworkError> {
    let messages = egress::changes(link, before, after);
    if messages.is_empty() {
        return Ok(());
    }
    commit(socket, &messages, format!("change the egress addresses in the host's table {link}"))
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

fn table(content: &Content<'_>) -> Vec<Message> {
    let link = content.link;
    let mut messages = removal(link);
    messages.push(Message { kind: NEW_TABLE, flags: CREATE, body: attribute(1, &text(link)) });
    messages.push(chain(link, MARKING, "filter", PREROUTING, AFTER_DNAT));
    messages.push(chain(link, SIZING, "filter", FORWARD, FILTER));
    messages.push(chain(link, ARRIVING, "filter", INPUT, FILTER));
    messages.push(chain(link, LEAVING, "nat", POSTROUTING, SOURCE_NAT));
    messages.extend(EgressSets::V4.create(link).into_iter().chain(EgressSets::V6.create(link)));
    messages.extend(egress::changes(link, &Assignments::default(), content.egress));
    mark(content, &mut messages);
    messages.extend(egress::limit(link, content.log_group));
    for way in [from_link(EQUAL, link), to_link(link)] {
        messages.push(rule(link, SIZING, &[way, clamp_segments()]));
    }
    for pool in content.pools {
        for kind in [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            let is_icmp = [destination(*pool), protocol(EQUAL, kind), verdict(ACCEPT)];
            messages.push(rule(link, ARRIVING, &is_icmp));
        }
        messages.push(rule(link, ARRIVING, &[destination(*pool), reject()]));
    }
    messages.push(rule(link, LEAVING, &[from_link(NOT_EQUAL, link), verdict(ACCEPT)]));
    for sets in [EgressSets::V4, EgressSets::V6] {
        messages.extend(sets.translate(link, LEAVING));
    }
    messages.push(rule(link, LEAVING, &[expression("masq", &[])]));
    messages
}

/// The rules that mark what may leave.
fn mark(content: &Content<'_>, messages: &mut Vec<Message>) {
    let link = content.link;
    let mut mark = |expressions: &[Vec<u8>]| messages.push(rule(link, MARKING, expressions));
    mark(&[from_link(NOT_EQUAL, link), verdict(ACCEPT)]);
    for host in [IpAddr::from(HOST_V4), HOST_V6.into()] {
        // Answers to the host itself, which the namespace lets out and nothing else to this
        // address.
        mark(&[destination(IpNet::from(host)), verdict(ACCEPT)]);
    }
    // Its source would not be translated.
    mark(&[is_of_none(), verdict(DROP)]);
    for network in content.allowed {
        mark(&[destination(*network), set_mark(MARK), verdict(ACCEPT)]);
    }
    for network in denied() {
        mark(&[destination(network), verdict(DROP)]);
    }
    mark(&[set_mark(MARK)]);
}
