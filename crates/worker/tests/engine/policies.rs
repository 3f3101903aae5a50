//! Network policies of machines, as the network of the host has them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, net::Ipv6Addr};

use caddis_api::{
    AppName, MachineId, MachineState,
    policies::{PolicyPort, PolicyProtocol, PolicySelector},
};
use caddis_bus::message::{Action, Allowance, AppPolicies, Policy, WorkerReply, WorkerRequest};
use serde_json::{Value, json};

use crate::support::{Fixture, config};

/// A policy that lets the machines of a selector connect to a port.
fn policy(selector: Value, port: u16) -> Policy {
    let selector: PolicySelector = serde_json::from_value(selector).unwrap();
    let ports = vec![PolicyPort { protocol: PolicyProtocol::Tcp, port: Some(port) }];
    let allowance = Allowance { peers: None, ports: Some(ports) };
    Policy { selector, egress: Some(vec![allowance]), ingress: None, dns: true }
}

async fn set(fixture: &Fixture, app: &AppName, policies: Vec<Policy>) {
    assert_eq!(set_as(fixture, 0, app, policies).await, 0);
}

/// The same under a number; the one that the worker has then.
async fn set_as(fixture: &Fixture, revision: u64, app: &AppName, policies: Vec<Policy>) -> u64 {
    let apps = vec![AppPolicies { app: app.clone(), policies }];
    match fixture.ask(WorkerRequest::SetPolicies { revision, apps }).await.unwrap() {
        WorkerReply::PoliciesSet { revision } => revision,
        other => panic!("{other:?}"),
    }
}

/// How many allowances each machine has, by its private address.
fn in_force(fixture: &Fixture) -> BTreeMap<Ipv6Addr, usize> {
    let all = fixture.network.policies().into_iter();
    all.map(|one| (one.addresses.ipv6, one.egress.map_or(0, |allowed| allowed.len()))).collect()
}

fn address(fixture: &Fixture, machine: &MachineId) -> Ipv6Addr {
    fixture.record(machine).unwrap().machine.private_ip.parse().unwrap()
}

#[tokio::test]
async fn a_machine_has_its_policies_from_before_its_start_until_it_is_destroyed() {
    let fixture = Fixture::new().await;
    let running = fixture.started().await;
    let app = fixture.record(&running).unwrap().app;
    let id = MachineId::random();
    let both = policy(json!({ "all": true }), 80);
    let one = policy(json!({ "machines": [{ "id": id }] }), 443);
    set(&fixture, &app, vec![both, one]).await;
    assert_eq!(in_force(&fixture), [(address(&fixture, &running), 1)].into());
    fixture
        .create_as(&id, config(json!({ "init": { "exec": ["sleep", "inf"] } })), false)
        .await
        .unwrap();
    fixture.until(&id, MachineState::Started).await;
    assert_eq!(in_force(&fixture)[&address(&fixture, &id)], 2);

    fixture.act(&id, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&id, MachineState::Destroyed).await;
    let other = AppName::from_trusted("other");
    set(&fixture, &other, vec![policy(json!({ "all": true }), 80)]).await;
    assert_eq!(in_force(&fixture), BTreeMap::new(), "of another app");
}

#[tokio::test]
async fn policies_that_come_late_do_not_replace_later_ones() {
    let mut fixture = Fixture::new().await;
    let id = fixture.started().await;
    let app = fixture.record(&id).unwrap().app;
    let allowing =
        |count: u16| (1..=count).map(|port| policy(json!({ "all": true }), port)).collect();
    let address = address(&fixture, &id);
    assert_eq!(set_as(&fixture, 7, &app, allowing(2)).await, 7);
    assert_eq!(set_as(&fixture, 6, &app, allowing(1)).await, 7);
    assert_eq!(in_force(&fixture), [(address, 2)].into());
    // The same again, and a gateway that knows no numbers.
    assert_eq!(set_as(&fixture, 7, &app, allowing(3)).await, 7);
    assert_eq!(in_force(&fixture), [(address, 3)].into());
    assert_eq!(set_as(&fixture, 0, &app, allowing(4)).await, 7);
    assert_eq!(in_force(&fixture), [(address, 4)].into());
    assert_eq!(set_as(&fixture, 9, &app, Vec::new()).await, 9);
    assert_eq!(set_as(&fixture, 8, &app, allowing(1)).await, 9);
    assert_eq!(in_force(&fixture), BTreeMap::new());
    // A new process takes whatever it is told first: nothing that was sent to the former reaches
    // it.
    fixture.kill().await;
    fixture.start().await;
    assert_eq!(set_as(&fixture, 1, &app, allowing(1)).await, 1);
    assert_eq!(in_force(&fixture), [(address, 1)].into());
}

#[tokio::test]
async fn a_machine_whose_metadata_change_has_other_policies_at_once() {
    let fixture = Fixture::new().await;
    let id = fixture.started().await;
    let app = fixture.record(&id).unwrap().app;
    set(&fixture, &app, vec![policy(json!({ "metadata": { "role": "web" } }), 80)]).await;
    assert_eq!(in_force(&fixture), BTreeMap::new());
    for (value, expected) in [("web", 1), ("db", 0), ("web", 1)] {
        let changes = [("role".to_owned(), Some(value.to_owned()))].into();
        fixture.act(&id, Action::SetMetadata { changes, expected: None }).await.unwrap();
        assert_eq!(in_force(&fixture).len(), expected, "{value}");
    }
}

#[tokio::test]
async fn a_new_process_has_the_policies_it_was_told_before_and_no_machine_loses_its_own() {
    let mut fixture = Fixture::new().await;
    let id = fixture.started().await;
    let app = fixture.record(&id).unwrap().app;
    set(&fixture, &app, vec![policy(json!({ "all": true }), 80)]).await;
    fixture.kill().await;
    // As on a host that was rebooted.
    fixture.network.lose_policies();
    fixture.start().await;
    assert_eq!(in_force(&fixture), [(address(&fixture, &id), 1)].into());
    let second = fixture.started().await;
    assert_eq!(in_force(&fixture).len(), 2);
    assert!(in_force(&fixture).contains_key(&address(&fixture, &second)));
}

#[tokio::test]
async fn a_machine_whose_policies_can_t_be_put_in_force_does_not_start() {
    let fixture = Fixture::new().await;
    let running = fixture.started().await;
    let app = fixture.record(&running).unwrap().app;
    set(&fixture, &app, vec![policy(json!({ "all": true }), 80)]).await;
    let launches = fixture.host.launches();
    fixture.network.refuse_policies(true);
    let apps = Vec::new();
    fixture.ask(WorkerRequest::SetPolicies { revision: 0, apps }).await.unwrap_err();
    assert_eq!(in_force(&fixture).len(), 1, "what was in force still is");
    let id = fixture.create(&["sleep", "inf"]).await;
    fixture
        .until_that(&id, |record| {
            record.machine.operation.as_ref().is_some_and(|it| it.last_error.is_some())
                || record.machine.state == MachineState::Failed
        })
        .await;
    assert_eq!(fixture.host.launches(), launches);
    fixture.network.refuse_policies(false);
}
