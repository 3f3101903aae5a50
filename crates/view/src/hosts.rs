//! The hosts: which there are, and when each was last heard of. A host becomes known by announcing
//! itself, or by being named at the start; it stays known while it is silent, with the machines it
//! had.

use std::{collections::BTreeMap, time::Duration};

use caddis_api::{RegionCode, WorkerId, platform::HostState};
use caddis_bus::message::Announcement;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::time::Instant;

/// What is known of a host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Where it is.
    pub region: RegionCode,
    /// When it last said anything.
    pub last_seen: Instant,
    /// As it is shown.
    pub state: HostState,
    draining: bool,
}

/// Hosts, apart by whether they may answer.
#[derive(Debug)]
pub struct ByReach {
    /// Those that may.
    pub heard: Vec<(WorkerId, Host)>,
    /// Those that are unreachable.
    pub silent: Vec<(WorkerId, Host)>,
}

/// The hosts that are known. One becomes known by announcing itself, or by being named at the
/// start, and stays known while it is silent.
pub struct Hosts {
    table: RwLock<BTreeMap<WorkerId, Host>>,
    /// Named at the start.
    first: Vec<WorkerId>,
    /// Silent for so long, a host is suspected, and unreachable.
    limits: (Duration, Duration),
}

impl Hosts {
    /// Hosts of a region to begin with, as if just heard of.
    pub(crate) fn new(
        first: Vec<WorkerId>,
        region: &RegionCode,
        limits: (Duration, Duration),
    ) -> Self {
        let table = first.iter().map(|worker| (worker.clone(), Host::heard_now(region))).collect();
        Self { table: RwLock::new(table), first, limits }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<WorkerId, Host>> {
        self.table.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<WorkerId, Host>> {
        self.table.write()
    }

    /// Those named at the start.
    pub fn first(&self) -> &[WorkerId] {
        &self.first
    }

    /// All that are known, by id.
    pub fn all(&self) -> Vec<(WorkerId, Host)> {
        self.read().iter().map(|(worker, host)| (worker.clone(), host.clone())).collect()
    }

    /// The state of one.
    pub fn state(&self, worker: &WorkerId) -> Option<HostState> {
        self.read().get(worker).map(|host| host.state)
    }

    /// Those that may answer, by id.
    pub fn reachable(&self) -> Vec<WorkerId> {
        let table = self.read();
        let reachable = table.iter().filter(|(_, host)| host.state != HostState::Unreachable);
        reachable.map(|(worker, _)| worker.clone()).collect()
    }

    /// All that are known, by id, apart by whether they may answer.
    pub fn by_reach(&self) -> ByReach {
        let is_heard = |(_, host): &(WorkerId, Host)| host.state != HostState::Unreachable;
        let (heard, silent) = self.all().into_iter().partition(is_heard);
        ByReach { heard, silent }
    }

    /// A host by the name a client gives.
    pub fn named(&self, name: &str) -> Option<WorkerId> {
        self.read().keys().find(|worker| worker.as_str() == name).cloned()
    }

    /// A host said something. Gives its state where that is another one now.
    pub(crate) fn heard(&self, worker: &WorkerId) -> Option<HostState> {
        let mut table = self.write();
        let host = table.get_mut(worker)?;
        host.last_seen = Instant::now();
        host.settle(self.limits)
    }

    /// A host announced itself.
    pub(crate) fn announced(&self, announcement: &Announcement) -> Announced {
        let mut table = self.write();
        let region = &announcement.region;
        let known = table.get(&announcement.worker).map(|host| host.region.clone());
        let host =
            table.entry(announcement.worker.clone()).or_insert_with(|| Host::heard_now(region));
        host.region.clone_from(region);
        (host.last_seen, host.draining) = (Instant::now(), announcement.draining);
        Announced { is_new: known.as_ref() != Some(region), state: host.settle(self.limits) }
    }

    /// Time has passed: those whose state is another one now.
    pub(crate) fn look(&self) -> Vec<(WorkerId, HostState)> {
        let mut table = self.write();
        let changed = table
            .iter_mut()
            .filter_map(|(worker, host)| Some((worker.clone(), host.settle(self.limits)?)));
        changed.collect()
    }

    /// This process stood still for a while, and heard nobody: none of them has been silent.
    pub(crate) fn excuse(&self, standstill: Duration) {
        let now = Instant::now();
        for host in self.write().values_mut() {
            host.last_seen = now.min(host.last_seen + standstill);
        }
    }
}

/// What an announcement told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    /// The host, or that it is in this region.
    pub is_new: bool,
    /// Its state, where that is another one now.
    pub state: Option<HostState>,
}

impl Host {
    fn heard_now(region: &RegionCode) -> Self {
        Self {
            region: region.clone(),
            last_seen: Instant::now(),
            state: HostState::Ok,
            draining: false,
        }
    }

    /// Its state, where that is another one now.
    fn settle(&mut self, (suspected, unreachable): (Duration, Duration)) -> Option<HostState> {
        let silent = self.last_seen.elapsed();
        let state = match self.draining {
            _ if silent >= unreachable => HostState::Unreachable,
            _ if silent >= suspected => HostState::Suspected,
            true => HostState::Draining,
            false => HostState::Ok,
        };
        (std::mem::replace(&mut self.state, state) != state).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_that_falls_silent_is_suspected_then_unreachable_and_as_before_when_it_is_heard()
    {
        let id = |text: &str| WorkerId::from_trusted(text.to_owned());
        let limits = (Duration::from_secs(3), Duration::from_secs(10));
        let hosts = Hosts::new(vec![id("a")], &RegionCode::from_trusted("local"), limits);
        let announcement = |worker: &str, draining| Announcement {
            worker: id(worker),
            region: RegionCode::from_trusted("far"),
            incarnation: "first".to_owned(),
            sequence: 0,
            draining,
            volumes: 0,
        };
        assert_eq!(hosts.heard(&id("b")), None, "only an announcement makes a host known");
        assert_eq!(
            hosts.announced(&announcement("b", false)),
            Announced { is_new: true, state: None }
        );
        let draining = Announced { is_new: false, state: Some(HostState::Draining) };
        assert_eq!(hosts.announced(&announcement("b", true)), draining);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(hosts.heard(&id("b")), None);
        assert_eq!(hosts.look(), [(id("a"), HostState::Suspected)]);
        assert_eq!(hosts.look(), []);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(
            hosts.look(),
            [(id("a"), HostState::Unreachable), (id("b"), HostState::Suspected)]
        );
        assert_eq!((hosts.reachable(), hosts.all().len()), (vec![id("b")], 2));
        let ByReach { heard, silent } = hosts.by_reach();
        assert_eq!((heard[0].0.clone(), silent[0].0.clone()), (id("b"), id("a")));
        assert_eq!(hosts.heard(&id("a")), Some(HostState::Ok));
        assert_eq!(hosts.heard(&id("b")), Some(HostState::Draining));
        // We slept, not they.
        tokio::time::advance(Duration::from_secs(60)).await;
        hosts.excuse(Duration::from_secs(59));
        assert_eq!(hosts.look(), []);
        assert_eq!(hosts.named("b"), Some(id("b")));
        assert_eq!(hosts.named("c"), None);
    }
}
