//! Watches over what an installation has on its host, and puts it back when another program takes
//! it away, as a firewall does that reloads. Until it is back nothing passes: see `rules.rs`.
//!
//! A thread of its own: it sleeps until the kernel tells of a change, and then nothing else holds
//! it up.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt::RcvBufForce,
    },
};
use tokio::sync::watch;
use tracing::{error, warn};

use crate::{
    NetworkError,
    host::HostSide,
    netlink::{NFNL_SUBSYS_NFTABLES, find_attribute, messages},
};

/// What others have done to the network of the machines since the server was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disturbances {
    /// How often something was gone and was put back.
    pub count: u64,
    /// What it was the last time.
    pub what: String,
    /// When that was; none before the first.
    pub last: Option<SystemTime>,
    /// Why it can't be put back, while that is so.
    pub problem: Option<String>,
}

/// Groups of notifications, as bits: links, addresses, routes, rules and settings of both families.
const ROUTING: u32 = group(1)
    | group(5)
    | group(9)
    | group(7)
    | group(11)
    | group(8)
    | group(19)
    | group(24)
    | group(25);
/// `NFNLGRP_NFTABLES`.
const NFTABLES: u32 = group(7);

const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const DELETE_RULE: u16 = 33;
const NEW_SETTING: u16 = 80;
/// Attribute of a route: the link it leads to.
const ROUTE_LINK: u16 = 4;

/// Room for notifications that were not read yet, bytes: also of our own, when a table is loaded
/// with the egress addresses of many machines.
const BUFFER: usize = 16 << 20;
/// Wait until the next try after one that failed, milliseconds.
const AGAIN: u8 = 200;
/// At most one line of the log in so long.
const SAID: Duration = Duration::from_secs(10);

/// The packet filter was changed.
pub(crate) const FILTER: &str = "packet filter";

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Guard {
    _alive: OwnedFd,
    told: watch::Receiver<Disturbances>,
}

/// Subscriptions to what happens from now on.
pub(crate) struct Subscriptions {
    filter: OwnedFd,
    routing: OwnedFd,
}

/// What is to be looked at.
#[derive(Debug, Default, Clone, Copy)]
struct Dirty {
    filter: Option<Change>,
    rest: bool,
}

/// What has become of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// There was more news than was kept for us.
    Unknown,
    Changed,
}

impl Subscriptions {
    pub(crate) fn open() -> Result<Self, NetworkError> {
        let open = |protocol, groups| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let descriptor: OwnedFd =
                socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            // Where it is not granted, more is looked at than would be needed.
            let _ = setsockopt(&descriptor, RcvBufForce, &BUFFER);
            bind(descriptor.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            io::Result::Ok(descriptor)
        };
        let failed = || NetworkError::io("subscribe to changes of the host's network");
        Ok(Self {
            filter: open(SockProtocol::NetlinkNetFilter, NFTABLES).map_err(failed())?,
            routing: open(SockProtocol::NetlinkRoute, ROUTING).map_err(failed())?,
        })
    }

    /// Waits until something may have been taken away, or where a try `failed`, until it is time
    /// for the next. None when it is over.
    fn next(&self, side: &HostSide, end: &OwnedFd, failed: bool) -> Option<Dirty> {
        let sources = [end, &self.filter, &self.routing];
        let mut events = sources.map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN));
        // What is done in a try is news itself, and no reason for another at once.
        let (awaited, timeout) =
            if failed { (1, AGAIN.into()) } else { (sources.len(), PollTimeout::NONE) };
        // Interrupted, there is nothing to read.
        let _ = poll(events.get_mut(..awaited)?, timeout);
        if events.first().and_then(PollFd::revents).is_some_and(|events| !events.is_empty()) {
            return None;
        }
        let table = side.installation.link();
        let (own, index) = (side.filter_port(), side.index());
        let answers = !side.egress_v6().is_empty();
        Some(Dirty {
            filter: drain(&self.filter, |kind, port, body| {
                port != own && concerns_table(kind, body, &table)
            }),
            rest: drain(&self.routing, |kind, _, body| {
                concerns_link(kind, body, index) || (answers && concerns_answers(kind))
            })
            .is_some(),
        })
    }
}

