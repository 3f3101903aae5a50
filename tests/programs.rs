//! How the program in a VM is run, told things, and how its end is reported.

use std::time::Instant;

use anyhow::Result;
use caddis_testkit::{Host, Machine, images};
use serde_json::json;

use crate::stand::{APP, Stand};

#[tokio::test]
async fn exits_by_code_signal_and_lack_of_memory_are_told_apart() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let zero = stand.script("echo done", json!({})).await?;
    let seven = stand.script("echo out; echo err >&2; exit 7", json!({})).await?;
    let killed = stand.script("kill -9 $$", json!({})).await?;
    let starved = stand.script("exec tail /dev/zero", json!({})).await?;
    for (machine, code, signal, oom) in [
        (&zero, 0, None, false),
        (&seven, 7, None, false),
        (&killed, 137, Some(9), false),
        (&starved, 137, Some(9), true),
    ] {
        machine.wait("stopped").await?;
        let exit = machine.exit_event().await?;
        assert_eq!(exit["guest_exit_code"], code, "{exit}");
        assert_eq!(exit["exit_code"], code, "{exit}");
        assert_eq!(exit["oom_killed"], oom, "{exit}");
        assert_eq!(exit["requested_stop"], false, "{exit}");
        assert_eq!(exit["restarting"], false, "{exit}");
        assert_eq!(exit["guest_signal"], json!(signal.unwrap_or(-1)), "{exit}");
        assert!(exit["exited_at"].as_str().is_some_and(|time| time.contains('T')), "{exit}");
        assert_eq!(exit["cause"].as_str(), oom.then_some("guest_oom"), "{exit}");
    }
    // Nothing of the output is lost, though the VM is gone; both streams are kept apart.
    let path = format!("/api/v1/apps/{APP}/logs?instance={}", seven.id());
    let page = stand.server.api().get(&path).await?.ok()?;
    let lines: Vec<_> =
        page["data"].as_array().into_iter().flatten().map(|entry| &entry["attributes"]).collect();
    let level = |text: &str| {
        lines.iter().find(|line| line["message"] == text).map(|line| line["level"].clone())
    };
    assert_eq!(level("out"), Some("info".into()), "{page}");
    assert_eq!(level("err"), Some("error".into()), "{page}");
    Ok(())
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_reported_and_not_tried_for_ever() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let config = json!({ "image": stand.busybox()?, "init": { "cmd": ["/no/such/program"] },
        "restart": { "policy": "no" } });
    let machine = stand.machine(config).await?;
    machine.wait("settled").await?;
    let shown = machine.get().await?;
    assert!(
        ["stopped", "failed"].contains(&shown["state"].as_str().unwrap_or_default()),
        "{shown}"
    );
    assert!(shown.to_string().contains("/no/such/program"), "what failed is shown: {shown}");
    Ok(())
}

#[tokio::test]
async fn the_restart_policy_decides_what_follows_an_exit() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let retried = stand
        .script("exit 3", json!({ "restart": { "policy": "on-failure", "max_retries": 2 } }))
        .await?;
    let content = stand.script("exit 0", json!({ "restart": { "policy": "on-failure" } })).await?;
    let gone = stand.script("exit 0", json!({ "auto_destroy": true })).await?;
    let stubborn =
        stand.script("exec sleep 1000", json!({ "restart": { "policy": "always" } })).await?;

    content.wait("stopped").await?;
    assert_eq!(content.exit_event().await?["restarting"], false, "a success is no failure");
    gone.wait("destroyed").await?;

    stubborn.wait("started").await?;
    let before = stubborn.newest_event().await?;
    stubborn.post("/signal", json!({ "signal": 9 })).await?.ok()?;
    stubborn.wait_after(&before, "started").await?;
    let exit = stubborn.exit_event().await?;
    assert_eq!(
        (&exit["restarting"], &exit["requested_stop"]),
        (&json!(true), &json!(false)),
        "{exit}"
    );
    stubborn.post("/stop", json!({ "signal": "SIGKILL" })).await?.ok()?;
    stubborn.wait("stopped").await?;
    assert_eq!(
        stubborn.exit_event().await?["restarting"],
        false,
        "a stop that was asked for is final"
    );

    retried.wait("stopped").await?;
    let events = retried.events().await?;
    let exits: Vec<_> = events.iter().rev().filter(|event| event["type"] == "exit").collect();
    let restarting: Vec<_> =
        exits.iter().map(|exit| &exit["request"]["exit_event"]["restarting"]).collect();
    assert_eq!(restarting, [&json!(true), &json!(true), &json!(false)], "{exits:#?}");
    Ok(())
}

