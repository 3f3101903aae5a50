//! Placements: ids, names, addresses and places.

use std::{collections::HashSet, net::Ipv6Addr};

use caddis_api::{MachineId, NetworkName};
use caddis_catalog::{CatalogError, IdempotencyState, NewApp};

use crate::support::{Fixture, app, machine, machine_of, over_each_store, region, request, worker};

over_each_store!(
    a_machine_is_found_as_it_was_placed,
    each_machine_has_a_subnet_of_its_network,
    a_name_is_free_when_its_machine_is_released,
    names_are_unique_in_their_app_only,
    placements_are_listed_by_worker_until_they_are_released,
    a_machine_moves_to_another_worker_with_the_next_epoch,
    a_machine_that_was_moved_is_not_moved_from_where_it_was,
    machines_that_are_gone_or_never_were_are_not_moved,
    a_request_knows_its_machine_also_when_that_is_gone,
    a_request_has_one_machine_that_is_not_released,
    a_request_that_is_forgotten_keeps_nothing_from_being_placed,
);

async fn a_machine_is_found_as_it_was_placed(fixture: &Fixture) {
    let app = fixture.catalog.create_app(app("a")).await.unwrap();
    let placed = fixture.catalog.place(machine("a", Some("m"))).await.unwrap();
    assert_eq!(
        (placed.name.as_str(), placed.app.as_str(), placed.region.as_str()),
        ("m", "a", "one")
    );
    assert_eq!((&placed.worker, placed.epoch, placed.released), (&worker("W1"), 1, false));
    assert_eq!((&placed.network_prefix, placed.created_ms), (&app.network_prefix, fixture.now()));
    assert_eq!(fixture.catalog.placement(&placed.machine).await.unwrap(), Some(placed));
    assert_eq!(fixture.catalog.placement(&MachineId::random()).await.unwrap(), None);
    assert!(matches!(
        fixture.catalog.place(machine("b", None)).await,
        Err(CatalogError::AppNotFound(_))
    ));
}

async fn each_machine_has_a_subnet_of_its_network(fixture: &Fixture) {
    let app = fixture.catalog.create_app(app("a")).await.unwrap();
    let network: Ipv6Addr = app.network_prefix.strip_suffix("/48").unwrap().parse().unwrap();
    let mut subnets = HashSet::new();
    for _ in 0..50 {
        let placed = fixture.catalog.place(machine("a", None)).await.unwrap();
        assert_eq!(placed.ipv6.segments()[..3], network.segments()[..3]);
        assert_eq!(placed.ipv6.segments()[7], 2);
        subnets.insert(placed.ipv6.to_bits() >> 16);
    }
    assert_eq!(subnets.len(), 50);
}

async fn a_name_is_free_when_its_machine_is_released(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let first = catalog.place(machine("a", Some("m"))).await.unwrap();
    match catalog.place(machine("a", Some("m"))).await {
        Err(CatalogError::MachineNameTaken { name, holder }) => {
            assert_eq!((name.as_str(), holder), ("m", first.machine.clone()))
        }
        other => panic!("{other:?}"),
    }
    for _ in 0..2 {
        catalog.release(&first.machine).await.unwrap();
    }
    let second = catalog.place(machine("a", Some("m"))).await.unwrap();
    assert_ne!((&second.machine, second.ipv6), (&first.machine, first.ipv6));
    let first = catalog.placement(&first.machine).await.unwrap().unwrap();
    assert!(first.released);
}

async fn names_are_unique_in_their_app_only(fixture: &Fixture) {
    for name in ["a", "b"] {
        fixture
            .catalog
            .create_app(NewApp { network: Some(NetworkName::from_trusted(name)), ..app(name) })
            .await
            .unwrap();
        let placed = fixture.catalog.place(machine(name, Some("m"))).await.unwrap();
        assert_eq!((placed.name.as_str(), placed.app.as_str()), ("m", name));
    }
}

async fn placements_are_listed_by_worker_until_they_are_released(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let one = catalog.place(machine("a", None)).await.unwrap();
    let elsewhere = caddis_catalog::NewPlacement { worker: worker("W2"), ..machine("a", None) };
    let other = catalog.place(elsewhere).await.unwrap();
    assert_eq!(catalog.placements(Some(&worker("W1"))).await.unwrap(), std::slice::from_ref(&one));
    assert_eq!(catalog.placements(None).await.unwrap().len(), 2);
    catalog.release(&one.machine).await.unwrap();
    assert_eq!(catalog.placements(Some(&worker("W1"))).await.unwrap(), []);
    assert_eq!(catalog.placements(None).await.unwrap(), [other]);
}

