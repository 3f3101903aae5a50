//! Egress addresses of apps and machines.

use std::{collections::BTreeSet, net::IpAddr};

use caddis_api::MachineId;
use caddis_catalog::{AddressPool, CatalogError, EgressAddress, NewEgress};

use crate::support::{Fixture, app, machine, over_each_store, pool, worker};

over_each_store!(
    a_machine_has_addresses_of_its_own_until_they_are_released_or_it_is_gone,
    machines_of_an_app_share_its_addresses_with_a_block_each,
    a_machine_s_own_addresses_win_over_those_of_its_app,
    promoted_addresses_stay_the_machine_s_and_are_shared,
    what_is_missing_of_the_pairs_of_an_app_is_added_before_another_is_given,
    addresses_that_no_prefix_has_are_told,
    an_address_has_room_for_64_machines_and_another_takes_the_rest,
    a_released_address_is_given_again_once_all_hosts_know,
    the_addresses_of_an_app_that_is_gone_are_released,
    apps_and_machines_that_are_not_there_get_none,
    each_change_has_a_number_and_is_told,
);

fn pools(v4: &str) -> Vec<AddressPool> {
    vec![pool(&[v4]), pool(&["2001:db8::/112"])]
}

fn of_app(app: &str) -> NewEgress {
    NewEgress {
        app: caddis_api::AppName::from_trusted(app),
        machine: None,
        region: machine(app, None).region.to_string(),
        pools: pools("192.0.2.0/29"),
        completes: false,
    }
}

fn of_machine(app: &str, machine: &MachineId) -> NewEgress {
    NewEgress { machine: Some(machine.clone()), ..of_app(app) }
}

async fn with_machines(fixture: &Fixture, app_name: &str, count: usize) -> Vec<MachineId> {
    fixture.catalog.create_app(app(app_name)).await.unwrap();
    let mut machines = Vec::new();
    for _ in 0..count {
        machines.push(fixture.catalog.place(machine(app_name, None)).await.unwrap().machine);
    }
    machines
}

type Sources = Vec<(String, Option<(u16, u16)>)>;

/// What a machine has, as its worker is told.
async fn has(fixture: &Fixture, machine: &MachineId) -> Sources {
    let egress = fixture.catalog.egress_of_worker(&worker("W1")).await.unwrap();
    let found = egress.get(machine).cloned().unwrap_or_default();
    found.into_iter().map(|(ip, ports)| (ip.to_string(), ports)).collect()
}

fn sources(all: &[(&str, Option<(u16, u16)>)]) -> Sources {
    all.iter().map(|(ip, ports)| ((*ip).to_owned(), *ports)).collect()
}

fn ips(addresses: &[EgressAddress]) -> Vec<String> {
    addresses.iter().map(|address| address.ip.to_string()).collect()
}

async fn a_machine_has_addresses_of_its_own_until_they_are_released_or_it_is_gone(
    fixture: &Fixture,
) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 2).await;
    let given = catalog.allocate_egress(of_machine("a", &machines[0])).await.unwrap();
    assert_eq!(ips(&given), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(
        has(fixture, &machines[0]).await,
        sources(&[("192.0.2.1", None), ("2001:db8::1", None)])
    );
    assert_eq!(has(fixture, &machines[1]).await, []);
    let again = catalog.allocate_egress(of_machine("a", &machines[0])).await.unwrap_err();
    assert!(matches!(again, CatalogError::EgressTaken(_)), "{again}");
    let none = catalog.release_egress_of("a", &machines[1]).await.unwrap_err();
    assert!(matches!(none, CatalogError::EgressNotFound(_)), "{none}");
    // It is not the app's.
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    let not_its = catalog.release_egress("a", ip).await.unwrap_err();
    assert!(matches!(not_its, CatalogError::AddressNotFound(_)), "{not_its}");
    let released = catalog.release_egress_of("a", &machines[0]).await.unwrap();
    assert_eq!(ips(&released), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(has(fixture, &machines[0]).await, []);
    catalog.allocate_egress(of_machine("a", &machines[1])).await.unwrap();
    assert!(!has(fixture, &machines[1]).await.is_empty());
    catalog.release(&machines[1]).await.unwrap();
    assert_eq!(catalog.egress_addresses("a").await.unwrap(), []);
}

async fn machines_of_an_app_share_its_addresses_with_a_block_each(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 2).await;
    let others = with_machines(fixture, "b", 1).await;
    let given = catalog.allocate_egress(of_app("a")).await.unwrap();
    assert_eq!(ips(&given), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(given[0].blocks.len(), 2);
    let later = catalog.place(machine("a", None)).await.unwrap().machine;
    let mut blocks = BTreeSet::new();
    for machine in machines.iter().chain([&later]) {
        let found = has(fixture, machine).await;
        let ports = found[0].1;
        blocks.insert(ports.unwrap());
        assert_eq!(found, sources(&[("192.0.2.1", ports), ("2001:db8::1", ports)]));
    }
    assert_eq!(Vec::from_iter(blocks), [(1024, 2047), (2048, 3071), (3072, 4095)]);
    assert_eq!(has(fixture, &others[0]).await, []);
    // Who has a block keeps it, and one that is free is given to the next.
    let (kept, freed) = (has(fixture, &later).await, has(fixture, &machines[0]).await);
    catalog.release(&machines[0]).await.unwrap();
    assert_eq!(has(fixture, &later).await, kept);
    let next = catalog.place(machine("a", None)).await.unwrap().machine;
    assert_eq!(has(fixture, &next).await, freed);
    catalog.release_egress("a", "192.0.2.1".parse().unwrap()).await.unwrap();
    assert_eq!(has(fixture, &next).await, freed[1..]);
}

async fn a_machine_s_own_addresses_win_over_those_of_its_app(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 1).await;
    catalog.allocate_egress(of_app("a")).await.unwrap();
    let shared = has(fixture, &machines[0]).await;
    let only_v4 =
        NewEgress { pools: pools("192.0.2.0/29")[..1].to_vec(), ..of_machine("a", &machines[0]) };
    catalog.allocate_egress(only_v4).await.unwrap();
    let expected: Sources =
        sources(&[("192.0.2.2", None)]).into_iter().chain([shared[1].clone()]).collect();
    assert_eq!(has(fixture, &machines[0]).await, expected);
    catalog.release_egress_of("a", &machines[0]).await.unwrap();
    assert_eq!(has(fixture, &machines[0]).await, shared);
}

