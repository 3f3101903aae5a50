//! `caddis logs`, `status`, `config`, `platform` and `auth`.

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::stand::Stand;

#[tokio::test]
async fn an_app_and_the_configuration_of_its_machines_are_shown() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("status -a shop").await, @"
    exit code 0
    ----- stdout -----
    App
     Name │ shop
     Owner │ personal
     Status │ pending
     Network │ default
     Image │

    No machines are available on this app shop
    ");
    assert_snapshot!(stand.run("config show -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: the app shop has no machines
    Use --local to show the local file.
    ");
    stand.machine("web").await;
    assert_snapshot!(stand.run("status -a shop").await, @"
    exit code 0
    ----- stdout -----
    App
     Name │ shop
     Owner │ personal
     Status │ deployed
     Network │ default
     Image │ library/web:latest

    Machines
     PROCESS │ ID │ VERSION │ REGION │ STATE │ ROLE │ CHECKS │ LAST UPDATED
     │ machine-id-001 │ 01000000000000000000000001 │ local │ started │ │ │ [AGO]
    ");
    assert_eq!(stand.run("status -a shop --json").await.ok().json()["Machines"][0]["name"], "web");
    assert_snapshot!(stand.run("config show -a shop").await, @r#"
    exit code 0
    ----- stdout -----
    {
        "image": "web",
        "restart": {
            "policy": "no"
        },
        "guest": {
            "cpu_kind": "shared",
            "cpus": 1,
            "memory_mb": 256
        },
        "init": {}
    }
    "#);
    assert_snapshot!(stand.run("config show -a shop --toml").await, @r#"
    exit code 0
    ----- stdout -----
    image = "web"

    [restart]
    policy = "no"

    [guest]
    cpu_kind = "shared"
    cpus = 1
    memory_mb = 256

    [init]
    "#);
    assert_snapshot!(stand.run("config show -a shop --yaml").await, @"
    exit code 0
    ----- stdout -----
    image: web
    restart:
      policy: no
    guest:
      cpu_kind: shared
      cpus: 1
      memory_mb: 256
    init: {}
    ");
    stand.machine_with("web --name other -e A=1 --restart no").await;
    let outcome = stand.run("config show -a shop").await.ok();
    assert!(outcome.stderr.contains("have different configurations"), "{outcome}");
    assert_eq!(outcome.json()["machines"].as_object().unwrap().len(), 2);
    assert_snapshot!(stand.run("config show --local").await, @"
    exit code 1
    ----- stderr -----
    Error: there is no caddis.toml or fly.toml in this directory
    Name the file with --config, or write one with 'caddis apps create --save'.
    ");
    std::fs::write(stand.home().join("caddis.toml"), "app = 'shop'\n").unwrap();
    assert_snapshot!(stand.run("config show --local").await, @r#"
    exit code 0
    ----- stdout -----
    {
        "app": "shop"
    }
    "#);
    assert_eq!(
        stand.run("machine list --json").await.ok().json().as_array().unwrap().len(),
        2,
        "the file names the app"
    );
    assert_snapshot!(stand.run("status -a ship").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "ship" (Request ID: …)
    Did you mean "shop"?
    "#);
}

#[tokio::test]
async fn logs_are_printed_or_refused() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("logs -a shop --no-tail").await, @"exit code 0");
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run("logs -a shop --no-tail --since yesterdayish").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid --since 'yesterdayish', use a time such as [TIME], or an age such as 10m
    ");
    assert_snapshot!(stand.run("logs -a shop --no-tail --region mars").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid parameter region 'mars', use the code of a region (Request ID: …)
    ");
    assert_snapshot!(stand.run("logs -a shop --no-tail -m 148ed193b95389").await, @"
    exit code 1
    ----- stderr -----
    Error: machine ID machine-id-002 was not found in app 'shop'
    ");
    assert_snapshot!(stand.run(&format!("logs -a shop --no-tail -m {id} --select")).await, @"
    exit code 1
    ----- stderr -----
    Error: machine IDs can't be used with --select
    ");
    assert_snapshot!(stand.run("logs -a ship --no-tail").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "ship" (Request ID: …)
    Did you mean "shop"?
    "#);
}

#[tokio::test]
async fn the_platform_tells_its_regions_sizes_and_state() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("platform regions").await, @"
    exit code 0
    ----- stdout -----
     NAME │ CODE │ CAPACITY
     local │ local │ 64
    ");
    assert!(stand.run("platform regions --json").await.ok().json()[0]["code"].is_string());
    assert_snapshot!(stand.run("platform vm-sizes").await, @"
    exit code 0
    ----- stdout -----
    Machines platform
     NAME │ CPU CORES │ MEMORY
     shared-cpu-1x │ 1 │ 256 MB
     shared-cpu-2x │ 2 │ 512 MB
     shared-cpu-4x │ 4 │ 1024 MB
     shared-cpu-6x │ 6 │ 1536 MB
     shared-cpu-8x │ 8 │ 2048 MB

     NAME │ CPU CORES │ MEMORY
     performance-1x │ 1 │ 2048 MB
     performance-2x │ 2 │ 4096 MB
     performance-4x │ 4 │ 8192 MB
     performance-6x │ 6 │ 12288 MB
     performance-8x │ 8 │ 16384 MB
     performance-10x │ 10 │ 20480 MB
     performance-12x │ 12 │ 24576 MB
     performance-14x │ 14 │ 28672 MB
     performance-16x │ 16 │ 32768 MB
    ");
    assert_eq!(
        stand.run("platform vm-sizes --json").await.ok().json()["shared-cpu-1x"]["memory_mb"],
        256
    );
    let status = stand.run("platform status --json").await.ok().json();
    assert_eq!((&status["ok"], &status["hosts"][0]["machines"]), (&true.into(), &0.into()));
    assert_eq!(status["hosts"][0]["free_memory_mb"], 16 * 1024);
    let status = stand.run("platform status").await.ok();
    assert!(status.stdout.contains("Health") && status.stdout.contains("FREE MEMORY"), "{status}");
}

#[tokio::test]
async fn a_server_is_remembered_and_forgotten() {
    let mut stand = Stand::with_app().await;
    let login = format!(
        "auth login --api-url {} --access-token {}",
        stand.server.url(),
        stand.server.token()
    );
    let nothing = std::future::pending;
    assert_snapshot!(stand.run_in("auth whoami", &[], nothing()).await, @"
    exit code 1
    ----- stderr -----
    Error: no server is known
    Start one here with 'caddis serve' (nothing is running with data directory HOME), or name one with --api-url, CADDIS_API_URL or 'caddis auth login --api-url URL --access-token TOKEN'.
    ");
    assert_snapshot!(stand.run_in(&login, &[], nothing()).await, @"
    exit code 0
    ----- stdout -----
    Logged in to http://SERVER; stored in HOME/.config/caddis/config.toml
    ");
    assert_snapshot!(stand.run_in("auth whoami", &[], nothing()).await, @"
    exit code 0
    ----- stdout -----
    Server: http://SERVER (from the settings file)
    Access token: accepted (from the settings file)
    ");
    assert_snapshot!(stand.run_in("apps list", &[], nothing()).await, @"
    exit code 0
    ----- stdout -----
     NAME │ OWNER │ STATUS │ MACHINES
     shop │ personal │ pending │ 0
    ");
    assert_snapshot!(stand.run_in("auth logout", &[], nothing()).await, @"
    exit code 0
    ----- stdout -----
    Removed HOME/.config/caddis/config.toml
    ");
    assert_snapshot!(stand.run_in("apps list", &[], nothing()).await, @"
    exit code 1
    ----- stderr -----
    Error: no server is known
    Start one here with 'caddis serve' (nothing is running with data directory HOME), or name one with --api-url, CADDIS_API_URL or 'caddis auth login --api-url URL --access-token TOKEN'.
    ");
    stand.server.stop().await.unwrap();
    assert_snapshot!(stand.run("platform status").await, @"
    exit code 1
    ----- stderr -----
    Error: could not connect to http://SERVER: Connection refused (os error 111)
    No server answers at http://SERVER. Start one with 'caddis serve', or name another with --api-url or CADDIS_API_URL.
    ");
}

#[tokio::test]
async fn codes_are_explained() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("explain insufficient_capacity").await, @"
    exit code 0
    ----- stdout -----
    insufficient_capacity (HTTP 422; the same request may succeed later)

    No host has enough free CPUs, memory or disk; stopped and suspended machines keep theirs reserved.

    What to do: The message says what is free and what would fit. Ask for less, destroy machines, or use another region.
    ");
    assert_snapshot!(stand.run("explain nonsense").await, @"
    exit code 1
    ----- stderr -----
    Error: unknown code 'nonsense'
    'caddis explain' lists all codes.
    ");
}

#[tokio::test]
async fn top_shows_what_machines_use() {
    let stand = Stand::with_app().await;
    stand.machine("runs").await;
    let idle = stand.machine("idle").await;
    stand.run(&format!("machine stop {idle} -a shop -w 60s")).await.ok();
    assert_snapshot!(stand.run("machine top -a shop --interval 1").await, @"
    exit code 0
    ----- stdout -----
    shop
     ID │ NAME │ STATE │ CPU │ CPU TIME │ MEMORY │ OF │ DNS │ LAST EVENT
     machine-id-001 │ runs │ started │ 0.0% │ 0.0s │ 32 MiB │ 256 MiB │ 0 │ start [AGO]
     machine-id-002 │ idle │ stopped │ │ │ │ 256 MiB │ │ exit [AGO]
    ");
    assert_snapshot!(stand.run("machine top -a ship").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "ship" (Request ID: …)
    Did you mean "shop"?
    "#);
    assert_snapshot!(stand.run("machine top -a shop --interval 0").await, @"
    exit code 1
    ----- stderr -----
    error: invalid value '0' for '--interval <SECONDS>': 0 is not in 1..=60

    For more information, try '--help'.
    ");
    let json =
        stand.run_until_shown("machine top -a shop --json --interval 1", "memory_bytes").await;
    let first: Value = serde_json::from_str(json.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(
        (json.code, &first["machines"][0]["memory_bytes"]),
        (127, &json!(32 << 20)),
        "{json}"
    );
}

#[tokio::test]
async fn place_says_where_machines_would_go() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("machine place --count 3 --vm-size shared-cpu-1x").await, @"
    exit code 0
    ----- stdout -----
     REGION │ COUNT
     local │ 3
    ");
    let outcome =
        stand.run("machine place --count 3 --vm-memory 4096 --region local,any --json").await;
    assert_snapshot!(outcome, @r#"
    exit code 0
    ----- stdout -----
    {
        "Regions": [
            {
                "Region": "local",
                "Count": 3,
                "Concurrency": 1
            }
        ]
    }
    "#);
    assert_snapshot!(stand.run("machine place --count 30 --vm-memory 4096").await, @"
    exit code 1
    ----- stderr -----
    Error: failed getting machine placements: there is room for 4 machines of 1 CPU and 4096 MiB, not for 30 (Request ID: …)
    Try choosing a different region for machine creation
    ");
    assert_snapshot!(stand.run("machine place --weights spread=often").await, @r#"
    exit code 1
    ----- stderr -----
    Error: invalid weight: "spread=often"
    "#);
    assert_snapshot!(stand.run("machine place --weights colour=1").await, @r#"
    exit code 1
    ----- stderr -----
    Error: failed getting machine placements: invalid weights, "colour" is neither region nor spread (Request ID: …)
    "#);
    assert_snapshot!(stand.run("machine place --org nobody").await, @"
    exit code 1
    ----- stderr -----
    Error: failed getting machine placements: Could not find Organization 'nobody' (Request ID: …)
    ");
    assert_snapshot!(stand.run("machine place --region nowhere").await, @"
    exit code 1
    ----- stderr -----
    Error: failed getting machine placements: could not find a candidate host: unknown region 'nowhere'; available: any, local (Request ID: …)
    ");
}
