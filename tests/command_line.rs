//! The main job with the real command line, as a person does it.

use anyhow::Result;
use caddis_testkit::{Host, Options, Output, Server};
use serde_json::Value;

use crate::stand::{APP, Stand};

#[track_caller]
fn ok(output: Output) -> String {
    assert_eq!(output.code, Some(0), "{output:?}");
    output.stdout
}

#[tokio::test]
async fn the_command_line_does_the_main_job() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let server = &stand.server;
    let image = stand.web()?;
    let created = ok(server.cli(&["apps", "create", "hello"]).await?);
    assert!(created.contains("New app created: hello"), "{created}");
    assert!(ok(server.cli(&["apps", "list"]).await?).contains("hello"));

    let output = server
        .cli(&["machine", "run", &image, "-a", "hello", "--name", "web", "-e", "COLOUR=red"])
        .await?;
    let output = ok(output);
    assert!(
        output.contains("Success! A Machine has been successfully launched in app hello"),
        "{output}"
    );
    let id = output
        .lines()
        .find_map(|line| line.trim().strip_prefix("Machine ID: "))
        .unwrap_or_default()
        .to_owned();
    assert_eq!(id.len(), 14, "{output}");
    let machine = server.machine("hello", &id);
    assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");

    let listed: Value = serde_json::from_str(&ok(server
        .cli(&["machine", "list", "-a", "hello", "--json"])
        .await?))?;
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&Value::from(&*id), &Value::from("web")));
    let quiet = ok(server.cli(&["machine", "list", "-a", "hello", "-q"]).await?);
    assert_eq!(quiet.trim(), id);
    let exec = server
        .cli(&["machine", "exec", &id, "sh -c 'echo $COLOUR; echo bad >&2; exit 4'", "-a", "hello"])
        .await?;
    assert!(exec.stdout.contains("Exit code: 4") && exec.stdout.contains("red"), "{exec:?}");
    assert!(exec.stderr.contains("bad"), "{exec:?}");
    let logs = ok(server.cli(&["logs", "-a", "hello", "--no-tail"]).await?);
    assert!(logs.contains(&format!("app[{id}] local [")), "{logs}");

    let refused = server.cli(&["machine", "destroy", &id, "-a", "hello"]).await?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("either stop first or use --force flag"), "{refused:?}");
    let stopped = ok(server.cli(&["machine", "stop", &id, "-a", "hello", "-w", "60s"]).await?);
    assert!(stopped.contains(&format!("{id} has been successfully stopped")), "{stopped}");
    let started = ok(server.cli(&["machine", "start", &id, "-a", "hello"]).await?);
    assert!(started.contains(&format!("{id} has been started")), "{started}");
    machine.wait("started").await?;
    let status = ok(server.cli(&["machine", "status", &id, "-a", "hello"]).await?);
    for part in [
        &*format!("Machine ID: {id}"),
        "State: started",
        "Event Logs",
        "exit_code=",
        "requested_stop=true",
    ] {
        assert!(status.contains(part), "no {part:?} in {status}");
    }
    let destroyed = ok(server.cli(&["machine", "destroy", &id, "-a", "hello", "--force"]).await?);
    assert!(destroyed.contains(&format!("{id} has been destroyed")), "{destroyed}");
    ok(server.cli(&["apps", "destroy", "hello", "-y"]).await?);
    assert!(!ok(server.cli(&["apps", "list"]).await?).contains("hello"));

    let unknown = server.cli(&["machine", "list", "-a", "hello"]).await?;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.starts_with("Error: "), "{unknown:?}");
    Ok(())
}

#[tokio::test]
async fn a_machine_is_changed_copied_and_watched_by_command() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let (server, image) = (&stand.server, stand.busybox()?);
    let id_in = |output: &str, before: &str, after: &str| {
        let id = output.lines().find_map(|line| {
            line.trim().strip_prefix(before)?.strip_suffix(after).map(str::to_owned)
        });
        id.unwrap_or_else(|| panic!("no id in {output}"))
    };
    let run = [
        "machine",
        "run",
        &image,
        "-a",
        APP,
        "--name",
        "worker",
        "-e",
        "COLOUR=red",
        "--restart",
        "no",
        "--",
    ];
    let output = ok(server.cli(&[run.as_slice(), &["sleep", "1000"]].concat()).await?);
    let id = id_in(&output, "Machine ID: ", "");
    let colour = async |id: &str| -> Result<String> {
        Ok(ok(server.cli(&["machine", "exec", id, "sh -c 'echo $COLOUR'", "-a", APP]).await?)
            .trim()
            .to_owned())
    };
    assert_eq!(colour(&id).await?, "red");

    let update = [
        "machine",
        "update",
        "worker",
        "-a",
        APP,
        "-e",
        "COLOUR=blue",
        "--vm-memory",
        "512",
        "--yes",
    ];
    let output = ok(server.cli(&update).await?);
    assert!(output.contains(&format!("Machine {id} updated successfully!")), "{output}");
    assert_eq!(colour(&id).await?, "blue");
    let memory =
        ok(server.cli(&["machine", "exec", &id, "grep MemTotal /proc/meminfo", "-a", APP]).await?);
    let kib: u64 = memory.split_whitespace().nth(1).unwrap_or_default().parse()?;
    assert!(kib > 400_000, "{memory}");

    let clone = ["machine", "clone", "worker", "-a", APP, "--name", "copy", "--vm-memory", "256"];
    let output = ok(server.cli(&clone).await?);
    assert!(output.contains("Machine has been successfully cloned!"), "{output}");
    let copy = id_in(&output, "Machine ", " has been created...");
    assert_eq!(colour(&copy).await?, "blue");

    // One of them works, the other sleeps.
    let busy = "sh -c 'while :; do :; done > /dev/null 2>&1 &'";
    ok(server.cli(&["machine", "exec", "copy", busy, "-a", APP]).await?);
    let top = ok(server.cli(&["machine", "top", "-a", APP, "--once", "--interval", "2"]).await?);
    let rows: Vec<Vec<_>> =
        top.lines().skip(2).map(|line| line.split('│').map(str::trim).collect()).collect();
    assert_eq!((rows[0][0], rows[1][0]), (&*copy, &*id), "the busiest is first: {top}");
    for row in &rows[..2] {
        let percent: f64 = row[3].trim_end_matches('%').parse()?;
        assert!((0.0..=200.0).contains(&percent), "{top}");
        let memory: u64 = row[5].trim_end_matches(" MiB").parse()?;
        assert!((10..600).contains(&memory), "{top}");
    }
    let load = |row: &[&str]| row[3].trim_end_matches('%').parse::<f64>();
    assert!(load(&rows[0])? > load(&rows[1])?, "{top}");

    // Both at once.
    let stopped =
        ok(server.cli(&["machine", "stop", "worker", &copy, "-a", APP, "-w", "60s"]).await?);
    for id in [&id, &copy] {
        assert!(stopped.contains(&format!("{id} has been successfully stopped")), "{stopped}");
    }
    Ok(())
}

