//! Several at once. Each call of the store gives way to the others, so that they alternate there.

use std::{collections::HashSet, sync::Arc};

use caddis_api::NetworkName;
use caddis_catalog::{
    Catalog, CatalogError, IdempotencyState, NewApp, NewEgress, NewVolume, WantedAddress,
};
use futures::future::join_all;

use crate::support::{
    Behind, Fixture, GiveWay, address, app, keyed_app, machine, machine_of, over_each_store, pool,
    region, request, volume, worker,
};

over_each_store!(
    of_many_that_want_one_app_name_one_gets_it,
    many_with_one_key_get_one_app,
    many_first_apps_of_a_network_share_it,
    of_many_that_want_one_machine_name_one_gets_it,
    many_that_want_any_name_all_get_one,
    of_many_that_place_for_one_request_one_does,
    of_many_that_move_a_machine_one_does,
    of_many_with_one_key_one_carries_the_request_out,
    of_many_that_find_a_request_cut_short_one_takes_it_over,
    no_machine_is_placed_in_an_app_that_is_gone,
    no_volume_is_placed_in_an_app_that_is_gone,
    many_that_place_one_volume_place_it_once,
    of_many_that_want_the_last_address_one_gets_it,
    of_many_that_want_the_last_egress_address_one_gets_it,
    many_that_want_any_address_each_get_one_of_their_own,
    many_that_see_to_an_address_of_an_app_give_it_one,
    no_address_is_left_of_an_app_that_is_gone,
    of_many_that_make_the_root_token_one_does,
);

async fn of_many_that_want_the_last_egress_address_one_gets_it(fixture: &Fixture) {
    for index in 0..MANY {
        fixture.catalog.create_app(app(&format!("a{index}"))).await.unwrap();
    }
    let catalogs = many(fixture);
    let wanted = catalogs.iter().enumerate().map(|(index, catalog)| {
        catalog.allocate_egress(NewEgress {
            app: caddis_api::AppName::from_trusted(format!("a{index}")),
            machine: None,
            region: machine("a", None).region.to_string(),
            pools: vec![pool(&["192.0.2.7/32"])],
            completes: false,
        })
    });
    let given = join_all(wanted).await;
    assert_eq!(given.iter().filter(|given| given.is_ok()).count(), 1);
    let refused =
        given.iter().filter(|given| matches!(given, Err(CatalogError::EgressExhausted { .. })));
    assert_eq!(refused.count(), MANY - 1);
}

const MANY: usize = 8;

/// The catalogs of as many gateways: each two go at one pace, so that they meet at the same call,
/// and others overtake them between two calls.
fn many(fixture: &Fixture) -> Vec<Catalog> {
    let at_pace =
        |pace: usize| fixture.behind(|store| Arc::new(Behind { at: GiveWay(pace), store }));
    (0..MANY).map(|index| at_pace(index / 2 + 1)).collect()
}

async fn of_many_that_want_one_app_name_one_gets_it(fixture: &Fixture) {
    let made = join_all(many(fixture).iter().map(|catalog| catalog.create_app(app("a")))).await;
    assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1);
    let refused = made.iter().filter(|made| matches!(made, Err(CatalogError::AppNameTaken)));
    assert_eq!(refused.count(), MANY - 1);
}

async fn many_with_one_key_get_one_app(fixture: &Fixture) {
    for name in [None, Some("a")] {
        let key = name.unwrap_or("k");
        let made =
            join_all(many(fixture).iter().map(|catalog| catalog.create_app(keyed_app(name, key))))
                .await;
        let made: HashSet<_> = made.into_iter().map(|made| made.unwrap().id).collect();
        assert_eq!(made.len(), 1);
    }
}

async fn many_first_apps_of_a_network_share_it(fixture: &Fixture) {
    let catalogs = many(fixture);
    let in_network = |index: usize| NewApp {
        network: Some(NetworkName::from_trusted("n")),
        ..app(&format!("a{index}"))
    };
    let made =
        catalogs.iter().enumerate().map(|(index, catalog)| catalog.create_app(in_network(index)));
    let prefixes: HashSet<_> =
        join_all(made).await.into_iter().map(|made| made.unwrap().network_prefix).collect();
    assert_eq!(prefixes.len(), 1);
}

