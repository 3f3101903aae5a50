//! After the last machine, the last server and `caddis host clean` a host is as it was.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::Result;
use caddis_testkit::{Host, Options, Server, process, run};
use serde_json::json;

use crate::stand::Stand;

/// What a server could leave on its host outside of its data directory.
pub fn traces() -> Result<BTreeSet<String>> {
    let mut traces = BTreeSet::new();
    // Whether a link has a carrier by now is no trace.
    let mut note = |kind: &str, text: &str| {
        let lines = text.lines().map(|line| line.replace(" linkdown", ""));
        traces.extend(lines.map(|line| format!("{kind}: {line}")));
    };
    let links = run(["ip", "-oneline", "link"])?;
    let links: Vec<_> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    note("link", &links.join("\n"));
    note("filter", &run(["nft", "--stateless", "list", "ruleset"])?);
    note("route", &run(["ip", "route", "show", "table", "all"])?);
    note("route", &run(["ip", "-6", "route", "show", "table", "all"])?);
    note("rule", &(run(["ip", "rule"])? + &run(["ip", "-6", "rule"])?));
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    // Tables and neighbours of a namespace end with its links.
    for namespace in mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.ends_with(".net"))
    {
        let inside = format!("--net={namespace}");
        let links = run(["nsenter", &inside, "--", "ip", "-oneline", "link"])?;
        let links: Vec<_> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        note(namespace, &links.join("\n"));
        note(namespace, &run(["nsenter", &inside, "--", "nft", "--stateless", "list", "ruleset"])?);
        note(namespace, &run(["nsenter", &inside, "--", "ip", "route", "show", "table", "all"])?);
        note(
            namespace,
            &run(["nsenter", &inside, "--", "ip", "-6", "route", "show", "table", "all"])?,
        );
    }
    note("mount", &mounts);
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        note(setting, &fs::read_to_string(Path::new("/proc/sys/net").join(setting))?);
    }
    Ok(traces)
}

fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        }
    }
    found
}

#[tokio::test]
async fn nothing_of_vms_that_waited_is_left_after_their_server() -> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    let mut stand = Stand::new(&host).await?;
    stand.server.until_pooled(1).await?;
    let machine = stand.machine(json!({ "image": stand.web()? })).await?;
    machine.http_get(80, "/").await?;
    machine.destroy().await?;
    ended_and_cleaned(&mut stand, &before).await
}

#[tokio::test]
async fn a_server_that_ends_while_it_makes_vms_leaves_none() -> Result<()> {
    let host = Host::new().await?;
    let mut server = Server::start(&host, Options::default()).await?;
    server.until_builds().await?;
    ended(&mut server).await?;
    server.launch().await?;
    server.templates().await?;
    // The next ones restore from it, again and again. A step takes 10 to 100 ms.
    for moment in 0..8 {
        ended(&mut server).await?;
        server.launch().await?;
        tokio::time::sleep(Duration::from_millis(60 * moment)).await;
    }
    ended(&mut server).await
}

/// Ends the server, and looks.
pub async fn ended(server: &mut Server<'_>) -> Result<()> {
    assert!(server.terminate().await?.success());
    let left = process::holders(&server.data_directory());
    let left: Vec<_> =
        left.into_iter().map(|pid| (process::name(pid), process::descriptors(pid))).collect();
    assert!(left.is_empty(), "processes of the server are left: {left:#?}");
    Ok(())
}

#[tokio::test]
async fn vms_that_nobody_serves_are_left_alone_until_a_clean_kills_them() -> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    let arguments = vec!["--pool".to_owned(), "0".to_owned()];
    let mut stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let machine = stand.script("echo ready; sleep 1000000", json!({})).await?;
    machine.logged("ready").await?;
    let vm = stand.server.vm(&machine)?;
    assert!(stand.server.terminate().await?.success());

    let data = stand.server.data_directory().to_string_lossy().into_owned();
    let refused = stand.server.cli(&["host", "clean", "--data-dir", &data]).await?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("1 VMs are still running"), "{refused:?}");
    assert_eq!(stand.server.vm(&machine)?, vm, "it still runs");

    let cleaned = stand.server.cli(&["host", "clean", "--kill", "--data-dir", &data]).await?;
    assert_eq!(cleaned.code, Some(0), "{cleaned:?}");
    assert!(stand.server.vms().is_empty());
    let left = traces()?;
    let changed: Vec<_> = left.symmetric_difference(&before).collect();
    assert!(changed.is_empty(), "the host is not as it was: {changed:#?}");
    Ok(())
}

/// Ends the server, cleans its host, and looks.
pub async fn ended_and_cleaned(stand: &mut Stand<'_>, before: &BTreeSet<String>) -> Result<()> {
    let data = stand.server.data_directory();
    ended(&mut stand.server).await?;
    let cleaned =
        stand.server.cli(&["host", "clean", "--data-dir", &data.to_string_lossy()]).await?;
    assert_eq!(cleaned.code, Some(0), "{cleaned:?}");
    let left = traces()?;
    let changed: Vec<_> = left.symmetric_difference(before).collect();
    assert!(changed.is_empty(), "the host is not as it was: {changed:#?}");
    Ok(())
}

#[tokio::test]
async fn nothing_of_a_machine_or_a_server_is_left() -> Result<()> {
    let host = Host::new().await?;
    let before = traces()?;
    // VMs that wait have taps too, which come when they like.
    let arguments = vec!["--pool".to_owned(), "0".to_owned()];
    let mut stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    // A VM that is to become a template has a tap as well, while it boots.
    stand.server.templates().await?;
    let idle = traces()?;
    let machine = stand.machine(json!({ "image": stand.web()? })).await?;
    machine.http_get(80, "/").await?;
    let vm = stand.server.vm(&machine)?;
    let server = process::control_groups(stand.server.pid()?);
    let groups: Vec<_> =
        process::control_groups(vm).into_iter().filter(|group| !server.contains(group)).collect();
    assert!(!groups.is_empty());
    assert_ne!(traces()?, idle, "a machine can be seen on its host");
    machine.destroy().await?;

    assert!(stand.server.vms().is_empty());
    let left = traces()?;
    let changed: Vec<_> = left.symmetric_difference(&idle).collect();
    assert!(changed.is_empty(), "nothing of the machine is left on the network: {changed:#?}");
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
    let data = stand.server.data_directory();
    // Its log stays readable, as its events do.
    let log = format!("/logs/{}", machine.id());
    let of_machine =
        files(&data).into_iter().filter(|file| file.contains(machine.id()) && !file.contains(&log));
    let of_machine: Vec<_> = of_machine.collect();
    assert_eq!(of_machine, Vec::<String>::new(), "nothing of the machine is left on disk");

    ended_and_cleaned(&mut stand, &before).await
}
