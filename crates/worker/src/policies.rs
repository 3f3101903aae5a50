//! Network policies of machines. Gateways tell those of all apps; which of a worker's machines they
//! select is found here, from what the machines themselves say. They are recorded, so that a
//! machine which starts before a gateway is there has them too.
//!
//! The host's network has a policy of each machine that some select, running or not, so a start
//! waits for it only where something has changed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicBool, Ordering},
};

use caddis_api::{
    ApiError, AppName, MachineConfig, MachineId,
    policies::{PolicyPort, PolicyProtocol, PolicySelector},
};
use caddis_bus::message::{self, AppPolicies, Policy, WorkerReply, WorkerResult};
use caddis_network::{Allowance, AllowedPort, MachineAddresses, MachinePolicy};
use parking_lot::Mutex;

use crate::{WorkerError, engine::Shared, row::MachineRow};

/// Where they are recorded.
const RECORD: &str = "network_policies";

/// See the module's text.
#[derive(Debug, Default)]
pub struct Policies {
    /// Held while they are put in force.
    told: tokio::sync::Mutex<Told>,
    machines: Mutex<BTreeMap<MachineId, Selectable>>,
    /// The machines are others than those whose policies are in force.
    changed: AtomicBool,
}

#[derive(Debug, Default)]
struct Told {
    /// The highest number under which some were told to this process.
    revision: u64,
    apps: Vec<AppPolicies>,
    /// `None` until some were put in force.
    in_force: Option<Vec<MachinePolicy>>,
}

/// What policies select a machine by.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selectable {
    app: AppName,
    addresses: MachineAddresses,
    metadata: BTreeMap<String, String>,
}

impl Policies {
    /// There is such a machine, as it is from now on.
    pub fn knows(&self, row: &MachineRow, config: &MachineConfig) {
        let selectable = Selectable {
            app: row.app.clone(),
            addresses: row.addresses.clone(),
            metadata: config.metadata.clone().unwrap_or_default(),
        };
        let former = self.machines.lock().insert(row.id.clone(), selectable.clone());
        if former.is_none_or(|former| former != selectable) {
            self.changed.store(true, Ordering::Release);
        }
    }

    /// A machine is gone, or has come to nothing.
    pub fn forget(&self, machine: &MachineId) {
        if self.machines.lock().remove(machine).is_some() {
            self.changed.store(true, Ordering::Release);
        }
    }

    /// Takes what was recorded. To be called before there are machines.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn load(&self, shared: &Shared) -> Result<(), WorkerError> {
        let Some(recorded) = shared.store.meta(RECORD).await? else { return Ok(()) };
        let failed = |error: serde_json::Error| WorkerError::Policies { reason: error.to_string() };
        self.told.lock().await.apps = serde_json::from_str(&recorded).map_err(failed)?;
        Ok(())
    }

    /// Takes what a gateway tells, unless it is older than what there is. One of several gateways
    /// may be late with what it has read before another one.
    pub async fn set(
        &self,
        shared: &Shared,
        revision: u64,
        apps: Vec<AppPolicies>,
    ) -> WorkerResult {
        let mut told = self.told.lock().await;
        if revision != 0 && revision < told.revision {
            return Ok(WorkerReply::PoliciesSet { revision: told.revision });
        }
        if told.apps != apps {
            let text = serde_json::to_string(&apps).map_err(ApiError::internal)?;
            shared.store.set_meta(RECORD, text).await.map_err(ApiError::internal)?;
            told.apps = apps;
        }
        told.revision = told.revision.max(revision);
        self.put_in_force(shared, &mut told).await?;
        Ok(WorkerReply::PoliciesSet { revision: told.revision })
    }

    /// Sees to it that policies are in force for the machines as they are now.
    ///
    /// # Errors
    /// When the host refuses; then those that were in force before still are.
    pub async fn apply(&self, shared: &Shared) -> Result<(), ApiError> {
        let mut told = self.told.lock().await;
        if !self.changed.load(Ordering::Acquire) && told.in_force.is_some() {
            return Ok(());
        }
        self.put_in_force(shared, &mut told).await
    }

    async fn put_in_force(&self, shared: &Shared, told: &mut Told) -> Result<(), ApiError> {
        self.changed.store(false, Ordering::Release);
        let wanted = self.wanted(&told.apps);
        if told.in_force.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if let Err(error) = shared.network.set_policies(wanted.clone()).await {
            self.changed.store(true, Ordering::Release);
            return Err(error);
        }
        told.in_force = Some(wanted);
        Ok(())
    }

    fn wanted(&self, apps: &[AppPolicies]) -> Vec<MachinePolicy> {
        if apps.is_empty() {
            return Vec::new();
        }
        let by_app: HashMap<_, _> = apps.iter().map(|it| (&it.app, &it.policies)).collect();
        let machines = self.machines.lock();
        let of = |(id, machine): (&MachineId, &Selectable)| {
            let policies = by_app.get(&machine.app)?.iter();
            let selected: Vec<_> =
                policies.filter(|policy| selects(&policy.selector, id, machine)).collect();
            (!selected.is_empty()).then(|| joined(machine.addresses.clone(), &selected))
        };
        machines.iter().filter_map(of).collect()
    }
}