async fn of_many_that_want_one_machine_name_one_gets_it(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let placed =
        join_all(many(fixture).iter().map(|catalog| catalog.place(machine("a", Some("m"))))).await;
    assert_eq!(placed.iter().filter(|placed| placed.is_ok()).count(), 1);
    let holders = fixture.catalog.placements(None).await.unwrap();
    for refused in placed.iter().filter_map(|placed| placed.as_ref().err()) {
        assert!(matches!(
            refused,
            CatalogError::MachineNameTaken { holder, .. } if *holder == holders[0].machine
        ));
    }
}

async fn many_that_want_any_name_all_get_one(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let placed =
        join_all(many(fixture).iter().map(|catalog| catalog.place(machine("a", None)))).await;
    let names: HashSet<_> = placed.into_iter().map(|placed| placed.unwrap().name).collect();
    assert_eq!(names.len(), MANY);
}

async fn of_many_that_place_for_one_request_one_does(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    fixture.catalog.begin_request(request("1")).await.unwrap();
    let placed =
        join_all(many(fixture).iter().map(|catalog| catalog.place(machine_of("1", "a", None))))
            .await;
    assert_eq!(placed.iter().filter(|placed| placed.is_ok()).count(), 1);
    assert_eq!(fixture.catalog.placements(None).await.unwrap().len(), 1);
}

async fn of_many_that_move_a_machine_one_does(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let machine = fixture.catalog.place(machine("a", None)).await.unwrap().machine;
    let (catalogs, machine) = (many(fixture), &machine);
    let moved = join_all(catalogs.iter().enumerate().map(|(index, catalog)| async move {
        catalog.move_machine(machine, 1, &worker(&format!("W{index}")), &region("two")).await
    }));
    let (moved, refused): (Vec<_>, Vec<_>) =
        moved.await.into_iter().partition(|moved| moved.is_ok());
    assert_eq!((moved.len(), refused.len()), (1, MANY - 1));
    assert_eq!(
        fixture.catalog.placement(machine).await.unwrap(),
        Some(moved.into_iter().next().unwrap().unwrap())
    );
    for refused in refused {
        assert!(
            matches!(refused, Err(CatalogError::MachineMoved { current: 2, .. })),
            "{refused:?}"
        );
    }
}

async fn of_many_with_one_key_one_carries_the_request_out(fixture: &Fixture) {
    let begun = begin_at_once(fixture).await;
    assert_eq!(begun.iter().filter(|begun| **begun == IdempotencyState::New).count(), 1);
    assert_eq!(
        begun.iter().filter(|begun| matches!(begun, IdempotencyState::InProgress { .. })).count(),
        MANY - 1
    );
}

async fn of_many_that_find_a_request_cut_short_one_takes_it_over(fixture: &Fixture) {
    fixture.catalog.begin_request(request("first")).await.unwrap();
    fixture.pass(caddis_catalog::REQUEST_LEASE);
    let begun = begin_at_once(fixture).await;
    assert_eq!(
        begun
            .iter()
            .filter(|begun| matches!(begun, IdempotencyState::Interrupted { id } if id == "first"))
            .count(),
        1
    );
    assert_eq!(
        begun.iter().filter(|begun| matches!(begun, IdempotencyState::InProgress { .. })).count(),
        MANY - 1
    );
}

async fn begin_at_once(fixture: &Fixture) -> Vec<IdempotencyState> {
    let catalogs = many(fixture);
    let begun = catalogs
        .iter()
        .enumerate()
        .map(|(id, catalog)| catalog.begin_request(request(&id.to_string())));
    join_all(begun).await.into_iter().map(Result::unwrap).collect()
}

async fn no_machine_is_placed_in_an_app_that_is_gone(fixture: &Fixture) {
    let catalogs = many(fixture);
    let app = fixture.catalog.create_app(app("a")).await.unwrap();
    let placing = join_all(catalogs.iter().map(|catalog| catalog.place(machine("a", None))));
    let deleting = async {
        catalogs[0].begin_app_deletion("a").await.unwrap();
        catalogs[0].finish_app_deletion("a").await.unwrap()
    };
    let (placed, gone) = tokio::join!(placing, deleting);
    let placed = placed.into_iter().filter_map(|placed| {
        if let Err(refused) = &placed {
            assert!(
                matches!(refused, CatalogError::AppInDeletion(_) | CatalogError::AppNotFound(_)),
                "{refused}"
            );
        }
        placed.ok()
    });
    let left = fixture.catalog.app("a").await.unwrap();
    assert_eq!(left.is_none(), gone);
    assert_eq!(
        left.is_some(),
        placed.count() > 0,
        "app {} is gone if and only if nothing is in it",
        app.number
    );
}

