//! Network policies of apps.

use std::time::Duration;

use caddis_api::PolicyId;
use caddis_catalog::{
    CatalogError,
    store::{PolicyConflict, PolicyRow},
};

use crate::support::{Fixture, app, over_each_store};

over_each_store!(
    what_is_said_of_a_policy_is_kept,
    a_policy_is_replaced_under_its_id_and_keeps_its_place,
    names_are_of_one_policy_of_an_app,
    an_app_has_so_many_and_no_more,
    policies_go_with_their_app,
    rows_are_put_under_their_conditions,
    changes_are_told,
);

async fn what_is_said_of_a_policy_is_kept(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let made = catalog.put_policy("a", None, ("web", "{\"é\":1}")).await.unwrap();
    assert!(made.id.as_str().starts_with("np_"), "{made:?}");
    assert_eq!((made.app.as_str(), &*made.name, &*made.document), ("a", "web", "{\"é\":1}"));
    assert_eq!((made.created_at, made.updated_at), (fixture.now(), fixture.now()));
    assert_eq!(made.organization.slug, "personal");
    assert_eq!(catalog.policies_of("a").await.unwrap(), std::slice::from_ref(&made));
    assert_eq!(catalog.policies().await.unwrap(), [made]);
    let missing = catalog.policies_of("b").await.unwrap_err();
    assert!(matches!(missing, CatalogError::AppNotFound(_)));
}

async fn a_policy_is_replaced_under_its_id_and_keeps_its_place(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.create_app(app("b")).await.unwrap();
    let first = catalog.put_policy("a", None, ("one", "{}")).await.unwrap();
    catalog.put_policy("a", None, ("two", "{}")).await.unwrap();
    fixture.pass(Duration::from_secs(5));
    let changed = catalog.put_policy("a", Some(&first.id), ("uno", "[]")).await.unwrap();
    assert_eq!((changed.created_at, changed.updated_at), (first.created_at, fixture.now()));
    let all = catalog.policies_of("a").await.unwrap();
    assert_eq!((&all[0], &*all[1].name), (&changed, "two"));
    for app in ["a", "b"] {
        let other = if app == "a" { PolicyId::random() } else { first.id.clone() };
        let error = catalog.put_policy(app, Some(&other), ("x", "")).await.unwrap_err();
        assert!(matches!(error, CatalogError::PolicyNotFound(_)), "{app}: {error}");
        let error = catalog.delete_policy(app, &other).await.unwrap_err();
        assert!(matches!(error, CatalogError::PolicyNotFound(_)), "{app}: {error}");
    }
    catalog.delete_policy("a", &first.id).await.unwrap();
    assert_eq!(catalog.policies_of("a").await.unwrap().len(), 1);
}

async fn names_are_of_one_policy_of_an_app(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.create_app(app("b")).await.unwrap();
    catalog.put_policy("a", None, ("one", "{}")).await.unwrap();
    let two = catalog.put_policy("a", None, ("two", "{}")).await.unwrap();
    catalog.put_policy("b", None, ("one", "{}")).await.unwrap();
    for id in [None, Some(&two.id)] {
        let error = catalog.put_policy("a", id, ("one", "{}")).await.unwrap_err();
        assert!(matches!(error, CatalogError::PolicyNameTaken(_)), "{error}");
    }
    catalog.put_policy("a", Some(&two.id), ("two", "[]")).await.unwrap();
}

async fn an_app_has_so_many_and_no_more(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let mut last = None;
    let error = loop {
        let name = catalog.policies_of("a").await.unwrap().len().to_string();
        match catalog.put_policy("a", None, (&name, "{}")).await {
            Ok(made) => last = Some(made.id),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CatalogError::TooManyPolicies { most: 100 }), "{error}");
    catalog.put_policy("a", last.as_ref(), ("changed", "{}")).await.unwrap();
}

async fn policies_go_with_their_app(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let made = catalog.put_policy("a", None, ("one", "{}")).await.unwrap();
    catalog.begin_app_deletion("a").await.unwrap();
    for id in [None, Some(&made.id)] {
        let error = catalog.put_policy("a", id, ("two", "{}")).await.unwrap_err();
        assert!(matches!(error, CatalogError::AppInDeletion(_)), "{error}");
    }
    assert_eq!(catalog.policies().await.unwrap().len(), 1, "its machines are still there");
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    catalog.create_app(app("a")).await.unwrap();
    assert_eq!(catalog.policies_of("a").await.unwrap(), []);
    assert_eq!(catalog.policies().await.unwrap(), []);
}

async fn rows_are_put_under_their_conditions(fixture: &Fixture) {
    let (catalog, store) = (&fixture.catalog, &fixture.store);
    let one = catalog.create_app(app("a")).await.unwrap().number;
    let other = catalog.create_app(app("b")).await.unwrap().number;
    let row = PolicyRow {
        id: PolicyId::random(),
        app: one,
        name: "one".to_owned(),
        document: String::new(),
        created_ms: fixture.now(),
        updated_ms: fixture.now(),
    };
    assert_eq!(store.replace_policy(row.clone()).await.unwrap(), Err(PolicyConflict::Id));
    assert_eq!(store.insert_policy(row.clone()).await.unwrap(), Ok(()));
    assert_eq!(store.insert_policy(row.clone()).await.unwrap(), Err(PolicyConflict::Id));
    let elsewhere = PolicyRow { app: other, ..row.clone() };
    assert_eq!(store.insert_policy(elsewhere.clone()).await.unwrap(), Err(PolicyConflict::Id));
    assert_eq!(store.replace_policy(elsewhere).await.unwrap(), Err(PolicyConflict::Id));
    let second = PolicyRow { id: PolicyId::random(), ..row.clone() };
    assert_eq!(store.insert_policy(second).await.unwrap(), Err(PolicyConflict::Name));
    let nowhere = PolicyRow { app: 99, ..row.clone() };
    assert_eq!(store.insert_policy(nowhere).await.unwrap(), Err(PolicyConflict::App));
    assert!(!store.delete_policy(other, &row.id).await.unwrap());
    assert!(store.delete_policy(one, &row.id).await.unwrap());
    assert_eq!(store.policies(None).await.unwrap(), []);
}

async fn changes_are_told(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let mut changes = catalog.clone().policies_changed();
    let made = catalog.put_policy("a", None, ("one", "{}")).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    catalog.put_policy("a", Some(&made.id), ("one", "[]")).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    catalog.delete_policy("a", &made.id).await.unwrap();
    assert!(changes.has_changed().unwrap());
}
