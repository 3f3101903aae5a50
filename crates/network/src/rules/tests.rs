//! Rules come to their order from any other, and hold meanwhile what they held before.

use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::SocketAddr,
};
use tempfile::TempDir;

use super::*;
use crate::{
    installation::Claims,
    links::Links,
    tests::{on_a_host, run},
};

fn local() -> Rule {
    Rule { action: RuleAction::ToTable, table: LOCAL, ..Rule::default() }
}

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

/// A rule of another program, by which addresses of the host are found, too.
const FOREIGN: &str = "not from 192.0.2.0/24 fwmark 5/7 iif other ipproto tcp dport 80-90 uidrange \
                       1-2 lookup local suppress_prefixlength 0";

/// The rules of IPv4 of one link. They have names of one letter: A, B and C those of the link, g, b
/// and n those of all links, in their order; L the kernel's own and F the foreign one.
struct Bench {
    links: Links,
    installation: Installation,
    foreign: RuleMessage,
    news: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _directory: TempDir,
}

impl Bench {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims::lock(directory.path()).unwrap();
        let installation = claims.take(directory.path(), None, &[]).unwrap();
        let links = Links::open().unwrap();
        run(&format!("ip rule add {FOREIGN} pref 3"));
        let mut foreign = list(&links, AddressFamily::Inet).await.unwrap().messages.remove(1);
        foreign.attributes.retain(|attribute| !matches!(attribute, RuleAttribute::Priority(_)));
        run("ip rule del pref 3");
        let (connection, _, news) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv4Rule]).unwrap();
        tokio::spawn(connection);
        Self { links, installation, foreign, news, _directory: directory }
    }

    fn known(&self) -> Vec<(char, RuleMessage)> {
        let host = HOST_V4.into();
        let own = of_link(&self.installation.link(), self.installation.table(), host);
        let rules = own.into_iter().chain(shared(host)).chain([local()]);
        let messages =
            rules.map(|rule| rule.message(AddressFamily::Inet)).chain([self.foreign.clone()]);
        "ABCgbnLF".chars().zip(messages).collect()
    }

    fn letter(&self, message: &RuleMessage) -> Option<char> {
        let rule = Rule::from(message);
        if rule.priority > 2 {
            return None;
        }
        let known = self.known();
        let same = known.iter().find(|(_, known)| Rule::from(known) == rule);
        Some(same.unwrap_or_else(|| panic!("{rule:?}")).0)
    }

    async fn letters(&self) -> String {
        let found = list(&self.links, AddressFamily::Inet).await.unwrap().messages;
        found.iter().filter_map(|message| self.letter(message)).collect()
    }

    /// Has just these rules there, in this order.
    async fn build(&self, wanted: &str) {
        let known = self.known();
        let before = list(&self.links, AddressFamily::Inet).await.unwrap().messages;
        for letter in wanted.chars() {
            let (_, message) = known.iter().find(|(known, _)| *known == letter).unwrap();
            insert(&self.links, with_priority(message.clone())).await.unwrap();
        }
        // In their order, so that each is the first that fits.
        for message in before.iter().filter(|message| self.letter(message).is_some()) {
            remove(&self.links, with_priority(message.clone())).await.unwrap();
        }
        assert_eq!(self.letters().await, wanted);
    }

    /// The rules that came (true) or went since the last call.
    async fn changes(&mut self) -> Vec<(bool, char)> {
        let marker = Rule { priority: 5000, action: RuleAction::Blackhole, ..Rule::default() };
        insert(&self.links, marker.message(AddressFamily::Inet)).await.unwrap();
        remove(&self.links, marker.message(AddressFamily::Inet)).await.unwrap();
        let mut changes = Vec::new();
        while let Some((message, _)) = self.news.next().await {
            let (came, rule) = match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule)) => (true, rule),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRule(rule)) => (false, rule),
                _ => continue,
            };
            if !came && Rule::from(&rule) == marker {
                break;
            }
            changes.extend(self.letter(&rule).map(|letter| (came, letter)));
        }
        changes
    }

    /// How the rules were after each of these changes.
    async fn history(&mut self, from: &str) -> Vec<String> {
        let mut history = vec![from.to_owned()];
        let mut now = from.to_owned();
        let priority = |letter| match letter {
            'g' | 'b' => 1,
            'n' => 2,
            _ => 0,
        };
        for (came, letter) in self.changes().await {
            if came {
                let behind = now.find(|other| priority(other) > priority(letter));
                now.insert(behind.unwrap_or(now.len()), letter);
            } else {
                now.remove(now.find(letter).unwrap());
            }
            history.push(now.clone());
        }
        history
    }
}

