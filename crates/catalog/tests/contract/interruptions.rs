//! A store that fails at any one of its calls, before it has done what it was asked for or after:
//! the same call made again ends as if nothing had happened. A call that is cut short between two
//! calls of the store is the same to it.

use std::sync::{Arc, atomic::AtomicU64};

use caddis_api::NetworkName;
use caddis_catalog::{
    AppState, Catalog, CatalogError, IdempotencyState, NewApp, NewVolume, Push, StoreError,
    WantedAddress,
};

use crate::support::{
    Behind, FailAt, Fixture, address, answer, app, keyed_app, machine, machine_of, pool, region,
    request, volume, worker,
};

/// Runs `step` over each store, once with a failure at each of its calls of the store, and then
/// again without; and asks `check` whether all is as it should be.
async fn everywhere<S, C>(prepare: impl AsyncFn(&Catalog), step: S, check: C)
where
    S: AsyncFn(&Catalog) -> Result<(), CatalogError>,
    C: AsyncFn(&Catalog),
{
    for answer_lost in [false, true] {
        let mut call = 0;
        loop {
            let mut failed = false;
            for fixture in Fixture::each() {
                prepare(&fixture.catalog).await;
                let at = FailAt { call, answer_lost, calls: AtomicU64::new(0) };
                let catalog = fixture.behind(|store| Arc::new(Behind { at, store }));
                match step(&catalog).await {
                    Err(CatalogError::Store(StoreError::Failed { .. })) => failed = true,
                    outcome => outcome.unwrap(),
                }
                // The same again, with a store that works by now.
                step(&fixture.catalog).await.unwrap();
                check(&fixture.catalog).await;
            }
            if !failed {
                assert!(call > 0, "it calls the store");
                break;
            }
            call += 1;
        }
    }
}

#[tokio::test]
async fn making_an_app_with_a_key() {
    everywhere(
        async |_| {},
        async |catalog| {
            let network = Some(NetworkName::from_trusted("n"));
            catalog.create_app(NewApp { network, ..keyed_app(Some("a"), "k") }).await.map(drop)
        },
        async |catalog| {
            let made = catalog.app("a").await.unwrap().unwrap();
            assert_eq!((made.network.as_str(), made.number), ("n", 1));
            assert_eq!(catalog.apps(Default::default()).await.unwrap().total, 1);
        },
    )
    .await;
}

#[tokio::test]
async fn deleting_an_app() {
    everywhere(
        async |catalog| {
            catalog.create_app(keyed_app(Some("a"), "k")).await.unwrap();
            let placed = catalog.place(machine("a", Some("m"))).await.unwrap();
            catalog.release(&placed.machine).await.unwrap();
        },
        async |catalog| {
            match catalog.begin_app_deletion("a").await {
                // The call before this one has deleted it.
                Err(CatalogError::AppNotFound(_)) => {}
                marked => assert_eq!(marked?.state, AppState::Deleting),
            }
            assert!(catalog.finish_app_deletion("a").await?);
            Ok(())
        },
        async |catalog| {
            assert_eq!(catalog.app("a").await.unwrap(), None);
            assert_eq!(catalog.apps_in_deletion().await.unwrap(), []);
            let next = catalog.create_app(keyed_app(Some("a"), "k")).await.unwrap();
            assert_eq!((next.number, next.state), (2, AppState::Active));
        },
    )
    .await;
}

#[tokio::test]
async fn placing_the_machine_of_a_request() {
    everywhere(
        async |catalog| drop(catalog.create_app(app("a")).await.unwrap()),
        async |catalog| {
            // As the gateway does.
            let begun = catalog.begin_request(request("1")).await?;
            assert_eq!(begun, IdempotencyState::New, "the holder finds its own");
            if catalog.placement_of_request("1").await?.is_none() {
                catalog.place(machine_of("1", "a", Some("m"))).await?;
            }
            Ok(())
        },
        async |catalog| {
            let placed = catalog.placements(None).await.unwrap();
            assert_eq!(placed.len(), 1);
            assert_eq!(catalog.placement_of_request("1").await.unwrap().as_ref(), placed.first());
        },
    )
    .await;
}

#[tokio::test]
async fn placing_and_deleting_a_volume() {
    everywhere(
        async |catalog| drop(catalog.create_app(app("a")).await.unwrap()),
        async |catalog| {
            let new = NewVolume { id: "vol_1".parse().ok(), ..volume("a", "data") };
            let placed = catalog.place_volume(new).await?;
            catalog.delete_volume(&placed.id).await?;
            catalog.undelete_volume(&placed.id).await
        },
        async |catalog| {
            let number = catalog.app("a").await.unwrap().unwrap().number;
            let placed = catalog.volumes_of(number).await.unwrap();
            assert_eq!((placed.len(), placed[0].deleted), (1, false));
        },
    )
    .await;
}

#[tokio::test]
async fn ending_and_giving_up_a_request() {
    everywhere(
        async |catalog| drop(catalog.begin_request(request("1")).await.unwrap()),
        async |catalog| {
            catalog.give_up_request("1", "1").await?;
            catalog.end_request("1", answer("done")).await
        },
        async |catalog| {
            let known = catalog.begin_request(request("2")).await.unwrap();
            assert_eq!(known, IdempotencyState::Answered(answer("done")));
        },
    )
    .await;
}

