//! Organisations, apps and their networks.

use std::net::Ipv6Addr;

use caddis_api::NetworkName;
use caddis_catalog::{AppQuery, AppState, CatalogError, NewApp, PERSONAL};

use crate::support::{Fixture, app, keyed_app, machine, over_each_store};

over_each_store!(
    a_new_catalog_has_the_personal_organisation_and_no_apps,
    an_app_is_found_as_it_was_made,
    a_name_is_free_when_its_app_is_gone_and_not_before,
    numbers_of_apps_rise_and_are_not_given_again_when_an_app_is_gone,
    names_are_made_up_where_none_is_wanted,
    a_key_gives_the_same_app_until_that_is_gone,
    a_key_is_of_its_name,
    apps_of_one_network_share_its_prefix_and_no_others,
    an_app_that_fails_for_its_name_makes_no_network,
    apps_come_in_pages_by_number,
    apps_made_later_are_left_out_where_that_is_asked_for,
    an_app_in_deletion_ends_with_its_last_machine,
    only_a_marked_app_is_deleted,
);

async fn a_new_catalog_has_the_personal_organisation_and_no_apps(fixture: &Fixture) {
    let organization = fixture.catalog.organization(PERSONAL).await.unwrap().unwrap();
    assert_eq!((organization.slug.as_str(), organization.internal_numeric_id), (PERSONAL, 1));
    assert_eq!(fixture.catalog.organization("other").await.unwrap(), None);
    assert_eq!(fixture.catalog.apps(AppQuery::default()).await.unwrap().total, 0);
    fixture.catalog.check().await.unwrap();
}

async fn an_app_is_found_as_it_was_made(fixture: &Fixture) {
    let made = fixture.catalog.create_app(app("a")).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.network.as_str(), made.state),
        ("a", "default", AppState::Active)
    );
    assert_eq!((made.id.len(), made.created_ms), (16, fixture.now()));
    assert_eq!(fixture.catalog.app("a").await.unwrap(), Some(made));
    let stranger = NewApp { organization: "other".to_owned(), ..app("b") };
    let refused = fixture.catalog.create_app(stranger).await;
    assert!(matches!(refused, Err(CatalogError::OrganizationNotFound(slug)) if slug == "other"));
}

async fn a_name_is_free_when_its_app_is_gone_and_not_before(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let first = catalog.create_app(app("a")).await.unwrap();
    assert!(matches!(catalog.create_app(app("a")).await, Err(CatalogError::AppNameTaken)));
    catalog.begin_app_deletion("a").await.unwrap();
    assert!(matches!(catalog.create_app(app("a")).await, Err(CatalogError::AppNameTaken)));
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    let second = catalog.create_app(app("a")).await.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(second.state, AppState::Active);
}

async fn numbers_of_apps_rise_and_are_not_given_again_when_an_app_is_gone(fixture: &Fixture) {
    let mut last = 0;
    for _ in 0..3 {
        let made = fixture.catalog.create_app(app("a")).await.unwrap();
        assert!(made.number > last, "{} comes after {last}", made.number);
        last = made.number;
        fixture.catalog.begin_app_deletion("a").await.unwrap();
        assert!(fixture.catalog.finish_app_deletion("a").await.unwrap());
    }
}

async fn names_are_made_up_where_none_is_wanted(fixture: &Fixture) {
    let nameless = NewApp { organization: PERSONAL.to_owned(), ..NewApp::default() };
    let one = fixture.catalog.create_app(nameless.clone()).await.unwrap();
    let other = fixture.catalog.create_app(nameless).await.unwrap();
    assert_ne!(one.name, other.name);
    assert_eq!(fixture.catalog.app(&one.name).await.unwrap(), Some(one));
}

async fn a_key_gives_the_same_app_until_that_is_gone(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let first = catalog.create_app(keyed_app(None, "k")).await.unwrap();
    assert_eq!(catalog.create_app(keyed_app(None, "k")).await.unwrap(), first);
    assert_ne!(catalog.create_app(keyed_app(None, "other")).await.unwrap(), first);
    catalog.begin_app_deletion(&first.name).await.unwrap();
    let found = catalog.create_app(keyed_app(None, "k")).await.unwrap();
    assert_eq!((found.number, found.state), (first.number, AppState::Deleting));
    assert!(catalog.finish_app_deletion(&first.name).await.unwrap());
    assert_ne!(catalog.create_app(keyed_app(None, "k")).await.unwrap().number, first.number);
}

async fn a_key_is_of_its_name(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let first = catalog.create_app(keyed_app(Some("a"), "k")).await.unwrap();
    assert_eq!(catalog.create_app(keyed_app(Some("a"), "k")).await.unwrap(), first);
    let other = catalog.create_app(keyed_app(Some("b"), "k")).await;
    assert!(matches!(other, Err(CatalogError::IdempotencyMismatch)));
    let other_key = catalog.create_app(keyed_app(Some("a"), "other")).await;
    assert!(matches!(other_key, Err(CatalogError::AppNameTaken)));
}