#[tokio::test]
async fn a_stop_sends_the_signal_and_kills_after_the_timeout() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let polite =
        "trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 1000 & wait; done";
    let deaf = "trap '' TERM; echo ready; sleep 1000";
    let polite = stand.script(polite, json!({})).await?;
    let deaf = stand
        .script(deaf, json!({ "stop_config": { "signal": "SIGTERM", "timeout": "1s" } }))
        .await?;

    polite.logged("ready").await?;
    polite.stop().await?;
    polite.wait("stopped").await?;
    let exit = polite.exit_event().await?;
    assert_eq!((&exit["exit_code"], &exit["requested_stop"]), (&json!(5), &json!(true)), "{exit}");
    assert!(polite.logs().await?.contains(&"interrupted".to_owned()));

    deaf.logged("ready").await?;
    deaf.stop().await?;
    deaf.wait("stopped").await?;
    let exit = deaf.exit_event().await?;
    assert_eq!(
        (&exit["guest_signal"], &exit["requested_stop"]),
        (&json!(9), &json!(true)),
        "{exit}"
    );
    Ok(())
}

const REPORT: &str = r#"
id; pwd; hostname
echo "A=$A B=$B C=$C PATH=$PATH HOME=$HOME"
for name in APP_NAME MACHINE_ID ALLOC_ID REGION IMAGE_REF MACHINE_VERSION PRIVATE_IP \
    PROCESS_GROUP VM_MEMORY_MB; do
    eval "echo $name=\$FLY_$name"
done
cat /etc/greeting /etc/deep/file; stat -c '%a %u' /etc/greeting /etc/deep/file
sed 's/^/hosts /' /etc/hosts; sed 's/^/resolv /' /etc/resolv.conf
for path in /proc /sys /dev /dev/pts /dev/shm /sys/fs/cgroup; do
    echo "mount $path $(stat -f -c %T $path)"
done
awk '{ print "mounted", $2, $3 }' /proc/mounts
echo "$@"
echo complete
sleep 1000
"#;

