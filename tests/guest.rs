//! What an image or a program can't do to init, and what programs find in a machine.

use std::time::Instant;

use anyhow::Result;
use caddis_testkit::{
    Host, Machine,
    images::{self, Entry},
};
use serde_json::json;

use crate::stand::{APP, Stand};

/// Waits until a program whose command line is exactly this runs, and gives its process id.
async fn pid_of(machine: &Machine, command: &str) -> Result<String> {
    let look = format!(
        "while :; do for process in /proc/[0-9]*; do
             words=$(tr '\\0' ' ' <$process/cmdline 2>/dev/null)
             [ \"$words\" = '{command} ' ] && echo ${{process#/proc/}} && exit
         done; usleep 20000; done"
    );
    Ok(machine.shell(&look).await?.trim().to_owned())
}

/// The descriptors of a process, a line each: number and what it is.
async fn descriptors(machine: &Machine, pid: &str) -> Result<Vec<String>> {
    let list = format!("cd /proc/{pid}/fd && for fd in *; do echo $fd $(readlink $fd); done");
    Ok(machine.shell(&list).await?.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn programs_of_every_kind_have_their_own_three_descriptors_while_all_others_are_open()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    // The second of them is started while the first one's terminal is open.
    let sleep = |seconds: &str| json!({ "exec": ["/bin/sleep", seconds] });
    let config = json!({
        "image": stand.busybox()?,
        "processes": [sleep("1001"), sleep("1002")],
        "init": { "tty": true },
        "restart": { "policy": "no" },
    });
    let machine = stand.machine(config).await?;
    machine.wait("started").await?;
    let server = &stand.server;
    let session = |command: &str, more: &[&str]| {
        let arguments = ["ssh", "console", "-a", APP, "--machine", machine.id(), "-C", command];
        server.terminal(&[&arguments[..], more].concat(), 80, 24)
    };
    // One of each kind, each started while those before it are open: sessions with and without a
    // terminal, of root and of another user, and what copies files, which waits for its archive.
    let mut open = Vec::new();
    let mut pids = vec![
        pid_of(&machine, "/bin/sleep 1001").await?,
        pid_of(&machine, "/bin/sleep 1002").await?,
    ];
    for (command, more) in [
        ("sleep 1003", &["--pty"][..]),
        ("sleep 1004", &["--pty", "-u", "www"][..]),
        ("sleep 1005", &["-u", "www"][..]),
        ("/proc/1/exe files put /tmp/put name", &[][..]),
        ("sleep 1006", &["--pty", "-u", "www"][..]),
        ("sleep 1007", &[][..]),
    ] {
        open.push(session(command, more)?);
        pids.push(pid_of(&machine, command).await?);
    }
    let mut seen = std::collections::HashSet::new();
    for pid in &pids {
        let found = descriptors(&machine, pid).await?;
        let numbers: Vec<_> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(numbers, ["0", "1", "2"], "process {pid} has {found:?}");
        for what in found
            .iter()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|what| *what != "/dev/null")
        {
            assert!(
                what.starts_with("/dev/pts/") || what.starts_with("pipe:"),
                "process {pid} has {found:?}"
            );
        }
        // Each its own, and no other's.
        for what in found
            .iter()
            .filter_map(|line| line.split(' ').nth(1))
            .collect::<std::collections::HashSet<_>>()
        {
            assert!(
                what == "/dev/null" || seen.insert(what.to_owned()),
                "process {pid} has another's: {found:?}"
            );
        }
    }
    // Init's own are closed by an exec, whatever they are.
    let kept = "for info in /proc/1/fdinfo/*; do read=$(grep flags: $info) || continue; \
                case $read in *02[0-9][0-9][0-9][0-9][0-9][0-9]) ;; *) echo ${info##*/};; esac; \
                done";
    let kept = machine.shell(kept).await?;
    assert!(
        kept.lines().all(|number| ["0", "1", "2"].contains(&number)),
        "not close-on-exec: {kept}"
    );
    drop(open);
    machine.destroy().await
}

/// An image that has something else wherever init writes or reads.
const HOSTILE: &[Entry] = &[
    Entry::Directory("etc/"),
    Entry::Fifo("etc/hosts"),
    Entry::File("etc/kept", "kept\n"),
    Entry::HardLink("etc/hostname", "etc/kept"),
    Entry::Link("etc/resolv.conf", "../run/no/such"),
    Entry::Fifo("etc/passwd"),
    Entry::Fifo("etc/group"),
    Entry::HardLink("etc/machine-id", "etc/kept"),
    Entry::Fifo("fifo"),
    Entry::Device("device"),
    Entry::Directory("empty/"),
    Entry::Link("srv", "/var/no/such"),
    Entry::Link("opt", "made/by/nobody"),
    Entry::Fifo("bin/program"),
    Entry::Fifo(".caddis"),
];

#[tokio::test]
async fn whatever_an_image_has_in_place_of_files_its_machine_starts_or_says_what_is_wrong()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let push = |name: &str, entries: &[Entry], working_dir: &str| {
        let script = "trap 'fsfreeze --unfreeze /' USR1; echo ready in $(pwd); while :; do sleep \
                      1000 & wait; done";
        let cmd = ["/bin/sh", "-c", script].map(Into::into).to_vec();
        let config =
            images::Config { cmd, working_dir: working_dir.into(), ..images::Config::default() };
        stand.registry.push(&images::busybox_among(name, entries, &config)?, &format!("{name}:1"))
    };
    let config = |image: String| json!({ "image": image, "restart": { "policy": "no" } });

    // Pipes, devices, other names of other files, and links to nowhere: all replaced.
    let mut hostile = config(push("hostile", HOSTILE, "/opt/deep")?);
    let files = ["/fifo", "/device", "/empty", "/srv/deep/file"];
    hostile["files"] =
        files.iter().map(|path| json!({ "guest_path": path, "raw_value": "aGVsbG8K" })).collect();
    let machine = stand.machine(hostile).await?;
    machine.logged("ready in /made/by/nobody/deep").await?;
    let id = machine.id();
    let read = machine.shell(
        "cat /etc/hostname /etc/kept; grep -c localhost /etc/hosts; grep -c . /etc/resolv.conf",
    );
    let read = read.await?;
    let lines: Vec<_> = read.lines().collect();
    assert!(lines[..3] == [id, "kept", "2"] && lines[3] != "0", "{read}");
    let written = machine
        .shell("cat /fifo /device /empty /var/no/such/deep/file; test -p /etc/passwd")
        .await?;
    assert_eq!(written, "hello\n".repeat(4));

    // Users can't be looked up, and that is said at once; so is what is no program.
    let server = &stand.server;
    let run = async |command: &str, more: &[&str]| {
        let arguments = ["ssh", "console", "-a", APP, "--machine", machine.id(), "-C", command];
        server.cli(&[&arguments[..], more].concat()).await
    };
    let unknown = run("id", &["-u", "www"]).await?;
    assert!(
        unknown.code == Some(1) && unknown.stderr.contains("can't read /etc/passwd"),
        "{unknown:?}"
    );
    assert!(unknown.stderr.contains("a FIFO, not a file"), "{unknown:?}");
    let number = run("stat -c %u /proc/self/stat", &["-u", "1234"]).await?;
    assert_eq!((number.code, &*number.stdout), (Some(0), "1234\n"), "{number:?}");
    let program = run("program", &[]).await?;
    assert!(program.stderr.contains("there is no such program"), "{program:?}");

    // What waits for a disk on its way to be a program keeps nobody else waiting.
    machine.shell("rmdir /made/by/nobody/deep; fsfreeze --freeze /").await?;
    let mut waits = server.terminal(&["machine", "exec", id, "pwd", "-a", APP, "--tty"], 80, 24)?;
    let on_its_way = async || -> Result<bool> {
        let processes = server.api().get(&machine.path("/ps")).await?.ok()?;
        let mut commands =
            processes.as_array().into_iter().flatten().map(|process| &process["command"]);
        Ok(commands
            .any(|command| command.as_str().is_some_and(|command| command.starts_with("/init"))))
    };
    let deadline = Instant::now() + caddis_testkit::DEADLINE;
    while !on_its_way().await? {
        anyhow::ensure!(Instant::now() < deadline, "it does not wait");
    }
    machine.post("/signal", json!({ "signal": "SIGUSR1" })).await?.ok()?;
    waits.expect("/made/by/nobody/deep").await?;
    assert_eq!(waits.end().await?.code(), Some(0));
    machine.destroy().await?;

    // /etc leads to nowhere: what it leads to is made.
    let nowhere = [Entry::Link("etc", "/no/where")];
    let machine = stand.machine(config(push("nowhere", &nowhere, "")?)).await?;
    machine.logged("ready in /").await?;
    assert!(machine.shell("cat /no/where/hosts").await?.contains("localhost"));
    machine.destroy().await?;

    // A working directory without a slash in front is meant from the root.
    let relative = stand.machine(config(push("relative", &[], "made/here")?)).await?;
    relative.logged("ready in /made/here").await?;
    relative.destroy().await?;

    // What can't be replaced is named.
    let full =
        [Entry::Directory("etc/"), Entry::Directory("etc/hosts/"), Entry::File("etc/hosts/x", "x")];
    let no_entries: &[Entry] = &[];
    for (name, entries, directory, told) in [
        (
            "nodirectory",
            no_entries,
            "/bin/busybox",
            "can't enter the working directory /bin/busybox: /bin/busybox is a file",
        ),
        (
            "nothere",
            no_entries,
            "/bin/busybox/x",
            "can't enter the working directory /bin/busybox/x: /bin/busybox is a file",
        ),
        ("full", &full[..], "", "can't write /etc/hosts: the image has a directory there"),
        (
            "proclink",
            &[Entry::Link("proc", "/bin")][..],
            "",
            "/proc is a symbolic link in the image",
        ),
        (
            "etcfifo",
            &[Entry::Fifo("etc")][..],
            "",
            "/etc is a FIFO in the image, where a directory is needed",
        ),
    ] {
        let machine = stand.machine(config(push(name, entries, directory)?)).await?;
        machine.wait("settled").await?;
        let shown = machine.get().await?;
        assert!(shown["state"] == "failed" && shown.to_string().contains(told), "{name}: {shown}");
    }
    stand.server.until_no_vm().await
}