async fn apps_of_one_network_share_its_prefix_and_no_others(fixture: &Fixture) {
    let in_network = |name: &str, network: &str| NewApp {
        network: Some(NetworkName::from_trusted(network)),
        ..app(name)
    };
    let one = fixture.catalog.create_app(app("a")).await.unwrap();
    let same = fixture.catalog.create_app(in_network("b", "default")).await.unwrap();
    let other = fixture.catalog.create_app(in_network("c", "other")).await.unwrap();
    assert_eq!(one.network_prefix, same.network_prefix);
    assert_ne!(one.network_prefix, other.network_prefix);
    let prefix: Ipv6Addr = other.network_prefix.strip_suffix("/48").unwrap().parse().unwrap();
    assert_eq!((prefix.segments()[0], &prefix.segments()[3..]), (0xfdaa, &[0; 5][..]));
    assert_ne!(prefix.segments()[1], 0, "left to what is the same in every VM");
}

async fn an_app_that_fails_for_its_name_makes_no_network(fixture: &Fixture) {
    let first = fixture.catalog.create_app(app("a")).await.unwrap();
    let network = Some(NetworkName::from_trusted("other"));
    assert!(fixture.catalog.create_app(NewApp { network, ..app("a") }).await.is_err());
    let organization = first.organization.internal_numeric_id;
    assert_eq!(fixture.store.network(organization, "other").await.unwrap(), None);
}

async fn apps_come_in_pages_by_number(fixture: &Fixture) {
    for name in ["c", "a", "b"] {
        fixture.catalog.create_app(app(name)).await.unwrap();
    }
    let query =
        AppQuery { organization: Some(PERSONAL.to_owned()), limit: Some(2), ..AppQuery::default() };
    let first = fixture.catalog.apps(query.clone()).await.unwrap();
    assert_eq!((first.apps.len(), first.total, first.more), (2, 3, true));
    assert_eq!((first.apps[0].name.as_str(), first.apps[1].name.as_str()), ("c", "a"));
    let second = fixture
        .catalog
        .apps(AppQuery { after: first.apps[1].number, ..query.clone() })
        .await
        .unwrap();
    assert_eq!((second.apps.len(), second.total, second.more), (1, 3, false));
    let whole = fixture.catalog.apps(AppQuery { limit: Some(3), ..query }).await.unwrap();
    assert_eq!((whole.apps.len(), whole.more), (3, false));
    let none = AppQuery { organization: Some("other".to_owned()), ..AppQuery::default() };
    assert_eq!(fixture.catalog.apps(none).await.unwrap().total, 0);
}

async fn apps_made_later_are_left_out_where_that_is_asked_for(fixture: &Fixture) {
    let first = fixture.catalog.create_app(app("a")).await.unwrap();
    fixture.pass(std::time::Duration::from_secs(1));
    fixture.catalog.create_app(app("b")).await.unwrap();
    let query = AppQuery { created_until_ms: Some(first.created_ms), ..AppQuery::default() };
    let page = fixture.catalog.apps(query).await.unwrap();
    assert_eq!((page.apps, page.total, page.more), (vec![first], 1, false));
}

async fn an_app_in_deletion_ends_with_its_last_machine(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let placed = catalog.place(machine("a", None)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(catalog.begin_app_deletion("a").await.unwrap().state, AppState::Deleting);
    }
    assert!(matches!(catalog.place(machine("a", None)).await, Err(CatalogError::AppInDeletion(_))));
    assert!(!catalog.finish_app_deletion("a").await.unwrap());
    assert_eq!(catalog.apps_in_deletion().await.unwrap().len(), 1);
    catalog.release(&placed.machine).await.unwrap();
    for _ in 0..2 {
        assert!(catalog.finish_app_deletion("a").await.unwrap());
    }
    assert_eq!(catalog.app("a").await.unwrap(), None);
    assert_eq!(catalog.apps_in_deletion().await.unwrap(), []);
    assert_eq!(catalog.apps(AppQuery::default()).await.unwrap().total, 0);
    assert!(matches!(catalog.place(machine("a", None)).await, Err(CatalogError::AppNotFound(_))));
    assert!(matches!(catalog.begin_app_deletion("a").await, Err(CatalogError::AppNotFound(_))));
}

async fn only_a_marked_app_is_deleted(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    assert!(!fixture.catalog.finish_app_deletion("a").await.unwrap());
    assert!(fixture.catalog.app("a").await.unwrap().is_some());
    assert!(fixture.catalog.finish_app_deletion("never made").await.unwrap());
}