fn selects(selector: &PolicySelector, id: &MachineId, machine: &Selectable) -> bool {
    let PolicySelector { all, machines, metadata } = selector;
    let any_is_given = *all == Some(true) || machines.is_some() || metadata.is_some();
    let is_named = |machines: &Vec<_>| {
        machines.iter().any(|one: &caddis_api::policies::SelectedMachine| one.id == *id)
    };
    let has_all = |wanted: &BTreeMap<String, String>| {
        wanted.iter().all(|(key, value)| machine.metadata.get(key) == Some(value))
    };
    any_is_given && machines.as_ref().is_none_or(is_named) && metadata.as_ref().is_none_or(has_all)
}

/// What a machine may do that these select: all that any of them allows.
fn joined(addresses: MachineAddresses, policies: &[&Policy]) -> MachinePolicy {
    let joined = |direction: fn(&Policy) -> &Option<Vec<message::Allowance>>| {
        let mut given = policies.iter().filter_map(|policy| direction(policy).as_ref()).peekable();
        given.peek()?;
        let mut allowed: Vec<_> = given.flatten().map(allowance).collect();
        allowed.sort();
        allowed.dedup();
        Some(allowed)
    };
    MachinePolicy {
        addresses,
        egress: joined(|policy| &policy.egress),
        ingress: joined(|policy| &policy.ingress),
        dns: policies.iter().all(|policy| policy.dns),
    }
}

fn allowance(allowed: &message::Allowance) -> Allowance {
    let port = |PolicyPort { protocol, port }: &PolicyPort| match protocol {
        PolicyProtocol::Tcp => AllowedPort::Tcp(*port),
        PolicyProtocol::Udp => AllowedPort::Udp(*port),
        PolicyProtocol::Icmp => AllowedPort::Icmp,
    };
    Allowance {
        peers: allowed.peers.clone(),
        ports: allowed.ports.as_ref().map(|ports| ports.iter().map(port).collect()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn machine(metadata: &Value) -> Selectable {
        Selectable {
            app: AppName::from_trusted("a"),
            addresses: MachineAddresses {
                ipv4: [10, 201, 0, 1].into(),
                ipv6: "fdaa::1".parse().unwrap(),
                network: "fdaa::/48".parse().unwrap(),
                mac: String::new(),
            },
            metadata: serde_json::from_value(metadata.clone()).unwrap(),
        }
    }

    #[test]
    fn a_selector_selects_what_fits_all_that_it_gives() {
        let id = MachineId::from_trusted("3d8d413b29d089");
        let web = machine(&json!({ "role": "web", "tier": "1" }));
        for (selector, expected) in [
            (json!({ "all": true }), true),
            (json!({}), false),
            (json!({ "all": false }), false),
            (json!({ "machines": [{ "id": "other" }, { "id": "3d8d413b29d089" }] }), true),
            (json!({ "machines": [{ "id": "other" }] }), false),
            (json!({ "all": true, "machines": [{ "id": "other" }] }), false),
            (json!({ "metadata": { "role": "web" } }), true),
            (json!({ "metadata": { "role": "web", "tier": "1" } }), true),
            (json!({ "metadata": { "role": "web", "tier": "2" } }), false),
            (json!({ "metadata": { "missing": "" } }), false),
            (
                json!({
                    "machines": [{ "id": "3d8d413b29d089" }], "metadata": { "role": "db" }
                }),
                false,
            ),
        ] {
            let read = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&read, &id, &web), expected, "{selector}");
        }
    }

    #[test]
    fn policies_of_a_machine_allow_together_and_any_of_them_takes_the_name_server() {
        let allow = |port| message::Allowance {
            peers: None,
            ports: Some(vec![PolicyPort { protocol: PolicyProtocol::Tcp, port: Some(port) }]),
        };
        let policy = |egress: Option<Vec<message::Allowance>>, dns| Policy {
            selector: PolicySelector::default(),
            egress,
            ingress: None,
            dns,
        };
        let addresses = machine(&json!({})).addresses;
        let (one, two) = (
            policy(Some(vec![allow(80), allow(443)]), true),
            policy(Some(vec![allow(80), allow(22)]), false),
        );
        let all = joined(addresses.clone(), &[&one, &two, &policy(None, true)]);
        let ports: Vec<_> =
            all.egress.unwrap().into_iter().flat_map(|it| it.ports.unwrap()).collect();
        assert_eq!(ports, [22, 80, 443].map(|port| AllowedPort::Tcp(Some(port))));
        assert_eq!((all.ingress, all.dns), (None, false));
        let nothing = joined(addresses, &[&policy(None, true)]);
        assert_eq!((nothing.egress, nothing.dns), (None, true));
    }
}