/// Whether nothing from the link reaches an address of the host.
fn is_closed(letters: &str) -> bool {
    let local = letters.find(['L', 'F']).unwrap_or(letters.len());
    letters[..local].contains('C')
}

/// All words of these letters up to a length.
fn words(letters: &str, length: usize) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut last = words.clone();
    for _ in 0..length {
        last = last
            .iter()
            .flat_map(|word| letters.chars().map(move |letter| format!("{word}{letter}")))
            .collect();
        words.extend(last.clone());
    }
    words
}

#[test]
fn rules_come_to_their_order_from_any_other_and_hold_meanwhile() {
    on_a_host(async || {
        let mut bench = Bench::new().await;
        // A kill leaves some of the old and some of the new ones.
        let interrupted = [
            "LABCL", "LFABCL", "BCLABC", "BCLABCL", "BCABCL", "CABCL", "ABCABCL", "LABCLABC",
            "LLABCL", "FLABCFL",
        ];
        let of_link = words("ABCLF", 3).into_iter().chain(interrupted.map(str::to_owned));
        let of_link = of_link.filter(|word| word.contains('L')).map(|word| word + "gbn");
        let of_all = words("gb", 4)
            .into_iter()
            .flat_map(|word| [format!("ABCL{word}n"), format!("LABC{word}")]);
        for state in of_link.chain(of_all).collect::<Vec<_>>() {
            bench.build(&state).await;
            bench.changes().await;
            let good = are_there(&bench.links, &bench.installation).await.unwrap();
            let changed = ensure(&bench.links, &bench.installation).await.unwrap();
            assert_eq!(changed, !good, "{state}");
            let history = bench.history(&state).await;
            let now = bench.letters().await;
            assert_eq!(history.last(), Some(&now));
            assert!(
                are_there(&bench.links, &bench.installation).await.unwrap(),
                "{state} became {now}"
            );
            assert_eq!(now.contains('F'), state.contains('F'), "{history:?}");
            assert!(
                good || now.starts_with("ABC") || !state.contains("gbn"),
                "no others are left: {history:?}"
            );
            for moment in &history {
                assert!(is_closed(moment) || !is_closed(&state), "{moment} of {history:?}");
                assert!(moment.contains('L'), "the host always has its addresses: {history:?}");
                assert!(moment.contains('b') || !state.contains('b'), "{moment} of {history:?}");
            }
            assert!(!ensure(&bench.links, &bench.installation).await.unwrap(), "it is done: {now}");
        }
    });
}

#[test]
fn whatever_a_kill_has_left_nothing_stays_after_the_last_is_cleared() {
    on_a_host(async || {
        let bench = Bench::new().await;
        let before = run("ip rule; ip -6 rule");
        for state in ["ABCLgbn", "LABCLgbn", "BCLABCLbgbn", "ABCABCLLgbgbnn", "CLg", "L"] {
            bench.build(state).await;
            clear(&bench.links, &bench.installation).await.unwrap();
            assert_eq!(run("ip rule; ip -6 rule"), before, "{state}");
        }
        ensure(&bench.links, &bench.installation).await.unwrap();
        assert_ne!(run("ip -6 rule"), before);
        clear(&bench.links, &bench.installation).await.unwrap();
        assert_eq!(run("ip rule; ip -6 rule"), before);
    });
}

/// As their watches do after `ip rule flush`.
#[test]
fn several_installations_put_them_back_at_once_and_leave_nothing_when_all_are_gone() {
    on_a_host(async || {
        let bench = Bench::new().await;
        let before = run("ip rule; ip -6 rule");
        let directory = tempfile::tempdir().unwrap();
        let claims = Claims::lock(directory.path()).unwrap();
        let take = |name: &str| claims.take(name.as_ref(), None, &[]).unwrap();
        let installations = ["/1", "/2", "/3", "/4"].map(take);
        let all =
            || futures::future::join_all(installations.iter().map(|one| ensure(&bench.links, one)));
        for _ in 0..20 {
            assert!(all().await.into_iter().all(|changed| changed.is_ok()));
            for one in &installations {
                assert!(are_there(&bench.links, one).await.unwrap());
            }
            let rules = list(&bench.links, AddressFamily::Inet).await.unwrap().rules;
            for shared in shared(HOST_V4.into()) {
                assert_eq!(rules.iter().filter(|rule| **rule == shared).count(), 1, "{rules:?}");
            }
            assert_eq!(rules.iter().filter(|rule| is_local(rule)).count(), 1, "{rules:?}");
            run("while ip rule del pref 1; do :; done 2>&-; ip rule del pref 2; ip rule del \
                 blackhole pref 0; true");
        }
        futures::future::join_all(installations.iter().map(|one| clear(&bench.links, one))).await;
        assert_eq!(run("ip rule; ip -6 rule"), before);
    });
}