#[tokio::test]
async fn the_demo_shows_a_machine_without_any_registry_and_cleans_up() -> Result<()> {
    let host = Host::new().await?;
    let server = Server::start(&host, Options::default()).await?;
    let output = ok(server.cli(&["demo"]).await?);
    for words in [
        "caddis-demo:",
        "Hello from a virtual machine.",
        "  memory   ",
        " has been up for ",
        " started after ",
        "Removed the machine, app demo-",
    ] {
        assert!(output.contains(words), "{words:?} is not in {output}");
    }
    server.until_no_vm().await?;
    assert!(ok(server.cli(&["apps", "list"]).await?).contains("No apps found"));
    assert_eq!(ok(server.cli(&["image", "list", "--json"]).await?).trim(), "[]");

    let mut demo = server.terminal(&["demo"], 90, 40)?;
    demo.expect("Show its log").await?;
    demo.send("\u{3}").await?;
    assert_eq!(demo.end().await?.code(), Some(127), "{}", demo.screen());
    server.until_no_vm().await?;
    assert!(ok(server.cli(&["apps", "list"]).await?).contains("No apps found"));

    let kept = ok(server.cli(&["demo", "--keep"]).await?);
    let app = kept
        .lines()
        .find_map(|line| line.trim().strip_prefix("caddis logs -a "))
        .unwrap_or_default();
    assert!(
        ok(server.cli(&["logs", "-a", app, "--no-tail"]).await?)
            .contains("Hello from a virtual machine.")
    );
    ok(server.cli(&["apps", "destroy", app, "--yes"]).await?);
    ok(server.cli(&["image", "rm", &app.replace("demo-", "caddis-demo:")]).await?);
    Ok(())
}

#[tokio::test]
async fn doctor_finds_this_host_fit_and_says_what_emulation_means() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let data = stand.server.data_directory();
    let output =
        stand.server.cli(&["doctor", "--json", "--data-dir", &data.to_string_lossy()]).await?;
    let report: Value = serde_json::from_str(&output.stdout)?;
    assert!(
        report.to_string().contains("emulation") || report.to_string().contains("kvm"),
        "{report}"
    );
    Ok(())
}

#[tokio::test]
async fn a_backup_brings_back_what_was_known() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let data = stand.server.data_directory();
    let data = data.to_string_lossy();
    let backup = host.path("backup.tar");
    let backup = backup.to_string_lossy();
    stand.server.api().create_app("before", None).await?;
    ok(stand.server.cli(&["backup", &backup, "--data-dir", &data]).await?);
    stand.server.api().create_app("after", None).await?;
    stand.server.terminate().await?;
    ok(stand.server.cli(&["restore", &backup, "--data-dir", &data, "--force"]).await?);
    stand.server.launch().await?;
    assert_eq!(stand.server.api().get("/v1/apps/before").await?.status, 200);
    assert_eq!(stand.server.api().get("/v1/apps/after").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_server_refuses_to_start_where_it_would_do_harm() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let data = stand.server.data_directory();
    let taken = stand
        .server
        .cli(&["serve", "--data-dir", &data.to_string_lossy(), "--listen", "127.0.0.1:0"])
        .await?;
    assert_eq!(taken.code, Some(1), "{taken:?}");
    assert!(taken.stderr.contains("in use by a running caddis serve"), "{taken:?}");
    let other = host.path("other");
    let serve = ["serve", "--data-dir", &other.to_string_lossy(), "--listen"];
    let port = stand.server.cli(&[&serve[..], &["127.0.0.1:4280"]].concat()).await?;
    assert!(
        port.code == Some(1) && port.stderr.contains("can't listen on 127.0.0.1:4280"),
        "{port:?}"
    );
    let unknown = stand
        .server
        .cli(&[&serve[..], &["127.0.0.1:0", "--config", "/no/such.toml"]].concat())
        .await?;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("/no/such.toml"), "{unknown:?}");
    if std::env::var("CADDIS_TEST_ACCELERATOR").is_ok_and(|accelerator| accelerator == "kvm") {
        return Ok(());
    }
    // Where KVM works it would serve, so this is for hosts without.
    let open =
        stand.server.cli(&[&serve[..], &["0.0.0.0:0", "--accelerator", "auto"]].concat()).await?;
    assert_eq!(open.code, Some(1), "{open:?}");
    assert!(open.stderr.contains("--accelerator emulation"), "{open:?}");
    Ok(())
}
