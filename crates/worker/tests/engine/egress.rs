//! Egress addresses of machines, as the network of the host has them.

use std::{collections::BTreeMap, net::IpAddr};

use caddis_api::{MachineId, MachineState};
use caddis_bus::message::{Action, EgressSource, MachineEgress, WorkerReply, WorkerRequest};
use serde_json::json;

use crate::support::{Fixture, config};

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
