//! Volumes: ids, apps and places.

use caddis_api::VolumeId;
use caddis_catalog::{CatalogError, NewVolume};

use crate::support::{Fixture, app, machine, over_each_store, region, volume, worker};

over_each_store!(
    a_volume_is_found_as_it_was_placed,
    volumes_of_one_name_are_several,
    an_id_that_was_given_is_the_same_volume,
    volumes_are_listed_by_app_and_by_worker,
    an_app_goes_when_its_volumes_are_deleted,
    a_volume_is_undeleted_unless_its_app_goes,
    a_later_app_of_the_same_name_has_other_volumes,
);

async fn a_volume_is_found_as_it_was_placed(fixture: &Fixture) {
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    let placed = fixture.catalog.place_volume(volume("a", "data")).await.unwrap();
    assert_eq!(
        (placed.name.as_str(), placed.app.as_str(), placed.app_number),
        ("data", "a", made.number)
    );
    assert_eq!(placed.organization, made.organization.slug);
    assert_eq!((&placed.worker, &placed.region), (&worker("W1"), &region("one")));
    assert_eq!((placed.epoch, placed.created_ms, placed.deleted), (1, fixture.now(), false));
    assert_eq!(fixture.catalog.volume(&placed.id).await.unwrap(), Some(placed));
    assert_eq!(fixture.catalog.volume(&VolumeId::random()).await.unwrap(), None);
    let refused = fixture.catalog.place_volume(volume("b", "data")).await;
    assert!(matches!(refused, Err(CatalogError::AppNotFound(_))));
}

async fn volumes_of_one_name_are_several(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let one = fixture.catalog.place_volume(volume("a", "data")).await.unwrap();
    let other = fixture.catalog.place_volume(volume("a", "data")).await.unwrap();
    assert_ne!(one.id, other.id);
}

async fn an_id_that_was_given_is_the_same_volume(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    for name in ["a", "b"] {
        catalog.create_app(app(name)).await.unwrap();
    }
    let id: VolumeId = "vol_0123".parse().unwrap();
    let with_id = |app: &str, on: &str| NewVolume {
        id: Some(id.clone()),
        worker: worker(on),
        ..volume(app, "data")
    };
    let first = catalog.place_volume(with_id("a", "W1")).await.unwrap();
    assert_eq!(first.id, id);
    let again = catalog.place_volume(with_id("a", "W2")).await.unwrap();
    assert_eq!(again, first, "where it was placed before");
    catalog.delete_volume(&id).await.unwrap();
    assert!(catalog.place_volume(with_id("a", "W1")).await.unwrap().deleted);
    let of_another = catalog.place_volume(with_id("b", "W1")).await.unwrap();
    assert_ne!(of_another.id, id);
}

async fn volumes_are_listed_by_app_and_by_worker(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let one = catalog.create_app(app("a")).await.unwrap();
    let other = catalog.create_app(app("b")).await.unwrap();
    let mut of_one = Vec::new();
    for on in ["W1", "W2", "W1"] {
        let new = NewVolume { worker: worker(on), ..volume("a", "data") };
        of_one.push(catalog.place_volume(new).await.unwrap());
    }
    of_one.sort_by(|a, b| a.id.cmp(&b.id));
    let of_other = catalog.place_volume(volume("b", "data")).await.unwrap();
    assert_eq!(catalog.volumes_of(one.number).await.unwrap(), of_one);
    assert_eq!(catalog.volumes_of(other.number).await.unwrap(), std::slice::from_ref(&of_other));
    assert_eq!(catalog.volumes_on(&worker("W2")).await.unwrap().len(), 1);
    for _ in 0..2 {
        catalog.delete_volume(&of_other.id).await.unwrap();
    }
    let mut on_first: Vec<_> = of_one.clone();
    on_first.retain(|volume| volume.worker == worker("W1"));
    assert_eq!(catalog.volumes_on(&worker("W1")).await.unwrap(), on_first);
    assert!(catalog.volumes_of(other.number).await.unwrap()[0].deleted);
}

async fn an_app_goes_when_its_volumes_are_deleted(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let machine = catalog.place(machine("a", None)).await.unwrap();
    let placed = catalog.place_volume(volume("a", "data")).await.unwrap();
    catalog.begin_app_deletion("a").await.unwrap();
    let refused = catalog.place_volume(volume("a", "data")).await;
    assert!(matches!(refused, Err(CatalogError::AppInDeletion(_))));
    catalog.release(&machine.machine).await.unwrap();
    assert!(!catalog.finish_app_deletion("a").await.unwrap(), "a volume is left");
    catalog.delete_volume(&placed.id).await.unwrap();
    assert!(catalog.finish_app_deletion("a").await.unwrap());
}

async fn a_volume_is_undeleted_unless_its_app_goes(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let placed = catalog.place_volume(volume("a", "data")).await.unwrap();
    catalog.delete_volume(&placed.id).await.unwrap();
    for _ in 0..2 {
        catalog.undelete_volume(&placed.id).await.unwrap();
    }
    assert_eq!(catalog.volume(&placed.id).await.unwrap(), Some(placed.clone()));
    catalog.delete_volume(&placed.id).await.unwrap();
    catalog.begin_app_deletion("a").await.unwrap();
    let refused = catalog.undelete_volume(&placed.id).await;
    assert!(matches!(refused, Err(CatalogError::AppInDeletion(_))), "{refused:?}");
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    let refused = catalog.undelete_volume(&placed.id).await;
    assert!(matches!(refused, Err(CatalogError::VolumeNotFound(_))), "{refused:?}");
    let unknown = catalog.undelete_volume(&VolumeId::random()).await;
    assert!(matches!(unknown, Err(CatalogError::VolumeNotFound(_))));
}

async fn a_later_app_of_the_same_name_has_other_volumes(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let first = catalog.create_app(app("a")).await.unwrap();
    let placed = catalog.place_volume(volume("a", "data")).await.unwrap();
    catalog.begin_app_deletion("a").await.unwrap();
    catalog.delete_volume(&placed.id).await.unwrap();
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    let second = catalog.create_app(app("a")).await.unwrap();
    assert_eq!(catalog.volumes_of(second.number).await.unwrap(), []);
    assert_eq!(catalog.volumes_of(first.number).await.unwrap()[0].id, placed.id);
    let refused = catalog.undelete_volume(&placed.id).await;
    assert!(matches!(refused, Err(CatalogError::VolumeNotFound(_))), "{refused:?}");
}
