//! Routing rules of the host: what comes in from the link to the machines reaches no address of the
//! host, whatever became of its packet filter. In this order, of the same priority:
//!
//! ```text
//! 0: iif LINK to HOST lookup TABLE  answers to what the host itself has asked; TABLE has only
//!                                   that address
//! 0: iif LINK fwmark MARK goto 1    what the filter has marked goes on behind the host's own
//!                                   addresses
//! 0: iif LINK blackhole             nothing else
//! 0: lookup local                   the kernel's own rule, which is moved here
//! 1: from HOST iif lo goto 2        the host itself
//! 1: from HOST blackhole            who pretends to be it
//! 2: nop
//! ```
//! `nft flush ruleset` takes away none of them, nor does `ip rule flush` any of priority 0: without
//! those behind, the third holds.

use std::{fs::File, net::IpAddr};

use nix::fcntl::Flock;
use rtnetlink::{
    IpVersion,
    packet_route::{
        AddressFamily,
        route::RouteProtocol,
        rule::{RuleAction, RuleAttribute, RuleMessage},
    },
};

use crate::{
    HOST_V4, HOST_V6, NetworkError,
    host_filter::MARK,
    installation::{Installation, LINK_PREFIX},
    links::Links,
};

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
const FAMILIES: [(AddressFamily, IpAddr); 2] =
    [(AddressFamily::Inet, IpAddr::V4(HOST_V4)), (AddressFamily::Inet6, IpAddr::V6(HOST_V6))];

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

