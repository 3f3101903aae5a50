//! Sessions in real machines, from the command line on a pseudo-terminal.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Instant};

use anyhow::Result;
use caddis_testkit::{Host, Machine, Terminal, images};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng as _;
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// A machine that does nothing by itself.
async fn idle(stand: &Stand<'_>) -> Result<Machine> {
    let machine = stand.script("echo ready; exec sleep 1000000", json!({})).await?;
    machine.logged("ready").await?;
    Ok(machine)
}

/// Waits until so many processes of a machine have a command line that begins so.
async fn until_processes(
    stand: &Stand<'_>,
    machine: &Machine,
    command: &str,
    count: usize,
) -> Result<()> {
    let deadline = Instant::now() + caddis_testkit::DEADLINE;
    loop {
        let processes = stand.server.api().get(&machine.path("/ps")).await?.ok()?;
        let commands = processes
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|process| process["command"].as_str());
        if commands.filter(|found| found.starts_with(command)).count() == count {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "not {count} times '{command}': {processes}");
    }
}

/// A shell in a machine, at its prompt.
async fn console(stand: &Stand<'_>, machine: &Machine) -> Result<Terminal> {
    let arguments = ["ssh", "console", "-a", APP, "--machine", machine.id()];
    let mut console = stand.server.terminal(&arguments, 100, 30)?;
    console.expect("complete").await?;
    console.expect("# ").await?;
    assert!(console.is_raw()?, "keys are the machine's affair");
    Ok(console)
}

#[tokio::test]
async fn a_console_is_a_terminal_in_full() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = idle(&stand).await?;
    let mut console = console(&stand, &machine).await?;

    console.send("stty size; tty; echo $TERM $HOME; id -u\r").await?;
    for part in ["30 100\r\n", "/dev/pts/", "xterm /root\r\n", "0\r\n"] {
        console.expect(part).await?;
    }
    console.resize(72, 19)?;
    // The new size is under way on its own; the shell is asked until it has come.
    console
        .send("until [ \"$(stty size)\" = '19 72' ]; do usleep 20000; done; echo re\"\"sized\r")
        .await?;
    console.expect("resized\r\n").await?;

    // Ctrl-C ends a program and not the shell, Ctrl-Z stops one.
    // Keys go to the shell itself until the program has its own process group.
    console.send("sleep 3000\r").await?;
    until_processes(&stand, &machine, "sleep 3000", 1).await?;
    console.send("\x03").await?;
    console.send("echo af\"\"ter\r").await?;
    console.expect("after\r\n").await?;
    console.send("sleep 2000\r").await?;
    until_processes(&stand, &machine, "sleep 2000", 1).await?;
    console.send("\x1a").await?;
    console.expect("Stopped").await?;
    console.send("kill -9 %1; wait; echo kil\"\"led\r").await?;
    console.expect("killed\r\n").await?;

    // Characters of several bytes go both ways, and erasing one erases all of it.
    console.send("cat >/tmp/typed\r").await?;
    machine.shell("until [ -e /tmp/typed ]; do usleep 20000; done").await?;
    console.send("żółw 日本 🐢\rxü\x7fy\r\x04").await?;
    console.send("od -An -tx1 /tmp/typed | tr -d ' \\n'; cat /tmp/typed\r").await?;
    console
        .expect("c5bcc3b3c58277 20 e697a5e69cac 20 f09f90a2 0a 78 79 0a".replace(' ', "").as_str())
        .await?;
    console.expect("żółw 日本 🐢\r\nxy\r\n").await?;

    // A large paste arrives whole, however slowly it is taken.
    let line = |number: u32| format!("{number:010} {}\n", "0123456789abcdef".repeat(3));
    let paste: String = (0..20_000).map(line).collect();
    assert!(paste.len() > 1 << 20);
    console
        .send("stty -echo; echo pas\"\"te; (sleep 1; cat) >/tmp/pasted; echo pas\"\"ted\r")
        .await?;
    console.expect("paste\r\n").await?;
    console.send(&paste).await?;
    console.send("\x04").await?;
    console.expect("pasted\r\n").await?;
    let copy = host.path("pasted");
    let got = stand
        .server
        .cli(&["sftp", "get", "/tmp/pasted", copy.to_str().unwrap_or_default(), "-a", APP])
        .await?;
    assert_eq!(got.code, Some(0), "{got:?}");
    assert!(fs::read_to_string(copy)? == paste, "what was pasted and what arrived differ");

    // And so does a large output.
    console.send("stty echo; seq 1 60000 | tail -c 300000; echo ou\"\"tput\r").await?;
    let output = console.expect("output\r\n").await?;
    assert!(output.contains("\r\n59999\r\n60000\r\n"), "{}", output.len());

    console.send("exit 7\r").await?;
    assert_eq!(console.end().await?.code(), Some(7));
    assert!(!console.is_raw()?, "the terminal is as it was");
    Ok(())
}