/// Reads all there is, and finds what of it concerns us.
fn drain(socket: &OwnedFd, mut concerns: impl FnMut(u16, u32, &[u8]) -> bool) -> Option<Change> {
    let mut buffer = [0; 16 << 10];
    let mut found = None;
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                for (header, body) in messages(buffer.get(..length).unwrap_or_default()) {
                    found = found
                        .max(concerns(header.kind, header.port, body).then_some(Change::Changed));
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ENOBUFS) => found = found.max(Some(Change::Unknown)),
            Err(_) => return found,
        }
    }
}

/// Every object of nf_tables tells its table in its first attribute.
fn concerns_table(kind: u16, body: &[u8], table: &str) -> bool {
    let name = body.get(4..).and_then(|attributes| find_attribute(attributes, 1));
    kind >> 8 == NFNL_SUBSYS_NFTABLES
        && name.and_then(|name| name.strip_suffix(b"\0")) == Some(table.as_bytes())
}

fn concerns_link(kind: u16, body: &[u8], index: u32) -> bool {
    let number = |bytes: Option<&[u8]>| {
        bytes.and_then(|bytes| Some(u32::from_ne_bytes(*bytes.first_chunk()?)))
    };
    match kind {
        NEW_LINK | DELETE_LINK | DELETE_ADDRESS => number(body.get(4..)) == Some(index),
        DELETE_ROUTE => body.get(12..).is_some_and(|attributes| {
            number(find_attribute(attributes, ROUTE_LINK)) == Some(index)
        }),
        DELETE_RULE | NEW_SETTING => true,
        _ => false,
    }
}

/// A link that was down answers for nobody any more, and one that is new does not yet.
fn concerns_answers(kind: u16) -> bool {
    matches!(kind, NEW_LINK | DELETE_LINK | NEW_ROUTE | DELETE_ROUTE)
}

impl Guard {
    /// Begins to watch. To be called in the context of a runtime.
    pub(crate) fn start(
        side: Arc<HostSide>,
        subscriptions: Subscriptions,
    ) -> Result<Self, NetworkError> {
        let failed = || NetworkError::io("monitor the host's network");
        let (end, alive) = io::pipe().map_err(failed())?;
        let (told, receiver) = watch::channel(Disturbances::default());
        let runtime = tokio::runtime::Handle::current();
        let body = move || watch_over(&side, &subscriptions, &end.into(), &runtime, &told);
        thread::Builder::new().name("network-guard".to_owned()).spawn(body).map_err(failed())?;
        Ok(Self { _alive: alive.into(), told: receiver })
    }

    pub(crate) fn told(&self) -> watch::Receiver<Disturbances> {
        self.told.clone()
    }
}

/// Loads the host's table again; whether it had been taken away or changed, as far as is known.
fn mend_filter(side: &HostSide, change: Change) -> Result<bool, NetworkError> {
    let disturbed = change == Change::Changed || !side.has_filter()?;
    side.load_filter()?;
    Ok(disturbed)
}

