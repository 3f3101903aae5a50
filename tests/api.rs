//! Bad input, and clients that get in each other's way.

use anyhow::Result;
use caddis_testkit::{Api, Host, Options, Server, process, run};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::stand::{APP, Stand, rounds};

#[tokio::test]
async fn bad_input_is_refused_with_the_field_and_the_limit() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let api = stand.server.api();
    let image = stand.busybox()?;
    let machines = format!("/v1/apps/{APP}/machines");
    for (config, status, text) in [
        (json!({ "image": image, "guest": { "cpus": 3 } }), 400, "config.guest.cpus"),
        (json!({ "image": image, "guest": { "cpu_kind": "turbo" } }), 400, "config.guest.cpu_kind"),
        (
            json!({ "image": image, "guest": { "cpus": 1, "memory_mb": 1 } }),
            400,
            "minimum required 256 MiB",
        ),
        (
            json!({ "image": image, "guest": { "cpus": 1, "memory_mb": 999_936 } }),
            400,
            "cannot exceed 2048 MiB",
        ),
        (json!({ "image": image, "guest": { "memory_mb": "much" } }), 400, "memory_mb"),
        (json!({ "image": image, "env": ["A=B"] }), 400, "env"),
        (json!({ "image": image, "restart": { "policy": "sometimes" } }), 400, "restart"),
        (json!({ "image": image, "stop_config": { "signal": "SIGSTOPIT" } }), 400, "signal"),
        (json!({ "image": image, "stop_config": { "timeout": "1 hour" } }), 400, "timeout"),
        (
            json!({ "image": image, "files": [{ "guest_path": "relative", "raw_value": "" }] }),
            400,
            "guest_path",
        ),
        (
            json!({ "image": image, "files": [{ "guest_path": "/f", "raw_value": "%%" }] }),
            400,
            "raw_value",
        ),
        (json!({}), 400, "image"),
        (json!("text"), 400, "config"),
    ] {
        let reply = api.post(&machines, json!({ "config": config })).await?;
        assert_eq!(reply.status, status, "{config}: {}", reply.text);
        assert!(reply.error().contains(text), "{config}: {}", reply.text);
        assert!(
            reply.body["code"].is_string() && reply.body["retryable"].is_boolean(),
            "{}",
            reply.text
        );
        assert!(reply.headers.contains_key("fly-request-id"));
    }
    let broken = api.send(Method::POST, &machines, &[], Some("{".into())).await?;
    assert_eq!(broken.status, 400, "{}", broken.text);
    let oversized = json!({ "config": { "image": image, "env": { "A": "x".repeat(64 << 20) } } });
    assert_eq!(api.post(&machines, oversized).await?.status, 413);

    let taken = api.post("/v1/apps", json!({ "name": APP, "org_slug": "personal" })).await?;
    assert_eq!(
        (taken.status, &taken.body["status"]),
        (422, &json!("name_taken")),
        "{}",
        taken.text
    );
    assert!(taken.error().contains("Name has already been taken"), "{}", taken.text);
    let illegal =
        api.post("/v1/apps", json!({ "name": "No_Good", "org_slug": "personal" })).await?;
    assert_eq!(illegal.status, 422, "{}", illegal.text);

    for (path, status, text) in [
        ("/v1/apps/unknown", 404, "Could not find App"),
        ("/v1/apps/unknown/machines", 404, "Could not find App"),
        ("/v1/apps/test/machines/nonsense", 400, "invalid machine ID, 'nonsense'"),
        ("/v1/apps/test/machines/00000000000000", 404, "machine not found"),
        ("/v1/apps/test/machines?limit=-1", 400, "limit"),
        ("/v1/nothing", 404, ""),
    ] {
        let reply = api.get(path).await?;
        assert_eq!(reply.status, status, "{path}: {}", reply.text);
        assert!(reply.error().contains(text), "{path}: {}", reply.text);
    }
    let listed = api.get(&machines).await?.ok()?;
    assert_eq!(listed, json!([]), "nothing came of it");
    Ok(())
}

