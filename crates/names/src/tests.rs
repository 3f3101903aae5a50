mod peers;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use caddis_api::{AppName, Machine, MachineState, NetworkName, RegionCode, UnixMillis};
use caddis_bus::message::MachineRecord;
use caddis_catalog::{MemoryStore, NewAddress, NewApp, PERSONAL, WantedAddress};
use caddis_network::LONGEST_TEXT;
use caddis_view::ViewSettings;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A machine of a test, in network `fdaa:0:1::/48` unless it says otherwise.
struct Given {
    id: &'static str,
    app: &'static str,
    address: &'static str,
    region: &'static str,
    host: &'static str,
    state: MachineState,
    config: Value,
}

const STARTED: MachineState = MachineState::Started;
const STOPPED: MachineState = MachineState::Stopped;

impl Given {
    fn new(id: &'static str, app: &'static str, address: &'static str) -> Self {
        let config = json!({ "image": "a" });
        Self { id, app, address, region: "ams", host: "near", state: STARTED, config }
    }

    fn record(&self, revision: u64) -> MachineRecord {
        let machine: Machine = serde_json::from_value(json!({
            "id": self.id, "name": self.id, "state": self.state.as_str(), "region": self.region,
            "image_ref": { "registry": "", "repository": "", "digest": "" },
            "instance_id": "01", "version": "01", "private_ip": self.address, "created_at": "",
            "updated_at": "", "host_status": "ok", "checks": [], "events": [],
            "config": self.config,
        }))
        .unwrap();
        MachineRecord {
            worker: WorkerId::from_trusted(self.host),
            epoch: 1,
            revision,
            config_revision: revision,
            app: AppName::from_trusted(self.app),
            launched: true,
            booted_at: UnixMillis::EPOCH,
            started_at: UnixMillis::EPOCH,
            lease: None,
            machine,
        }
    }
}

fn id(text: &str) -> MachineId {
    MachineId::from_trusted(text)
}

/// Two apps of one network and one of another.
fn index() -> Index {
    let group = |name: &str| {
        let metadata = json!({ "fly_process_group": name, "Tier": "V1.Gold", "n": 1 });
        json!({ "metadata": metadata })
    };
    let hidden = json!({ "dns": { "skip_registration": true }, "metadata": { "role": "secret" } });
    let given = [
        Given { config: group("web"), ..Given::new("a1", "shop", "fdaa:0:1:1::2") },
        Given {
            config: group("web.old"),
            region: "iad",
            host: "far",
            ..Given::new("a2", "shop", "fdaa:0:1:2::2")
        },
        Given { region: "ams", host: "other", ..Given::new("a3", "shop", "fdaa:0:1:3::2") },
        Given {
            state: STOPPED,
            region: "syd",
            host: "other",
            ..Given::new("a4", "shop", "fdaa:0:1:4::2")
        },
        Given {
            config: hidden.clone(),
            region: "lhr",
            ..Given::new("a5", "shop", "fdaa:0:1:5::2")
        },
        Given { state: STOPPED, ..Given::new("b1", "idle", "fdaa:0:1:6::2") },
        Given { config: hidden, ..Given::new("c1", "dark", "fdaa:0:1:7::2") },
        Given::new("d1", "apart", "fdaa:0:2:1::2"),
        Given { state: MachineState::Destroyed, ..Given::new("e1", "gone", "fdaa:0:1:8::2") },
    ];
    let mut index = Index::default();
    for given in &given {
        index.put(&id(given.id), Entry::of(&given.record(1), None));
    }
    index
}

