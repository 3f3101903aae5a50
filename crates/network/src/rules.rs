//! Routing rules of the host: what comes in from the link to the machines reaches no address of the host, whatever
//! became of its packet filter. In this order, of the same priority:
//!
//! ```text
//! 0: iif LINK to HOST lookup TABLE      answers to what the host itself has asked; TABLE has only that address
//! 0: iif LINK fwmark MARK goto 1        what the filter has marked goes on behind the host's own addresses
//! 0: iif LINK blackhole                 nothing else
//! 0: lookup local                       the kernel's own rule, which is moved here
//! 1: from HOST iif lo goto 2            the host itself
//! 1: from HOST blackhole                who pretends to be it
//! 2: nop
//! ```
//! `nft flush ruleset` takes away none of them, nor does `ip rule flush` any of priority 0: without those behind, the
//! third holds.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, IpVersion,
    packet_route::{
        AddressFamily,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use crate::{HOST_V4, HOST_V6, NetworkError, host_filter::MARK, installation::LINK_PREFIX};

const LOCAL: u32 = 255;

/// A rule, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    priority: u32,
    iif: Option<String>,
    from: Option<IpAddr>,
    to: Option<IpAddr>,
    mark: Option<(u32, u32)>,
    action: RuleAction,
    goto: Option<u32>,
    table: u32,
    /// It matches on something else, too.
    other: bool,
}

/// The two families, each with the host's address.
const FAMILIES: [(IpVersion, AddressFamily, IpAddr); 2] = [
    (IpVersion::V4, AddressFamily::Inet, IpAddr::V4(HOST_V4)),
    (IpVersion::V6, AddressFamily::Inet6, IpAddr::V6(HOST_V6)),
];

/// Those of one link.
fn of_link(link: &str, table: u32, host: IpAddr) -> [Rule; 3] {
    let rule = |action| Rule { iif: Some(link.to_owned()), action, ..Rule::default() };
    [
        Rule { to: Some(host), table, ..rule(RuleAction::ToTable) },
        Rule { mark: Some((MARK, MARK)), goto: Some(1), ..rule(RuleAction::Goto) },
        rule(RuleAction::Blackhole),
    ]
}

/// Those of all installations.
fn shared(host: IpAddr) -> [Rule; 3] {
    let rule = |priority, action| Rule { priority, from: Some(host), action, ..Rule::default() };
    [
        Rule { iif: Some("lo".to_owned()), goto: Some(2), ..rule(1, RuleAction::Goto) },
        rule(1, RuleAction::Blackhole),
        Rule { from: None, ..rule(2, RuleAction::Nop) },
    ]
}

fn local() -> Rule {
    Rule { action: RuleAction::ToTable, table: LOCAL, ..Rule::default() }
}

impl From<&RuleMessage> for Rule {
    fn from(message: &RuleMessage) -> Self {
        let mut rule = Self { action: message.header.action, table: message.header.table.into(), ..Self::default() };
        let (mut mark, mut mask) = (None, u32::MAX);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(priority) => rule.priority = *priority,
                RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
                RuleAttribute::Source(address) => rule.from = Some(*address),
                RuleAttribute::Destination(address) => rule.to = Some(*address),
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = *value,
                RuleAttribute::Goto(priority) => rule.goto = Some(*priority),
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::SuppressIfGroup(u32::MAX)
                | RuleAttribute::Protocol(_) => {}
                _ => rule.other = true,
            }
        }
        rule.mark = mark.map(|mark| (mark, mask));
        rule.other |= message.header.tos != 0 || message.header.flags.bits() & INVERT != 0;
        rule
    }
}

/// `FIB_RULE_INVERT`.
const INVERT: u32 = 2;

impl Rule {
    fn message(&self, family: AddressFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        let header = &mut message.header;
        (header.family, header.action) = (family, self.action);
        let length = |address: Option<IpAddr>| match address {
            None => 0,
            Some(IpAddr::V4(_)) => 32,
            Some(IpAddr::V6(_)) => 128,
        };
        (header.src_len, header.dst_len) = (length(self.from), length(self.to));
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.extend(self.iif.clone().map(RuleAttribute::Iifname));
        attributes.extend(self.from.map(RuleAttribute::Source));
        attributes.extend(self.to.map(RuleAttribute::Destination));
        if let Some((mark, mask)) = self.mark {
            attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
        }
        attributes.extend(self.goto.map(RuleAttribute::Goto));
        if self.table != 0 {
            attributes.push(RuleAttribute::Table(self.table));
        }
        // As the kernel's own: systemd-networkd takes away rules of others.
        attributes.push(RuleAttribute::Protocol(RouteProtocol::Kernel));
        message
    }
}

