//! What the rules can't come by through the catalog, asked of the store itself: conflicts over what
//! is made up at random.

use caddis_api::{AppName, MachineId, NetworkName, UnixMillis};
use caddis_catalog::{
    AddressKind,
    store::{
        AddressConflict, AddressRow, AppConflict, AppRow, NewNetwork, PlacementConflict,
        PlacementRow,
    },
};

use crate::support::{Fixture, app, over_each_store, region, worker};

over_each_store!(
    a_prefix_is_of_one_network,
    an_app_id_is_not_given_twice_also_when_its_app_is_gone,
    ids_and_addresses_of_machines_are_not_given_twice_also_when_they_are_released,
    an_app_that_has_a_machine_or_is_not_marked_is_not_deleted,
    an_address_is_of_one_app_unless_it_is_shared,
);

const NOW: UnixMillis = UnixMillis::new(1);

fn placement(machine: &MachineId, name: &str, ipv6: &str) -> PlacementRow {
    PlacementRow {
        machine: machine.clone(),
        name: name.to_owned(),
        app: 1,
        worker: worker("W1"),
        region: region("one"),
        epoch: 1,
        ipv6: ipv6.parse().unwrap(),
        created_ms: NOW,
        request: None,
    }
}

async fn a_prefix_is_of_one_network(fixture: &Fixture) {
    let network = |name: &str, prefix: &str| NewNetwork {
        organization: 1,
        name: NetworkName::from_trusted(name),
        prefix: prefix.to_owned(),
        created_ms: NOW,
    };
    let store = &fixture.store;
    store.insert_network(network("a", "fdaa:1:1::/48")).await.unwrap();
    store.insert_network(network("b", "fdaa:1:1::/48")).await.unwrap();
    store.insert_network(network("a", "fdaa:2:2::/48")).await.unwrap();
    assert_eq!(store.network(1, "a").await.unwrap().unwrap().prefix, "fdaa:1:1::/48");
    assert_eq!(store.network(1, "b").await.unwrap(), None);
}

async fn an_app_id_is_not_given_twice_also_when_its_app_is_gone(fixture: &Fixture) {
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    let network = fixture.store.network(1, &made.network).await.unwrap().unwrap().number;
    let row = |name: &str| AppRow {
        id: made.id.clone(),
        name: AppName::from_trusted(name),
        organization: 1,
        network,
        key: None,
        created_ms: NOW,
    };
    assert_eq!(fixture.store.insert_app(row("a")).await.unwrap(), Err(AppConflict::Name));
    assert_eq!(fixture.store.insert_app(row("b")).await.unwrap(), Err(AppConflict::Id));
    fixture.catalog.begin_app_deletion("a").await.unwrap();
    assert!(fixture.catalog.finish_app_deletion("a").await.unwrap());
    assert_eq!(fixture.store.insert_app(row("a")).await.unwrap(), Err(AppConflict::Id));
    assert!(!fixture.store.mark_app_deleting(made.number, NOW).await.unwrap());
}

async fn ids_and_addresses_of_machines_are_not_given_twice_also_when_they_are_released(
    fixture: &Fixture,
) {
    let store = &fixture.store;
    fixture.catalog.create_app(app("a")).await.unwrap();
    let (one, other) = (MachineId::random(), MachineId::random());
    assert_eq!(store.insert_placement(placement(&one, "m", "fdaa::2")).await.unwrap(), Ok(()));
    for _ in 0..2 {
        let same_id = store.insert_placement(placement(&one, "n", "fdaa::1:2")).await.unwrap();
        assert_eq!(same_id, Err(PlacementConflict::Identity));
        let same_address = store.insert_placement(placement(&other, "n", "fdaa::2")).await.unwrap();
        assert_eq!(same_address, Err(PlacementConflict::Identity));
        store.release_placement(&one, NOW).await.unwrap();
    }
}

async fn an_app_that_has_a_machine_or_is_not_marked_is_not_deleted(fixture: &Fixture) {
    let store = &fixture.store;
    let app = fixture.catalog.create_app(app("a")).await.unwrap();
    let machine = MachineId::random();
    store.insert_placement(placement(&machine, "m", "fdaa::2")).await.unwrap().unwrap();
    assert!(!store.delete_app(app.number, NOW).await.unwrap());
    assert!(store.mark_app_deleting(app.number, NOW).await.unwrap());
    assert!(!store.delete_app(app.number, NOW).await.unwrap());
    let another = placement(&MachineId::random(), "n", "fdaa::1:2");
    assert_eq!(store.insert_placement(another).await.unwrap(), Err(PlacementConflict::App));
    store.release_placement(&machine, NOW).await.unwrap();
    assert!(store.delete_app(app.number, NOW).await.unwrap());
    assert!(!store.delete_app(app.number, NOW).await.unwrap(), "it is gone");
}

async fn an_address_is_of_one_app_unless_it_is_shared(fixture: &Fixture) {
    let store = &fixture.store;
    let one = fixture.catalog.create_app(app("one")).await.unwrap().number;
    let other = fixture.catalog.create_app(app("other")).await.unwrap().number;
    let row = |app, ip: &str, kind, only_beside: Option<&[&str]>| AddressRow {
        app,
        ip: ip.parse().unwrap(),
        kind,
        network: None,
        region: String::new(),
        service_name: String::new(),
        only_beside: only_beside.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect()),
        created_at: NOW,
    };
    use AddressKind::{SharedV4, V4};
    let first: Option<&[&str]> = Some(&[]);
    for (row, expected) in [
        (row(one, "192.0.2.1", V4, first), Ok(())),
        (row(one, "192.0.2.2", V4, first), Err(AddressConflict::Kind)),
        (row(one, "192.0.2.2", V4, Some(&["192.0.2.3"])), Err(AddressConflict::Kind)),
        (row(one, "192.0.2.2", V4, Some(&["192.0.2.1"])), Ok(())),
        (row(one, "192.0.2.4", V4, Some(&["192.0.2.1"])), Err(AddressConflict::Kind)),
        (row(one, "192.0.2.2", SharedV4, None), Err(AddressConflict::Address)),
        (row(other, "192.0.2.1", V4, None), Err(AddressConflict::Address)),
        (row(one, "192.0.2.9", SharedV4, first), Ok(())),
        (row(other, "192.0.2.9", SharedV4, first), Ok(())),
        (row(other, "192.0.2.9", SharedV4, first), Err(AddressConflict::Kind)),
        (row(99, "192.0.2.3", V4, None), Err(AddressConflict::App)),
    ] {
        assert_eq!(store.insert_address(row.clone()).await.unwrap(), expected, "{row:?}");
    }
    assert!(!store.delete_address(other, "192.0.2.1".parse().unwrap()).await.unwrap());
    assert!(store.delete_address(one, "192.0.2.1".parse().unwrap()).await.unwrap());
    let left = store.addresses(None).await.unwrap();
    let left: Vec<_> =
        left.iter().map(|row| (row.app.as_str(), row.ip.to_string(), row.kind)).collect();
    let ip = |text: &str| text.to_owned();
    assert_eq!(
        left,
        [
            ("one", ip("192.0.2.2"), V4),
            ("one", ip("192.0.2.9"), SharedV4),
            ("other", ip("192.0.2.9"), SharedV4)
        ]
    );
}