/// What a name has: addresses in order, without the common part of the network.
fn found(index: &Index, source: &str, name: &str) -> String {
    let labels: Vec<_> = name.split('.').collect();
    match index.look_up(source.parse().unwrap(), &labels) {
        Found::Addresses(mut addresses) => {
            addresses.sort();
            let addresses = addresses.iter().map(|address| address.segments()[3].to_string());
            format!("AAAA {}", addresses.collect::<Vec<_>>().join(" "))
        }
        Found::Text(text) => format!("TXT {text}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn each_name_of_the_reference_has_what_it_says() {
    let index = index();
    for (name, expected) in [
        ("shop", "AAAA 1 2 3"),
        ("global.shop", "AAAA 1 2 3"),
        ("ams.shop", "AAAA 1 3"),
        ("iad.shop", "AAAA 2"),
        ("a1.vm.shop", "AAAA 1"),
        ("web.process.shop", "AAAA 1"),
        ("web.old.process.shop", "AAAA 2"),
        ("v1.gold.tier.kv._metadata.shop", "AAAA 1 2"),
        ("web.fly_process_group.kv._metadata.shop", "AAAA 1"),
        ("top9.nearest.of.shop", "AAAA 1 2 3"),
        ("vms.shop", "TXT a1 ams,a2 iad,a3 ams"),
        ("all.vms.shop", "TXT a1 ams,a2 iad,a3 ams,a4 syd"),
        ("regions.shop", "TXT ams,iad"),
        ("all.regions.shop", "TXT ams,iad,syd"),
        ("_apps", "TXT dark,idle,shop"),
        (
            "_instances",
            "TXT instance=a1,app=shop,ip=fdaa:0:1:1::2,region=ams;\
             instance=a2,app=shop,ip=fdaa:0:1:2::2,region=iad;\
             instance=a3,app=shop,ip=fdaa:0:1:3::2,region=ams",
        ),
        (
            "all._instances",
            "TXT instance=b1,app=idle,ip=fdaa:0:1:6::2,region=ams;\
             instance=a1,app=shop,ip=fdaa:0:1:1::2,region=ams;\
             instance=a2,app=shop,ip=fdaa:0:1:2::2,region=iad;\
             instance=a3,app=shop,ip=fdaa:0:1:3::2,region=ams;\
             instance=a4,app=shop,ip=fdaa:0:1:4::2,region=syd",
        ),
    ] {
        assert_eq!(found(&index, "fdaa:0:1:1::2", name), expected, "{name}");
    }
}

#[test]
fn a_name_that_only_stopped_machines_have_exists_and_others_do_not() {
    let index = index();
    let (none, empty, nothing) = ("AAAA ", "Empty", "Nothing");
    for (name, expected) in [
        ("idle", none),
        ("global.idle", none),
        ("ams.idle", none),
        ("syd.shop", none),
        ("top3.nearest.of.idle", none),
        ("vms.idle", "TXT "),
        ("regions.idle", "TXT "),
        ("a4.vm.shop", empty),
        // Names below them exist.
        ("vm.shop", empty),
        ("process.shop", empty),
        ("of.shop", empty),
        ("nearest.of.shop", empty),
        ("_metadata.shop", empty),
        ("kv._metadata.shop", empty),
        // Of an app whose machines are all hidden.
        ("dark", none),
        // Hidden ones.
        ("a5.vm.shop", nothing),
        ("lhr.shop", nothing),
        ("secret.role.kv._metadata.shop", nothing),
        ("c1.vm.dark", nothing),
        // What nobody has.
        ("fra.shop", nothing),
        ("a9.vm.shop", nothing),
        ("b1.vm.shop", nothing),
        ("worker.process.shop", nothing),
        ("1.n.kv._metadata.shop", nothing),
        ("gold.tier.kv._metadata.shop", nothing),
        ("top.nearest.of.shop", nothing),
        ("top0.nearest.of.shop", nothing),
        ("top-1.nearest.of.shop", nothing),
        ("x.y.shop", nothing),
        ("nosuch", nothing),
        ("gone", nothing),
        ("_api", nothing),
        ("_peer", nothing),
        ("laptop._peer", nothing),
    ] {
        assert_eq!(found(&index, "fdaa:0:1:1::2", name), expected, "{name}");
    }
}

#[test]
fn machines_see_the_names_of_their_own_network_only() {
    let index = index();
    for (source, name, expected) in [
        ("fdaa:0:2:1::2", "apart", "AAAA 1"),
        ("fdaa:0:2:1::2", "shop", "Nothing"),
        ("fdaa:0:2:1::2", "a1.vm.shop", "Nothing"),
        ("fdaa:0:2:1::2", "_apps", "TXT apart"),
        (
            "fdaa:0:2:1::2",
            "all._instances",
            "TXT instance=d1,app=apart,ip=fdaa:0:2:1::2,region=ams",
        ),
        ("fdaa:0:1:1::2", "apart", "Nothing"),
        ("fdaa:0:1:1::2", "d1.vm.apart", "Nothing"),
        ("fdaa:0:3:1::2", "_apps", "Nothing"),
        ("::ffff:127.0.0.1", "shop", "Nothing"),
    ] {
        assert_eq!(found(&index, source, name), expected, "{name} from {source}");
    }
}

#[test]
fn the_nearest_are_those_of_the_host_then_of_the_region() {
    let index = index();
    let top = |source: &str, count: usize| {
        let name = format!("top{count}.nearest.of.shop");
        let labels: Vec<_> = name.split('.').collect();
        match index.look_up(source.parse().unwrap(), &labels) {
            Found::Addresses(addresses) => {
                addresses.iter().map(|address| address.segments()[3]).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        }
    };
    // On "near" in ams.
    let source = "fdaa:0:1:1::2";
    assert_eq!((top(source, 1), top(source, 2)), (vec![1], vec![1, 3]));
    assert_eq!(top(source, 3), [1, 3, 2]);
    // On "near" in lhr, and hidden itself.
    assert_eq!(top("fdaa:0:1:5::2", 1), [1]);
    // On "far" in iad: the others are as far as each other.
    let far = top("fdaa:0:1:2::2", 9);
    assert_eq!((far[0], far.len()), (2, 3));
    assert_eq!(top("fdaa:0:1:9::2", 2).len(), 2, "of one that is not known yet, any");
}

#[test]
fn answers_begin_with_each_machine_in_turn() {
    let index = index();
    let mut first = BTreeSet::new();
    // Three machines: that one of them never comes first in so many has a chance of 1 in 10^17.
    for _ in 0..100 {
        match index.look_up("fdaa:0:1:1::2".parse().unwrap(), &["shop"]) {
            Found::Addresses(addresses) => first.insert(addresses[0]),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(first.len(), 3);
}

#[test]
fn a_text_has_as_many_whole_items_as_fit() {
    let items = |count: usize| (0..count).map(|number| format!("{number:099}"));
    let Found::Text(text) = app::joined(items(600), ',') else { panic!() };
    assert_eq!(text.len(), LONGEST_TEXT - 1, "600 items with what is between them fit exactly");
    let Found::Text(more) = app::joined(items(1000), ',') else { panic!() };
    assert_eq!(more, text);
}

#[test]
fn a_configuration_is_read_again_only_when_it_is_another_one() {
    let mut given = Given::new("a1", "shop", "fdaa:0:1:1::2");
    given.config = json!({ "metadata": { "k": "one" } });
    let first = Entry::of(&given.record(1), None).unwrap();
    let mut stopped = given.record(1);
    (stopped.revision, stopped.machine.state) = (2, STOPPED);
    let second = Entry::of(&stopped, Some(&first)).unwrap();
    assert!(Arc::ptr_eq(&first.settings, &second.settings) && !second.is_answered);
    given.config = json!({ "metadata": { "k": "two" } });
    let third = Entry::of(&given.record(3), Some(&second)).unwrap();
    assert_eq!(third.settings.metadata, ["two.k"]);
}

/// Machines as they come in: which, of which app, where, in which state and with which metadata.
fn changes() -> impl Strategy<Value = Vec<(usize, usize, usize, usize, usize)>> {
    proptest::collection::vec((0..6usize, 0..2usize, 0..3usize, 0..3usize, 0..3usize), 1..40)
}

proptest! {
    #[test]
    fn an_index_that_followed_all_changes_is_the_same_as_a_new_one(changes in changes()) {
        let ids = ["a1", "a2", "a3", "a4", "a5", "a6"];
        let addresses = ["fdaa:0:1:1::2", "fdaa:0:1:2::2", "fdaa:0:1:3::2", "fdaa:0:2:1::2",
            "fdaa:0:2:2::2", "fdaa:0:2:3::2"];
        let configs = [
            json!({}),
            json!({ "metadata": { "k": "v", "K": "V", "b": "x.a", "a.b": "x" } }),
            json!({ "dns": { "skip_registration": true } }),
        ];
        let (mut followed, mut last) = (Index::default(), std::collections::BTreeMap::new());
        for (revision, (machine, app, region, state, config)) in changes.into_iter().enumerate() {
            let given = Given {
                region: ["ams", "iad", "syd"][region],
                host: ["near", "far", "other"][region],
                state: [STARTED, STOPPED, MachineState::Destroyed][state],
                config: configs[config].clone(),
                ..Given::new(ids[machine], ["one", "two"][app], addresses[machine])
            };
            let record = given.record(revision as u64);
            let entry = Entry::of(&record, followed.get(&id(given.id)));
            followed.put(&id(given.id), entry);
            last.insert(machine, record);
        }
        let mut new = Index::default();
        for record in last.values() {
            new.put(&record.machine.id, Entry::of(record, None));
        }
        prop_assert_eq!(followed, new);
    }
}

fn view() -> Arc<View> {
    Arc::new(View::new(ViewSettings {
        workers: Vec::new(),
        region: RegionCode::from_trusted("ams"),
        suspected_after: Duration::from_secs(3),
        unreachable_after: Duration::from_secs(10),
        destroyed_retention: Duration::from_secs(60),
    }))
}

/// Ends when the name has this.
async fn until(names: &InternalNames, name: &str, expected: &Found) {
    let labels: Vec<_> = name.split('.').collect();
    let reached = async {
        while names.look_up("fdaa:0:1:1::2".parse().unwrap(), &labels) != *expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect(name);
}

#[tokio::test]
async fn names_follow_the_view() {
    let (names, view) = (Arc::new(InternalNames::default()), view());
    let mut given = Given::new("a1", "shop", "fdaa:0:1:1::2");
    let own: Vec<Ipv6Addr> = vec!["fdaa:0:1:1::2".parse().unwrap()];
    assert_eq!(names.look_up(own[0], &["shop"]), Found::NotReady);
    let following = tokio::spawn({
        let (names, view) = (names.clone(), view.clone());
        async move { names.follow(&view).await }
    });
    until(&names, "shop", &Found::Nothing).await;
    view.apply(given.record(1)).unwrap();
    until(&names, "shop", &Found::Addresses(own.clone())).await;
    given.state = STOPPED;
    view.apply(given.record(2)).unwrap();
    until(&names, "shop", &Found::Addresses(Vec::new())).await;
    given.state = STARTED;
    given.config = json!({ "metadata": { "fly_process_group": "web" } });
    view.apply(given.record(3)).unwrap();
    until(&names, "web.process.shop", &Found::Addresses(own.clone())).await;
    given.config = json!({ "dns": { "skip_registration": true } });
    view.apply(given.record(4)).unwrap();
    until(&names, "a1.vm.shop", &Found::Nothing).await;
    given.state = MachineState::Destroyed;
    view.apply(given.record(5)).unwrap();
    until(&names, "shop", &Found::Nothing).await;

    // More at once than wait for a reader.
    given.config = json!({});
    for revision in 6..=9000 {
        given.state = if revision % 2 == 0 { STOPPED } else { STARTED };
        view.apply(given.record(revision)).unwrap();
    }
    given.state = STARTED;
    view.apply(given.record(9001)).unwrap();
    until(&names, "shop", &Found::Addresses(own)).await;
    following.abort();
}

#[test]
fn a_machine_that_a_worker_no_longer_lists_has_no_names() {
    let (names, before, after) = (InternalNames::default(), view(), view());
    let near = Given::new("a1", "shop", "fdaa:0:1:1::2");
    let far = Given { host: "far", ..Given::new("a2", "shop", "fdaa:0:1:2::2") };
    for given in [&near, &far] {
        before.apply(given.record(1)).unwrap();
    }
    // What a worker lists is told as a whole.
    names.update_worker(&before, &WorkerId::from_trusted("near"));
    names.update_worker(&before, &WorkerId::from_trusted("far"));
    after.apply(far.record(1)).unwrap();
    assert_eq!(found(&names.index.read(), "fdaa:0:1:1::2", "shop"), "AAAA 1 2");
    names.update_worker(&after, &WorkerId::from_trusted("near"));
    assert_eq!(found(&names.index.read(), "fdaa:0:1:1::2", "shop"), "AAAA 2");
    names.update_all(&view());
    assert_eq!(found(&names.index.read(), "fdaa:0:1:1::2", "shop"), "Nothing");
}

/// Ends when the name of a service has this in the network of an address.
async fn until_served(names: &InternalNames, source: Ipv6Addr, name: &str, expected: &Found) {
    let labels: Vec<_> = name.split('.').collect();
    let reached = async {
        while names.look_up_services(source, &labels) != *expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect(name);
}

#[tokio::test]
async fn names_of_services_follow_the_catalog_and_are_those_of_the_asker_s_network() {
    let catalog = Catalog::new(Arc::new(MemoryStore::default()));
    let source = async |name: &str, network: &str| {
        let app = NewApp {
            name: Some(AppName::from_trusted(name)),
            organization: PERSONAL.to_owned(),
            network: Some(NetworkName::from_trusted(network)),
            idempotency_key: None,
        };
        let prefix = catalog.create_app(app).await.unwrap().network_prefix;
        let first: Ipv6Addr = prefix.split('/').next().unwrap().parse().unwrap();
        Ipv6Addr::from_bits(first.to_bits() | 7 << 64 | 2)
    };
    let assign = async |app: &str, wanted: WantedAddress| {
        let (app, region) = (AppName::from_trusted(app), String::new());
        let new = NewAddress { app, wanted, region, service_name: String::new() };
        catalog.allocate_address(new).await.unwrap().ip
    };
    let private = |network: &str| WantedAddress::Private {
        organization: None,
        network: Some(NetworkName::from_trusted(network)),
    };
    let (here, there) = (source("shop", "one").await, source("bank", "two").await);
    let names = Arc::new(InternalNames::default());
    assert_eq!(names.look_up_services(here, &["shop"]), Found::NotReady);
    let following = tokio::spawn({
        let (names, catalog) = (names.clone(), catalog.clone());
        async move { names.follow_addresses(&catalog).await }
    });
    until_served(&names, here, "shop", &Found::Nothing).await;

    let mut all = Vec::new();
    for _ in 0..2 {
        let IpAddr::V6(ip) = assign("shop", private("one")).await else { panic!() };
        all.push(ip);
        until_served(&names, here, "shop", &Found::Addresses(all.clone())).await;
    }
    // A bridge to another network, and an address that is not for private networks.
    let IpAddr::V6(bridge) = assign("shop", private("two")).await else { panic!() };
    assign("bank", WantedAddress::Shared([127, 0, 0, 1].into())).await;
    until_served(&names, there, "shop", &Found::Addresses(vec![bridge])).await;
    until_served(&names, here, "shop", &Found::Addresses(all.clone())).await;
    for (source, name) in [(there, "bank"), (here, "bank"), (here, "vms.shop"), (there, "x")] {
        let labels: Vec<_> = name.split('.').collect();
        assert_eq!(names.look_up_services(source, &labels), Found::Nothing, "{name}");
    }
    let nowhere = "fdaa:0:1:1::2".parse().unwrap();
    assert_eq!(names.look_up_services(nowhere, &["shop"]), Found::Nothing);

    catalog.release_address("shop", bridge.into()).await.unwrap();
    until_served(&names, there, "shop", &Found::Nothing).await;
    following.abort();
}

#[test]
fn a_machine_is_known_by_its_address_whether_it_has_names_or_not() {
    let names = InternalNames::default();
    *names.index.write() = index();
    for (address, expected) in [
        ("fdaa:0:1:1::2", Some(("a1", "shop"))),
        ("fdaa:0:1:5::2", Some(("a5", "shop"))),
        ("fdaa:0:2:1::2", Some(("d1", "apart"))),
        ("fdaa:0:1:8::2", None),
    ] {
        let expected = expected.map(|(machine, app)| (id(machine), app.to_owned()));
        assert_eq!(names.machine_at(address.parse().unwrap()), expected, "{address}");
    }
}
