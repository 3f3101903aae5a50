//! `network-policies`.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn policies_are_created_listed_changed_and_deleted() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("network-policies list -a shop").await, @"
    exit code 0
    ----- stdout -----
    App shop has no network policies
    ");
    let create = "network-policies create web -a shop --metadata role=web --metadata tier=1 \
                  --egress tcp/443,udp/53 --egress all@network:default,192.0.2.0/24 --json";
    let made = stand.run(create).await.ok().json();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("np_"), "{made}");
    assert_eq!(
        made["rules"],
        serde_json::json!([
            { "action": "allow", "direction": "egress",
              "ports": [{ "protocol": "tcp", "port": 443 }, { "protocol": "udp", "port": 53 }] },
            { "action": "allow", "direction": "egress",
              "to": [{ "network": "default" }, { "cidr": "192.0.2.0/24" }] }
        ])
    );
    let shown = stand.run("network-policy show web -a shop").await.ok();
    for part in [id, "role=web, tier=1", "egress tcp/443,udp/53", "allow"] {
        assert!(shown.stdout.contains(part), "{part}: {shown}");
    }
    let update = "network-policies update web -a shop --name api --all --ingress tcp/80@app:shop \
                  --dns deny --json";
    let changed = stand.run(update).await.ok().json();
    assert_eq!((&changed["id"], &changed["name"]), (&made["id"], &"api".into()));
    assert_eq!(
        (&changed["selector"], &changed["dns"]),
        (&serde_json::json!({ "all": true }), &"deny".into())
    );
    assert_eq!(changed["rules"].as_array().unwrap().len(), 3, "egress stays");
    let listed = stand.run("network-policies ls -a shop --json").await.ok().json();
    assert_eq!(listed, serde_json::json!([changed]));
    let by_id = stand.run(&format!("network-policies show {id} -a shop --json")).await.ok().json();
    assert_eq!(by_id, changed);
    let deleted = stand.run("network-policies delete api -a shop").await.ok();
    assert_eq!(deleted.stdout, format!("Deleted network policy {id} (api) of shop\n"));
    assert_snapshot!(stand.run("network-policies delete api -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has no network policy 'api'
    'caddis network-policies list -a shop' lists them.
    ");
}

#[tokio::test]
async fn machines_are_selected_by_name_or_id() {
    let stand = Stand::with_app().await;
    let (web, db) = (stand.machine("web").await, stand.machine("db").await);
    let create = format!(
        "network-policies create a -a shop --machine web --machine {db} --egress tcp --json"
    );
    let made = stand.run(&create).await.ok().json();
    assert_eq!(made["selector"], serde_json::json!({ "machines": [{ "id": web }, { "id": db }] }));
    let update = "network-policies update a -a shop --machine db --json";
    let changed = stand.run(update).await.ok().json();
    assert_eq!(changed["selector"], serde_json::json!({ "machines": [{ "id": db }] }));
    assert_snapshot!(stand.run("network-policies update a -a shop --machine webb").await, @r#"
    exit code 1
    ----- stderr -----
    Error: machine ID webb was not found in app 'shop'
    Did you mean "web"?
    "#);
}

#[tokio::test]
async fn nothing_is_deleted_where_one_of_several_policies_is_not_there() {
    let stand = Stand::with_app().await;
    for name in ["a", "b"] {
        let create = format!("network-policies create {name} -a shop --all --egress tcp");
        stand.run(&create).await.ok();
    }
    let refused = stand.run("network-policies delete a nope b -a shop").await;
    assert!(refused.code == 1 && refused.stderr.contains("no network policy 'nope'"), "{refused}");
    let listed = stand.run("network-policies list -a shop --json").await.ok().json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    let deleted = stand.run("network-policies delete a b a -a shop").await.ok();
    assert_eq!(deleted.stdout.lines().count(), 2, "{deleted}");
}

#[tokio::test]
async fn a_name_that_is_taken_is_told_with_the_command_that_changes_the_policy() {
    let stand = Stand::with_app().await;
    for name in ["web", "db"] {
        let create = format!("network-policies create {name} -a shop --all --egress tcp");
        stand.run(&create).await.ok();
    }
    let again = "network-policies create web -a shop --all --egress tcp";
    assert_snapshot!(stand.run(again).await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has a network policy 'web' already
    'caddis network-policies update web -a shop' changes it.
    ");
    assert_snapshot!(stand.run("network-policies update db -a shop --name web").await, @"
    exit code 1
    ----- stderr -----
    Error: could not change the network policy: app shop has another one with the name 'web'
    ");
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_said() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("network-policies create web -a shop --egress tcp/443").await, @"
    exit code 1
    ----- stderr -----
    Error: no machines are selected
    Use --all, or choose some by --machine and --metadata.
    ");
    assert_snapshot!(stand.run("network-policies create web -a shop --all").await, @"
    exit code 1
    ----- stderr -----
    Error: nothing is allowed
    Say by --egress and --ingress what is, for example --egress tcp/443. To refuse all, allow only an address that nobody has: --egress all@192.0.2.1.
    ");
    assert_snapshot!(stand.run("network-policies create web -a shop --all --egress 443").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid rule '443': '443' is not a protocol, use tcp, udp or icmp
    Write it like tcp/443, tcp/443,udp/53@app:db or all@[IPV4]/8,network:default.
    ");
    let nobody = "network-policies create web -a shop --all --egress all@app:nobody";
    assert_snapshot!(stand.run(nobody).await, @"
    exit code 1
    ----- stderr -----
    Error: could not create the network policy: invalid rules[0], the organization has no app 'nobody' (Request ID: …)
    ");
}
