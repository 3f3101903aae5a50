//! Addresses of apps.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr},
};

use caddis_api::NetworkName;
use caddis_catalog::{
    AddressKind, AddressPool, CatalogError, NewAddress, NewApp, PERSONAL, PrivateNetwork,
    WantedAddress,
};
use ipnet::IpNet;

use crate::support::{Fixture, address, app, over_each_store, pool};

over_each_store!(
    the_lowest_free_address_is_given,
    a_wanted_address_is_given_if_it_is_free_and_in_the_pool,
    what_is_reserved_is_not_given,
    an_app_whose_address_the_pool_no_longer_has_gets_another_once,
    an_app_has_the_shared_address_once_and_shares_it,
    private_addresses_are_of_the_network_that_is_named,
    what_was_said_of_an_address_is_kept,
    the_addresses_of_an_app_are_free_once_it_is_gone,
    apps_that_are_not_there_or_going_get_none,
    each_change_is_told,
);

const SHARED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

fn own(app: &str) -> NewAddress {
    address(app, WantedAddress::Own(pool(&["192.0.2.0/30", "192.0.2.9/32"])))
}

async fn given(fixture: &Fixture, new: NewAddress) -> String {
    fixture.catalog.allocate_address(new).await.unwrap().ip.to_string()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

async fn the_lowest_free_address_is_given(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.create_app(app("b")).await.unwrap();
    for expected in ["192.0.2.1", "192.0.2.2", "192.0.2.9"] {
        assert_eq!(given(fixture, own("a")).await, expected);
    }
    let exhausted = catalog.allocate_address(own("b")).await.unwrap_err().to_string();
    assert!(exhausted.starts_with("no address is free in 192.0.2.0/30, 192.0.2.9/32"));
    catalog.release_address("a", ip("192.0.2.2")).await.unwrap();
    assert_eq!(given(fixture, own("b")).await, "192.0.2.2");
    let six = address("b", WantedAddress::Own(pool(&["2001:db8::/64"])));
    let six = catalog.allocate_address(six).await.unwrap();
    assert_eq!((six.ip, six.kind), (ip("2001:db8::1"), AddressKind::V6));
    let of_b = catalog.addresses_of("b").await.unwrap();
    assert_eq!(
        of_b.iter().map(|given| given.kind).collect::<Vec<_>>(),
        [AddressKind::V4, AddressKind::V6]
    );
}

async fn a_wanted_address_is_given_if_it_is_free_and_in_the_pool(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let this = |text: &str| {
        let wanted = WantedAddress::This(ip(text), pool(&["192.0.2.0/24"]));
        catalog.allocate_address(address("a", wanted))
    };
    assert_eq!(this("192.0.2.7").await.unwrap().ip, ip("192.0.2.7"));
    assert!(matches!(this("192.0.2.7").await, Err(CatalogError::AddressTaken(_))));
    for outside in ["192.0.2.0", "192.0.2.255", "198.51.100.1", "::1"] {
        let refused = this(outside).await;
        assert!(
            matches!(refused, Err(CatalogError::AddressOutsidePool { .. })),
            "{outside}: {refused:?}"
        );
    }
}

async fn what_is_reserved_is_not_given(fixture: &Fixture) {
    fixture.catalog.create_app(app("a")).await.unwrap();
    let pool = AddressPool { reserved: vec![ip("192.0.2.1")], ..pool(&["192.0.2.0/24"]) };
    let any = address("a", WantedAddress::Own(pool.clone()));
    assert_eq!(given(fixture, any).await, "192.0.2.2");
    let this = address("a", WantedAddress::This(ip("192.0.2.1"), pool));
    let refused = fixture.catalog.allocate_address(this).await;
    assert!(matches!(refused, Err(CatalogError::AddressOutsidePool { .. })));
}

async fn an_app_has_the_shared_address_once_and_shares_it(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    for name in ["a", "b"] {
        catalog.create_app(app(name)).await.unwrap();
    }
    let shared =
        |name: &str| catalog.allocate_address(address(name, WantedAddress::Shared(SHARED)));
    let first = shared("a").await.unwrap();
    assert_eq!((first.ip, first.kind), (IpAddr::V4(SHARED), AddressKind::SharedV4));
    assert_eq!(shared("a").await.unwrap(), first);
    assert_eq!(shared("b").await.unwrap().ip, first.ip);
    assert_eq!(catalog.addresses().await.unwrap().len(), 2);
    catalog.release_address("a", first.ip).await.unwrap();
    assert_eq!(catalog.addresses().await.unwrap().len(), 1);
}

async fn an_app_whose_address_the_pool_no_longer_has_gets_another_once(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let ensure = async |pool: &AddressPool| {
        catalog.ensure_address("a", pool.clone()).await.unwrap().ip.to_string()
    };
    let (before, now) = (pool(&["192.0.2.0/24"]), pool(&["198.51.100.0/24"]));
    let reserved = AddressPool { reserved: vec![ip("198.51.100.1")], ..now.clone() };
    for (pool, expected) in [
        (&before, "192.0.2.1"),
        (&now, "198.51.100.1"),
        (&now, "198.51.100.1"),
        (&reserved, "198.51.100.2"),
        (&before, "192.0.2.1"),
    ] {
        assert_eq!(ensure(pool).await, expected);
    }
    assert_eq!(catalog.addresses_of("a").await.unwrap().len(), 3, "none is taken away");
    // Of the shared listeners too.
    for shared in [SHARED, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST] {
        let given = catalog.allocate_address(address("a", WantedAddress::Shared(shared)));
        assert_eq!(given.await.unwrap().ip, IpAddr::V4(shared));
    }
    assert_eq!(catalog.addresses_of("a").await.unwrap().len(), 5);
}

async fn private_addresses_are_of_the_network_that_is_named(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    let network = Some(NetworkName::from_trusted("own"));
    let made = catalog.create_app(NewApp { network, ..app("a") }).await.unwrap();
    let private = |organization: Option<&str>, network: Option<&str>| {
        let organization = organization.map(str::to_owned);
        let network = network.map(NetworkName::from_trusted);
        catalog.allocate_address(address("a", WantedAddress::Private { organization, network }))
    };
    let prefix = made.network_prefix.strip_suffix("::/48").unwrap();
    let services: IpNet = format!("{prefix}:0:1::/96").parse().unwrap();
    let mut all = HashSet::new();
    for _ in 0..2 {
        let given = private(None, Some("own")).await.unwrap();
        assert!(services.contains(&given.ip) && all.insert(given.ip), "{}", given.ip);
        let (organization, name) = (PERSONAL.to_owned(), NetworkName::from_trusted("own"));
        assert_eq!(given.network, Some(PrivateNetwork { organization, name }));
    }
    for ip in all.clone() {
        catalog.release_address("a", ip).await.unwrap();
        let given = private(None, Some("own")).await.unwrap().ip;
        assert!(all.insert(given), "{given} was released just now");
    }
    // Not the app's own, as in the reference.
    let default = private(Some(PERSONAL), None).await.unwrap();
    assert_eq!(default.network.unwrap().name, "default");
    assert!(!default.ip.to_string().starts_with(prefix));
    let refused = private(None, Some("other")).await.unwrap_err();
    assert_eq!(refused.to_string(), "network not found");
    let refused = private(Some("other"), None).await;
    assert!(matches!(refused, Err(CatalogError::OrganizationNotFound(_))));
}

async fn what_was_said_of_an_address_is_kept(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let (region, service_name) = ("ams".to_owned(), "web".to_owned());
    let made =
        catalog.allocate_address(NewAddress { region, service_name, ..own("a") }).await.unwrap();
    assert_eq!((made.region.as_str(), made.service_name.as_str()), ("ams", "web"));
    assert_eq!(made.created_at, fixture.now());
    assert_eq!(catalog.addresses_of("a").await.unwrap(), [made]);
}

async fn the_addresses_of_an_app_are_free_once_it_is_gone(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    catalog.create_app(app("b")).await.unwrap();
    assert_eq!(given(fixture, own("a")).await, "192.0.2.1");
    catalog.begin_app_deletion("a").await.unwrap();
    assert_eq!(given(fixture, own("b")).await, "192.0.2.2", "it is not gone yet");
    assert!(catalog.finish_app_deletion("a").await.unwrap());
    assert_eq!(given(fixture, own("b")).await, "192.0.2.1");
    catalog.create_app(app("a")).await.unwrap();
    assert_eq!(catalog.addresses_of("a").await.unwrap(), [], "another app of the name");
}

async fn apps_that_are_not_there_or_going_get_none(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    assert!(matches!(catalog.allocate_address(own("a")).await, Err(CatalogError::AppNotFound(_))));
    assert!(matches!(catalog.addresses_of("a").await, Err(CatalogError::AppNotFound(_))));
    let release = async || catalog.release_address("a", ip("192.0.2.1")).await;
    assert!(matches!(release().await, Err(CatalogError::AppNotFound(_))));
    catalog.create_app(app("a")).await.unwrap();
    assert!(matches!(release().await, Err(CatalogError::AddressNotFound(_))));
    catalog.begin_app_deletion("a").await.unwrap();
    let ensured = catalog.ensure_address("a", pool(&["192.0.2.0/24"])).await;
    assert!(matches!(ensured, Err(CatalogError::AppInDeletion(_))));
}

async fn each_change_is_told(fixture: &Fixture) {
    let catalog = &fixture.catalog;
    catalog.create_app(app("a")).await.unwrap();
    let mut changes = catalog.addresses_changed();
    assert!(!changes.has_changed().unwrap());
    let first = catalog.allocate_address(own("a")).await.unwrap();
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    catalog.release_address("a", first.ip).await.unwrap();
    assert!(changes.has_changed().unwrap());
    catalog.allocate_address(own("a")).await.unwrap();
    changes.mark_unchanged();
    catalog.begin_app_deletion("a").await.unwrap();
    catalog.finish_app_deletion("a").await.unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(catalog.addresses().await.unwrap(), []);
}