async fn no_volume_is_placed_in_an_app_that_is_gone(fixture: &Fixture) {
    let catalogs = many(fixture);
    fixture.catalog.create_app(app("a")).await.unwrap();
    let placing = join_all(catalogs.iter().map(|catalog| catalog.place_volume(volume("a", "v"))));
    let deleting = async {
        catalogs[0].begin_app_deletion("a").await.unwrap();
        catalogs[0].finish_app_deletion("a").await.unwrap()
    };
    let (placed, gone) = tokio::join!(placing, deleting);
    assert_eq!(fixture.catalog.app("a").await.unwrap().is_none(), gone);
    assert_eq!(gone, placed.iter().all(Result::is_err));
    for refused in placed.into_iter().filter_map(Result::err) {
        assert!(
            matches!(refused, CatalogError::AppInDeletion(_) | CatalogError::AppNotFound(_)),
            "{refused}"
        );
    }
}

async fn many_that_place_one_volume_place_it_once(fixture: &Fixture) {
    let app = fixture.catalog.create_app(app("a")).await.unwrap();
    let new = || NewVolume { id: "vol_1".parse().ok(), ..volume("a", "v") };
    let placed = join_all(many(fixture).iter().map(|catalog| catalog.place_volume(new()))).await;
    let placed: HashSet<_> = placed.into_iter().map(|placed| placed.unwrap().id).collect();
    assert_eq!(placed.len(), 1);
    assert_eq!(fixture.catalog.volumes_of(app.number).await.unwrap().len(), 1);
}

async fn of_many_that_want_the_last_address_one_gets_it(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let last = || address("a", WantedAddress::Own(pool(&["192.0.2.1/32"])));
    let given =
        join_all(many(fixture).iter().map(|catalog| catalog.allocate_address(last()))).await;
    assert_eq!(given.iter().filter(|given| given.is_ok()).count(), 1);
    let refused =
        given.iter().filter(|given| matches!(given, Err(CatalogError::AddressesExhausted { .. })));
    assert_eq!(refused.count(), MANY - 1);
}

async fn many_that_want_any_address_each_get_one_of_their_own(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let any = || address("a", WantedAddress::Own(pool(&["192.0.2.0/24"])));
    let given = join_all(many(fixture).iter().map(|catalog| catalog.allocate_address(any()))).await;
    let given: HashSet<_> = given.into_iter().map(|given| given.unwrap().ip).collect();
    assert_eq!(given.len(), MANY);
}

async fn many_that_see_to_an_address_of_an_app_give_it_one(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let catalogs = many(fixture);
    let given = catalogs.iter().map(|catalog| catalog.ensure_address("a", pool(&["192.0.2.0/24"])));
    let given: HashSet<_> =
        join_all(given).await.into_iter().map(|given| given.unwrap().ip).collect();
    assert_eq!((given.len(), fixture.catalog.addresses().await.unwrap().len()), (1, 1));
}

async fn no_address_is_left_of_an_app_that_is_gone(fixture: &Fixture) {
    let catalogs = many(fixture);
    fixture.catalog.create_app(app("a")).await.unwrap();
    let any = || address("a", WantedAddress::Own(pool(&["192.0.2.0/24"])));
    let giving = join_all(catalogs.iter().map(|catalog| catalog.allocate_address(any())));
    let deleting = async {
        catalogs[0].begin_app_deletion("a").await.unwrap();
        assert!(catalogs[0].finish_app_deletion("a").await.unwrap());
    };
    let (given, ()) = tokio::join!(giving, deleting);
    for refused in given.into_iter().filter_map(Result::err) {
        assert!(
            matches!(refused, CatalogError::AppInDeletion(_) | CatalogError::AppNotFound(_)),
            "{refused}"
        );
    }
    assert_eq!(fixture.catalog.addresses().await.unwrap(), []);
}

async fn of_many_that_make_the_root_token_one_does(fixture: &Fixture) {
    let made = join_all(many(fixture).iter().map(|catalog| catalog.ensure_root_token())).await;
    let tokens: Vec<_> = made.into_iter().filter_map(Result::unwrap).collect();
    assert_eq!(tokens.len(), 1);
    assert!(fixture.catalog.authenticate(&tokens[0]).await.unwrap().is_some());
}
