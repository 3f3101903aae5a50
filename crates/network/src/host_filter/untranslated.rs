//! The last look at what leaves: a packet that has the address of a machine as source is dropped.
//!
//! A packet that the host's table has marked may come to its end in the moment in which another
//! program removes that table, or the chain in it that translates: then it would leave under the
//! machine's own address, and all of its connection after it. So this is a table of its own, which
//! the kernel lets nobody remove, flush or change but the socket that has made it, and which is
//! gone with that socket. Another server's stays beside it for as long as that server runs.
//!
//! ```text
//! leaving   postrouting, after source NAT   iif LINK: dropped from the addresses of machines
//! ```

use ipnet::IpNet;
use tracing::warn;

use super::{NEW_TABLE, commit};
use crate::{
    NetworkError,
    expression::{ACCEPT, DROP, NOT_EQUAL, POSTROUTING, chain, from_link, rule, source, verdict},
    netlink::{CREATE, Message, Socket, attribute, text},
};

/// `NFT_TABLE_F_OWNER`, of Linux 5.12.
const OWNER: u32 = 2;

const CHAIN: &str = "leaving";
const AFTER_SOURCE_NAT: i32 = 110;

/// Refuses it as long as what is returned is there; `None` where the kernel can't. Blocks.
pub(crate) fn refuse(link: &str, sources: &[IpNet]) -> Option<Socket> {
    let made = make(link, sources);
    made.inspect_err(|error| {
        warn!(%error, "this kernel has no table that belongs to a program: when another one \
            removes Caddis's, a packet may leave under a machine's private address");
    })
    .ok()
}

fn make(link: &str, sources: &[IpNet]) -> Result<Socket, NetworkError> {
    let attempted = format!("make the host's table of untranslated packets of {link}");
    let mut socket = Socket::open().map_err(NetworkError::io(attempted.clone()))?;
    let table = format!("{link}-untranslated-{}", socket.port());
    let body = [attribute(1, &text(&table)), attribute(2, &OWNER.to_be_bytes())].concat();
    let mut messages = vec![
        Message { kind: NEW_TABLE, flags: CREATE, body },
        chain(&table, CHAIN, "filter", POSTROUTING, AFTER_SOURCE_NAT),
        rule(&table, CHAIN, &[from_link(NOT_EQUAL, link), verdict(ACCEPT)]),
    ];
    for of_machines in sources {
        messages.push(rule(&table, CHAIN, &[source(*of_machines), verdict(DROP)]));
    }
    commit(&mut socket, &messages, attempted)?;
    Ok(socket)
}