#[tokio::test]
async fn without_a_valid_token_only_the_open_paths_answer() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let token = stand.server.api().token().unwrap_or_default();
    let base = stand.server.api().url("");
    let anonymous = Api::new(base, None)?;
    for header in [
        None,
        Some("Bearer wrong"),
        Some(""),
        Some("Basic dGVzdA=="),
        Some("FlyV1 wrong,also-wrong"),
    ] {
        let headers: Vec<_> = header.map(|value| ("authorization", value)).into_iter().collect();
        for path in ["/v1/apps?org_slug=personal", "/v1/apps/unknown", "/v1/apps/test/machines"] {
            let reply = anonymous.send(Method::GET, path, &headers, None).await?;
            assert_eq!(reply.status, 401, "{path} with {header:?}: {}", reply.text);
        }
    }
    for scheme in ["Bearer ", "FlyV1 ", ""] {
        let value = format!("{scheme}{token}");
        let reply = anonymous
            .send(Method::GET, "/v1/apps/test", &[("authorization", &value)], None)
            .await?;
        assert_eq!(reply.status, 200, "{scheme}: {}", reply.text);
    }
    assert_eq!(anonymous.get("/healthz").await?.status, 200);
    assert_eq!(anonymous.get("/v1/platform/regions").await?.ok()?["regions"][0]["code"], "local");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(stand.server.data_directory().join("root.token"))?.permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    let log = stand.server.log();
    assert!(!log.contains(token), "no token in the log");
    let mut requests = log.lines().filter(|line| line.contains(" request request_id=")).peekable();
    assert!(requests.peek().is_some(), "{log}");
    assert!(
        requests.all(|line| line.contains(" DEBUG ")),
        "a terminal with a server in the background stays usable: {log}"
    );
    Ok(())
}

#[tokio::test]
async fn two_clients_that_start_and_stop_one_machine_leave_it_whole() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.machine(json!({ "image": stand.busybox()? })).await?;
    machine.wait("started").await?;
    let client = async |first: &'static str, second: &'static str| -> Result<Vec<u16>> {
        let api = Api::new(stand.server.api().url(""), stand.server.api().token())?;
        let mut statuses = Vec::new();
        for round in 0..rounds(8, 100) {
            let action = if round % 2 == 0 { first } else { second };
            let reply = api.post(&machine.path(action), Value::Null).await?;
            assert!(
                matches!(reply.status, 200 | 409 | 412),
                "{action}: {} {}",
                reply.status,
                reply.text
            );
            statuses.push(reply.status);
            machine.wait("settled").await?;
        }
        Ok(statuses)
    };
    let (one, two) = tokio::try_join!(client("/stop", "/start"), client("/start", "/stop"))?;
    assert!(one.iter().chain(&two).any(|status| *status == 200), "{one:?} {two:?}");

    machine.wait("settled").await?;
    let state = machine.get().await?["state"].clone();
    if state == "stopped" {
        stand.server.until_no_vm().await?;
    } else {
        assert_eq!((&state, stand.server.vms().len()), (&json!("started"), 1));
    }
    machine.start().await?;
    machine.wait("started").await?;
    assert_eq!(machine.exec(&["/bin/true"]).await?.code, 0);
    assert_eq!(stand.server.vms().len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_lease_keeps_others_from_changing_a_machine() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let api = stand.server.api();
    let body = json!({ "config": { "image": stand.busybox()? }, "skip_launch": true });
    let machine = api.create_machine_from(APP, body).await?;
    machine.wait("settled").await?;
    assert_eq!(api.get(&machine.path("/lease")).await?.status, 404);

    let lease = api.post(&machine.path("/lease?ttl=60"), Value::Null).await?;
    assert_eq!((lease.status, &lease.body["status"]), (201, &json!("success")), "{}", lease.text);
    let nonce = lease.body["data"]["nonce"].as_str().unwrap_or_default().to_owned();
    for (method, path) in [
        (Method::POST, machine.path("/start")),
        (Method::POST, machine.path("/stop")),
        (Method::POST, machine.path("/lease")),
        (Method::DELETE, machine.path("?force=true")),
    ] {
        let reply = api.send(method, &path, &[], None).await?;
        assert_eq!(reply.status, 409, "{path}: {}", reply.text);
        assert!(reply.error().contains("lease currently held by"), "{path}: {}", reply.text);
    }
    let held = [("fly-machine-lease-nonce", nonce.as_str())];
    let refreshed = api.send(Method::POST, &machine.path("/lease?ttl=60"), &held, None).await?;
    assert_eq!(refreshed.body["data"]["nonce"], nonce, "{}", refreshed.text);
    assert_eq!(api.send(Method::DELETE, &machine.path("/lease"), &held, None).await?.status, 200);
    let gone = api.get(&machine.path("/lease")).await?;
    assert_eq!(gone.status, 404);
    assert!(gone.error().contains("lease not found"), "{}", gone.text);
    api.delete(&machine.path("?force=true")).await?.ok()?;
    Ok(())
}