#[tokio::test]
async fn programs_run_with_and_without_a_terminal_and_end_with_a_lost_client() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = idle(&stand).await?;
    let server = &stand.server;
    let run = async |command: &str, more: &[&str]| {
        server.cli(&[&["ssh", "console", "-a", APP, "-C", command], more].concat()).await
    };
    let output = run("sh -c 'echo out; echo err >&2; exit 9'", &["-q"]).await?;
    assert_eq!(
        (output.code, &*output.stdout, &*output.stderr),
        (Some(9), "out\n", "err\n"),
        "{output:?}"
    );
    let output = run("id -un", &["-u", "www"]).await?;
    assert_eq!((output.code, &*output.stdout), (Some(0), "www\n"), "{output:?}");
    let output = run("tty", &["--pty", "-q"]).await?;
    assert!(output.code == Some(0) && output.stdout.starts_with("/dev/pts/"), "{output:?}");
    let output = run("no-such-program", &[]).await?;
    assert_eq!(output.code, Some(127), "{output:?}");
    assert!(
        output.stderr.contains("can't run no-such-program: there is no such program in"),
        "{output:?}"
    );
    let output = run("sh -c 'kill -9 $$'", &[]).await?;
    assert_eq!(output.code, Some(137), "{output:?}");
    let exec = ["machine", "exec", machine.id(), "sh -c 'cat; exit 4'", "-a", APP, "--interactive"];
    assert_eq!(server.cli(&exec).await?.code, Some(4));
    let mut tty = server.terminal(
        &["machine", "exec", machine.id(), "sh -c 'tty; read x; echo got $x'", "-a", APP, "--tty"],
        80,
        24,
    )?;
    tty.expect("/dev/pts/").await?;
    tty.send("word\r").await?;
    tty.expect("got word").await?;
    assert_eq!(tty.end().await?.code(), Some(0));

    // A client that vanishes takes all of its session with it, also what ignores being hung up on.
    let mut lost = console(&stand, &machine).await?;
    lost.send("sleep 4001 & (trap '' HUP; sleep 4002; :) & sleep 4003\r").await?;
    until_processes(&stand, &machine, "sleep 400", 3).await?;
    lost.kill().await?;
    until_processes(&stand, &machine, "sleep 400", 0).await?;
    // One that is told to end puts the terminal back.
    let mut told = console(&stand, &machine).await?;
    kill(Pid::from_raw(told.pid()?), Signal::SIGTERM)?;
    assert_eq!(told.end().await?.code(), Some(143));
    assert!(!told.is_raw()?);

    // With nothing to connect to.
    machine.stop().await?;
    machine.wait("stopped").await?;
    let output = run("true", &[]).await?;
    assert!(
        output.code == Some(1) && output.stderr.contains("has no started machine"),
        "{output:?}"
    );
    let output = run("true", &["--machine", machine.id()]).await?;
    assert!(
        output.code == Some(1) && output.stderr.contains("is not running, it is stopped"),
        "{output:?}"
    );
    Ok(())
}