async fn a_machine_moves_to_another_worker_with_the_next_epoch(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let placed = catalog.place(machine("a", Some("m"))).await.unwrap();
    let moved =
        catalog.move_machine(&placed.machine, 1, &worker("W2"), &region("two")).await.unwrap();
    assert_eq!((&moved.worker, moved.region.as_str(), moved.epoch), (&worker("W2"), "two", 2));
    assert_eq!(
        (&moved.name, moved.ipv6, moved.created_ms),
        (&placed.name, placed.ipv6, placed.created_ms)
    );
    assert_eq!(catalog.placement(&placed.machine).await.unwrap(), Some(moved.clone()));
    assert_eq!(catalog.placements(Some(&worker("W2"))).await.unwrap(), [moved]);
    assert_eq!(catalog.placements(Some(&worker("W1"))).await.unwrap(), []);
    let back =
        catalog.move_machine(&placed.machine, 2, &worker("W1"), &region("one")).await.unwrap();
    assert_eq!((back.worker, back.epoch), (worker("W1"), 3));
}

async fn a_machine_that_was_moved_is_not_moved_from_where_it_was(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let machine = catalog.place(machine("a", None)).await.unwrap().machine;
    let moved = catalog.move_machine(&machine, 1, &worker("W2"), &region("two")).await.unwrap();
    for wrong in [0, 1, 3] {
        match catalog.move_machine(&machine, wrong, &worker("W3"), &region("three")).await {
            Err(CatalogError::MachineMoved { current, .. }) => assert_eq!(current, 2),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(catalog.placement(&machine).await.unwrap(), Some(moved));
}

async fn machines_that_are_gone_or_never_were_are_not_moved(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let machine = catalog.place(machine("a", None)).await.unwrap().machine;
    catalog.release(&machine).await.unwrap();
    for epoch in [1, 2] {
        let refused = catalog.move_machine(&machine, epoch, &worker("W2"), &region("two")).await;
        assert!(matches!(refused, Err(CatalogError::MachineReleased(id)) if id == machine));
    }
    let never = catalog.move_machine(&MachineId::random(), 1, &worker("W2"), &region("two")).await;
    assert!(matches!(never, Err(CatalogError::MachineNotFound(_))));
}

async fn a_request_knows_its_machine_also_when_that_is_gone(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.begin_request(request("1")).await.unwrap();
    assert_eq!(catalog.placement_of_request("1").await.unwrap(), None);
    let placed = catalog.place(machine_of("1", "a", None)).await.unwrap();
    assert_eq!(catalog.placement_of_request("1").await.unwrap(), Some(placed.clone()));
    catalog.release(&placed.machine).await.unwrap();
    assert!(catalog.placement_of_request("1").await.unwrap().unwrap().released);
    assert_eq!(catalog.placement_of_request("2").await.unwrap(), None);
}

async fn a_request_has_one_machine_that_is_not_released(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.begin_request(request("1")).await.unwrap();
    let first = catalog.place(machine_of("1", "a", Some("m"))).await.unwrap();
    for name in [None, Some("m"), Some("other")] {
        match catalog.place(machine_of("1", "a", name)).await {
            Err(CatalogError::RequestHasMachine { machine }) => assert_eq!(machine, first.machine),
            other => panic!("{other:?}"),
        }
    }
    catalog.release(&first.machine).await.unwrap();
    let second = catalog.place(machine_of("1", "a", Some("m"))).await.unwrap();
    assert_eq!(catalog.placement_of_request("1").await.unwrap(), Some(second));
}

async fn a_request_that_is_forgotten_keeps_nothing_from_being_placed(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    assert_eq!(catalog.begin_request(request("1")).await.unwrap(), IdempotencyState::New);
    catalog.forget_request("1", "1").await.unwrap();
    catalog.place(machine_of("1", "a", None)).await.unwrap();
    assert_eq!(catalog.placement_of_request("1").await.unwrap(), None);
}