#[tokio::test]
async fn user_directory_environment_files_and_names_are_as_asked_for() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let config = images::Config {
        user: "www".into(),
        working_dir: "/var/www".into(),
        env: vec![
            "PATH=/bin".into(),
            "A=image".into(),
            "B=image".into(),
            "FLY_REGION=forged".into(),
        ],
        entrypoint: vec!["/bin/sh".into(), "-c".into(), REPORT.into(), "sh".into()],
        cmd: vec!["from".into(), "image".into()],
        ..images::Config::default()
    };
    let image = stand.registry.push(&images::busybox_with("report", &config)?, "report:1")?;
    let machine = stand
        .machine(json!({
            "image": image,
            "env": { "B": "config", "C": "config" },
            "metadata": { "fly_process_group": "workers" },
            "files": [
                { "guest_path": "/etc/greeting", "raw_value": "aGVsbG8K", "mode": 0o604 },
                { "guest_path": "/etc/deep/file", "raw_value": "ZGVlcAo=" },
            ],
            "init": { "cmd": ["two words", "$A"] },
        }))
        .await?;
    machine.logged("complete").await?;
    let lines = machine.logs().await?;
    let shown = machine.get().await?;
    let id = machine.id();
    let private_ip = machine.address().await?;
    let version = shown["instance_id"].as_str().unwrap_or_default();
    for expected in [
        "uid=1000(www) gid=1000(www) groups=1000(www),1001(extra)",
        "/var/www",
        id,
        "A=image B=config C=config PATH=/bin HOME=/var/www",
        "APP_NAME=test",
        &format!("MACHINE_ID={id}"),
        &format!("ALLOC_ID={id}"),
        "REGION=local",
        &format!("MACHINE_VERSION={version}"),
        &format!("PRIVATE_IP={private_ip}"),
        "PROCESS_GROUP=workers",
        "VM_MEMORY_MB=256",
        "hello",
        "deep",
        "604 0",
        "644 0",
        "mount /proc proc",
        "mounted /dev/shm tmpfs",
        "mounted /sys/fs/cgroup cgroup2",
        "mounted /dev/pts devpts",
        "mounted /sys sysfs",
        "mounted / ext4",
        "two words $A",
    ] {
        assert!(lines.iter().any(|line| line == expected), "no {expected:?} in {lines:#?}");
    }
    let has = |start: &str, word: &str| {
        lines.iter().any(|line| {
            line.starts_with(start) && line.split_whitespace().any(|found| found == word)
        })
    };
    assert!(has(&format!("hosts {private_ip}"), "fly-local-6pn"), "{lines:#?}");
    assert!(has("hosts 127.0.0.1", "localhost"), "{lines:#?}");
    let own = lines.iter().filter(|line| {
        line.starts_with("hosts ") && line.split_whitespace().any(|word| word == id)
    });
    let own: Vec<_> = own.filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert!(
        own.iter().any(|address| address.contains('.')),
        "its own name resolves by IPv4: {lines:#?}"
    );
    assert!(own.contains(&private_ip.as_str()), "and by IPv6: {lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("resolv nameserver ")), "{lines:#?}");
    let image_ref =
        lines.iter().find_map(|line| line.strip_prefix("IMAGE_REF=")).unwrap_or_default();
    assert!(image_ref.contains("report"), "{lines:#?}");
    Ok(())
}

#[tokio::test]
async fn programs_run_beside_the_main_one_and_signals_reach_it() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let script = "trap 'echo usr1' USR1; echo ready; while :; do sleep 1000 & wait; done";
    let machine = stand.script(script, json!({})).await?;
    // Right after the create: it is waited for.
    assert_eq!(machine.exec(&["echo", "early"]).await?.stdout, "early\n");
    machine.logged("ready").await?;

    let script = "tr a-z A-Z; echo oops >&2; exit 9";
    let run = json!({ "command": ["/bin/sh", "-c", script], "stdin": "hello" });
    let reply = machine.post("/exec", run).await?.ok()?;
    assert_eq!(reply["exit_code"], 9, "{reply}");
    assert_eq!(reply["stdout"], "HELLO", "{reply}");
    assert_eq!(reply["stderr"], "oops\n", "{reply}");
    let line = machine.post("/exec", json!({ "cmd": "echo 'two words' $HOME" })).await?.ok()?;
    assert_eq!(
        line["stdout"], "two words $HOME\n",
        "a command line is split, but not by a shell: {line}"
    );
    let late = machine
        .post("/exec", json!({ "command": ["/bin/sleep", "1000"], "timeout": 1 }))
        .await?
        .ok()?;
    assert_eq!(late["timed_out"], true, "{late}");
    // As a shell tells it.
    for (command, code, told) in [
        ("/no/such", 127, "can't run /no/such: No such file"),
        ("nosuch", 127, "can't run nosuch: there is no such program in /"),
        ("/etc/hosts", 126, "can't run /etc/hosts: Permission denied"),
        ("/bin", 126, "can't run /bin: it is a directory"),
    ] {
        let reply = machine.post("/exec", json!({ "command": [command] })).await?.ok()?;
        let stderr = reply["stderr"].as_str().unwrap_or_default();
        assert!(reply["exit_code"] == code && stderr.starts_with(told), "{command}: {reply}");
    }
    let much = machine.exec(&["/bin/sh", "-c", "yes 0123456789abcde | head -c 1000000"]).await?;
    assert_eq!(much.stdout.len(), 1_000_000);

    // What a program leaves behind becomes a child of init, which must collect it.
    machine.shell("i=0; while [ $i -lt 20 ]; do (sh -c 'exit 0' &); i=$((i+1)); done").await?;
    machine.shell("while grep -qs 'State:.Z' /proc/[0-9]*/status; do usleep 10000; done").await?;

    machine.post("/signal", json!({ "signal": "SIGUSR1" })).await?.ok()?;
    machine.logged("usr1").await?;
    let bad = machine.post("/signal", json!({ "signal": "SIGNONE" })).await?;
    assert_eq!(bad.status, 400, "{}", bad.text);

    let processes = stand.server.api().get(&machine.path("/ps")).await?.ok()?;
    let commands: Vec<_> =
        processes.as_array().into_iter().flatten().map(|process| &process["command"]).collect();
    assert!(
        commands.iter().any(|command| command.as_str().is_some_and(|c| c.contains("sleep 1000"))),
        "{processes}"
    );

    // One that a stop cuts off may be tried again, and did nothing wrong.
    let cut = machine.post("/exec", json!({ "command": ["sleep", "2345"] }));
    let stop = async {
        while !stand.server.api().get(&machine.path("/ps")).await?.text.contains("sleep 2345") {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        machine.stop().await
    };
    let (cut, stopped) = tokio::join!(cut, stop);
    stopped?;
    let cut = cut?;
    assert!(cut.status == 409 && cut.text.contains("\"retryable\":true"), "{}", cut.text);
    assert!(
        cut.text.contains("was stopped, suspended or destroyed while the command ran"),
        "{}",
        cut.text
    );
    Ok(())
}

#[tokio::test]
async fn several_processes_of_a_machine_live_and_end_together() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    let waits =
        "trap 'echo $NAME told; exit 0' TERM INT; echo $NAME ready; while :; do usleep 50000; done";
    let processes = json!([
        { "exec": shell("until [ -e /tmp/go ]; do usleep 50000; done; exit 5"), "user": "65534" },
        { "exec": shell(waits), "env": { "NAME": "polite" } },
        { "exec": shell("trap '' TERM; echo \"$ME is $(id -u)\"; while :; do usleep 50000; done"),
          "env_from": [{ "env_var": "ME", "field_ref": "id" }] },
    ]);
    let config =
        json!({ "image": stand.busybox()?, "processes": processes, "restart": { "policy": "no" } });
    let machine = stand.machine(config).await?;
    machine.logged("polite ready").await?;
    machine.logged(&format!("{} is 0", machine.id())).await?;
    let users = machine.shell("stat -c %u /proc/[0-9]* 2>/dev/null; true").await?;
    assert!(users.lines().any(|user| user == "65534"), "the first runs as its own user: {users}");
    machine.shell("touch /tmp/go").await?;
    machine.wait("stopped").await?;
    machine.logged("polite told").await?;
    let exit = machine.exit_event().await?;
    assert_eq!((&exit["exit_code"], &exit["requested_stop"]), (&json!(5), &json!(false)), "{exit}");

    // A stop tells all of them.
    let pair = json!([
        { "exec": shell(waits), "env": { "NAME": "one" } },
        { "exec": shell(waits), "env": { "NAME": "other" } },
    ]);
    let config =
        json!({ "image": stand.busybox()?, "processes": pair, "restart": { "policy": "no" } });
    let machine = stand.machine(config).await?;
    machine.logged("one ready").await?;
    machine.logged("other ready").await?;
    machine.stop().await?;
    machine.wait("stopped").await?;
    machine.logged("one told").await?;
    machine.logged("other told").await?;
    assert_eq!(machine.exit_event().await?["exit_code"], 0);

    // One that can't be started is none.
    let pair = json!([{ "exec": shell("sleep 1000") }, { "exec": ["/no/such"] }]);
    let config =
        json!({ "image": stand.busybox()?, "processes": pair, "restart": { "policy": "no" } });
    let machine = stand.machine(config).await?;
    machine.wait("settled").await?;
    assert!(machine.get().await?.to_string().contains("/no/such"));
    stand.server.until_no_vm().await
}

