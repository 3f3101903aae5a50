//! What a kill, another program or an earlier release has left is put in order by the next start.

use std::{
    fs,
    net::{IpAddr, UdpSocket},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use futures::FutureExt as _;

use super::{
    Place, Vm, machine, on_a_host,
    policies::{Machine, PORT, SILENCE, TIMEOUT, WORLD, outside},
    run,
};
use crate::{
    HOST_V4, MachineAddresses, Network, NetworkConfig, NetworkError, PublicAddresses, tap,
};

/// All that there is of the network, on the host and in the namespace, but what a server holds as
/// long as it runs.
fn all(network: &Network) -> String {
    let list = "ip rule; ip -6 rule; ip -o link | sed 's/^[0-9]*: //; s/ link-netnsid.*//; \
                s/@if[0-9]*//; s/NO-CARRIER,//; s/,LOWER_UP//; s/ state [A-Z]*//'; ip -o address | \
                sed 's/^[0-9]*: //'; ip route show table all; ip -6 route show table all; ip \
                neighbour; ip -6 neighbour; nft --stateless list ruleset | sed \
                '/-untranslated-/,/^}/d'; sysctl net.ipv4.ip_forward";
    let inside = network.run_inside(list);
    format!("{}\n-- inside\n{inside}", run(list))
}

impl Network {
    pub(super) fn run_inside(&self, command: &str) -> String {
        let command = command.to_owned();
        self.namespace.run(move || run(&command)).unwrap()
    }
}

#[test]
fn a_start_heals_what_a_kill_has_left_at_any_point_of_an_earlier_one() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        let mut network = place.start().await.unwrap();
        let whole = all(&network);
        assert!(whole.contains("default via 169.254.255.2 dev uplink"), "{whole}");
        for (inside, left) in [
            (true, "ip route del default"),
            (true, "ip -6 route del default"),
            (true, "ip neighbour flush dev uplink nud permanent"),
            (true, "ip -6 neighbour flush dev uplink nud permanent"),
            (
                true,
                "ip route del default; ip -6 route del default; ip neighbour flush dev uplink nud \
                 permanent",
            ),
            (true, "ip link set uplink down"),
            (true, "ip link del uplink"),
            (true, "nft flush ruleset"),
            (true, "ip address flush dev lo scope global; ip link set lo down"),
            (
                false,
                "ip neighbour flush dev caddis-0 nud permanent; ip -6 neighbour flush dev caddis-0 \
                 nud permanent",
            ),
            (false, "ip address flush dev caddis-0"),
            (false, "ip -6 address flush dev caddis-0"),
            (false, "ip link set caddis-0 down"),
            (false, "ip route flush table 13294848; ip -6 route flush table 13294848"),
            (false, "ip route flush dev caddis-0"),
            (false, "ip link del caddis-0"),
            (false, "ip rule del pref 1"),
            (false, "ip rule del iif caddis-0 blackhole"),
            (false, "nft flush ruleset"),
            (false, "sysctl net.ipv4.ip_forward=0"),
        ] {
            // Its watch is over when it is dropped.
            let namespace = network.namespace.clone();
            drop(network);
            if inside {
                namespace.run(move || run(left)).unwrap();
            } else {
                run(left);
            }
            drop(namespace);
            network = place.start().await.unwrap();
            same(&all(&network), &whole, left);
            assert_eq!(place.missing().await, Vec::<&str>::new(), "{left}");
        }
        drop(network);
        place.clean().await.unwrap();
        assert_eq!(place.files(), Vec::<String>::new());
    });
}

#[track_caller]
fn same(now: &str, before: &str, what: &str) {
    let lines =
        |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (now, before) = (lines(now), lines(before));
    let changed: Vec<_> = now.symmetric_difference(&before).collect();
    assert!(changed.is_empty(), "{what}: {changed:#?}");
}

