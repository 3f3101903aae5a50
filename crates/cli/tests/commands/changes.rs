//! `caddis machine update`, `clone`, `cordon`, `uncordon` and `leases`.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn an_update_is_applied_and_waited_for() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let outcome = stand
        .run(&format!(
            "machine update {id} -a shop -e A=1 --vm-memory 512 -C \
             'serve --slow' --yes"
        ))
        .await;
    assert_snapshot!(outcome, @r#"
    exit code 0
    ----- stdout -----
    Updating machine machine-id-001
    Machine machine-id-001 updated successfully!

    Monitor machine status here:
      caddis machine status machine-id-001 -a shop

    ----- stderr -----
    Configuration changes to be applied to machine: machine-id-001 (web)

      ... // 6 identical lines
          "cpu_kind": "shared",
          "cpus": 1,
    -     "memory_mb": 256
    +     "memory_mb": 512
    +   },
    +   "init": {
    +     "cmd": [
    +       "serve",
    +       "--slow"
    +     ]
    +   },
    +   "env": {
    +     "A": "1"
        }
    -   "init": {}
      }

    No health checks found
    "#);
    let shown =
        stand.run(&format!("machine status {id} -a shop --display-config")).await.ok().json();
    assert_eq!(shown["env"]["A"], "1");
    assert_eq!(shown["guest"]["memory_mb"], 512);
    assert_eq!(shown["init"]["cmd"], serde_json::json!(["serve", "--slow"]));
    // What is stopped stays so.
    stand.run(&format!("machine stop {id} -a shop -w 60s")).await.ok();
    stand.run(&format!("machine update {id} -a shop -C '' --yes")).await.ok();
    let list = stand.run("machine list -a shop --json").await.ok().json();
    assert_eq!(list[0]["state"], "stopped");
    assert_eq!(list[0]["config"]["init"].get("cmd"), None);
}