#[tokio::test]
async fn the_memory_of_programs_can_be_bounded_and_taken_back() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    // Written to a file: the page cache, which is not needed.
    let machine = stand
        .script("head -c 60000000 /dev/zero >/tmp/big; echo written; exec sleep 1000", json!({}))
        .await?;
    machine.logged("written").await?;
    machine.wait("started").await?;
    let api = stand.server.api();
    let before = api.get(&machine.path("/memory")).await?.ok()?;
    assert_eq!(before["limit_mb"], 256, "{before}");
    assert!(
        before["available_mb"].as_u64().is_some_and(|free| (50..256).contains(&free)),
        "{before}"
    );
    let back = machine.post("/memory/reclaim", json!({ "amount_mb": 30 })).await?.ok()?;
    assert!(back["actual_mb"].as_u64().is_some_and(|mib| (10..=60).contains(&mib)), "{back}");

    let set = api.put(&machine.path("/memory"), json!({ "limit_mb": 64 })).await?.ok()?;
    assert_eq!(set["limit_mb"], 64, "{set}");
    assert!(set["available_mb"].as_u64().is_some_and(|free| free <= 64), "{set}");
    let limit = machine.shell("cat /sys/fs/cgroup/program/memory.max").await?;
    assert_eq!(limit.trim(), (64 << 20).to_string());
    for (limit, status) in
        [(json!(257), 400), (json!(1), 412), (json!("64"), 400), (json!(null), 400)]
    {
        let refused = api.put(&machine.path("/memory"), json!({ "limit_mb": limit })).await?;
        assert_eq!(refused.status, status, "{limit}: {}", refused.text);
    }
    machine.stop().await?;
    machine.wait("stopped").await?;
    let refused = api.get(&machine.path("/memory")).await?;
    assert_eq!(refused.status, 412, "{}", refused.text);
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(
        api.get(&machine.path("/memory")).await?.ok()?["limit_mb"],
        256,
        "a start begins anew"
    );
    Ok(())
}