#[test]
fn doctor_sees_rules_that_are_in_a_wrong_order() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        drop(place.start().await.unwrap());
        assert_eq!(place.missing().await, Vec::<&str>::new());
        run(&format!(
            "ip rule del pref 1; ip rule add pref 1 from {HOST_V4} iif lo goto 2 proto kernel"
        ));
        assert_eq!(place.missing().await, ["routing rules"]);
    });
}

#[test]
fn doctor_names_what_is_missing_of_the_network() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        let pools = ["203.0.113.64/28".parse().unwrap()];
        let config = || NetworkConfig { egress_pools: pools.to_vec(), ..place.config() };
        for (taken, expected) in [
            ("true", &[][..]),
            ("sysctl -q net.ipv4.ip_forward=0", &["forwarding"]),
            ("sysctl -q net.ipv6.conf.all.forwarding=0", &["forwarding"]),
            ("nft delete table inet caddis-0", &["packet filter"]),
            ("ip route flush table local proto 203", &["routes to egress addresses"]),
            ("ip rule del iif caddis-0 blackhole", &["routing rules"]),
            ("ip link del caddis-0", &["link"]),
        ] {
            // Nobody puts it back once the server is gone.
            drop(Network::start(config()).await.unwrap());
            run(taken);
            let found = Network::inspect(&place.run, place.data.path(), &pools).await.unwrap();
            assert_eq!(found.unwrap(), expected, "{taken}");
        }
    });
}

#[test]
fn doctor_sees_a_network_of_the_host_in_the_addresses_of_machines() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        run("ip link add lan type veth peer name other; ip link set lan up");
        assert_eq!(place.pool().await.unwrap(), "10.201.0.0/16");
        // Before the first start another one would be chosen.
        run("ip address add 10.201.9.1/24 dev lan");
        assert_eq!(place.pool().await.unwrap(), "10.202.0.0/16");
        assert_eq!(place.start().await.unwrap().ipv4_pool().to_string(), "10.202.0.0/16");
        assert_eq!(place.pool().await.unwrap(), "10.202.0.0/16", "its own routes are none");
        // A tunnel that came later.
        run("ip route add 10.202.44.0/24 dev lan");
        let error = place.pool().await.unwrap_err();
        assert!(matches!(&error, NetworkError::PoolInUse { link, .. } if link == "lan"), "{error}");
    });
}

#[test]
fn a_pool_with_an_address_in_it_is_that_pool() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        let mut config = place.config();
        config.ipv4_pool = Some("10.77.5.1/16".parse().unwrap());
        for _ in 0..2 {
            let network = Network::start(config.clone()).await.unwrap();
            assert_eq!(network.ipv4_pool().to_string(), "10.77.0.0/16");
            assert!(network.side.ensure().await.unwrap().is_empty(), "nothing is missing");
        }
        config.ipv4_pool = None;
        fs::write(place.state_file(), r#"{"ipv4_pool":"10.78.5.1/16"}"#).unwrap();
        let network = Network::start(config).await.unwrap();
        assert_eq!(network.ipv4_pool().to_string(), "10.78.0.0/16");
        assert!(network.side.ensure().await.unwrap().is_empty());
        // Neither do other networks need to be given so.
        network.side.add_route("10.99.5.1/16".parse().unwrap()).await.unwrap();
        assert!(network.side.ensure().await.unwrap().is_empty());
        assert!(run("ip route").contains("10.99.0.0/16"));
        network.side.remove_route("10.99.7.7/16".parse().unwrap()).await.unwrap();
        assert!(!run("ip route").contains("10.99.0.0/16"));
    });
}

