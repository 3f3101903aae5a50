//! From a machine's creation to its end.

use anyhow::Result;
use caddis_testkit::Host;
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// `type status` of each event, oldest first.
fn story(events: &[Value]) -> Vec<String> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .rev()
        .map(|event| format!("{} {}", text(event, "type"), text(event, "status")))
        .collect()
}

#[tokio::test]
async fn a_web_server_runs_stops_starts_with_a_blank_root_and_goes_away() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.machine(json!({ "image": stand.web()? })).await?;
    machine.wait("started").await?;
    assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");

    let shown = machine.get().await?;
    assert_eq!(shown["state"], "started");
    assert_eq!(shown["isolation"], if kvm() { "hardware" } else { "emulated" });
    assert_eq!(
        shown["config"]["guest"],
        json!({ "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 })
    );
    assert!(shown["private_ip"].as_str().unwrap_or_default().starts_with("fdaa:"), "{shown}");
    // httpd -v writes a line per request to its standard error.
    let requests =
        machine.logs().await?.iter().filter(|line| line.contains("response:200")).count();
    assert!(requests > 0, "{:?}", machine.logs().await?);

    machine.shell("echo changed > /var/www/index.html && touch /marker && sync").await?;
    assert_eq!(machine.http_get(80, "/").await?, "changed\n");
    machine.stop().await?;
    machine.wait("stopped").await?;
    let address = machine.address().await?;
    stand.server.until_no_vm().await?;

    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(
        machine.http_get(80, "/").await?,
        "hello from a machine\n",
        "the root is blank at every start"
    );
    assert_eq!(machine.exec(&["/bin/test", "-e", "/marker"]).await?.code, 1);
    assert_eq!(machine.address().await?, address, "the private address is kept");
    assert_eq!(
        machine.get().await?["instance_id"],
        shown["instance_id"],
        "a start makes no new version"
    );

    let events = machine.events().await?;
    let story = story(&events);
    let expected =
        ["launch created", "start started", "stop stopping", "exit stopped", "start started"];
    let mut rest = story.iter();
    for event in expected {
        assert!(rest.any(|found| found == event), "no `{event}` in its place in {story:?}");
    }
    let exit = machine.exit_event().await?;
    assert_eq!(exit["requested_stop"], true, "{exit}");
    assert_eq!(exit["oom_killed"], false, "{exit}");

    let refused = stand.server.api().delete(&machine.path("")).await?;
    assert_eq!(
        refused.status, 412,
        "a running machine is destroyed by force only: {}",
        refused.text
    );
    machine.destroy().await?;
    let listed = stand.server.api().get(&format!("/v1/apps/{APP}/machines")).await?.ok()?;
    assert_eq!(listed, json!([]));
    let deleted = stand
        .server
        .api()
        .get(&format!("/v1/apps/{APP}/machines?include_deleted=true"))
        .await?
        .ok()?;
    assert_eq!(deleted[0]["state"], "destroyed", "{deleted}");
    assert!(stand.server.vms().is_empty());
    Ok(())
}

fn kvm() -> bool {
    std::env::var("CADDIS_TEST_ACCELERATOR").is_ok_and(|accelerator| accelerator == "kvm")
}

#[tokio::test]
async fn vcpus_and_memory_are_as_configured() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let guest = json!({ "cpu_kind": "shared", "cpus": 2, "memory_mb": 512 });
    let machine =
        stand.script("sleep 1000", json!({ "guest": guest, "rootfs": { "size_gb": 12 } })).await?;
    machine.wait("started").await?;
    assert_eq!(machine.shell("nproc").await?.trim(), "2");
    let clock: u64 = machine.shell("date +%s").await?.trim().parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    assert!(now.abs_diff(clock) <= 2, "the guest's clock says {clock}, the host's {now}");
    let total: u64 =
        machine.shell("awk '/MemTotal/ { print $2 }' /proc/meminfo").await?.trim().parse()?;
    // The kernel keeps some for itself.
    assert!((440 << 10..512 << 10).contains(&total), "{total} KiB");
    let blocks: u64 =
        machine.shell("df -P -k / | awk 'NR == 2 { print $2 }'").await?.trim().parse()?;
    assert!((11 << 20..12 << 20).contains(&blocks), "{blocks} KiB");
    Ok(())
}