#[tokio::test]
async fn health_tells_why_requests_would_fail() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let api = stand.server.api();
    assert_eq!(api.get("/healthz").await?.status, 200);
    let (boot, away) =
        (stand.server.data_directory().join("boot"), stand.server.data_directory().join("away"));
    std::fs::rename(&boot, &away)?;
    let sick = api.get("/healthz").await?;
    assert_eq!(sick.status, 503, "{}", sick.text);
    assert!(sick.text.contains("vmlinux"), "{}", sick.text);
    std::fs::rename(&away, &boot)?;
    assert_eq!(api.get("/healthz").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_host_with_too_little_disk_says_so_and_takes_no_machine() -> Result<()> {
    let host = Host::new().await?;
    let arguments = vec!["--reserved-disk-mb".to_owned(), "999999999".to_owned()];
    let stand = Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let sick = stand.server.api().get("/healthz").await?;
    assert_eq!(sick.status, 503, "{}", sick.text);
    let refused = stand
        .server
        .api()
        .post(&format!("/v1/apps/{APP}/machines"), json!({ "config": { "image": "x" } }))
        .await?;
    assert!(refused.status >= 400 && refused.error().contains("disk"), "{}", refused.text);
    Ok(())
}

/// Connections to the server on which nothing is said, or half a request.
async fn crowd(count: usize) -> Result<Vec<TcpStream>> {
    let mut crowd = Vec::new();
    for number in 0..count {
        let mut stream = TcpStream::connect(Server::LISTEN).await?;
        if number % 2 == 0 {
            // The server may have closed it already.
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n").await;
        }
        crowd.push(stream);
    }
    Ok(crowd)
}

#[tokio::test]
async fn hundreds_of_idle_connections_leave_descriptors_for_others_and_for_machines() -> Result<()>
{
    let host = Host::new().await?;
    let stand = Stand::with(&host, Options { open_files: Some(256), ..Options::default() }).await?;
    let server = &stand.server;
    let before = process::descriptors(server.pid()?).len();
    let first = crowd(400).await?;
    let health = server.cli(&["apps", "list"]).await?;
    assert_eq!(health.code, Some(0), "{health:?}");
    let machine = stand
        .machine(json!({ "image": stand.busybox()?, "init": { "cmd": ["sleep", "inf"] } }))
        .await?;
    machine.wait("started").await?;
    assert_eq!(machine.shell("echo here").await?, "here\n");
    let held = process::descriptors(server.pid()?).len();
    assert!(held < 256, "{held} of 256 are open");

    // None at all are left: idle connections are closed for those that come.
    let pid = server.pid()?.to_string();
    let limit = |files: usize| run(["prlimit", "--pid", &pid, &format!("--nofile={files}:256")]);
    limit(before + 10)?;
    let second = crowd(400).await?;
    for _ in 0..3 {
        let health = server.cli(&["apps", "list"]).await?;
        assert_eq!(health.code, Some(0), "{health:?}");
    }
    server.until_logged("can't accept connections", 1).await?;
    limit(256)?;
    drop((first, second));
    assert_eq!(machine.shell("echo there").await?, "there\n");
    machine.destroy().await?;
    Ok(())
}

/// Memory of its own that a process has, KiB.
fn own_memory(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test]
async fn large_configurations_cost_no_memory_once_they_are_refused_or_their_machines_gone()
-> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::with(
        &host,
        Options { arguments: vec!["--pool".into(), "0".into()], ..Options::default() },
    )
    .await?;
    let image = stand.busybox()?;
    let (api, path) = (stand.server.api(), format!("/v1/apps/{APP}/machines"));
    let small = json!({ "config": { "image": image }, "skip_launch": true });
    let machine = api.create_machine_from(APP, small).await?;
    machine.wait("created").await?;
    let before = own_memory(stand.server.pid()?)?;

    let unknown: Vec<_> = (0..1_500_000).map(|_| 1).collect();
    let large = json!({ "config": { "image": image, "unknown": unknown }, "skip_launch": true });
    let content = "A".repeat(4 << 20);
    let files = json!([{ "guest_path": "/a", "raw_value": content }]);
    let config = json!({ "image": image, "files": files, "unknown": vec![1; 30_000] });
    let kept = json!({ "config": config, "skip_launch": true });
    for _ in 0..6 {
        let refused = api.post(&path, large.clone()).await?;
        assert!(
            refused.status == 400 && refused.error().contains("cannot exceed 65536"),
            "{}",
            refused.text
        );
        let machine = api.create_machine_from(APP, kept.clone()).await?;
        machine.wait("created").await?;
        machine.destroy().await?;
        let shown = machine.get().await?;
        assert_eq!(
            shown["config"]["files"][0]["guest_path"], "/a",
            "it is kept, though not in memory"
        );
    }
    // One such configuration took 250 MB, for good.
    let grown = own_memory(stand.server.pid()?)?.saturating_sub(before) >> 10;
    assert!(grown < 96, "{grown} MiB more than before");
    Ok(())
}
