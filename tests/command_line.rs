//! The main job with the real command line, as a person does it.

use anyhow::Result;
use caddis_testkit::{Host, Output};
use serde_json::Value;

use crate::stand::Stand;

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

    let output = server.cli(&["machine", "run", &image, "-a", "hello", "--name", "web", "-e", "COLOUR=red"]).await?;
    let output = ok(output);
    assert!(output.contains("Success! A Machine has been successfully launched in app hello"), "{output}");
    let id = output.lines().find_map(|line| line.trim().strip_prefix("Machine ID: ")).unwrap_or_default().to_owned();
    assert_eq!(id.len(), 14, "{output}");
    let machine = server.machine("hello", &id);
    assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");

    let listed: Value = serde_json::from_str(&ok(server.cli(&["machine", "list", "-a", "hello", "--json"]).await?))?;
    assert_eq!((&listed[0]["id"], &listed[0]["name"]), (&Value::from(&*id), &Value::from("web")));
    let quiet = ok(server.cli(&["machine", "list", "-a", "hello", "-q"]).await?);
    assert_eq!(quiet.trim(), id);
    let exec =
        server.cli(&["machine", "exec", &id, "sh -c 'echo $COLOUR; echo bad >&2; exit 4'", "-a", "hello"]).await?;
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
    for part in [&*format!("Machine ID: {id}"), "State: started", "Event Logs", "exit_code=", "requested_stop=true"] {
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
async fn doctor_finds_this_host_fit_and_says_what_emulation_means() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let data = stand.server.data_directory();
    let output = stand.server.cli(&["doctor", "--json", "--data-dir", &data.to_string_lossy()]).await?;
    let report: Value = serde_json::from_str(&output.stdout)?;
    assert!(report.to_string().contains("emulation") || report.to_string().contains("kvm"), "{report}");
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
    let taken = stand.server.cli(&["serve", "--data-dir", &data.to_string_lossy(), "--listen", "127.0.0.1:0"]).await?;
    assert_eq!(taken.code, Some(1), "{taken:?}");
    assert!(taken.stderr.contains("in use by a running caddis serve"), "{taken:?}");
    let other = host.path("other");
    let serve = ["serve", "--data-dir", &other.to_string_lossy(), "--listen"];
    let port = stand.server.cli(&[&serve[..], &["127.0.0.1:4280"]].concat()).await?;
    assert!(port.code == Some(1) && port.stderr.contains("can't listen on 127.0.0.1:4280"), "{port:?}");
    let unknown = stand.server.cli(&[&serve[..], &["127.0.0.1:0", "--config", "/no/such.toml"]].concat()).await?;
    assert!(unknown.code == Some(1) && unknown.stderr.contains("/no/such.toml"), "{unknown:?}");
    if std::env::var("CADDIS_TEST_ACCELERATOR").is_ok_and(|accelerator| accelerator == "kvm") {
        return Ok(());
    }
    // Where KVM works it would serve, so this is for hosts without.
    let open = stand.server.cli(&[&serve[..], &["0.0.0.0:0", "--accelerator", "auto"]].concat()).await?;
    assert_eq!(open.code, Some(1), "{open:?}");
    assert!(open.stderr.contains("--accelerator emulation"), "{open:?}");
    Ok(())
}