/// The release before had taps in the host's network, noted what forwarding was in the data
/// directory, and no pool.
#[test]
fn an_update_keeps_the_pool_with_vms_that_go_on_and_without() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let (earlier, chosen, new) = (
            Place::beside(&run_directory),
            Place::beside(&run_directory),
            Place::beside(&run_directory),
        );
        let vms: Vec<_> = (1..=8_u8)
            .map(|number| {
                let tap = format!("caddis{number}");
                let device = tap::create(&tap).unwrap();
                run(&format!("ip link set {tap} up; ip route add 10.201.3.{number}/32 dev {tap}"));
                (tap, MachineAddresses { ipv4: [10, 201, 3, number].into(), ..machine() }, device)
            })
            .collect();
        let noted =
            r#"{"/proc/sys/net/ipv4/ip_forward":"0","/proc/sys/net/ipv6/conf/all/forwarding":"0"}"#;
        fs::write(earlier.state_file(), noted).unwrap();
        for _ in 0..2 {
            let network = earlier.start().await.unwrap();
            assert_eq!(network.ipv4_pool().to_string(), "10.201.0.0/16");
            let adopted = vms.iter().map(|(tap, addresses, _)| network.adopt(tap, addresses));
            futures::future::try_join_all(adopted).await.unwrap();
        }
        assert!(
            fs::read_to_string(earlier.state_file()).unwrap().contains("10.201.0.0/16"),
            "it is noted now"
        );
        drop(vms);
        earlier.cleaned().await;

        // Given, it is not in use by those either.
        let vm = tap::create("caddis9").unwrap();
        run("ip link set caddis9 up; ip route add 10.201.3.4/32 dev caddis9");
        let mut config = chosen.config();
        config.ipv4_pool = Some("10.201.0.0/16".parse().unwrap());
        drop(Network::start(config).await.unwrap());
        drop(vm);

        // Without VMs the machines that are stopped have their addresses all the same: it does not
        // go elsewhere.
        fs::write(new.state_file(), noted).unwrap();
        let error = new.start().await.unwrap_err();
        assert!(
            matches!(
                error,
                NetworkError::PoolInUse { pool, .. } if pool.to_string() == "10.201.0.0/16"
            ),
            "{error}"
        );
        fs::remove_file(new.state_file()).unwrap();
        assert_eq!(new.start().await.unwrap().ipv4_pool().to_string(), "10.202.0.0/16");
    });
}

#[test]
fn vms_are_found_again_whatever_was_lost_of_their_network() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let (place, other) = (Place::beside(&run_directory), Place::beside(&run_directory));
        let beside = other.start().await.unwrap();
        let network = place.start().await.unwrap();
        let machine = MachineAddresses { ipv4: [10, 202, 3, 4].into(), ..machine() };
        let vm = Vm::start(&place, network.attach("caddis1", &machine).await.unwrap());
        let whole = all(&network);
        drop((network, beside));
        let claims = place.run.display();
        for (lost, missing) in [
            (format!("umount -l {claims}/1.net"), "network namespace"),
            (format!("umount -l {claims}/1.net; rm {claims}/1.net"), "network namespace"),
            (format!("rm {claims}/1"), ""),
            (format!("umount -l {claims}/1.net; rm {claims}/1 {claims}/1.net"), ""),
            (format!("umount -l {claims}/*.net; rm {claims}/*"), ""),
        ] {
            run(&lost);
            let cleaned = place.clean().await.unwrap_err();
            assert!(matches!(cleaned, NetworkError::InUse { count: 1 }), "{lost}: {cleaned}");
            if !missing.is_empty() {
                // To clean has led there again.
                run(&lost);
                assert_eq!(place.missing().await, [missing]);
            }
            let network = place.start().await.unwrap();
            network.adopt("caddis1", &machine).await.unwrap();
            assert_eq!(
                place.claims(),
                if lost.contains('*') {
                    &["1", "1.net"][..]
                } else {
                    &["0", "0.net", "1", "1.net"]
                }
            );
            // Where no VM kept the other's namespace, its link went with it.
            let kept = |text: String| match lost.contains('*') {
                true => text
                    .lines()
                    .filter(|line| !line.contains("caddis-0"))
                    .collect::<Vec<_>>()
                    .join("\n"),
                false => text,
            };
            same(&kept(all(&network)), &kept(whole.clone()), &lost);
        }
        // Who comes later gets no number of those that go on.
        assert_eq!(
            other.start().map(|network| network.unwrap().ipv4_pool().to_string()).await,
            "10.201.0.0/16"
        );
        drop(vm);
        for one in [&place, &other] {
            one.cleaned().await;
        }
    });
}