/// Makes sure that the rules of a link are there and in front; whether something was missing.
pub(crate) async fn ensure(handle: &Handle, link: &str, table: u32) -> Result<bool, NetworkError> {
    let mut changed = false;
    for (version, family, host) in FAMILIES {
        let found = list(handle, version).await?;
        for rule in shared(host) {
            if !found.contains(&rule) {
                add(handle, &rule, family).await?;
                changed = true;
            }
        }
        let own = of_link(link, table, host);
        if !in_front(&found, &own) {
            for rule in own.iter().filter(|rule| found.contains(rule)) {
                remove(handle, rule, family).await?;
            }
            for rule in &own {
                add(handle, rule, family).await?;
            }
            // The host's own addresses are looked up behind them, and never not at all.
            if found.contains(&local()) {
                add(handle, &local(), family).await?;
                remove(handle, &local(), family).await?;
            }
            changed = true;
        }
    }
    Ok(changed)
}

/// Whether they come one after the other, and before the first rule by which an address of the host is found.
fn in_front(found: &[Rule], own: &[Rule]) -> bool {
    let place = |rule: &Rule| found.iter().position(|other| other == rule);
    let places: Option<Vec<_>> = own.iter().map(place).collect();
    let Some(places) = places else { return false };
    let to_host = |rule: &Rule| rule.action == RuleAction::ToTable && rule.table == LOCAL;
    let local = found.iter().position(to_host).unwrap_or(found.len());
    places.is_sorted() && places.iter().all(|place| *place < local)
}

/// Whether they are there. Changes nothing.
pub(crate) async fn are_there(handle: &Handle, link: &str, table: u32) -> Result<bool, NetworkError> {
    for (version, _, host) in FAMILIES {
        if !in_front(&list(handle, version).await?, &of_link(link, table, host)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the rules of a link, and those of all links where it was the last.
pub(crate) async fn clear(handle: &Handle, link: &str, table: u32) -> Result<(), NetworkError> {
    for (version, family, host) in FAMILIES {
        let found = list(handle, version).await?;
        let own = of_link(link, table, host);
        let of_others =
            |rule: &Rule| rule.iif.as_ref().is_some_and(|name| name.starts_with(LINK_PREFIX) && name != link);
        let last = !found.iter().any(of_others);
        let unused = shared(host);
        let unused = unused.iter().filter(|_| last);
        for rule in own.iter().chain(unused).filter(|rule| found.contains(rule)) {
            remove(handle, rule, family).await?;
        }
    }
    Ok(())
}

async fn list(handle: &Handle, version: IpVersion) -> Result<Vec<Rule>, NetworkError> {
    let found = handle.rule().get(version).execute().try_collect::<Vec<_>>().await;
    let found = found.map_err(NetworkError::netlink("list the routing rules"))?;
    Ok(found.iter().map(Rule::from).collect())
}

async fn add(handle: &Handle, rule: &Rule, family: AddressFamily) -> Result<(), NetworkError> {
    // Not exclusive: the kernel's own rule is there twice for a moment.
    let mut request = handle.rule().add().replace();
    *request.message_mut() = rule.message(family);
    request.execute().await.map_err(NetworkError::netlink(format!("add the routing rule {rule:?}")))
}

async fn remove(handle: &Handle, rule: &Rule, family: AddressFamily) -> Result<(), NetworkError> {
    let outcome = handle.rule().del(rule.message(family)).execute().await;
    outcome.map_err(NetworkError::netlink(format!("remove the routing rule {rule:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_in_front_only_in_their_order_and_before_the_hosts_addresses() {
        let host = IpAddr::from(HOST_V4);
        let own = of_link("caddis-0", 7, host);
        let [a, b, c] = own.clone();
        let other = of_link("caddis-1", 8, host)[2].clone();
        let main = Rule { priority: 32766, table: 254, ..local() };
        let cases = [
            (vec![a.clone(), b.clone(), c.clone(), local(), main.clone()], true),
            (vec![other.clone(), a.clone(), other, b.clone(), c.clone(), local()], true),
            (vec![a.clone(), b.clone(), local(), c.clone()], false),
            (vec![local(), a.clone(), b.clone(), c.clone()], false),
            (vec![b.clone(), a.clone(), c.clone(), local()], false),
            (vec![a, c, local(), main], false),
        ];
        for (found, expected) in cases {
            assert_eq!(in_front(&found, &own), expected, "{found:?}");
        }
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        let host = IpAddr::from(HOST_V6);
        for rule in of_link("caddis-0", 0x00ca_dd00, host).iter().chain(&shared(host)) {
            assert_eq!(Rule::from(&rule.message(AddressFamily::Inet6)), *rule);
        }
    }
}