fn watch_over(
    side: &HostSide,
    subscriptions: &Subscriptions,
    end: &OwnedFd,
    runtime: &tokio::runtime::Handle,
    told: &watch::Sender<Disturbances>,
) {
    let mut left = Dirty::default();
    let mut said: Option<Instant> = None;
    let mut unsaid = 0_u64;
    loop {
        let failed = left.filter.is_some() || left.rest;
        let Some(news) = subscriptions.next(side, end, failed) else { return };
        let dirty = Dirty { filter: news.filter.max(left.filter), rest: news.rest || left.rest };
        left = Dirty::default();
        let mut missing = BTreeSet::new();
        let mut problem = None;
        if let Some(change) = dirty.filter {
            match mend_filter(side, change) {
                Ok(true) => _ = missing.insert(FILTER),
                Ok(false) => {}
                Err(error) => {
                    left.filter = Some(change);
                    problem = Some(error.to_string());
                }
            }
        }
        if dirty.rest {
            match runtime.block_on(side.ensure()) {
                Ok(found) => missing.extend(found),
                Err(error) => {
                    left.rest = true;
                    problem = Some(error.to_string());
                }
            }
        }
        if let Some(error) = &problem
            && !failed
        {
            error!(%error, "the network of machines was damaged and can't be restored yet: \
                            machines can't reach other networks");
        }
        if missing.is_empty() && problem.is_none() && !failed {
            continue;
        }
        let what = missing.into_iter().collect::<Vec<_>>().join(", ");
        let mut count = 0;
        told.send_modify(|told| {
            if !what.is_empty() {
                told.count += 1;
                told.what.clone_from(&what);
                told.last = Some(SystemTime::now());
            }
            told.problem.clone_from(&problem);
            count = told.count;
        });
        if what.is_empty() {
            continue;
        }
        unsaid += 1;
        if said.is_none_or(|at| at.elapsed() >= SAID) {
            warn!(
                what,
                times = unsaid,
                "another program removed part of the machines' network from this host, restored it"
            );
            (said, unsaid) = (Some(Instant::now()), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        netlink::{attribute, text},
        tests::{Place, on_a_host, run},
    };

    #[test]
    fn only_what_is_taken_from_our_own_table_and_link_is_of_interest() {
        let object = |table: &str| [vec![1, 0, 0, 0], attribute(1, &text(table))].concat();
        let (delete_table, new_generation) =
            (NFNL_SUBSYS_NFTABLES << 8 | 2, NFNL_SUBSYS_NFTABLES << 8 | 15);
        assert!(concerns_table(delete_table, &object("caddis-0"), "caddis-0"));
        assert!(!concerns_table(delete_table, &object("caddis-01"), "caddis-0"));
        assert!(!concerns_table(new_generation, &[1, 0, 0, 0, 8, 0, 1, 0, 0, 0, 0, 9], "caddis-0"));
        assert!(!concerns_table(delete_table, &[], "caddis-0"));

        let route = |link: u32| [vec![0; 12], attribute(ROUTE_LINK, &link.to_ne_bytes())].concat();
        assert!(
            concerns_link(DELETE_ROUTE, &route(7), 7) && !concerns_link(DELETE_ROUTE, &route(8), 7)
        );
        assert!(concerns_link(DELETE_LINK, &[0, 0, 1, 0, 7, 0, 0, 0], 7));
        assert!(concerns_link(DELETE_RULE, &[], 7) && !concerns_link(24, &route(7), 7));
    }

    #[test]
    fn a_flood_of_news_is_no_removal_unless_the_table_is_gone() {
        on_a_host(async || {
            let directory = tempfile::tempdir().unwrap();
            let network = Place::beside(&directory).start().await.unwrap();
            let side = network.side.clone();
            // This test watches itself.
            drop(network);
            let (end, alive) = io::pipe().unwrap();
            let end = end.into();
            let flood = "(echo 'add table ip flood'; echo 'delete table ip flood'; echo \"table ip \
                         flood { set many { type mark; elements = { $(seq -s, 1 5000) }; }; }\") | \
                         nft -f -";
            for (news, expected) in [
                ("nft add table ip other", None),
                ("nft delete table inet caddis-0", Some((Change::Changed, true))),
                (flood, Some((Change::Unknown, false))),
                (
                    &format!("{flood}; nft delete table inet caddis-0"),
                    Some((Change::Unknown, true)),
                ),
                (&format!("nft flush table inet caddis-0; {flood}"), Some((Change::Changed, true))),
            ] {
                let subscriptions = Subscriptions::open().unwrap();
                setsockopt(&subscriptions.filter, nix::sys::socket::sockopt::RcvBuf, &(64 << 10))
                    .unwrap();
                run(news);
                let change = subscriptions.next(&side, &end, false).unwrap().filter;
                let found = change.map(|change| (change, mend_filter(&side, change).unwrap()));
                assert_eq!(found, expected, "{news}");
                assert!(run("nft list table inet caddis-0").contains("masquerade"), "{news}");
                // Our own change is none.
                run("nft add table ip another; nft delete table ip another");
                assert_eq!(subscriptions.next(&side, &end, false).unwrap().filter, None);
            }
            drop(alive);
            for failed in [false, true] {
                assert!(
                    Subscriptions::open().unwrap().next(&side, &end, failed).is_none(),
                    "it is over"
                );
            }
        });
    }
}
