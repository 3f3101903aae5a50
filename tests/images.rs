//! Where images come from, and a real distribution's image at work.

use std::fs;

use anyhow::{Context as _, Result};
use caddis_testkit::{Host, Options, PASSWORD, Registry, RegistryOptions, Server, USER, images};
use serde_json::{Value, json};

use crate::stand::{APP, Stand};

/// The body of a create that stops short of booting.
fn unlaunched(image: &str) -> Value {
    json!({ "config": { "image": image }, "skip_launch": true })
}

/// Creates a machine without booting it and returns it once its root disk is there.
async fn prepared(server: &Server<'_>, image: &str) -> Result<Value> {
    let machine = server.api().create_machine_from(APP, unlaunched(image)).await?;
    machine.wait("settled").await?;
    let shown = machine.get().await?;
    assert_ne!(shown["state"], "failed", "{shown}");
    Ok(shown)
}

#[tokio::test]
async fn a_tag_is_resolved_to_a_digest_that_can_be_pinned() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.web()?;
    let by_tag = prepared(&stand.server, &image).await?;
    let reference = &by_tag["image_ref"];
    assert_eq!(reference["registry"], stand.registry.address());
    assert_eq!((&reference["repository"], &reference["tag"]), (&json!("web"), &json!("1")));
    let digest = reference["digest"].as_str().context("a digest")?;

    // The tag moves on; the digest still means the first image.
    stand.registry.push(&images::busybox()?, "web:1")?;
    let pinned =
        prepared(&stand.server, &format!("{}/web@{digest}", stand.registry.address())).await?;
    assert_eq!(pinned["image_ref"]["digest"], digest);
    let moved = prepared(&stand.server, &image).await?;
    assert_ne!(moved["image_ref"]["digest"], digest);
    Ok(())
}

/// Changes a machine's memory by the command line; what it runs must stay what it was.
async fn changes_memory(server: &Server<'_>, machine: &Value, memory: u64) -> Result<()> {
    let id = machine["id"].as_str().context("an id")?;
    let output = server
        .cli(&["machine", "update", id, "--vm-memory", &memory.to_string(), "--yes", "-a", APP])
        .await?;
    assert_eq!(output.code, Some(0), "{output:?}");
    let shown = server.machine(APP, id).get().await?;
    assert_eq!(shown["config"]["guest"]["memory_mb"], memory);
    assert_eq!(shown["image_ref"], machine["image_ref"]);
    assert_ne!(shown["state"], "failed", "{shown}");
    Ok(())
}

/// Clones a machine without booting the clone, which must run the same.
async fn clones(server: &Server<'_>, machine: &Value, name: &str) -> Result<()> {
    let id = machine["id"].as_str().context("an id")?;
    let arguments = ["machine", "clone", id, "--name", name, "--standby-for", "source", "-a", APP];
    let output = server.cli(&arguments).await?;
    assert_eq!(output.code, Some(0), "{output:?}");
    let list = server.api().get(&format!("/v1/apps/{APP}/machines")).await?.ok()?;
    let clone = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|machine| machine["name"] == name)
        .context("the clone")?;
    let clone = server.machine(APP, clone["id"].as_str().context("an id")?);
    clone.wait("settled").await?;
    let shown = clone.get().await?;
    assert_eq!(shown["image_ref"], machine["image_ref"]);
    assert_ne!(shown["state"], "failed", "{shown}");
    Ok(())
}