async fn promoted_addresses_stay_the_machine_s_and_are_shared(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 3).await;
    catalog.allocate_egress(of_machine("a", &machines[1])).await.unwrap();
    let promoted = catalog.promote_egress("a", &machines[1]).await.unwrap();
    assert_eq!(ips(&promoted), ["192.0.2.1", "2001:db8::1"]);
    let again = catalog.promote_egress("a", &machines[1]).await.unwrap_err();
    assert!(matches!(again, CatalogError::EgressNotFound(_)), "{again}");
    let mut blocks = BTreeSet::new();
    for machine in &machines {
        let found = has(fixture, machine).await;
        assert_eq!(found[0].0, "192.0.2.1");
        assert_eq!(found[0].1, found[1].1, "it is the same block of both");
        blocks.insert(found[0].1);
    }
    assert_eq!(blocks.len(), 3);
    // They are not released with the machine.
    catalog.release(&machines[1]).await.unwrap();
    assert_eq!(catalog.egress_addresses("a").await.unwrap().len(), 2);
}

async fn what_is_missing_of_the_pairs_of_an_app_is_added_before_another_is_given(
    fixture: &Fixture,
) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 1).await;
    let any = || NewEgress { completes: true, ..of_app("a") };
    let only = |at: usize| NewEgress { pools: vec![pools("192.0.2.0/29").remove(at)], ..any() };
    // Without a pool of the other family nothing can be completed.
    for expected in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(ips(&catalog.allocate_egress(only(0)).await.unwrap()), [expected]);
    }
    let block = has(fixture, &machines[0]).await;
    assert_eq!(block.len(), 1);
    for expected in [["192.0.2.1", "2001:db8::1"], ["192.0.2.2", "2001:db8::2"]] {
        assert_eq!(ips(&catalog.allocate_egress(any()).await.unwrap()), expected);
    }
    // It has the same block of both.
    let (first, ports) = block[0].clone();
    let second = if first == "192.0.2.1" { "2001:db8::1" } else { "2001:db8::2" };
    assert_eq!(has(fixture, &machines[0]).await, sources(&[(&first, ports), (second, ports)]));
    let third = ["192.0.2.3", "2001:db8::3"];
    assert_eq!(ips(&catalog.allocate_egress(any()).await.unwrap()), third);
    catalog.release_egress("a", "192.0.2.1".parse().unwrap()).await.unwrap();
    catalog.forget_released_egress(u64::MAX).await.unwrap();
    let completed = ["192.0.2.1", "2001:db8::1"];
    assert_eq!(ips(&catalog.allocate_egress(any()).await.unwrap()), completed);
    // Those of another region and of a machine alone count for nothing.
    catalog.release_egress("a", "2001:db8::1".parse().unwrap()).await.unwrap();
    let elsewhere = NewEgress { region: "far".to_owned(), ..any() };
    assert_eq!(catalog.allocate_egress(elsewhere).await.unwrap().len(), 2);
    let own = NewEgress { completes: true, ..of_machine("a", &machines[0]) };
    assert_eq!(catalog.allocate_egress(own).await.unwrap().len(), 2);
}

