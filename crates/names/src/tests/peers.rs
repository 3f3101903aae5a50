//! Names of WireGuard peers.

use caddis_catalog::NewPeer;

use super::*;

#[tokio::test]
async fn names_of_peers_follow_the_catalog_and_are_those_of_the_asker_s_network() {
    let catalog = Catalog::new(Arc::new(MemoryStore::default()));
    let names = Arc::new(InternalNames::default());
    let peer = |name: &str, key: &str| NewPeer {
        organization: PERSONAL.to_owned(),
        network: None,
        name: name.to_owned(),
        key: key.to_owned(),
    };
    let laptop = catalog.create_peer(peer("laptop", "k1")).await.unwrap().address;
    // As a machine of the network has it.
    let here = Ipv6Addr::from_bits(laptop.to_bits() >> 80 << 80 | 7 << 64 | 2);
    let nowhere = "fdaa:0:1:1::2".parse().unwrap();
    assert_eq!(names.look_up(here, &["laptop", "_peer"]), Found::NotReady);
    let following = tokio::spawn({
        let (names, catalog) = (names.clone(), catalog.clone());
        async move { names.follow_peers(&catalog).await }
    });
    let until = async |name: &[&str], expected: Found| {
        let reached = async {
            while names.look_up(here, name) != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    };
    until(&["laptop", "_peer"], Found::Addresses(vec![laptop])).await;
    catalog.create_peer(peer("desktop", "k2")).await.unwrap();
    catalog.create_peer(peer("interactive-1", "k3")).await.unwrap();
    until(&["_peer"], Found::Text("desktop,laptop".to_owned())).await;
    assert_eq!(names.look_up(nowhere, &["laptop", "_peer"]), Found::Nothing);
    assert_eq!(names.look_up(here, &["x", "laptop", "_peer"]), Found::Nothing);
    // The peer itself asks under its address.
    assert_eq!(names.look_up(laptop, &["laptop", "_peer"]), Found::Addresses(vec![laptop]));
    catalog.remove_peer(PERSONAL, None, "laptop").await.unwrap();
    until(&["laptop", "_peer"], Found::Nothing).await;
    following.abort();
}