#[test]
fn a_data_directory_that_is_gone_gives_its_network_back_once_no_vm_runs() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let nothing = run("ip -o link; ip rule; nft list ruleset");
        let next = |number: usize, place: &Place| {
            assert!(place.files().contains(&number.to_string()), "{:?}", place.files());
            fs::read(place.run.join(number.to_string())).unwrap()
                == place.data.path().as_os_str().as_bytes()
        };
        let (gone, one, two) = (
            Place::beside(&run_directory),
            Place::beside(&run_directory),
            Place::beside(&run_directory),
        );
        drop(gone.start().await.unwrap());
        fs::remove_dir_all(gone.data.path()).unwrap();
        let network = one.start().await.unwrap();
        assert!(next(0, &one), "nobody needs the first number");
        let vm = Vm::start(&one, network.attach("caddis1", &machine()).await.unwrap());
        drop(network);
        fs::remove_dir_all(one.data.path()).unwrap();
        // Not even where its mount is lost.
        run(&format!("umount -l {}/0.net", one.run.display()));
        drop(two.start().await.unwrap());
        assert!(next(1, &two) && next(0, &one), "its VM runs");
        drop(vm);
        two.cleaned().await;
        assert_eq!(two.files(), Vec::<String>::new());
        assert_eq!(run("ip -o link; ip rule; nft list ruleset"), nothing);
    });
}

#[test]
fn notes_about_forwarding_go_with_the_last_installation_of_all_hosts() {
    on_a_host(async || {
        // A new namespace has what its host has.
        fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let run_directory = tempfile::tempdir().unwrap();
        let (one, two) = (Place::beside(&run_directory), Place::beside(&run_directory));
        drop(one.start().await.unwrap());
        let notes = |place: &Place| {
            place.files().into_iter().filter(|name| name.starts_with("forwarding-")).count()
        };
        assert_eq!(notes(&one), 1);
        let foreign = one.run.join("forwarding-1.json");
        fs::write(&foreign, "{}").unwrap();
        drop(two.start().await.unwrap());
        two.clean().await.unwrap();
        assert_eq!(notes(&one), 2, "another installation may have noted it");
        one.clean().await.unwrap();
        assert_eq!(
            (notes(&one), fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim()),
            (0, "0")
        );
        fs::write(&foreign, "{}").unwrap();
        drop(one.start().await.unwrap());
        assert!(!Path::new(&foreign).exists() && notes(&one) == 1);
    });
}

#[test]
fn a_route_of_an_earlier_server_is_no_error_and_one_of_others_is() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&run_directory);
        let network = "10.99.0.0/16".parse().unwrap();
        place.start().await.unwrap().side.add_route(network).await.unwrap();
        let next = place.start().await.unwrap();
        let side = next.side.clone();
        // With it goes its watch, which would put back what is taken away here.
        drop(next);
        run("ip route flush table 13294848");
        side.add_route(network).await.unwrap();
        assert!(side.ensure().await.unwrap().is_empty());
        run("ip route del 10.99.0.0/16; ip route add unreachable 10.88.0.0/16");
        side.ensure().await.unwrap();
        assert!(run("ip route").contains("10.99.0.0/16"), "it is kept");
        side.add_route("10.88.0.0/16".parse().unwrap()).await.unwrap_err();
        assert!(
            run("ip route").contains("unreachable 10.88.0.0/16"),
            "that of others is left alone"
        );
    });
}