async fn addresses_that_no_prefix_has_are_told(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    with_machines(fixture, "a", 0).await;
    let region = of_app("a").region;
    catalog.allocate_egress(of_app("a")).await.unwrap();
    let outside = async |region: &str, prefixes: &[&str]| {
        let prefixes: Vec<_> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
        let found = catalog.egress_outside(region, &prefixes).await.unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(outside(&region, &["192.0.2.0/29", "2001:db8::/112"]).await, [""; 0]);
    assert_eq!(outside(&region, &["192.0.2.0/29"]).await, ["2001:db8::1"]);
    assert_eq!(outside(&region, &[]).await, ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(outside("far", &[]).await, [""; 0]);
    catalog.release_egress("a", "192.0.2.1".parse().unwrap()).await.unwrap();
    assert_eq!(outside(&region, &[]).await, ["2001:db8::1"]);
}

async fn an_address_has_room_for_64_machines_and_another_takes_the_rest(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 66).await;
    catalog.allocate_egress(of_app("a")).await.unwrap();
    let mut blocks = BTreeSet::new();
    for machine in &machines {
        blocks.extend(has(fixture, machine).await.first().map(|found| found.1.unwrap()));
    }
    assert_eq!(blocks.len(), 64);
    assert!(blocks.contains(&(1, 1023)) && blocks.contains(&(64_512, 65_535)));
    catalog.allocate_egress(of_app("a")).await.unwrap();
    let mut of_second = 0;
    for machine in &machines {
        let found = has(fixture, machine).await;
        assert_eq!(found.len(), 2);
        let pair = [found[0].0.as_str(), found[1].0.as_str()];
        match pair {
            ["192.0.2.1", "2001:db8::1"] => {}
            ["192.0.2.2", "2001:db8::2"] => of_second += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(of_second, 2);
}

async fn a_released_address_is_given_again_once_all_hosts_know(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let two = || NewEgress { pools: vec![pool(&["192.0.2.0/30"])], ..of_app("a") };
    for expected in ["192.0.2.1", "192.0.2.2"] {
        assert_eq!(ips(&catalog.allocate_egress(two()).await.unwrap()), [expected]);
    }
    let exhausted = catalog.allocate_egress(two()).await.unwrap_err();
    assert_eq!(
        exhausted.to_string(),
        "no egress address is free in 192.0.2.0/30: release one that is no longer needed, or give \
         the server more with --egress-addresses"
    );
    let revision = catalog.egress_revision().await.unwrap().unwrap();
    catalog.release_egress("a", "192.0.2.1".parse().unwrap()).await.unwrap();
    assert_eq!(ips(&catalog.egress_addresses("a").await.unwrap()), ["192.0.2.2"]);
    catalog.forget_released_egress(revision).await.unwrap();
    catalog.allocate_egress(two()).await.unwrap_err();
    catalog.forget_released_egress(revision + 1).await.unwrap();
    assert_eq!(ips(&catalog.allocate_egress(two()).await.unwrap()), ["192.0.2.1"]);
}

async fn the_addresses_of_an_app_that_is_gone_are_released(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    with_machines(fixture, "a", 0).await;
    catalog.allocate_egress(of_app("a")).await.unwrap();
    catalog.begin_app_deletion("a").await.unwrap();
    let refused = catalog.allocate_egress(of_app("a")).await.unwrap_err();
    assert!(matches!(refused, CatalogError::AppInDeletion(_)), "{refused}");
    catalog.finish_app_deletion("a").await.unwrap();
    // An app of the same name is another one.
    let machines = with_machines(fixture, "a", 1).await;
    assert_eq!(catalog.egress_addresses("a").await.unwrap(), []);
    assert_eq!(has(fixture, &machines[0]).await, []);
    catalog.forget_released_egress(u64::MAX).await.unwrap();
    let given = catalog.allocate_egress(of_app("a")).await.unwrap();
    assert_eq!(ips(&given), ["192.0.2.1", "2001:db8::1"]);
}

async fn apps_and_machines_that_are_not_there_get_none(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let machines = with_machines(fixture, "a", 1).await;
    with_machines(fixture, "b", 0).await;
    let nobody = catalog.allocate_egress(of_app("nothing")).await.unwrap_err();
    assert!(matches!(nobody, CatalogError::AppNotFound(_)), "{nobody}");
    let of_another = catalog.allocate_egress(of_machine("b", &machines[0])).await.unwrap_err();
    assert!(matches!(of_another, CatalogError::MachineNotFound(_)), "{of_another}");
}

async fn each_change_has_a_number_and_is_told(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let mut changed = catalog.egress_changed();
    let machines = with_machines(fixture, "a", 1).await;
    assert!(!changed.has_changed().unwrap(), "nobody has an address");
    assert_eq!(catalog.egress_revision().await.unwrap(), None);
    catalog.allocate_egress(of_app("a")).await.unwrap();
    let revision = async || catalog.egress_revision().await.unwrap();
    let first = revision().await;
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    catalog.settle_egress("a").await.unwrap();
    catalog.settle_all_egress().await.unwrap();
    assert!(revision().await == first && !changed.has_changed().unwrap());
    catalog.release(&machines[0]).await.unwrap();
    assert!(revision().await > first && changed.has_changed().unwrap());
}