#[tokio::test]
async fn programs_have_room_for_files_and_processes_and_reach_their_streams_as_any_user()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let limits = "echo files $(ulimit -n) $(ulimit -Hn) processes $(ulimit -u) $(ulimit -Hu)";
    // Both streams, opened anew by who is neither root nor their owner.
    let script = format!(
        "{limits}; su -s /bin/sh www -c '
            id -un; echo by name >/dev/stdout; echo by number >/proc/self/fd/2; echo appended \
         >>/dev/stderr'
         cat /proc/sys/fs/file-max; exec sleep 1000"
    );
    let machine = stand.script(&script, json!({})).await?;
    machine.logged("files 10240 1048576 processes unlimited unlimited").await?;
    for line in ["www", "by name", "by number", "appended"] {
        machine.logged(line).await?;
    }
    machine.logged(&i64::MAX.to_string()).await?;
    let exec = machine.exec(&["/bin/sh", "-c", limits]).await?;
    assert_eq!(exec.stdout, "files 10240 1048576 processes unlimited unlimited\n", "{exec:?}");

    // On a terminal too, and with other limits.
    let ulimits =
        json!({ "nofile": { "soft": 2048, "hard": 2_000_000 }, "nproc": { "soft": 100 } });
    let more =
        json!({ "init": { "cmd": ["/bin/sh", "-c", script], "tty": true, "ulimits": ulimits } });
    let terminal = stand.script(&script, more).await?;
    terminal.logged("files 2048 2000000 processes 100 unlimited").await?;
    for line in ["by name", "by number"] {
        terminal.logged(line).await?;
    }
    let wrong = json!({
        "image": stand.busybox()?,
        "init": { "ulimits": { "nofile": { "soft": 5000, "hard": 4000 } } },
    });
    let refused = stand
        .server
        .api()
        .post(&format!("/v1/apps/{APP}/machines"), json!({ "config": wrong }))
        .await?;
    assert!(
        refused.status == 400 && refused.text.contains("config.init.ulimits.nofile"),
        "{}",
        refused.text
    );
    Ok(())
}

