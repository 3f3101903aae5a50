//! `caddis image`, and what `ssh` and `sftp` say before there is a session.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn images_are_imported_listed_and_removed() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("image list").await, @"
    exit code 0
    ----- stdout -----
    No images
    ");
    assert_snapshot!(stand.run("image import web.tar").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid source 'web.tar': use docker-archive:FILE, oci-archive:FILE or oci:DIRECTORY, and append :NAME for one of several images
    ");
    assert_snapshot!(stand.run("image import docker-archive:web.tar").await, @"
    exit code 1
    ----- stderr -----
    Error: could not read web.tar: No such file or directory (os error 2)
    ");
    std::fs::write(stand.home().join("web.tar"), "not an archive").unwrap();
    let broken = format!("image import docker-archive:{}", stand.home().join("web.tar").display());
    assert_eq!(stand.run(&broken).await.code, 1);
    let broken = broken.replace("docker-archive:", "oci-archive:");
    assert_snapshot!(stand.run(&format!("{broken}:web:1")).await, @"
    exit code 1
    ----- stderr -----
    Error: the archive is corrupt: it is not a tar archive; nothing was kept, push or save the image again
    ");
    assert_snapshot!(stand.run("image import docker-archive:gone.tar:web:1").await, @"
    exit code 1
    ----- stderr -----
    Error: could not read gone.tar: No such file or directory (os error 2)
    ");
    assert_snapshot!(stand.run("image rm missing:1").await, @"
    exit code 1
    ----- stderr -----
    Error: could not remove missing:1: image `missing:1` was not found: no image with this name or digest is on the host (Request ID: …)
    ");
    stand.machine("one").await;
    assert_snapshot!(stand.run("image rm docker.io/library/web:latest").await, @"
    exit code 1
    ----- stderr -----
    Error: could not remove docker.io/library/web:latest: image sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf is in use by a machine: destroy the machine first (Request ID: …)
    ");
    assert_snapshot!(stand.run("image list").await, @"
    exit code 0
    ----- stdout -----
     NAME │ DIGEST │ SIZE │ MACHINES │ CREATED
     docker.io/library/web:latest │ sha256:e5d91dbc0da3 │ 30 MB │ 1 │ [AGO]
    ");
    assert_snapshot!(stand.run("image list --quiet").await, @"
    exit code 0
    ----- stdout -----
    sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf
    ");
    assert_eq!(
        stand.run("image list --json").await.ok().json()[0]["names"][0],
        "docker.io/library/web:latest"
    );
}

/// What `docker save` writes of images without layers: their tags.
fn archive(path: &std::path::Path, images: &[&[&str]]) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(std::fs::File::create(path)?);
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes)
    };
    let mut items = Vec::new();
    for (number, tags) in images.iter().enumerate() {
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "author": number});
        add(&format!("{number}.json"), config.to_string().as_bytes())?;
        items.push(serde_json::json!({"Config": format!("{number}.json"), "RepoTags": tags,
            "Layers": null}));
    }
    add("manifest.json", serde_json::Value::from(items).to_string().as_bytes())?;
    archive.finish()
}

#[tokio::test]
async fn one_of_several_images_in_an_archive_is_imported_by_name() {
    let stand = Stand::with_app().await;
    let file = stand.home().join("several.tar");
    archive(&file, &[&["web:1", "web:latest"], &["web:2"], &[]]).unwrap();
    let import = |image: &str| format!("image import docker-archive:{}{image}", file.display());
    assert_snapshot!(stand.run(&import("")).await, @"
    exit code 1
    ----- stderr -----
    Error: image `(no name given)` was not found: the archive contains several; choose one as in docker-archive:FILE:NAME, oci-archive:FILE:NAME or oci:DIRECTORY:NAME: web:1, web:2, @2
    ");
    assert_snapshot!(stand.run(&import(":web:3")).await, @"
    exit code 1
    ----- stderr -----
    Error: image `web:3` was not found: the archive contains web:1, web:2, @2
    ");
    for (image, imported) in [
        (":web:2", "Imported docker.io/library/web:2 ("),
        (":web", "Imported docker.io/library/web:latest ("),
        (":@2 --name mine", "Imported docker.io/library/mine:latest ("),
    ] {
        let outcome = stand.run(&import(image)).await.ok();
        assert!(outcome.stdout.contains(imported), "{image}: {outcome}");
    }
}

#[tokio::test]
async fn sessions_that_can_not_be_opened_are_told() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("ssh console -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has no started machine
    The app has no machines; create one with 'caddis machine run IMAGE -a shop'.
    ");
    assert_snapshot!(stand.run("sftp get /etc/hosts -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has no started machine
    The app has no machines; create one with 'caddis machine run IMAGE -a shop'.
    ");
    let id = stand.machine("one").await;
    stand.run(&format!("machine stop {id} -a shop -w 60s")).await.ok();
    assert_snapshot!(stand.run("ssh console -a shop --machine one").await, @"
    exit code 1
    ----- stderr -----
    Error: machine one is not running, it is stopped
    Start it with 'caddis machine start one -a shop'.
    ");
    stand.run(&format!("machine destroy {id} -a shop")).await.ok();
    assert_snapshot!(stand.run(&format!("ssh console -a shop --machine {id}")).await, @"
    exit code 1
    ----- stderr -----
    Error: machine machine-id-001 is not running, it is destroyed
    'caddis machine list -a shop' lists its machines.
    ");
    stand.machine("one").await;
    assert_snapshot!(stand.run("ssh console -a shop --machine onne").await, @r#"
    exit code 1
    ----- stderr -----
    Error: machine ID onne was not found in app 'shop'
    Did you mean "one"?
    "#);
    assert_snapshot!(stand.run("ssh console -a shop -C 'echo hello'").await, @"
    exit code 0
    ----- stdout -----
    hello

    ----- stderr -----
    Using machine machine-id-002 (one)
    ");
    assert_snapshot!(stand.run("ssh console -a shop -C 'echo hello' --machine one").await, @"
    exit code 0
    ----- stdout -----
    hello
    ");
    stand.machine("two").await;
    assert_snapshot!(stand.run("ssh console -a shop -C 'echo hello'").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has 2 started machines: machine-id-002 (one), machine-id-003 (two)
    Name one with --machine.
    ");
    assert_snapshot!(stand.run("sftp find / -a shop --region local").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has 2 started machines: machine-id-002 (one), machine-id-003 (two)
    Name one with --machine.
    ");
    assert_snapshot!(stand.run("ssh console -a shop -C 'echo hello' -A two -q").await, @"
    exit code 0
    ----- stdout -----
    hello
    ");
    for number in 3..8 {
        stand.machine(&format!("m{number}")).await;
    }
    let several = stand.run("sftp get /etc/hosts -a shop").await;
    assert!(
        several.stderr.contains("7 started machines: ") && several.stderr.contains(", …\n"),
        "{several}"
    );
    assert_snapshot!(stand.run("sftp put nothing.txt /tmp/x -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: can't read HOME/nothing.txt: no such local file or directory
    ");
    assert_snapshot!(stand.run("ssh console -a shop --region fra").await, @"
    exit code 1
    ----- stderr -----
    Error: app shop has no started machine that fits the flags
    See 'caddis machine list -a shop', and start one with 'caddis machine start'.
    ");
    stand.run("machine stop one -a shop").await.ok();
    assert_snapshot!(stand.run("machine exec one -a shop 'ls /'").await, @"
    exit code 1
    ----- stderr -----
    Error: could not exec command on machine: failed_precondition: machine not running (Request ID: …)
    ");
    assert_snapshot!(stand.run("ssh console -a shop --container web").await, @"
    exit code 1
    ----- stderr -----
    Error: the machine has no container named 'web'
    ");
}

#[tokio::test]
async fn a_demo_that_fails_halfway_leaves_nothing() {
    let stand = Stand::new().await;
    let demo = stand.run("demo").await;
    // The fake host's guests have no such program; on real VMs the whole of it is in the end-to-end
    // tests.
    assert_eq!(demo.code, 1, "{demo}");
    assert!(demo.stderr.contains("Error: could not run a program: "), "{demo}");
    for words in ["caddis-demo:", " started after ", "Removed the machine, app demo-"] {
        assert!(demo.stdout.contains(words), "{demo}");
    }
    assert_snapshot!(stand.run("apps list").await, @"
    exit code 0
    ----- stdout -----
    No apps found
    ");
    assert_snapshot!(stand.run("image list").await, @"
    exit code 0
    ----- stdout -----
    No images
    ");
}