impl From<&RuleMessage> for Rule {
    fn from(message: &RuleMessage) -> Self {
        let mut rule = Self {
            action: message.header.action,
            table: message.header.table.into(),
            ..Self::default()
        };
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

/// The rules of one family that are there, in their order.
struct Found {
    messages: Vec<RuleMessage>,
    rules: Vec<Rule>,
}

/// Makes sure that the rules of an installation's link are there and in front; whether something
/// was missing.
pub(crate) async fn ensure(
    links: &Links,
    installation: &Installation,
) -> Result<bool, NetworkError> {
    if are_there(links, installation).await? {
        return Ok(false);
    }
    // Who else changes them at the same time would take away what was just added.
    let _lock = lock(installation).await?;
    let mut changed = false;
    for (family, host) in FAMILIES {
        let (own, shared) =
            (of_link(&installation.link(), installation.table(), host), shared(host));
        let found = list(links, family).await?;
        if !in_order(&found.rules, &shared) {
            append(links, &shared, family).await?;
            keep_last(links, family, &shared).await?;
            changed = true;
        }
        if !in_front(&found.rules, &own) {
            // What is left of the old ones holds until the new ones do.
            append(links, &own, family).await?;
            move_local_behind(links, family, &own).await?;
            keep_last(links, family, &own).await?;
            changed = true;
        }
    }
    if changed && !are_there(links, installation).await? {
        let error = std::io::Error::other("another program changes them at the same time");
        return Err(NetworkError::io("move the routing rules of machines before others")(error));
    }
    Ok(changed)
}

/// Whether all of them are there, one after the other.
fn in_order(found: &[Rule], rules: &[Rule]) -> bool {
    let places: Option<Vec<_>> =
        rules.iter().map(|rule| found.iter().position(|other| other == rule)).collect();
    places.is_some_and(|places| places.is_sorted())
}

/// Whether they come one after the other, and before the first rule by which an address of the host
/// is found.
fn in_front(found: &[Rule], own: &[Rule]) -> bool {
    let local = found.iter().position(is_local).unwrap_or(found.len());
    found.get(..local).is_some_and(|front| in_order(front, own))
}

/// Whether an address of the host is found by it: the kernel's own, or one that another program has
/// put there.
fn is_local(rule: &Rule) -> bool {
    rule.action == RuleAction::ToTable && rule.table == LOCAL
}

/// Whether they are there. Changes nothing.
pub(crate) async fn are_there(
    links: &Links,
    installation: &Installation,
) -> Result<bool, NetworkError> {
    for (family, host) in FAMILIES {
        let found = list(links, family).await?.rules;
        let own = of_link(&installation.link(), installation.table(), host);
        if !in_front(&found, &own) || !in_order(&found, &shared(host)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes the rules of an installation's link, and those of all links where it was the last.
pub(crate) async fn clear(links: &Links, installation: &Installation) -> Result<(), NetworkError> {
    let _lock = lock(installation).await?;
    let link = installation.link();
    for (family, host) in FAMILIES {
        let found = list(links, family).await?.rules;
        let of_others = |rule: &Rule| {
            rule.iif.as_ref().is_some_and(|name| name.starts_with(LINK_PREFIX) && *name != link)
        };
        let last = !found.iter().any(of_others);
        let (own, shared) = (of_link(&link, installation.table(), host), shared(host));
        // There may be several of each: a server that was killed has not taken away the old ones.
        for rule in found.iter().filter(|rule| own.contains(rule) || last && shared.contains(rule))
        {
            remove(links, rule.message(family)).await?;
        }
        for _ in &found {
            let Some(twice) = list(links, family).await?.twice() else { break };
            remove(links, twice).await?;
        }
    }
    Ok(())
}

impl Found {
    /// The first rule by which an address of the host is found, if there is the same once more.
    fn twice(&self) -> Option<RuleMessage> {
        let first = self.rules.iter().position(is_local)?;
        let message = self.messages.get(first)?;
        let again = self.messages.iter().skip(first + 1).any(|other| other == message);
        again.then(|| with_priority(message.clone()))
    }
}

/// Moves the rules by which an address of the host is found behind those of a link, which are
/// there. Each is there twice for a moment, and never not at all.
async fn move_local_behind(
    links: &Links,
    family: AddressFamily,
    own: &[Rule; 3],
) -> Result<(), NetworkError> {
    let before = list(links, family).await?.rules.into_iter().filter(is_local).count();
    for _ in 0..before {
        let Found { messages, rules } = list(links, family).await?;
        let last = rules.iter().rposition(|rule| own.contains(rule)).unwrap_or(0);
        let Some(first) = rules.iter().position(is_local).filter(|first| *first < last) else {
            break;
        };
        let Some((message, behind)) = messages.get(first).zip(messages.get(last..)) else { break };
        if !behind.contains(message) {
            insert(links, with_priority(message.clone())).await?;
        }
        // Takes the first that has all of this, so this one: those in front of it are no such
        // rules.
        remove(links, with_priority(message.clone())).await?;
    }
    Ok(())
}

/// Takes away all of these rules but the last of each.
async fn keep_last(
    links: &Links,
    family: AddressFamily,
    rules: &[Rule],
) -> Result<(), NetworkError> {
    let Found { messages, rules: found } = list(links, family).await?;
    for rule in rules {
        let same = messages
            .iter()
            .zip(&found)
            .filter(|(_, other)| *other == rule)
            .map(|(message, _)| message);
        let same: Vec<_> = same.cloned().collect();
        for message in same.into_iter().rev().skip(1) {
            remove(links, with_priority(message)).await?;
        }
    }
    Ok(())
}

async fn lock(installation: &Installation) -> Result<Flock<File>, NetworkError> {
    let installation = installation.clone();
    crate::network::blocking(move || installation.lock_rules()).await
}

async fn list(links: &Links, family: AddressFamily) -> Result<Found, NetworkError> {
    let version = if family == AddressFamily::Inet { IpVersion::V4 } else { IpVersion::V6 };
    let messages = links.dump(|handle| handle.rule().get(version).execute()).await;
    let messages = messages.map_err(NetworkError::netlink("list the routing rules"))?;
    let rules = messages.iter().map(Rule::from).collect();
    Ok(Found { messages, rules })
}

/// As the kernel has it: a priority of 0 it does not tell, and takes for none.
fn with_priority(mut message: RuleMessage) -> RuleMessage {
    if !message.attributes.iter().any(|attribute| matches!(attribute, RuleAttribute::Priority(_))) {
        message.attributes.push(RuleAttribute::Priority(0));
    }
    message
}

async fn append(links: &Links, rules: &[Rule], family: AddressFamily) -> Result<(), NetworkError> {
    for rule in rules {
        insert(links, rule.message(family)).await?;
    }
    Ok(())
}

/// Adds a rule behind all of its priority.
async fn insert(links: &Links, message: RuleMessage) -> Result<(), NetworkError> {
    // Not exclusive: while rules are changed some are there twice.
    let mut request = links.handle().rule().add().replace();
    let failed = NetworkError::netlink(format!("add the routing rule {:?}", Rule::from(&message)));
    *request.message_mut() = message;
    request.execute().await.map_err(failed)
}

/// Removes the first rule that has all of this.
async fn remove(links: &Links, message: RuleMessage) -> Result<(), NetworkError> {
    let failed =
        NetworkError::netlink(format!("remove the routing rule {:?}", Rule::from(&message)));
    match links.handle().rule().del(message).execute().await {
        // Another program was first.
        Err(error) if crate::links::errno(&error) == Some(libc::ENOENT) => Ok(()),
        outcome => outcome.map_err(failed),
    }
}

#[cfg(test)]
mod tests;