#[tokio::test]
async fn an_update_keeps_the_machines_own_image_unless_another_is_asked_for() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let digest = "@sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf";
    let update = async |flags: &str| {
        stand.run(&format!("machine update {id} -a shop --yes {flags}")).await.ok();
        let shown = stand.run(&format!("machine status {id} -a shop --json")).await.ok().json();
        (shown["config"]["image"].as_str().unwrap().to_owned(), shown["image_ref"].clone())
    };
    let (image, reference) = update("--vm-memory 512").await;
    assert_eq!(
        image,
        format!("docker.io/library/web:latest{digest}"),
        "named by digest, as a tag may have moved"
    );
    assert_eq!(
        (&reference["tag"], &reference["repository"]),
        (&"latest".into(), &"library/web".into())
    );
    assert_eq!(update("--vm-memory 256").await, (image.clone(), reference), "the same again");
    // A configuration that comes as a whole says the image that it was shown, or leaves it out.
    let whole = format!("{{\"image\": \"{image}\", \"env\": {{\"A\": \"1\"}}}}");
    for config in [&whole, r#"{"env": {"A": "2"}}"#] {
        assert_eq!(update(&format!("--machine-config '{config}'")).await.0, image);
    }
    assert_eq!(update(r#"--machine-config '{"image": "other:2"}'"#).await.0, "other:2");
    assert_eq!(update("--image web").await.0, "web", "a tag that is asked for is looked up");
    assert_eq!(update("--image web").await.0, "web", "again and again");
    let same = stand.run(&format!("machine update {id} -a shop --yes")).await.ok();
    assert!(same.stderr.starts_with("No config changes found;"), "{same}");
}

#[tokio::test]
async fn ports_are_added_and_taken_away_as_the_references_tests_do() {
    let stand = Stand::with_app().await;
    let run = "web --name web -p 80/tcp:http -p 443:80/tcp:http:tls -p 53/udp --restart no";
    let id = stand.machine_with(run).await;
    let services = async |flags: &str| {
        stand.run(&format!("machine update {id} -a shop --yes {flags}")).await.ok();
        let config = stand.run(&format!("machine status {id} -a shop -d")).await.ok().json();
        config["services"].clone()
    };
    let one = services("-p 443:80/tcp:-").await;
    assert_eq!(one[0]["ports"], serde_json::json!([{ "port": 80, "handlers": ["http"] }]));
    services("-p 8443:80/tcp:tls").await;
    let left = services("-p 80/tcp:-").await;
    assert_eq!(left.as_array().map(Vec::len), Some(1), "gone with all its ports: {left}");
    assert_eq!(left[0]["internal_port"], 53);
    assert_eq!(services("-p 53/udp:-").await, serde_json::Value::Null);
}

#[tokio::test]
async fn what_is_wrong_with_an_update_is_said_before_anything_changes() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let update =
        async |flags: &str| stand.run(&format!("machine update {id} -a shop {flags}")).await;
    assert_snapshot!(update("-e A=1").await, @r#"
    exit code 1
    ----- stderr -----
    Configuration changes to be applied to machine: machine-id-001 (web)

      ... // 9 identical lines
        },
        "init": {},
    +   "env": {
    +     "A": "1"
    +   }
      }

    Error: yes flag must be specified when not running interactively
    "#);
    assert_snapshot!(update("").await, @"
    exit code 1
    ----- stderr -----
    Error: no config changes found
    ");
    assert_snapshot!(update("--vm-memory 300 --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid memory size
    The memory of a shared machine is a multiple of 256 MB, not 300 MB.
    ");
    assert_snapshot!(update("--vm-cpus 0 --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: --vm-cpus must be greater than zero, got: 0
    ");
    assert_snapshot!(update("--mount-point /data --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: Machine doesn't have a volume attached
    ");
    assert_snapshot!(update("--image missing --yes").await, @r#"
    exit code 1
    ----- stdout -----
    Updating machine machine-id-001

    ----- stderr -----
    Configuration changes to be applied to machine: machine-id-001 (web)

      {
    -   "image": "web",
    +   "image": "missing",
        "restart": {
          "policy": "no"
        ... // 8 identical lines

    Searching for image 'missing' remotely...
    Error: could not find image "missing" (Request ID: …)
    Check its name and tag; --debug shows the registry's answer, 'caddis image list' the server's images.
    "#);
    assert_snapshot!(update("--dockerfile Dockerfile --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: this server builds no images
    Build it with docker or podman, save it to an archive and give that to 'caddis image import', or push it to a registry and name it here.
    ");
    assert_snapshot!(update("--standby-for '' --vm-gpus 1 --yes").await, @"
    exit code 1
    ----- stderr -----
    Error: GPU machines are no longer supported: --vm-gpu-kind and --vm-gpus are no longer accepted
    ");
}

#[tokio::test]
async fn a_clone_is_a_machine_of_its_own_with_the_same_configuration() {
    let stand = Stand::with_app().await;
    let id = stand.machine_with("web --name web -e A=1 --restart no").await;
    let outcome =
        stand.run(&format!("machine clone {id} -a shop --name second --vm-memory 512")).await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    Cloning Machine machine-id-001 into region local
    Provisioning a new Machine with image web...
      Machine machine-id-002 has been created...
      Waiting for Machine machine-id-002 to start...
    Machine has been successfully cloned!
      Name: second
      Private IP: [IPV6]

    ----- stderr -----
    No health checks found
    ");
    let list = stand.run("machine list -a shop --json").await.ok().json();
    let second =
        list.as_array().unwrap().iter().find(|machine| machine["name"] == "second").unwrap();
    assert_eq!(second["config"]["env"]["A"], "1");
    assert_eq!(second["config"]["guest"]["memory_mb"], 512);
    let outcome =
        stand.run(&format!("machine clone {id} -a shop --name third --standby-for source")).await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    Cloning Machine machine-id-001 into region local
    Provisioning a new Machine with image web...
      Machine machine-id-003 has been created...
    Machine has been successfully cloned!
      Name: third
      Private IP: [IPV6]

    ----- stderr -----
    Warning: config.standbys is stored and has no effect: it needs several hosts
    ");
    let outcome = stand
        .run(&format!(
            "machine clone {id} -a shop --name fourth --detach \
             --override-cmd 'a b'"
        ))
        .await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    Cloning Machine machine-id-001 into region local
    Provisioning a new Machine with image web...
      Machine machine-id-004 has been created...
      Name: fourth
      Private IP: [IPV6]
    ");
}

#[tokio::test]
async fn machines_are_cordoned_and_leases_seen_and_cleared() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run(&format!("machine cordon {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Activating cordon on machine machine-id-001...
    done!
    ");
    let list = stand.run("machine list -a shop --json").await.ok().json();
    assert_eq!(list[0]["cordoned"], true);
    assert_snapshot!(stand.run(&format!("machine uncordon {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Deactivating cordon on machine machine-id-001...
    done!
    ");
    assert_snapshot!(stand.run(&format!("machine leases view {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    No leases found
    ");
    let path = format!("/v1/apps/shop/machines/{id}/lease?ttl=600");
    let lease = stand.server.api().unwrap().post(&path, serde_json::json!({})).await.unwrap();
    assert!(lease.status < 300);
    let view = stand.run(&format!("machine leases view {id} -a shop --json")).await.ok().json();
    assert!(view[&id]["data"]["nonce"].is_string(), "{view}");
    let view = stand.run(&format!("machine leases view {id} -a shop")).await.ok();
    assert!(view.stdout.contains("MACHINE") && view.stdout.contains(&id), "{view}");
    assert_snapshot!(stand.run(&format!("machine leases clear {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    clearing lease for machine machine-id-001
    Lease(s) cleared
    ");
    assert_snapshot!(stand.run(&format!("machine leases view {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    No leases found
    ");
}

#[tokio::test]
async fn what_there_is_not_yet_says_so() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine run . -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: this server builds no images
    Build it with docker or podman, save it to an archive and give that to 'caddis image import', or push it to a registry and name it here.
    ");
    assert_snapshot!(stand.run("machine run web -a shop --id 148ed193b95389").await, @"
    exit code 1
    ----- stderr -----
    Error: to update an existing machine, use 'caddis machine update'
    ");
}