#[tokio::test]
async fn taking_over_a_request() {
    everywhere(
        async |catalog| {
            catalog.begin_request(request("1")).await.unwrap();
            catalog.give_up_request("1", "1").await.unwrap();
        },
        async |catalog| {
            assert_eq!(
                catalog.begin_request(request("2")).await?,
                IdempotencyState::Interrupted { id: "1".to_owned() }
            );
            Ok(())
        },
        async |catalog| {
            assert!(catalog.renew_request("1", "2").await.unwrap());
            assert!(matches!(
                catalog.begin_request(request("3")).await.unwrap(),
                IdempotencyState::InProgress { .. }
            ));
        },
    )
    .await;
}

#[tokio::test]
async fn releasing_a_machine() {
    everywhere(
        async |catalog| {
            catalog.create_app(app("a")).await.unwrap();
            catalog.place(machine("a", Some("m"))).await.unwrap();
        },
        async |catalog| {
            for placed in catalog.placements(None).await? {
                catalog.release(&placed.machine).await?;
            }
            Ok(())
        },
        async |catalog| drop(catalog.place(machine("a", Some("m"))).await.unwrap()),
    )
    .await;
}

#[tokio::test]
async fn seeing_to_it_that_an_app_has_an_address() {
    everywhere(
        async |catalog| drop(catalog.create_app(app("a")).await.unwrap()),
        async |catalog| catalog.ensure_address("a", pool(&["192.0.2.0/24"])).await.map(drop),
        async |catalog| assert_eq!(catalog.addresses().await.unwrap().len(), 1),
    )
    .await;
}

#[tokio::test]
async fn releasing_an_address() {
    let wanted = || address("a", WantedAddress::Own(pool(&["192.0.2.0/24"])));
    everywhere(
        async |catalog| {
            catalog.create_app(app("a")).await.unwrap();
            catalog.allocate_address(wanted()).await.unwrap();
        },
        async |catalog| {
            for given in catalog.addresses_of("a").await? {
                catalog.release_address("a", given.ip).await?;
            }
            Ok(())
        },
        async |catalog| {
            assert_eq!(catalog.addresses().await.unwrap(), []);
            catalog.allocate_address(wanted()).await.unwrap();
        },
    )
    .await;
}

#[tokio::test]
async fn replacing_and_deleting_a_policy() {
    everywhere(
        async |catalog| {
            catalog.create_app(app("a")).await.unwrap();
            for name in ["one", "two"] {
                catalog.put_policy("a", None, (name, "{}")).await.unwrap();
            }
        },
        async |catalog| {
            for policy in catalog.policies_of("a").await? {
                if policy.name == "two" {
                    catalog.delete_policy("a", &policy.id).await?;
                } else {
                    catalog.put_policy("a", Some(&policy.id), ("three", "[]")).await?;
                }
            }
            Ok(())
        },
        async |catalog| {
            let left = catalog.policies().await.unwrap();
            let left: Vec<_> = left.iter().map(|row| (&*row.name, &*row.document)).collect();
            assert_eq!(left, [("three", "[]")]);
        },
    )
    .await;
}

#[tokio::test]
async fn the_number_of_a_push_rises_above_what_is_known() {
    everywhere(
        async |_| {},
        async |catalog| {
            let raised = catalog.raise_push_revision(Push::Egress, &worker("w"), 7).await?;
            assert!(raised > 7);
            assert_eq!(catalog.push_revision(Push::Egress, &worker("w")).await?, raised);
            Ok(())
        },
        async |catalog| {
            let known = catalog.push_revision(Push::Egress, &worker("w")).await;
            assert!(known.unwrap() > 7);
        },
    )
    .await;
}

#[tokio::test]
async fn moving_a_machine_is_asked_about_and_done_once() {
    everywhere(
        async |catalog| {
            catalog.create_app(app("a")).await.unwrap();
            catalog.place(machine("a", Some("m"))).await.unwrap();
        },
        async |catalog| {
            let placed = catalog.placements(None).await?.remove(0);
            match catalog.move_machine(&placed.machine, 1, &worker("W2"), &region("two")).await {
                // The call before this one has moved it.
                Err(CatalogError::MachineMoved { current: 2, .. }) => Ok(()),
                moved => moved.map(drop),
            }
        },
        async |catalog| {
            let placed = catalog.placements(None).await.unwrap().remove(0);
            assert_eq!(
                (placed.worker, placed.region.as_str(), placed.epoch),
                (worker("W2"), "two", 2)
            );
        },
    )
    .await;
}

#[tokio::test]
async fn replacing_the_root_token() {
    everywhere(
        async |catalog| drop(catalog.ensure_root_token().await.unwrap()),
        async |catalog| {
            let token = catalog.replace_root_token().await?;
            assert!(catalog.authenticate(&token).await?.is_some());
            Ok(())
        },
        async |catalog| assert_eq!(catalog.ensure_root_token().await.unwrap(), None),
    )
    .await;
}
