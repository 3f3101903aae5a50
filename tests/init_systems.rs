//! Programs that insist on being process 1: they are, in namespaces of their own, and all that is
//! done to the machine is done there.

use anyhow::{Context as _, Result};
use caddis_testkit::{Host, Machine, images};
use serde_json::{Value, json};

use crate::stand::Stand;

/// Waits, from inside, until systemd has started all it was to start; gives what it says then.
async fn settled(machine: &Machine) -> Result<String> {
    loop {
        // It answers when it is there, waits for its jobs, and an exec lasts a minute at most.
        let exec =
            machine.exec(&["timeout", "50", "systemctl", "is-system-running", "--wait"]).await?;
        let state = exec.stdout.trim().to_owned();
        if !["", "offline", "initializing", "starting"].contains(&state.as_str()) {
            return Ok(state);
        }
    }
}

async fn processes(stand: &Stand<'_>, machine: &Machine) -> Result<Vec<(i64, String)>> {
    let list = stand.server.api().get(&machine.path("/ps")).await?.ok()?;
    let list = list.as_array().context("no list")?.iter();
    let process =
        |process: &Value| (process["pid"].as_i64(), process["command"].as_str().map(str::to_owned));
    Ok(list.map(process).filter_map(|(pid, command)| Some((pid?, command?))).collect())
}

#[tokio::test]
async fn systemd_boots_serves_and_ends_as_on_a_machine_of_its_own() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::systemd()?, "systemd:1")?;
    let machine = stand
        .machine(json!({
            "image": image,
            "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 512 },
            "init": { "tty": true },
            "restart": { "policy": "no" },
            "stop_config": { "timeout": "120s" },
        }))
        .await?;
    machine.wait("started").await?;
    let state = settled(&machine).await?;
    let failed = machine.shell("systemctl --failed --no-legend --plain; true").await?;
    assert_eq!(state, "running", "{failed}");
    assert!(machine.http_get(80, "/").await?.contains("nginx"), "a unit of the image answers");
    assert_eq!(
        machine.shell("systemd-detect-virt --container; cat /proc/1/comm").await?,
        "container-other\nsystemd\n"
    );

    // What is run beside it sees what it sees: its mounts, its processes, its cgroups.
    let seen = machine
        .shell("findmnt -n -o FSTYPE /run; tr '\\0' '\\n' </proc/1/cmdline | head -1; hostname")
        .await?;
    assert_eq!(seen, format!("tmpfs\n/sbin/init\n{}\n", machine.id()));
    machine
        .shell("systemctl stop nginx && systemctl start nginx && systemctl is-active nginx")
        .await?;
    machine
        .shell(
            "systemctl show -p ControlGroup nginx | grep -x \
             ControlGroup=/system.slice/nginx.service",
        )
        .await?;
    let all = processes(&stand, &machine).await?;
    let inside: i64 = machine.shell("cat /run/nginx.pid").await?.trim().parse()?;
    assert!(
        all.iter().any(|(pid, command)| *pid == inside && command.contains("nginx: master")),
        "{all:?}"
    );
    for (pid, name) in [(Some(1), "/sbin/init"), (None, "systemd-journald"), (None, "dbus-daemon")]
    {
        let found = all
            .iter()
            .any(|(found, command)| command.contains(name) && pid.is_none_or(|pid| pid == *found));
        assert!(found, "{name}: {all:?}");
    }
    // What programs leave behind becomes a child of systemd, which collects it; execs themselves
    // are init's.
    machine.shell("i=0; while [ $i -lt 20 ]; do (sh -c 'exit 0' &); i=$((i+1)); done").await?;
    machine.shell("while grep -qs 'State:.Z' /proc/[0-9]*/status; do sleep 0.05; done").await?;
    let missing = machine.post("/exec", json!({ "command": ["/no/such"] })).await?;
    assert!(missing.text.contains("/no/such"), "{}", missing.text);
    // Files are copied to and from where the program is: its /run is none of init's.
    let file = host.path("file");
    std::fs::write(&file, "copied\n")?;
    let (file, id) = (file.to_str().context("a path")?, machine.id());
    let put = stand
        .server
        .cli(&["sftp", "put", file, "/run/copied", "-a", "test", "--machine", id])
        .await?;
    assert_eq!(put.code, Some(0), "{put:?}");
    assert_eq!(machine.shell("cat /run/copied").await?, "copied\n");
    let console = machine.logs().await?;
    assert!(
        console.iter().any(|line| line.contains("Debian")),
        "its console is the log: {console:?}"
    );

    machine.stop().await?;
    machine.wait("stopped").await?;
    let exit = machine.exit_event().await?;
    assert_eq!((&exit["exit_code"], &exit["requested_stop"]), (&json!(0), &json!(true)), "{exit}");
    assert_eq!(exit["guest_signal"], -1, "no signal ended it: {exit}");

    // Ends from inside are exits, and no crashes.
    for command in ["poweroff", "reboot"] {
        machine.start().await?;
        machine.wait("started").await?;
        settled(&machine).await?;
        let before = machine.newest_event().await?;
        machine.exec(&["systemctl", "--no-block", command]).await?;
        machine.wait_after(&before, "stopped").await?;
        let exit = machine.exit_event().await?;
        assert_eq!(
            (&exit["exit_code"], &exit["requested_stop"]),
            (&json!(0), &json!(false)),
            "{command}: {exit}"
        );
        let newest = machine.events().await?;
        assert!(!newest[0].to_string().contains("crash"), "{command}: {}", newest[0]);
    }
    Ok(())
}

