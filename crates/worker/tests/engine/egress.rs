//! Egress addresses of machines, as the network of the host has them.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use caddis_api::{MachineId, MachineState};
use caddis_bus::message::{Action, EgressSource, MachineEgress, WorkerReply, WorkerRequest};
use caddis_network::Tracked;
use serde_json::{Value, json};

use crate::support::{Fixture, TIMEOUT, config};

fn of(machine: &MachineId, address: &str, ports: Option<(u16, u16)>) -> MachineEgress {
    let sources = vec![EgressSource { address: address.parse().unwrap(), ports }];
    MachineEgress { machine: machine.clone(), sources }
}

async fn set(fixture: &Fixture, revision: u64, machines: Vec<MachineEgress>) -> u64 {
    match fixture.ask(WorkerRequest::SetEgress { revision, machines }).await.unwrap() {
        WorkerReply::Egress { revision } => revision,
        other => panic!("{other:?}"),
    }
}

/// Egress addresses by the private addresses of their machines.
fn applied(fixture: &Fixture) -> BTreeMap<IpAddr, String> {
    let all = fixture.network.egress().into_iter();
    all.map(|one| (one.machine, one.address.to_string())).collect()
}

fn ipv4(fixture: &Fixture, machine: &MachineId) -> IpAddr {
    let record = fixture.record(machine).unwrap();
    record.machine.private_ipv4.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_machine_has_its_address_from_before_its_start_until_it_is_destroyed() {
    let fixture = Fixture::new().await;
    let (id, other) = (MachineId::random(), MachineId::random());
    let own = of(&id, "192.0.2.1", None);
    // It is told before there is such a machine.
    assert_eq!(set(&fixture, 3, vec![own.clone(), of(&other, "192.0.2.2", None)]).await, 3);
    assert_eq!(applied(&fixture), BTreeMap::new());
    let resting = config(json!({ "init": { "exec": ["sleep", "inf"] } }));
    fixture.create_as(&id, resting, true).await.unwrap();
    fixture.until(&id, MachineState::Created).await;
    let address = ipv4(&fixture, &id);
    assert_eq!(applied(&fixture), [(address, "192.0.2.1".to_owned())].into());
    // What is older changes nothing, and the worker says what it has.
    assert_eq!(set(&fixture, 2, Vec::new()).await, 3);
    assert_eq!(applied(&fixture).len(), 1);
    let six = of(&id, "2001:db8::1", Some((1024, 2047)));
    assert_eq!(set(&fixture, 4, vec![six]).await, 4);
    let record = fixture.record(&id).unwrap();
    let private: IpAddr = record.machine.private_ip.parse().unwrap();
    assert_eq!(applied(&fixture), [(private, "2001:db8::1".to_owned())].into());

    fixture.act(&id, Action::Destroy { force: true }).await.unwrap();
    fixture.until(&id, MachineState::Destroyed).await;
    assert_eq!(applied(&fixture), BTreeMap::new());
}

#[tokio::test]
async fn a_new_process_leaves_addresses_as_they_are_until_it_is_told() {
    let mut fixture = Fixture::new().await;
    let id = fixture.started().await;
    set(&fixture, 7, vec![of(&id, "192.0.2.1", None)]).await;
    let expected = applied(&fixture);
    assert_eq!(expected.len(), 1);
    fixture.kill().await;
    fixture.start().await;
    // Another machine is made meanwhile.
    fixture.started().await;
    assert_eq!(applied(&fixture), expected);
    // It takes what it is told, whatever the one before had.
    assert_eq!(set(&fixture, 1, Vec::new()).await, 1);
    assert_eq!(applied(&fixture), BTreeMap::new());
}

/// Events of a machine about refused connections: how many, and how many in all; oldest first.
async fn told(fixture: &Fixture, machine: &MachineId) -> Vec<(u64, u64)> {
    let events = fixture.events(machine).await.into_iter().rev();
    let details = events.filter(|event| event.kind == "network").filter_map(|event| event.details);
    let number = |details: &Value, name: &str| details[name].as_u64();
    details
        .filter_map(|it| Some((number(&it, "refused")?, number(&it, "refused_in_all")?)))
        .collect()
}

/// The clock goes on by a step with each look.
async fn until_told(
    fixture: &Fixture,
    machine: &MachineId,
    expected: &[(u64, u64)],
    step: Duration,
) {
    let all = async {
        while told(fixture, machine).await.len() < expected.len() {
            fixture.clock.advance(step);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, all).await.unwrap();
    assert_eq!(told(fixture, machine).await, expected);
}

#[tokio::test]
async fn connections_that_find_no_port_are_counted_in_events_of_their_machine() {
    let fixture = Fixture::new().await;
    let (id, other) = (fixture.started().await, fixture.started().await);
    let address = ipv4(&fixture, &id);
    let private: IpAddr = fixture.record(&id).unwrap().machine.private_ip.parse().unwrap();
    fixture.network.refuse_connections(address, 3);
    until_told(&fixture, &id, &[(3, 3)], Duration::ZERO).await;
    let event = fixture.events(&id).await.into_iter().find(|event| event.kind == "network");
    let message = event.unwrap().details.unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("3 connections refused: "), "{message}");

    // Of many there is one event in a while, which counts all.
    fixture.network.refuse_connections(address, 1);
    fixture.network.refuse_connections(private, 4);
    until_told(&fixture, &id, &[(3, 3), (5, 8)], Duration::from_secs(60)).await;
    assert_eq!(told(&fixture, &other).await, []);
}

async fn warnings(fixture: &Fixture) -> Vec<String> {
    match fixture.ask(WorkerRequest::Health).await.unwrap() {
        WorkerReply::Health { warnings, .. } => warnings,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn packets_that_a_full_table_of_connections_drops_are_told_to_all_machines_and_by_health() {
    let fixture = Fixture::new().await;
    let machines = [fixture.started().await, fixture.started().await];
    let table = Tracked { count: 50, most: 100, dropped: 7 };
    let dropped = async |machine: &MachineId| -> Vec<u64> {
        let events = fixture.events(machine).await.into_iter().rev();
        events.filter_map(|event| event.details?["dropped"].as_u64()).collect()
    };
    let until = async |expected: &[u64]| {
        for machine in &machines {
            let all = async {
                while dropped(machine).await.len() < expected.len() {
                    fixture.clock.advance(Duration::from_secs(60));
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(TIMEOUT, all).await.unwrap();
            assert_eq!(dropped(machine).await, expected);
        }
    };
    // What was dropped for another reason is not told of: that is known after these looks.
    fixture.network.track(table);
    fixture.network.until_looked(&fixture.clock).await;
    assert!(!warnings(&fixture).await.iter().any(|line| line.contains("nf_conntrack_max")));
    fixture.network.track(Tracked { count: 100, dropped: 10, ..table });
    until(&[3]).await;
    let expected = "the host's table of connections is full (100 of 100), so new connections time \
                    out: raise net.netfilter.nf_conntrack_max";
    assert!(warnings(&fixture).await.iter().any(|line| line == expected));
    fixture.network.track(Tracked { count: 99, dropped: 11, ..table });
    until(&[3, 1]).await;

    fixture.network.track(Tracked { dropped: 20, ..table });
    fixture.network.until_looked(&fixture.clock).await;
    assert!(!warnings(&fixture).await.iter().any(|line| line.contains("nf_conntrack_max")));
    until(&[3, 1]).await;
}