#[tokio::test]
async fn a_machine_keeps_its_image_when_the_tag_moves_and_when_the_registry_is_gone() -> Result<()>
{
    let host = Host::new().await?;
    let arguments = ["--pool", "0"].map(str::to_owned).to_vec();
    let Stand { mut server, registry } =
        Stand::with(&host, Options { arguments, ..Options::default() }).await?;
    let image = registry.push(&images::web()?, "web:1")?;
    let machine = prepared(&server, &image).await?;
    registry.push(&images::busybox()?, "web:1")?;
    changes_memory(&server, &machine, 512).await?;
    drop(registry);
    changes_memory(&server, &machine, 256).await?;
    clones(&server, &machine, "twin").await?;
    server.terminate().await?;
    server.launch().await?;
    changes_memory(&server, &machine, 512).await?;

    // Other clients send what they were shown, or what they sent before.
    let id = machine["id"].as_str().context("an id")?;
    let reference = &machine["image_ref"];
    let text = |name: &str| reference[name].as_str().unwrap_or_default();
    let pinned =
        format!("{}/{}:{}@{}", text("registry"), text("repository"), text("tag"), text("digest"));
    let path = format!("/v1/apps/{APP}/machines/{id}");
    let with = |image: &str| {
        let config = json!({ "image": image, "guest": { "memory_mb": 768 } });
        json!({ "config": config, "skip_launch": true })
    };
    server.api().post(&path, with(&pinned)).await?.ok()?;
    server.machine(APP, id).wait("settled").await?;
    assert_eq!(&server.machine(APP, id).get().await?["image_ref"], reference);
    prepared(&server, &pinned).await?;
    // Who sends a tag asks what it means now.
    let asked = server.api().post(&path, with(&image)).await?;
    assert_eq!(asked.status, 504, "{}", asked.text);
    assert!(asked.error().contains(text("registry")), "{}", asked.text);
    Ok(())
}

