//! Machines find each other by name, from inside a VM, and only those of their network.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{Result, ensure};
use caddis_testkit::{DEADLINE, Host, Machine};
use serde_json::json;

use crate::stand::{APP, Stand};

/// Serves one page on port 80 and says when it listens.
const PROGRAM: &str = "busybox httpd -p 80 -h /var/www && echo ready && sleep 1000000";

/// What a resolver in the VM prints for a name, after what it says of the server it asked.
async fn asked(machine: &Machine, kind: &str, name: &str) -> Result<String> {
    let exec = machine.exec(&["/bin/nslookup", &format!("-type={kind}"), name]).await?;
    let said = format!("{}{}", exec.stdout, exec.stderr);
    Ok(said.split_once("\n\n").map_or_else(String::new, |(_, answer)| answer.to_owned()))
}

/// Waits until the AAAA answer for a name is as it should be: a resolver may learn of a change a
/// moment after who made it.
async fn until(machine: &Machine, name: &str, is_right: impl Fn(&str) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        let answer = asked(machine, "aaaa", name).await?;
        if is_right(&answer) {
            return Ok(());
        }
        ensure!(begun.elapsed() < DEADLINE, "{name}: {answer}");
    }
}

/// Waits until a name has these addresses.
async fn until_resolved(machine: &Machine, name: &str, expected: &[&str]) -> Result<()> {
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    let addresses = |answer: &str| -> BTreeSet<String> {
        let found = answer.lines().filter_map(|line| line.strip_prefix("Address: "));
        found.map(|address| address.trim().to_owned()).collect()
    };
    until(machine, name, |answer| {
        addresses(answer).iter().map(String::as_str).eq(expected.iter().copied())
    })
    .await
}

/// Waits until there is no such name.
pub async fn until_denied(machine: &Machine, name: &str) -> Result<()> {
    until(machine, name, |answer| answer.contains("NXDOMAIN")).await
}

#[tokio::test]
async fn machines_of_a_network_find_each_other_by_name_and_others_do_not() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    stand.server.api().create_app("apart", Some("apart")).await?;
    let group = json!({ "metadata": { "fly_process_group": "web" } });
    let first = stand.script(PROGRAM, group).await?;
    let second = stand.script(PROGRAM, json!({})).await?;
    let config =
        json!({ "image": stand.busybox()?, "init": { "cmd": ["/bin/sh", "-c", PROGRAM] } });
    let apart = stand.server.api().create_machine("apart", config).await?;
    for machine in [&first, &second, &apart] {
        machine.logged("ready").await?;
    }
    let (one, two) = (first.address().await?, second.address().await?);
    let app = format!("{APP}.internal");
    let of_second = format!("{}.vm.{app}", second.id());

    until_resolved(&first, &app, &[&one, &two]).await?;
    until_resolved(&second, &app.to_uppercase(), &[&one, &two]).await?;
    until_resolved(&first, &of_second, &[&two]).await?;
    until_resolved(&second, &format!("web.process.{app}"), &[&one]).await?;
    // As programs ask, for any kind of address.
    let page = first.shell(&format!("wget -q -O - http://{of_second}/")).await?;
    assert_eq!(page, "hello from a machine\n");
    let listed = asked(&first, "txt", &format!("vms.{app}")).await?;
    assert!([&first, &second].iter().all(|machine| listed.contains(machine.id())), "{listed}");
    let apps = asked(&first, "txt", "_apps.internal").await?;
    assert!(apps.contains(&format!("\"{APP}\"")), "{apps}");

    // The other network has names of its own, and none of these.
    until_resolved(&apart, "apart.internal", &[&apart.address().await?]).await?;
    for (machine, name) in [(&apart, &*app), (&apart, &*of_second), (&first, "apart.internal")] {
        let answer = asked(machine, "aaaa", name).await?;
        assert!(answer.contains("NXDOMAIN"), "{name}: {answer}");
    }
    let apps = asked(&apart, "txt", "_apps.internal").await?;
    assert!(apps.contains("\"apart\"") && !apps.contains(APP), "{apps}");

    second.stop().await?;
    second.wait("stopped").await?;
    until_resolved(&first, &app, &[&one]).await?;
    second.start().await?;
    until_resolved(&first, &app, &[&one, &two]).await?;

    // A server that takes over running machines knows their names.
    stand.server.kill().await?;
    stand.server.launch().await?;
    until_resolved(&first, &app, &[&one, &two]).await?;

    let hidden = json!({
        "config": {
            "image": stand.busybox()?,
            "init": { "cmd": ["/bin/sh", "-c", PROGRAM] },
            "dns": { "skip_registration": true },
        },
    });
    let updated = second.post("", hidden).await?.ok()?;
    assert!(updated["warnings"].is_null(), "{updated}");
    until_denied(&first, &of_second).await?;
    second.wait("started").await?;
    assert!(asked(&first, "aaaa", &of_second).await?.contains("NXDOMAIN"));
    until_resolved(&first, &app, &[&one]).await
}
