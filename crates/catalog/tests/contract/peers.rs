//! WireGuard peers.

use caddis_api::NetworkName;
use caddis_catalog::{CatalogError, NewApp, NewPeer, PERSONAL, PeerRecord};

use crate::support::{Fixture, app, over_each_store};

over_each_store!(
    names_are_unique_in_a_network_and_keys_in_the_installation,
    a_peer_is_of_the_network_that_is_named,
    another_key_takes_the_place_of_the_former,
    what_is_removed_can_be_made_again,
    each_change_of_a_peer_is_told,
);

fn peer(name: &str, key: &str) -> NewPeer {
    NewPeer {
        organization: PERSONAL.to_owned(),
        network: None,
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn named(name: &str) -> Option<NetworkName> {
    Some(NetworkName::from_trusted(name))
}

async fn made(fixture: &Fixture, new: NewPeer) -> PeerRecord {
    fixture.catalog.create_peer(new).await.unwrap()
}

async fn names_are_unique_in_a_network_and_keys_in_the_installation(fixture: &Fixture) {
    let network = named("other");
    fixture.catalog.create_app(NewApp { network: network.clone(), ..app("a") }).await.unwrap();
    made(fixture, peer("laptop", "k1")).await;
    let refused = async |new| fixture.catalog.create_peer(new).await.unwrap_err();
    let error = refused(peer("laptop", "k1")).await;
    assert!(matches!(error, CatalogError::PeerNameTaken(_)), "{error}");
    let error = refused(peer("phone", "k1")).await;
    assert!(matches!(error, CatalogError::PeerKeyTaken), "{error}");
    let there = NewPeer { network: network.clone(), ..peer("laptop", "k1") };
    assert!(matches!(refused(there).await, CatalogError::PeerKeyTaken));
    made(fixture, NewPeer { network, ..peer("laptop", "k2") }).await;
    made(fixture, peer("phone", "k3")).await;
    let all = fixture.catalog.peers().await.unwrap();
    let keys: Vec<_> = all.iter().map(|peer| peer.key.as_str()).collect();
    assert_eq!(keys.len(), 3);
    assert!(["k1", "k2", "k3"].iter().all(|key| keys.contains(key)));
}

async fn a_peer_is_of_the_network_that_is_named(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let network = named("other");
    let missing = NewPeer { network: network.clone(), ..peer("laptop", "k1") };
    let error = catalog.create_peer(missing.clone()).await.unwrap_err();
    assert!(matches!(error, CatalogError::NetworkNotFound));
    let nobody = NewPeer { organization: "nobody".to_owned(), ..peer("laptop", "k1") };
    let error = catalog.create_peer(nobody).await.unwrap_err();
    assert!(matches!(error, CatalogError::OrganizationNotFound(_)));
    let other = catalog.create_app(NewApp { network: network.clone(), ..app("a") }).await.unwrap();
    let there = made(fixture, missing).await;
    let default = made(fixture, peer("laptop", "k2")).await;
    assert_eq!((&*there.network, &there.network_prefix), ("other", &other.network_prefix));
    assert_eq!(&*default.network, "default");
    let prefix = |text: &str| text.parse::<ipnet::Ipv6Net>().unwrap();
    assert!(prefix(&there.network_prefix).contains(&there.address));
    assert!(!prefix(&default.network_prefix).contains(&there.address));
    let found = catalog.peer(PERSONAL, network.as_ref(), "laptop").await.unwrap();
    assert_eq!(found, there);
    assert!(catalog.peers().await.unwrap().contains(&default));
}

async fn another_key_takes_the_place_of_the_former(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let before = made(fixture, peer("laptop", "k1")).await;
    made(fixture, peer("phone", "k2")).await;
    let change = async |name, key| catalog.change_peer_key(PERSONAL, None, name, key).await;
    let after = change("laptop", "k3").await.unwrap();
    assert_eq!(after, PeerRecord { key: "k3".to_owned(), ..before });
    assert!(matches!(change("laptop", "k2").await.unwrap_err(), CatalogError::PeerKeyTaken));
    assert!(matches!(change("tablet", "k4").await.unwrap_err(), CatalogError::PeerNotFound(_)));
    made(fixture, peer("tablet", "k1")).await;
}

async fn what_is_removed_can_be_made_again(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let first = made(fixture, peer("laptop", "k1")).await;
    catalog.remove_peer(PERSONAL, None, "laptop").await.unwrap();
    let error = catalog.remove_peer(PERSONAL, None, "laptop").await.unwrap_err();
    assert!(matches!(error, CatalogError::PeerNotFound(_)));
    assert!(catalog.peers().await.unwrap().is_empty());
    let second = made(fixture, peer("laptop", "k1")).await;
    assert_ne!(first.address, second.address, "once in 2^32 runs");
}

async fn each_change_of_a_peer_is_told(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let mut changes = catalog.peers_changed();
    made(fixture, peer("laptop", "k1")).await;
    changes.changed().await.unwrap();
    catalog.change_peer_key(PERSONAL, None, "laptop", "k2").await.unwrap();
    changes.changed().await.unwrap();
    catalog.remove_peer(PERSONAL, None, "laptop").await.unwrap();
    changes.changed().await.unwrap();
}