#[tokio::test]
async fn a_machine_that_is_not_launched_rests_until_it_is_started() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let config = json!({ "image": stand.busybox()? });
    let body = json!({ "config": config, "name": "resting", "skip_launch": true });
    let machine = stand.server.api().create_machine_from(APP, body).await?;
    machine.wait("settled").await?;
    let shown = machine.get().await?;
    assert!(
        ["created", "stopped"].contains(&shown["state"].as_str().unwrap_or_default()),
        "{shown}"
    );
    assert_eq!(shown["name"], "resting");
    assert!(stand.server.vms().is_empty());
    let exec = machine.post("/exec", json!({ "command": ["/bin/true"] })).await?;
    assert_eq!((exec.status, exec.error()), (412, "failed_precondition: machine not running"));
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(machine.exec(&["/bin/true"]).await?.code, 0);
    Ok(())
}

#[tokio::test]
async fn a_restart_is_a_new_boot_of_the_same_version() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.machine(json!({ "image": stand.busybox()? })).await?;
    machine.wait("started").await?;
    let boot = machine.shell("cat /proc/sys/kernel/random/boot_id").await?;
    let version = machine.get().await?["instance_id"].clone();
    let event = machine.newest_event().await?;
    machine.post("/restart?timeout=10s", Value::Null).await?.ok()?;
    machine.wait_after(&event, "started").await?;
    assert_ne!(machine.shell("cat /proc/sys/kernel/random/boot_id").await?, boot);
    assert_eq!(machine.get().await?["instance_id"], version);
    assert_eq!(stand.server.vms().len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_update_replaces_the_version_that_runs_and_lets_one_that_rests_rest() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine =
        stand.machine(json!({ "image": stand.web()?, "metadata": { "kept": "no" } })).await?;
    machine.wait("started").await?;
    machine.shell("touch /marker").await?;
    let before = machine.get().await?;
    let mut config = before["config"].clone();
    config["env"] = json!({ "GREETING": "hello" });
    config["guest"]["memory_mb"] = json!(512);

    let stale = json!({ "config": config, "current_version": "01HQ73A7BFFDF1B6WMGHFZZ4E7" });
    let refused = machine.post("", stale).await?;
    assert_eq!(refused.status, 409, "{}", refused.text);
    let mut missing = config.clone();
    missing["image"] = json!("oci-archive/none:1");
    assert!(machine.post("", json!({ "config": missing })).await?.status >= 400);
    assert_eq!(
        machine.exec(&["/bin/test", "-e", "/marker"]).await?.code,
        0,
        "what was refused touches nothing"
    );

    let update = json!({ "config": config, "current_version": before["version"] });
    let updated = machine.post("", update).await?.ok()?;
    assert_ne!(updated["version"], before["version"]);
    machine.wait("settled").await?;
    let after = machine.get().await?;
    assert_eq!((&after["state"], &after["version"]), (&json!("started"), &updated["version"]));
    assert_eq!(machine.shell("echo $GREETING").await?.trim(), "hello");
    assert_eq!(machine.exec(&["/bin/test", "-e", "/marker"]).await?.code, 1, "it is a new boot");
    let memory: u64 =
        machine.shell("grep MemTotal /proc/meminfo | tr -dc 0-9").await?.trim().parse()?;
    assert!(memory > 400_000, "{memory} KiB");
    assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");
    assert_eq!(stand.server.vms().len(), 1);
    assert_eq!(machine.get().await?["private_ip"], before["private_ip"]);

    let versions = stand.server.api().get(&machine.path("/versions")).await?.ok()?;
    assert_eq!(versions.as_array().map(Vec::len), Some(2));
    assert_eq!(versions[1]["user_config"], before["config"]);
    let old = before["version"].as_str().unwrap_or_default();
    let old = stand.server.api().get(&machine.path(&format!("?version={old}"))).await?.ok()?;
    assert_eq!((&old["state"], &old["config"]), (&json!("replaced"), &before["config"]));

    machine.stop().await?;
    machine.wait("stopped").await?;
    config["env"] = json!({ "GREETING": "again" });
    let updated = machine.post("", json!({ "config": config })).await?.ok()?;
    machine.wait("settled").await?;
    let stopped = machine.get().await?;
    assert_eq!((&stopped["state"], &stopped["version"]), (&json!("stopped"), &updated["version"]));
    stand.server.until_no_vm().await?;
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(machine.shell("echo $GREETING").await?.trim(), "again");
    assert_eq!(machine.post("/metadata/kept", json!({ "value": "yes" })).await?.status, 204);
    assert_eq!(machine.get().await?["config"]["metadata"], json!({ "kept": "yes" }));
    assert_eq!(machine.get().await?["version"], updated["version"]);
    Ok(())
}