#[test]
fn addresses_of_apps_that_a_kill_has_left_go_with_the_next_server_or_a_clean() {
    on_a_host(async || {
        let run_directory = tempfile::tempdir().unwrap();
        let (place, other) = (Place::beside(&run_directory), Place::beside(&run_directory));
        let take = async |place: &Place, prefixes: &[&str]| {
            let network = place.start().await.unwrap();
            let prefixes: Vec<_> = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
            let addresses = PublicAddresses::of(&network);
            addresses.take(&prefixes).await.unwrap();
            addresses
        };
        let routes = || {
            run("ip route show table local; ip -6 route show table local")
                .lines()
                .filter(|route| route.contains("metric") && route.contains("dev lo"))
                .filter_map(|route| route.split_whitespace().nth(1).map(str::to_owned))
                .filter(|prefix| prefix != "::1")
                .collect::<Vec<_>>()
        };
        // Of a user, as it may be.
        run("ip -6 route add local 2001:db8:9::/64 dev lo");
        let users = routes();
        let with = |own: &[&str]| {
            let mut all = users.clone();
            all.extend(own.iter().copied().map(str::to_owned));
            all.sort();
            all
        };
        let there = || {
            let mut there = routes();
            there.sort();
            there
        };
        // It is killed.
        drop(take(&place, &["192.0.2.0/29", "2001:db8::/64", "127.64.0.0/16"]).await);
        assert_eq!(there(), with(&["192.0.2.0/29", "2001:db8::/64"]));
        let beside = take(&other, &["198.51.100.0/29"]).await;
        drop(take(&place, &["2001:db8::/64", "203.0.113.1/32"]).await);
        assert_eq!(there(), with(&["2001:db8::/64", "198.51.100.0/29", "203.0.113.1"]));
        place.cleaned().await;
        assert_eq!(there(), with(&["198.51.100.0/29"]), "what others have stays");
        beside.release().await;
        assert_eq!(there(), users);
        other.cleaned().await;
    });
}

/// What drops it is gone with a server, and a packet that is on its way when another program then
/// removes the host's table leaves as it is. Here all do, as long as that table only marks.
#[test]
fn what_was_not_translated_while_no_server_ran_goes_no_further_with_the_next() {
    on_a_host(async || {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::beside(&directory);
        let network = place.start().await.unwrap();
        let world = outside(&directory);
        // It answers a private address from the one that was asked, not from its own private one.
        let way = "ip -6 route replace default via 2001:db8:1::1 src 2001:db8:1::2";
        world.run(move || run(way)).unwrap();
        let machine = Machine::start(&network, &directory, 1, "fdaa:0:5:7::2").await;
        let flow = |to: &str| {
            let to: IpAddr = to.parse().unwrap();
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let flow = machine.inside.run(move || UdpSocket::bind((any, 0)).unwrap()).unwrap();
            flow.connect((to, PORT)).unwrap();
            flow
        };
        let is_answered = |flow: &UdpSocket, patience| {
            flow.set_read_timeout(Some(patience)).unwrap();
            flow.send(b"x").is_ok() && flow.recv(&mut [0; 8]).is_ok()
        };
        // It is killed, and what it held goes with it.
        drop(network);
        let gone = async {
            while run("nft list tables").contains("-untranslated-") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, gone).await.unwrap();
        run("nft flush chain inet caddis-0 leaving");
        let flows = WORLD.map(flow);
        assert!(flows.iter().all(|flow| is_answered(flow, TIMEOUT)), "untranslated");
        run("nft flush ruleset");
        let others = WORLD.map(flow);
        let passes = flows.iter().chain(&others).any(|flow| is_answered(flow, SILENCE));
        assert!(!passes, "nothing has a mark");
        let next = place.start().await.unwrap();
        next.adopt("caddis1", &machine.addresses).await.unwrap();
        assert!(WORLD.map(flow).iter().all(|flow| is_answered(flow, TIMEOUT)), "the table is back");
        assert!(!flows.iter().any(|flow| is_answered(flow, SILENCE)), "what began untranslated");
    });
}