/// Lines of a machine's log that are not its programs'.
async fn runner_lines(stand: &Stand<'_>, machine: &Machine) -> Result<Vec<String>> {
    let path = format!("/api/v1/apps/{APP}/logs?instance={}", machine.id());
    let page = stand.server.api().get(&path).await?.ok()?;
    let lines = page["data"].as_array().into_iter().flatten().map(|entry| &entry["attributes"]);
    let ours = lines.filter(|line| line["meta"]["event"]["provider"] == "runner");
    Ok(ours.filter_map(|line| line["message"].as_str().map(str::to_owned)).collect())
}

#[tokio::test]
async fn a_child_that_ran_out_of_memory_is_told_of_and_is_not_why_the_program_ended() -> Result<()>
{
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    // A word of its own in the kernel's log is no death.
    let script = "echo 'Out of memory: Killed process 1 (x) total-vm:1kB' >/dev/kmsg; \
                  tail /dev/zero; echo survived $?; exec sleep 1000";
    let machine = stand.script(script, json!({})).await?;
    machine.logged("survived 137").await?;
    machine.wait("started").await?;
    let deadline = Instant::now() + caddis_testkit::DEADLINE;
    let told = loop {
        let told = machine
            .events()
            .await?
            .into_iter()
            .filter(|event| event["type"] == "oom")
            .collect::<Vec<_>>();
        if !told.is_empty() {
            break told;
        }
        anyhow::ensure!(Instant::now() < deadline, "{:#?}", machine.events().await?);
    };
    assert_eq!((told.len(), &told[0]["details"]["process"]), (1, &json!("tail")), "{told:#?}");
    let lines = runner_lines(&stand, &machine).await?;
    let killed =
        lines.iter().filter(|line| line.starts_with("out of memory: the kernel killed process"));
    assert_eq!(killed.filter(|line| line.ends_with(" (tail)")).count(), 1, "{lines:#?}");

    // Killed by the stop, in vain, long after.
    machine.post("/stop", json!({ "signal": "SIGKILL" })).await?.ok()?;
    machine.wait("stopped").await?;
    let exit = machine.exit_event().await?;
    assert_eq!(
        (&exit["oom_killed"], &exit["requested_stop"]),
        (&json!(false), &json!(true)),
        "{exit}"
    );
    assert_eq!((&exit["guest_signal"], &exit["cause"]), (&json!(9), &json!(null)), "{exit}");
    Ok(())
}

#[tokio::test]
async fn a_machine_that_switches_itself_off_has_exited() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let ends = async |machine: &Machine, cause: Option<&str>| -> Result<()> {
        machine.wait("stopped").await?;
        let exit = machine.exit_event().await?;
        let told = (
            &exit["exit_code"],
            exit["cause"].as_str(),
            &exit["requested_stop"],
            &exit["oom_killed"],
        );
        assert_eq!(told, (&json!(0), cause, &json!(false), &json!(false)), "{exit}");
        Ok(())
    };
    let policy = json!({ "restart": { "policy": "on-failure" } });
    // By init, which ends programs as a stop does, also deaf ones.
    let asked = stand
        .script("trap '' TERM; poweroff; while :; do usleep 50000; done", policy.clone())
        .await?;
    ends(&asked, None).await?;
    let lines = runner_lines(&stand, &asked).await?;
    assert!(lines.contains(&"a program in the machine powered it off".to_owned()), "{lines:#?}");
    // By the kernel, at once.
    let off = stand.script("poweroff -f", policy.clone()).await?;
    ends(&off, Some("powered_off")).await?;
    let reset = stand.script("exec sleep 1000", policy).await?;
    reset.wait("started").await?;
    stand.server.kill().await?;
    stand.server.launch().await?;
    // Another server sees it, which is not the parent of the VM.
    let session =
        stand.server.begin_cli(&["machine", "exec", reset.id(), "reboot -f", "-a", APP])?;
    ends(&reset, Some("powered_off")).await?;
    drop(session);
    stand.server.until_no_vm().await
}