#[tokio::test]
async fn no_character_is_cut_and_a_line_that_is_says_so() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    // A character whose bytes come a second apart, a line of 42 000 bytes, and one that ends within
    // a character.
    let script = "yes 日 | head -n 14000 | tr -d '\\n' >/tmp/long; echo >>/tmp/long
                  printf 'begun \\346\\227'; sleep 1; printf '\\245 ended\\n'
                  cat /tmp/long; echo complete; printf 'cut off \\346'";
    for tty in [false, true] {
        let command = ["/bin/sh", "-c", script];
        let machine =
            stand.script(script, json!({ "init": { "cmd": command, "tty": tty } })).await?;
        machine.wait("stopped").await?;
        machine.logged("complete").await?;
        let path = format!("/api/v1/apps/{APP}/logs?instance={}", machine.id());
        let page = stand.server.api().get(&path).await?.ok()?;
        let lines = page["data"].as_array().into_iter().flatten().map(|entry| &entry["attributes"]);
        let lines: Vec<_> =
            lines.filter(|line| line["meta"]["event"]["provider"] == "app").collect();
        let text =
            |line: &serde_json::Value| line["message"].as_str().unwrap_or_default().to_owned();
        let all: Vec<_> = lines.iter().map(|line| text(line)).collect();
        let at = |wanted: &str| all.iter().position(|line| line == wanted);
        let (ended, complete) =
            (at("日 ended").unwrap_or_default(), at("complete").unwrap_or_default());
        assert!(
            all[0] == "begun "
                && ended == 1
                && all.last().is_some_and(|last| last == "cut off \u{fffd}"),
            "{all:?}"
        );
        let long = &lines[ended + 1..complete];
        assert_eq!(
            long.iter().map(|line| text(line)).collect::<String>(),
            "日".repeat(14_000),
            "tty: {tty}"
        );
        let partial: Vec<_> = long.iter().map(|line| line["partial"] == true).collect();
        assert!(
            partial.first() == Some(&true) && partial.last() == Some(&false),
            "tty: {tty}, {partial:?}"
        );
        let shown =
            stand.server.cli(&["logs", "-a", APP, "--machine", machine.id(), "--no-tail"]).await?;
        assert!(
            shown.stdout.contains("日 [line cut, continues]\n")
                && shown.stdout.contains("begun \n"),
            "{shown:?}"
        );
    }
    Ok(())
}

/// Each start, from a template or not, has the same devices in the same order.
#[tokio::test]
async fn the_root_is_the_first_disk_and_those_that_a_machine_has_not_are_empty() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let look = "for disk in /sys/block/vd*; do echo $(cat $disk/serial) $(cat $disk/size); done";
    let expected = ["caddis-root", "caddis-swap 0", "caddis-cache 0", "caddis-volume0 0"];
    let cold = json!({ "init": { "cmd": ["sleep", "1000"], "kernel_args": ["loglevel=4"] } });
    for more in [json!({}), cold] {
        let machine = stand.script("exec sleep 1000", more).await?;
        machine.wait("started").await?;
        let found = machine.shell(look).await?;
        let disks: Vec<_> = found.lines().collect();
        assert_eq!(disks.len(), 5, "{found}");
        for (disk, expected) in disks.iter().zip(expected) {
            assert!(disk.starts_with(expected), "{found}");
        }
        machine.destroy().await?;
    }
    Ok(())
}
