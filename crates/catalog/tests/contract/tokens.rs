//! Tokens.

use caddis_catalog::PERSONAL;

use crate::support::{Fixture, over_each_store};

over_each_store!(the_root_token_is_given_once, a_replaced_token_is_refused_from_then_on);

async fn the_root_token_is_given_once(fixture: &Fixture) {
    let token = fixture.catalog.ensure_root_token().await.unwrap().unwrap();
    assert_eq!(fixture.catalog.ensure_root_token().await.unwrap(), None);
    let record = fixture.catalog.authenticate(&token).await.unwrap().unwrap();
    assert_eq!((record.name.as_str(), record.organization.as_str()), ("root", PERSONAL));
    for wrong in ["", "wrong", &token[1..]] {
        assert_eq!(fixture.catalog.authenticate(wrong).await.unwrap(), None);
    }
}

async fn a_replaced_token_is_refused_from_then_on(fixture: &Fixture) {
    let first = fixture.catalog.replace_root_token().await.unwrap();
    let second = fixture.catalog.replace_root_token().await.unwrap();
    assert_eq!(fixture.catalog.authenticate(&first).await.unwrap(), None);
    assert!(fixture.catalog.authenticate(&second).await.unwrap().is_some());
    assert_eq!(fixture.catalog.ensure_root_token().await.unwrap(), None);
}