/// As s6-overlay's, it ends unless it is the first process, and looks after what comes to it.
const S6: &str = r#"#!/bin/sh
# in the place of s6-overlay-suexec
[ $$ = 1 ] || { echo "/init: can only run as pid 1"; exit 100; }
trap 'echo told to end; exit 7' INT
echo "first in $container"
grep -c . /proc/self/cgroup
ls /sys/fs/cgroup/cgroup.procs
while :; do sleep 0.1 & wait $!; done
"#;

/// The stages of runit, without Debian's scripts of other systems.
const STAGES: [(&str, &str); 3] = [
    (
        "/etc/runit/1",
        "#!/bin/sh\ninstall -m000 /dev/null /run/runit.stopit\ninstall -m000 /dev/null \
         /run/runit.reboot\n",
    ),
    ("/etc/runit/2", "#!/bin/sh\necho second stage\nexec runsvdir /etc/service\n"),
    ("/etc/runit/3", "#!/bin/sh\nsv force-stop web\n"),
];
const SERVICE: &str = "#!/bin/sh\nexec nginx -g 'daemon off;'\n";

fn file(path: &str, content: &str) -> Value {
    use base64::Engine as _;
    let content = base64::engine::general_purpose::STANDARD.encode(content);
    json!({ "guest_path": path, "raw_value": content, "mode": 0o755 })
}

#[tokio::test]
async fn runit_and_what_else_has_to_be_the_first_process_is_and_nothing_else() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::systemd()?, "systemd:1")?;
    let mut files: Vec<_> = STAGES.iter().map(|(path, content)| file(path, content)).collect();
    files.push(file("/etc/service/web/run", SERVICE));
    let runit = stand
        .machine(json!({
            "image": image,
            "init": { "cmd": ["/lib/runit/runit-init"] },
            "files": files,
            "restart": { "policy": "no" },
            "stop_config": { "timeout": "60s" },
        }))
        .await?;
    let s6 = stand
        .machine(json!({
            "image": stand.busybox()?,
            "init": { "cmd": ["/init"] },
            "files": [file("/init", S6)],
            "restart": { "policy": "no" },
            // Five machines boot at once.
            "stop_config": { "timeout": "60s" },
        }))
        .await?;
    let asked = stand.script("echo I am $$; exec sleep 1000", json!({})).await?;
    let tells = ["/bin/sh", "-c", "echo I am $$; exec sleep 1000"];
    let wanted = json!({ "image": stand.busybox()?, "restart": { "policy": "no" },
                         "init": { "pid_namespace": true, "cmd": tells } });
    let wanted = stand.machine(wanted).await?;
    let refused = json!({ "image": stand.busybox()?, "restart": { "policy": "no" },
                          "init": { "pid_namespace": false, "cmd": ["/init"] },
                          "files": [file("/init", S6)] });
    let refused = stand.machine(refused).await?;

    s6.logged("first in caddis").await?;
    s6.stop().await?;
    s6.wait("stopped").await?;
    let exit = s6.exit_event().await?;
    assert_eq!((&exit["exit_code"], &exit["requested_stop"]), (&json!(7), &json!(true)), "{exit}");

    refused.wait("stopped").await?;
    assert_eq!(refused.exit_event().await?["exit_code"], 100, "it may be had otherwise");

    assert_ne!(asked.first_line().await?, "I am 1", "others stay children of init");
    assert_eq!(wanted.first_line().await?, "I am 1", "but they may be first");
    // The last of them has booted: what comes now is done in the time that it has.
    assert!(runit.http_get(80, "/").await?.contains("nginx"));
    wanted.post("/stop", json!({ "timeout": "1s" })).await?.ok()?;
    wanted.wait("stopped").await?;
    assert_eq!(
        wanted.exit_event().await?["guest_signal"],
        9,
        "and then heed no signal without a handler"
    );

    assert_eq!(runit.shell("cat /proc/1/comm").await?, "runit\n");
    let all = processes(&stand, &runit).await?;
    assert!(all.iter().any(|(pid, command)| *pid == 1 && command.contains("runit")), "{all:?}");
    runit.stop().await?;
    runit.wait("stopped").await?;
    let exit = runit.exit_event().await?;
    assert_eq!((&exit["exit_code"], &exit["requested_stop"]), (&json!(0), &json!(true)), "{exit}");
    let log =
        stand.server.api().get(&format!("/api/v1/apps/test/logs?instance={}", runit.id())).await?;
    assert!(
        log.text.contains("asked for the power to be off"),
        "it was told in its own way: {}",
        log.text
    );
    Ok(())
}
