//! `ips`, and where services answer.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn addresses_are_allocated_listed_and_released() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("ips list -a shop").await, @"
    exit code 0
    ----- stdout -----
    App shop has no addresses
    ");
    assert_snapshot!(stand.run("ips allocate-v4 -a shop").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 127.64.0.1 │ public (dedicated) │ global │ [AGO]
    ");
    assert_snapshot!(stand.run("ips allocate-v4 -a shop --shared -y").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 127.0.0.1 │ public (shared) │ global │ [AGO]
    ");
    assert_snapshot!(stand.run("ips list -a shop").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 127.64.0.1 │ public (dedicated) │ global │ [AGO]
     v4 │ 127.0.0.1 │ public (shared) │ global │ [AGO]
    ");
    let listed = stand.run("ips list -a shop --json").await.ok().json();
    assert_eq!((&listed[0]["ip"], &listed[1]["shared"]), (&"127.64.0.1".into(), &true.into()));
    let third = stand.run("ip allocate-v4 -a shop --json --region local").await.ok().json();
    assert_eq!((&third["ip"], &third["region"]), (&"127.64.0.2".into(), &"local".into()));
    assert_snapshot!(stand.run("ips release -a shop 127.64.0.1 127.64.0.2").await, @"
    exit code 0
    ----- stdout -----
    Released 127.64.0.1 from shop
    Released 127.64.0.2 from shop
    ");
    assert_snapshot!(stand.run("ips release -a shop 127.64.0.1").await, @"
    exit code 1
    ----- stderr -----
    Error: could not release 127.64.0.1: Could not find IP address 127.64.0.1 (Request ID: …)
    ");
    assert_snapshot!(stand.run("ips allocate-v6 -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: could not allocate an address: failed_precondition: this server has no IPv6 addresses for apps: give it some with --public-addresses (Request ID: …)
    ");
    assert_snapshot!(stand.run("ips allocate-v6 -a shop --private --network other").await, @"
    exit code 1
    ----- stderr -----
    Error: could not allocate an address: network not found (Request ID: …)
    ");
    assert_snapshot!(stand.run("ips list -a nothing").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "nothing" (Request ID: …)
    'caddis apps list' lists the apps.
    "#);
}

#[tokio::test]
async fn what_can_not_be_reached_without_an_address_is_told_when_it_is_released() {
    let stand = Stand::with_app().await;
    stand.machine_with("db --detach -p 5432").await;
    assert_snapshot!(stand.run("ips release -a shop 127.64.0.1").await, @"
    exit code 0
    ----- stdout -----
    Released 127.64.0.1 from shop

    ----- stderr -----
    Warning: services on ports 5432 can't be reached any more: the app has no address of its own left, 'caddis ips allocate-v4' allocates one
    ");
}

#[tokio::test]
async fn egress_addresses_of_an_app_are_allocated_listed_and_released() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("ips allocate-egress -a shop -r local").await, @"
    exit code 1
    ----- stderr -----
    Most apps need no static egress addresses. From a pair of them come all new connections of the app's machines in the region, up to 64 machines, each with 1024 ports.
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("ips allocate-egress -a shop -r local --yes").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 203.0.113.65 │ egress │ local │ [AGO]
     v6 │ 2001:db8:1::e:1 │ egress │ local │ [AGO]
    ");
    assert_snapshot!(stand.run("ips allocate-egress -a shop -r other --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: could not allocate an address: invalid region, there are no egress addresses in 'other': this server's are in local (Request ID: …)
    ");
    assert_snapshot!(stand.run("ips list -a shop").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 203.0.113.65 │ egress │ local │ [AGO]
     v6 │ 2001:db8:1::e:1 │ egress │ local │ [AGO]
    ");
    let pair = stand.run("ips allocate-egress -a shop -y --json").await.ok().json();
    assert!(pair["ip"].is_null() && pair["ip_pair"]["v4"] == "203.0.113.66", "{pair}");
    assert_snapshot!(stand.run("ips release-egress -a shop 203.0.113.9").await, @"
    exit code 1
    ----- stderr -----
    Error: 203.0.113.9 is not an egress address of app shop
    'caddis ips list -a shop' lists those it has.
    ");
    assert_snapshot!(
        stand.run("ips release-egress -a shop 203.0.113.65 2001:db8:1:0:0:0:e:1").await,
        @"
    exit code 0
    ----- stdout -----
    Released 203.0.113.65 from shop
    Released 2001:db8:1:0:0:0:e:1 from shop
    "
    );
    assert_snapshot!(stand.run("ips release-egress -a shop 203.0.113.66").await, @"
    exit code 0
    ----- stdout -----
    Released 203.0.113.66 from shop

    ----- stderr -----
    Warning: the app has no IPv4 egress address in local any more: connections over IPv4 come from an address of the host; 'caddis ips allocate-egress -a shop' completes the pair
    ");
    // Of what is given only one is new.
    assert_snapshot!(stand.run("ips allocate-egress -a shop --yes").await, @"
    exit code 0
    ----- stdout -----
     VERSION │ IP │ TYPE │ REGION │ CREATED AT
     v4 │ 203.0.113.65 │ egress │ local │ [AGO]
     v6 │ 2001:db8:1::e:2 │ egress │ local │ [AGO]
    ");
    let listed = stand.run("ips list -a shop --json").await.ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed}");
}

#[tokio::test]
async fn egress_addresses_of_a_machine_are_allocated_listed_promoted_and_released() {
    let stand = Stand::with_app().await;
    stand.run("machine run web -a shop --name web --detach").await.ok();
    assert_snapshot!(stand.run("machine egress-ip list -a shop").await, @"
    exit code 0
    ----- stdout -----
     MACHINE ID │ REGION │ TYPE │ EGRESS IP
    ");
    assert_snapshot!(stand.run("machine egress-ip allocate web -a shop").await, @"
    exit code 1
    ----- stderr -----
    Egress addresses of machines are deprecated in the reference; consider those of apps instead: caddis ips allocate-egress
    Most apps need no static egress address. Those of a machine are its own: another machine that takes its place, as after 'caddis machine clone', does not have them, and they are released when it is destroyed.
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("machine egress-ip allocate web -a shop --yes").await, @"
    exit code 0
    ----- stdout -----
    Allocated egress IPs for machine machine-id-001:
    IPv4: 203.0.113.65
    IPv6: 2001:db8:1::e:1

    ----- stderr -----
    Egress addresses of machines are deprecated in the reference; consider those of apps instead: caddis ips allocate-egress
    ");
    assert_snapshot!(stand.run("machine egress-ip allocate web -a shop --yes").await, @"
    exit code 1
    ----- stderr -----
    Egress addresses of machines are deprecated in the reference; consider those of apps instead: caddis ips allocate-egress
    Error: could not allocate egress addresses to machine machine-id-001: already_exists: machine machine-id-001 has egress addresses of its own (Request ID: …)
    ");
    assert_snapshot!(stand.run("machine egress-ip list -a shop").await, @"
    exit code 0
    ----- stdout -----
     MACHINE ID │ REGION │ TYPE │ EGRESS IP
     machine-id-001 │ local │ v4 │ 203.0.113.65
     machine-id-001 │ local │ v6 │ 2001:db8:1::e:1
    ");
    let listed = stand.run("machine egress-ip list -a shop --json").await.ok().json();
    assert_eq!(
        (listed[0]["ip"].as_str(), listed.as_array().unwrap().len()),
        (Some("203.0.113.65"), 2)
    );
    assert_snapshot!(stand.run("machine egress-ip promote web -a shop").await, @"
    exit code 1
    ----- stdout -----
     MACHINE ID │ REGION │ TYPE │ EGRESS IP
     machine-id-001 │ local │ v4 │ 203.0.113.65
     machine-id-001 │ local │ v6 │ 2001:db8:1::e:1


    ----- stderr -----
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("machine egress-ip promote web -a shop --yes").await, @"
    exit code 0
    ----- stdout -----
    Promoted 2 egress IP(s) for machine machine-id-001 to app-scoped egress IPs
    ");
    assert_snapshot!(stand.run("machine egress-ip promote web -a shop --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: no machine-scoped egress IPs found for machine machine-id-001
    ");
    assert_snapshot!(stand.run("machine egress-ip release web -a shop --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: could not release the egress addresses of machine machine-id-001: machine machine-id-001 has no egress addresses of its own (Request ID: …)
    ");
    stand.run("machine egress-ip allocate web -a shop --yes").await.ok();
    assert_snapshot!(stand.run("machine egress-ip release web -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("machine egress-ip release web -a shop --yes").await, @"
    exit code 0
    ----- stdout -----
    Egress IP released for the machine machine-id-001
    IPv4: 203.0.113.66
    IPv6: 2001:db8:1::e:2
    ");
}

#[tokio::test]
async fn an_address_within_a_private_network_is_allocated_listed_and_released() {
    let stand = Stand::with_app().await;
    let given = stand.run("ips allocate-v6 -a shop --private --json").await.ok().json();
    let ip = given["ip"].as_str().unwrap();
    assert!(ip.starts_with("fdaa:") && ip.contains(":0:1:"), "{ip}");
    assert_eq!(given["network"], serde_json::json!({ "name": "", "org_slug": "personal" }));
    let second = stand.run("ips allocate-v6 -a shop --private --org personal").await.ok();
    let row = second.stdout.lines().find(|line| line.contains("private")).unwrap();
    let other = row.split('│').find(|cell| cell.contains("fdaa:")).unwrap().trim();
    assert!(row.contains(" v6 ") && row.contains(" global ") && other != ip, "{second}");
    let listed = stand.run("ips list -a shop").await.ok();
    assert!(listed.stdout.contains(other) && listed.stdout.contains(ip), "{listed}");
    let released = stand.run(&format!("ips release -a shop {ip}")).await.ok();
    assert_eq!(released.stdout, format!("Released {ip} from shop\n"));
    let listed = stand.run("ips list -a shop").await.ok();
    assert!(listed.stdout.contains(other) && !listed.stdout.contains(ip), "{listed}");
}

#[tokio::test]
async fn private_addresses_are_those_of_machines() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let shown = stand.run("ips private -a shop --json").await.ok().json();
    assert_eq!((shown[0]["id"].as_str(), shown[0]["region"].as_str()), (Some(&*id), Some("local")));
    let ip = shown[0]["ip"].as_str().unwrap();
    let table = stand.run("ips private -a shop").await.ok();
    assert!(table.stdout.contains(&format!(" {id} │ local  │ {ip}")), "{table}");
}

#[tokio::test]
async fn a_machine_with_services_ends_with_where_they_answer() {
    let stand = Stand::with_app().await;
    let ports = "-p 80:80/tcp:http -p 443:80/tcp:tls:http -p 5432:5432 --autostop=suspend \
                 --idle-timeout 30s --max-drain 1m --min-machines-running 1";
    let run = stand.run(&format!("machine run web -a shop {ports}")).await.ok();
    let expected = "\nIts services answer at\n  http://shop.localhost:8080\n  \
                    https://shop.localhost:8443\n  127.64.0.1:5432\n";
    assert!(run.stdout.ends_with(expected), "{run}");
    let listed = stand.run("machine list -a shop --json").await.ok().json();
    let service = &listed[0]["config"]["services"][0];
    assert_eq!(
        (&service["autostop"], &service["idle_timeout"]),
        (&"suspend".into(), &"30s".into())
    );
    assert_eq!(
        (&service["max_drain"], &service["min_machines_running"]),
        (&"1m".into(), &1.into())
    );
    for launch in ["run web --detach", "create web"] {
        let run = stand.run(&format!("machine {launch} -a shop -p 5432")).await.ok();
        assert!(run.stdout.ends_with("answer at\n  127.64.0.1:5432\n"), "{run}");
    }
    let status = stand.run("status -a shop").await.ok();
    assert!(status.stdout.contains("https://shop.localhost:8443"), "{status}");
    let status = stand.run("status -a shop --json").await.ok().json();
    assert_eq!(status["Hostname"], "shop.localhost");
    assert_eq!(status["AppURL"], "https://shop.localhost:8443");
}

#[tokio::test]
async fn a_service_that_makes_no_sense_is_refused_with_its_field() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine run web -a shop -p 80/tcp:https").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'web' remotely...
    Error: could not launch machine: invalid config.services[0].ports[0].handlers[0]: unknown variant `https`, expected one of `http`, `tls`, `pg_tls`, `proxy_proto`, `tcp` (Request ID: …)
    ");
    assert_snapshot!(stand.run("machine run web -a shop -p 80:8080 -p 80:9090").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'web' remotely...
    Error: could not launch machine: invalid config.services[1].ports[0], port 80 is given twice (Request ID: …)
    ");
    assert_snapshot!(
        stand.run("machine run web -a shop -p 80 --autostop --idle-timeout soon").await,
        @"
    exit code 1
    ----- stderr -----
    Searching for image 'web' remotely...
    Error: could not launch machine: invalid config.services[0].idle_timeout: invalid duration 'soon', write for example 15s, 1m30s or 500ms (Request ID: …)
    "
    );
}
