//! What the process of a live VM may do on its host.

use std::fs;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use caddis_testkit::{Host, images, process, run};
use serde_json::json;

use crate::stand::Stand;

#[tokio::test]
async fn a_vm_process_has_no_rights_and_no_way_out() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let (one, two) = (
        stand.script("sleep 1000", json!({})).await?,
        stand.script("sleep 1000", json!({})).await?,
    );
    one.wait("started").await?;
    two.wait("started").await?;
    let (vm, other) = (stand.server.vm(&one)?, stand.server.vm(&two)?);
    let status = |key: &str| process::status(vm, key).unwrap_or_default();

    for key in ["Uid", "Gid"] {
        let ids = status(key);
        let (mine, theirs) = (ids.split_whitespace().next(), process::status(other, key));
        assert!(
            mine.is_some_and(|id| id != "0") && ids.split_whitespace().all(|id| Some(id) == mine),
            "{key}: {ids}"
        );
        assert_ne!(Some(ids), theirs, "no two VMs share a {key}");
    }
    assert_eq!(status("Groups"), "", "no supplementary groups");
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!((&*status("NoNewPrivs"), &*status("Seccomp")), ("1", "2"));

    let namespace =
        |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).context("a network namespace");
    let own = namespace(&vm.to_string())?;
    assert_ne!(own, namespace("thread-self")?, "not the host's network");
    let links = fs::read_to_string(format!("/proc/{vm}/net/dev"))?;
    let links: Vec<_> =
        links.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert!(links.iter().all(|link| *link == "lo"), "an empty namespace, but {links:?}");
    Ok(())
}

#[tokio::test]
async fn a_vm_process_holds_only_the_descriptors_of_its_own_machine() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let (one, two) = (
        stand.script("sleep 1000", json!({})).await?,
        stand.script("sleep 1000", json!({})).await?,
    );
    one.wait("started").await?;
    two.wait("started").await?;
    let vm = stand.server.vm(&one)?;
    let data = stand.server.data_directory();
    let mut tap = false;
    for (number, target) in process::descriptors(vm) {
        tap |= target == "/dev/net/tun";
        let anonymous =
            ["anon_inode:", "pipe:", "socket:", "/memfd:", "/dev/null", "/dev/net/tun", "/dev/kvm"];
        if anonymous.iter().any(|kind| target.starts_with(kind)) {
            continue;
        }
        let flags = fs::read_to_string(format!("/proc/{vm}/fdinfo/{number}"))?;
        let flags = flags
            .lines()
            .find_map(|line| line.strip_prefix("flags:"))
            .context("flags of a descriptor")?;
        let writable = u32::from_str_radix(flags.trim(), 8)? & 3 != 0;
        let own = target.contains(one.id());
        let in_slot = target.starts_with("/run/caddis/");
        assert!(!target.contains(two.id()), "descriptor {number} of another machine: {target}");
        assert!(own || in_slot || !writable, "descriptor {number} can write to {target}");
        let allowed = own
            || in_slot
            || target.starts_with(&*data.to_string_lossy())
            || !target.starts_with(&*host.directory().to_string_lossy());
        assert!(allowed, "descriptor {number} is {target}");
        for secret in ["root.token", ".db", ".sqlite"] {
            assert!(!target.contains(secret), "descriptor {number} is {target}");
        }
    }
    assert!(tap, "it has its tap");
    let arguments = fs::read_to_string(format!("/proc/{vm}/cmdline"))?;
    assert!(
        !arguments.contains(stand.server.api().token().unwrap_or_default()),
        "no token in arguments"
    );
    Ok(())
}

#[tokio::test]
async fn a_vm_process_is_bounded_by_a_control_group_of_its_own() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script("sleep 1000", json!({})).await?;
    machine.wait("started").await?;
    let groups = process::control_groups(stand.server.vm(&machine)?);
    let bound = groups.iter().find_map(|group| {
        let limit = ["memory.max", "memory.limit_in_bytes"]
            .map(|name| fs::read_to_string(group.join(name)));
        limit.into_iter().flatten().find_map(|limit| limit.trim().parse::<u64>().ok())
    });
    let bound = bound.with_context(|| format!("no memory limit in {groups:?}"))? >> 20;
    assert!((256..1024).contains(&bound), "{bound} MiB for a guest of 256");
    let shared = process::control_groups(stand.server.pid()?);
    assert!(groups.iter().any(|group| !shared.contains(group)), "not the server's own: {groups:?}");
    Ok(())
}

/// This host may have cgroup v1: so the code for v2 is run where v2 certainly is, in a VM.
#[tokio::test]
async fn the_code_for_cgroup_v2_works_where_it_is() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:nginx")?;
    let guest = json!({ "cpus": 1, "memory_mb": 512 });
    let init = json!({ "exec": ["/bin/sleep", "1000"] });
    let machine = stand.machine(json!({ "image": image, "guest": guest, "init": init })).await?;
    machine.wait("started").await?;
    let program = std::env::current_exe()?
        .ancestors()
        .nth(2)
        .context("the build directory")?
        .join("cgroup-check");
    let stripped = host.path("cgroup-check");
    run(["strip", "-o", &stripped.to_string_lossy(), &program.to_string_lossy()])?;
    let text = base64::engine::general_purpose::STANDARD.encode(fs::read(stripped)?);
    // A request's body is at most 5 MiB. A multiple of four letters stands for whole bytes.
    for part in text.as_bytes().chunks(3 << 20) {
        let part = std::str::from_utf8(part)?;
        let append =
            json!({ "command": ["/bin/sh", "-c", "base64 --decode >>/root/check"], "stdin": part });
        let reply = machine.post("/exec", append).await?.ok()?;
        assert_eq!(reply["exit_code"], 0, "{reply}");
    }
    assert_eq!(machine.shell("chmod 755 /root/check && /root/check").await?, "cgroup v2 works\n");
    Ok(())
}

#[tokio::test]
async fn a_vm_that_exceeds_its_bound_on_the_host_is_an_exit_of_its_own_kind() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let guest = json!({ "cpus": 1, "memory_mb": 512 });
    let machine = stand.script("echo ready; sleep 1000", json!({ "guest": guest })).await?;
    machine.logged("ready").await?;
    let groups = process::control_groups(stand.server.vm(&machine)?);
    let files =
        [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")];
    let mut found = groups
        .iter()
        .flat_map(|group| files.map(|(limit, usage)| (group.join(limit), group.join(usage))));
    let (limit, usage) = found.find(|(limit, _)| limit.exists()).context("a bound on memory")?;
    let used: u64 = fs::read_to_string(usage)?.trim().parse()?;
    fs::write(limit, (used + (16 << 20)).to_string())?;
    // The VM goes away under it.
    let fill = json!({ "command": ["/bin/sh", "-c", "tail -c 300m /dev/zero"], "timeout": 60 });
    machine.post("/exec", fill).await?;
    machine.wait("stopped").await?;
    let exit = machine.exit_event().await?;
    assert_eq!(
        (&exit["cause"], &exit["requested_stop"]),
        (&json!("host_oom"), &json!(false)),
        "{exit}"
    );
    stand.server.until_no_vm().await
}