#[tokio::test]
async fn files_are_copied_where_the_image_has_nothing_for_it() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::bare()?, "bare:1")?;
    let machine = stand.machine(json!({ "image": image })).await?;
    machine.wait("started").await?;
    let server = &stand.server;
    let sftp =
        async |arguments: &[&str]| server.cli(&[&["sftp"], arguments, &["-a", APP]].concat()).await;

    // There is no shell, and that is said.
    let mut console = server.terminal(&["ssh", "console", "-a", APP], 80, 24)?;
    console.expect("the image has no shell").await?;
    assert_eq!(console.end().await?.code(), Some(1));
    assert!(!console.is_raw()?);
    let sh = server.cli(&["ssh", "console", "-a", APP, "-C", "sh"]).await?;
    assert!(
        sh.code == Some(127) && sh.stderr.contains("can't run sh: there is no such program in"),
        "{sh:?}"
    );

    // A tree, there and back.
    let tree = host.path("tree");
    fs::create_dir_all(tree.join("deep/empty"))?;
    let mut large = vec![0; 3 << 20];
    rand::rng().fill(&mut large[..]);
    fs::write(tree.join("large"), &large)?;
    fs::write(tree.join("deep/secret"), "secret\n")?;
    fs::set_permissions(tree.join("deep/secret"), fs::Permissions::from_mode(0o600))?;
    fs::set_permissions(tree.join("deep/empty"), fs::Permissions::from_mode(0o700))?;
    std::os::unix::fs::symlink("deep/secret", tree.join("link"))?;
    let there = tree.to_str().unwrap_or_default();
    let refused = sftp(&["put", there, "/srv"]).await?;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("is a directory: use -R"),
        "{refused:?}"
    );
    let put = sftp(&["put", there, "/srv", "-R"]).await?;
    assert!(put.code == Some(0) && put.stderr.contains("written to /srv"), "{put:?}");
    let listed = sftp(&["find", "/srv"]).await?;
    let paths: Vec<_> = listed.stdout.lines().collect();
    let expected =
        ["/srv", "/srv/deep", "/srv/deep/empty", "/srv/deep/secret", "/srv/large", "/srv/link"];
    assert_eq!(paths, expected, "{listed:?}");
    let listed: Value =
        serde_json::from_str(&sftp(&["find", "/srv/deep/secret", "--json"]).await?.stdout)?;
    assert_eq!((&listed[0]["mode"], &listed[0]["size"]), (&json!(0o600), &json!(7)), "{listed}");
    let back = host.path("back");
    let back_text = back.to_str().unwrap_or_default();
    let refused = sftp(&["get", "/srv", back_text]).await?;
    assert!(
        refused.code == Some(1) && refused.stderr.contains("is a directory: use -R"),
        "{refused:?}"
    );
    let got = sftp(&["get", "-R", "/srv", back_text]).await?;
    assert_eq!(got.code, Some(0), "{got:?}");
    assert!(fs::read(back.join("large"))? == large, "the large file has changed on the way");
    let mode =
        |path: &str| fs::metadata(back.join(path)).map(|found| found.permissions().mode() & 0o7777);
    assert_eq!((mode("deep/secret")?, mode("deep/empty")?), (0o600, 0o700));
    assert_eq!(fs::read_to_string(back.join("link"))?, "secret\n");

    // Nothing is overwritten, and errors say what is wrong.
    let taken = back.join("large");
    let taken = taken.to_str().unwrap_or_default();
    let secret = tree.join("deep/secret");
    let secret = secret.to_str().unwrap_or_default();
    for (arguments, words) in [
        (vec!["get", "/srv/large", taken], "exists already"),
        (vec!["get", "/no/such"], "can't read /no/such: no such file or directory in the machine"),
        (vec!["put", "/no/such"], "no such local file or directory"),
        (vec!["put", secret, "/srv/large"], "/srv/large: it exists already"),
        (vec!["put", secret, "/no/such/place"], "no such file or directory in the machine"),
        (vec!["put", secret, "/proc/x"], "can't write /proc/x"),
        (vec!["put", secret, "/x", "-m", "999"], "octal"),
        (vec!["find", "/no/such"], "no such file or directory in the machine"),
    ] {
        let output = sftp(&arguments).await?;
        assert_eq!(output.code, Some(1), "{arguments:?} {output:?}");
        assert!(output.stderr.contains(words), "{arguments:?} {output:?}");
    }
    // One file gets 0644 or what is asked for, into a directory it goes under its name.
    assert_eq!(sftp(&["put", secret, "/srv/deep/empty", "-m", "0640"]).await?.code, Some(0));
    assert_eq!(sftp(&["put", secret]).await?.code, Some(0));
    for (path, mode) in [("/srv/deep/empty/secret", 0o640), ("/secret", 0o644)] {
        let listed: Value = serde_json::from_str(&sftp(&["find", path, "--json"]).await?.stdout)?;
        assert_eq!(listed[0]["mode"], json!(mode), "{listed}");
    }
    let here: Vec<_> =
        fs::read_dir(host.directory())?.flatten().map(|entry| entry.file_name()).collect();
    assert!(
        !here.iter().any(|name| name.to_string_lossy().starts_with(".caddis-get")),
        "nor here: {here:?}"
    );

    // A disk that gets full.
    let big = host.path("big");
    fs::File::create(&big)?.set_len(20 << 30)?;
    let full = sftp(&["put", big.to_str().unwrap_or_default(), "/dev/shm/big"]).await?;
    assert!(full.code == Some(1) && full.stderr.contains("disk is full"), "{full:?}");
    for place in ["/srv", "/dev/shm", "/dev"] {
        let left = sftp(&["find", place]).await?;
        assert!(
            left.code == Some(0) && !left.stdout.contains(".caddis-put"),
            "what failed leaves nothing: {left:?}"
        );
    }
    Ok(())
}