#[tokio::test]
async fn machines_of_an_imported_image_are_updated_and_cloned() -> Result<()> {
    let host = Host::new().await?;
    let arguments = ["--pool", "0"].map(str::to_owned).to_vec();
    let server = Server::start(&host, Options { arguments, ..Options::default() }).await?;
    server.api().create_app(APP, None).await?;
    let archive = host.path("My Web.tar");
    images::convert(&images::web()?, &format!("docker-archive:{}", archive.display()))?;
    let source = format!("docker-archive:{}", archive.display());
    let output = server.cli(&["image", "import", &source, "--name", "web:7"]).await?;
    assert_eq!(output.code, Some(0), "{output:?}");
    let machine = prepared(&server, "web:7").await?;
    changes_memory(&server, &machine, 512).await?;
    clones(&server, &machine, "twin").await?;
    // Its name may go, or mean another image.
    images::convert(
        &images::busybox()?,
        &format!("oci-archive:{}", host.path("other.tar").display()),
    )?;
    let source = format!("oci-archive:{}", host.path("other.tar").display());
    let output = server.cli(&["image", "import", &source, "--name", "web:7"]).await?;
    assert_eq!(output.code, Some(0), "{output:?}");
    changes_memory(&server, &machine, 256).await?;
    clones(&server, &machine, "third").await?;
    // Nor is it removed by what is shown of it while a machine uses it.
    let digest = machine["image_ref"]["digest"].as_str().unwrap_or("");
    assert_eq!(machine["image_ref"]["registry"], "docker.io", "as it is listed");
    let shown = format!("docker.io/library/web:7@{digest}");
    let output = server.cli(&["image", "rm", &shown]).await?;
    assert!(output.code == Some(1) && output.stderr.contains("in use"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_refused_at_once() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let unlisted = Registry::start(&host, RegistryOptions::default())?;
    let image = unlisted.push(&images::web()?, "web:1")?;
    let missing = format!("{}/missing:1", stand.registry.address());
    let digest = format!("{}/web@sha256:{}", stand.registry.address(), "0".repeat(64));
    for image in [&image, &missing, &digest, "", "UPPER case", "docker-archive:/no/such/file"] {
        let reply =
            stand.server.api().post(&format!("/v1/apps/{APP}/machines"), unlaunched(image)).await?;
        assert!((400..500).contains(&reply.status), "{image}: {} {}", reply.status, reply.text);
        assert!(!reply.error().is_empty(), "{}", reply.text);
    }
    let machines = stand
        .server
        .api()
        .get(&format!("/v1/apps/{APP}/machines?include_deleted=true"))
        .await?
        .ok()?;
    assert_eq!(machines, json!([]), "nothing is left of a refused create");
    Ok(())
}

#[tokio::test]
async fn a_registry_that_asks_for_a_password_gets_the_one_of_the_docker_config() -> Result<()> {
    let host = Host::new().await?;
    let registry =
        Registry::start(&host, RegistryOptions { authentication: true, ..Default::default() })?;
    let image = registry.push(&images::web()?, "private/web:1")?;
    let options =
        Options { insecure_registries: vec![registry.address().to_owned()], ..Options::default() };
    let server = Server::start(&host, options).await?;
    server.api().create_app(APP, None).await?;

    let path = format!("/v1/apps/{APP}/machines");
    let refused = server.api().post(&path, unlaunched(&image)).await?;
    assert!((400..500).contains(&refused.status), "{} {}", refused.status, refused.text);

    // `tester:secret` in base 64, as `docker login` writes it.
    assert_eq!((USER, PASSWORD), ("tester", "secret"));
    fs::create_dir_all(host.path("docker"))?;
    let config = json!({ "auths": { registry.address(): { "auth": "dGVzdGVyOnNlY3JldA==" } } });
    fs::write(host.path("docker/config.json"), config.to_string())?;
    prepared(&server, &image).await?;
    assert!(
        !server.log().contains(PASSWORD) && !server.log().contains("dGVzdGVyOnNlY3JldA"),
        "no secret in the log"
    );
    Ok(())
}

#[tokio::test]
async fn a_registry_with_a_certificate_is_reached_without_being_listed() -> Result<()> {
    let host = Host::new().await?;
    let registry = Registry::start(&host, RegistryOptions { tls: true, ..Default::default() })?;
    let image = registry.push(&images::web()?, "web:1")?;
    let authority = registry.authority().to_string_lossy().into_owned();
    let environment = [("SSL_CERT_FILE".to_owned(), authority)].into();
    let server = Server::start(&host, Options { environment, ..Options::default() }).await?;
    server.api().create_app(APP, None).await?;
    prepared(&server, &image).await?;
    Ok(())
}

#[tokio::test]
async fn archives_are_imported_listed_run_and_removed() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let layout = images::web()?;
    let (docker, oci) = (host.path("docker.tar"), host.path("oci.tar"));
    images::convert(&layout, &format!("docker-archive:{}:web:docker", docker.display()))?;
    images::convert(&layout, &format!("oci-archive:{}:oci", oci.display()))?;
    for source in [
        format!("docker-archive:{}", docker.display()),
        format!("oci-archive:{}", oci.display()),
        format!("oci:{}", layout.display()),
    ] {
        let name = source.split(':').next().unwrap_or_default().to_owned();
        let output = stand.server.cli(&["image", "import", &source, "--name", &name]).await?;
        assert_eq!(output.code, Some(0), "{source}: {output:?}");
        let listed = stand.server.cli(&["image", "list", "--json"]).await?;
        assert!(listed.stdout.contains(&name), "{listed:?}");
        let machine = stand.machine(json!({ "image": name })).await?;
        assert_eq!(machine.http_get(80, "/").await?, "hello from a machine\n");
        let in_use = stand.server.cli(&["image", "rm", &name]).await?;
        assert_eq!(in_use.code, Some(1), "a machine uses it: {in_use:?}");
        machine.destroy().await?;
        let removed = stand.server.cli(&["image", "rm", &name]).await?;
        assert_eq!(removed.code, Some(0), "{removed:?}");
        let listed = stand.server.cli(&["image", "list", "--json"]).await?;
        assert!(!listed.stdout.contains(&name), "{listed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_distribution_runs_its_own_tools_and_its_creation_shows_progress() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:nginx")?;
    let machine =
        stand.machine(json!({ "image": image, "guest": { "cpus": 1, "memory_mb": 512 } })).await?;
    let shown = machine.get().await?;
    assert_eq!(shown["state"], "creating", "the answer doesn't wait for the image");
    assert!(shown["operation"]["step"].as_str().is_some_and(|step| !step.is_empty()), "{shown}");
    let stream = stand.server.api().get(&machine.path("/operation")).await?;
    let kind =
        stream.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    assert!(stream.text.contains("bytes_total"), "{}", stream.text);

    machine.wait("started").await?;
    let page = machine.http_get(80, "/").await?;
    assert!(page.contains("Welcome to nginx"), "{page}");
    assert!(machine.shell("dpkg --list nginx-light").await?.contains("ii  nginx-light"));
    assert!(machine.shell("apt-get --version").await?.starts_with("apt "));
    // Debian's sudo-like tools rely on modes, owners and links that survived the way.
    assert_eq!(
        machine.shell("stat -c '%A %U:%G' /usr/bin/passwd /etc/shadow").await?,
        "-rwsr-xr-x root:root\n-rw-r----- root:shadow\n"
    );
    assert_eq!(machine.shell("readlink /bin").await?, "usr/bin\n");
    assert_eq!(machine.shell("perl -e 'print 6*7'").await?, "42");
    let workers = machine.shell("ls -ld --time-style=+ /proc/[0-9]*/ | grep -c www-data").await?;
    assert!(workers.trim().parse::<u32>()? > 0, "nginx changed its user");
    assert!(machine.shell("dpkg --audit").await?.is_empty());

    // The image says SIGQUIT, which nginx takes as a wish for a graceful end.
    machine.stop().await?;
    machine.wait("stopped").await?;
    assert_eq!(machine.exit_event().await?["exit_code"], 0, "{}", machine.exit_event().await?);
    Ok(())
}

/// The kernel itself says whether what is on the disk is as it should be: it checks every checksum.
#[tokio::test]
async fn a_machine_finds_and_changes_files_in_a_crowded_directory() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let long = "l".repeat(200);
    let mut entries = vec![
        images::Entry::Directory("crowd"),
        images::Entry::File("lost+found", "a file like others"),
    ];
    for number in 0..12_000 {
        // Enough for an index of two levels, and bytes whose sign counts in its hashes.
        let path = format!("crowd/{number}-ä-{long}").leak();
        entries.push(images::Entry::File(path, ""));
    }
    let config = images::Config {
        entrypoint: vec!["/bin/sleep".into(), "infinity".into()],
        ..images::Config::default()
    };
    let image =
        stand.registry.push(&images::busybox_among("crowd", &entries, &config)?, "crowd")?;
    let machine = stand.machine(json!({ "image": image })).await?;
    machine.wait("started").await?;
    assert_eq!(machine.shell("cat /lost+found").await?, "a file like others");
    assert_eq!(machine.shell("ls /crowd | wc -l").await?.trim(), "12000");
    let found = format!("n=0; while [ -f /crowd/$n-ä-{long} ]; do n=$((n+1)); done; echo $n");
    assert_eq!(machine.shell(&found).await?.trim(), "12000", "each by its name");
    let change = format!(
        "n=0; while [ $n -lt 3000 ]; do : >/crowd/$n-new-{long}; rm /crowd/$n-ä-{long}; \
         n=$((n+1)); done; ls /crowd | wc -l"
    );
    assert_eq!(machine.shell(&change).await?.trim(), "12000");
    assert!(
        machine.shell("mount").await?.contains(" on / type ext4 (rw"),
        "it would be read-only after an error"
    );
    let complaints = machine.shell("dmesg | grep 'EXT4-fs \\(error\\|warning\\)' || true").await?;
    assert_eq!(complaints, "");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_killed_while_it_unpacks_finishes_after_its_restart() -> Result<()> {
    let host = Host::new().await?;
    let mut stand = Stand::new(&host).await?;
    let image = stand.registry.push(&images::debian()?, "debian:nginx")?;
    let machine = stand.server.api().create_machine_from(APP, unlaunched(&image)).await?;
    assert_eq!(machine.get().await?["state"], "creating");
    stand.server.kill().await?;
    stand.server.launch().await?;
    machine.wait("settled").await?;
    let shown = machine.get().await?;
    assert_ne!(shown["state"], "failed", "{shown}");
    assert!(shown["operation"].is_null(), "{shown}");
    Ok(())
}
