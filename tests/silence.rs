//! Real guests that can't be reached any more.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use caddis_testkit::{DEADLINE, Host};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// Takes away the device that init speaks through, when whoever asked for it has its answer.
const CUT: &str = "cd /sys/bus/virtio/drivers/virtio_console && (sleep 1; for d in virtio*; do \
                   echo $d >unbind; done) \
                   >/dev/null 2>&1 </dev/null &";

#[tokio::test]
async fn a_guest_whose_channel_is_gone_is_told_and_is_stopped_all_the_same() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script("exec sleep 10000", json!({})).await?;
    machine.wait("started").await?;
    machine.shell(CUT).await?;
    // A minute until it is asked, and half a minute until it is told.
    let begun = Instant::now();
    let shown = loop {
        let shown = machine.get().await?;
        if shown["host_status"] != "ok" {
            break shown;
        }
        if begun.elapsed() > DEADLINE + DEADLINE {
            bail!("it is said to be well: {shown}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    println!("told after {:?}", begun.elapsed());
    assert_eq!(
        (&shown["host_status_reason"], &shown["state"]),
        (&json!("guest_silent"), &json!("started"))
    );
    let events = machine.events().await?;
    let told = events.iter().find(|event| event["type"] == "host_status");
    ensure!(
        told.is_some_and(|event| event["details"]["host_status_reason"] == "guest_silent"),
        "{events:#?}"
    );
    let refused = machine.exec(&["true"]).await;
    ensure!(
        refused.as_ref().is_err_and(|error| format!("{error:#}").contains("guest_silent")),
        "{:?}",
        refused.err()
    );
    machine.post("/suspend", Value::Null).await?.ok().unwrap_err();
    let log = stand.server.cli(&["logs", "-a", APP, "--no-tail"]).await?;
    ensure!(log.stdout.contains("[error]The machine's init does not answer"), "{}", log.stdout);
    let status = stand.server.cli(&["machine", "status", machine.id(), "-a", APP]).await?;
    ensure!(status.stdout.contains("HostStatus: unknown (guest_silent)"), "{}", status.stdout);
    machine.stop().await?;
    machine.wait("stopped").await?;
    ensure!(machine.get().await?["host_status"] == "ok");
    Ok(())
}
