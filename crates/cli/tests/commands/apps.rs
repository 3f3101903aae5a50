//! `apps`, `image`, `platform`, `auth`.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn apps_come_and_go() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("apps list").await, @"
    exit code 0
    ----- stdout -----
    No apps found
    ");
    assert_snapshot!(stand.run("apps create shop").await, @"
    exit code 0
    ----- stdout -----
    New app created: shop
    ");
    assert_snapshot!(stand.run("apps create shop").await, @"
    exit code 1
    ----- stderr -----
    Error: Validation failed: Name has already been taken (Request ID: …)
    The name is already in use, choose another one.
    ");
    assert_snapshot!(stand.run("apps create Shop_").await, @"
    exit code 1
    ----- stderr -----
    Error: Validation failed: Name under 63 chars using numbers, lowercase letters and dashes (Request ID: …)
    ");
    assert_snapshot!(stand.run("apps create").await, @"
    exit code 1
    ----- stderr -----
    Error: name argument or flag must be specified when not running interactively
    Give a name, or use --generate-name.
    ");
    assert_snapshot!(stand.run("apps list").await, @"
    exit code 0
    ----- stdout -----
     NAME │ OWNER │ STATUS │ MACHINES
     shop │ personal │ pending │ 0
    ");
    assert_snapshot!(stand.run("apps list -q").await, @"
    exit code 0
    ----- stdout -----
    shop
    ");
    assert_eq!(stand.run("apps list --json").await.ok().json()[0]["name"], "shop");
    assert_snapshot!(stand.run("apps destroy shop").await, @"
    exit code 1
    ----- stderr -----
    Destroying an app is not reversible.
    Error: yes flag must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("apps destroy").await, @"
    exit code 1
    ----- stderr -----
    Error: no app names provided
    ");
    assert_snapshot!(stand.run("apps destroy shop -y").await, @"
    exit code 0
    ----- stdout -----
    Destroyed app shop
    ");
    assert_snapshot!(stand.run("apps destroy shop -y").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "shop" (Request ID: …)
    'caddis apps list' lists the apps.
    "#);
}

#[tokio::test]
async fn what_is_destroyed_with_an_app_is_told_before() {
    let stand = Stand::with_app().await;
    stand.machine_with("web -v data:/data").await;
    stand.run("volumes create data -a shop --yes").await.ok();
    assert_snapshot!(stand.run("apps destroy shop").await, @"
    exit code 1
    ----- stderr -----
    Destroying an app is not reversible.
    App shop has 1 machine and 2 volumes, destroyed with it. Its volumes can't be undeleted afterwards.
    Error: yes flag must be specified when not running interactively
    ");
}

#[tokio::test]
async fn images_that_machines_use_stay() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("image list").await, @"
    exit code 0
    ----- stdout -----
    No images
    ");
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run("image list").await, @"
    exit code 0
    ----- stdout -----
     NAME │ DIGEST │ SIZE │ MACHINES │ CREATED
     docker.io/library/web:latest │ sha256:e5d91dbc0da3 │ 30 MB │ 1 │ [AGO]
    ");
    assert_eq!(stand.run("image list --json").await.ok().json()[0]["machines"], 1);
    assert_snapshot!(stand.run("image rm docker.io/library/web:latest").await, @"
    exit code 1
    ----- stderr -----
    Error: could not remove docker.io/library/web:latest: image sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf is in use by a machine: destroy the machine first (Request ID: …)
    ");
    assert_snapshot!(stand.run("image rm nothing:1").await, @"
    exit code 1
    ----- stderr -----
    Error: could not remove nothing:1: image `nothing:1` was not found: no image with this name or digest is on the host (Request ID: …)
    ");
    stand.run(&format!("machine destroy {id} -a shop --force")).await.ok();
    stand.run(&format!("machine wait {id} -a shop --state destroyed")).await.ok();
    assert_snapshot!(stand.run("image rm docker.io/library/web:latest").await, @"
    exit code 0
    ----- stdout -----
    Removed docker.io/library/web:latest
    ");
    assert_snapshot!(stand.run("image import oci:nowhere").await, @"
    exit code 1
    ----- stderr -----
    Error: could not read nowhere: No such file or directory (os error 2)
    ");
    assert_snapshot!(stand.run("image import zip:file").await, @"
    exit code 1
    ----- stderr -----
    Error: invalid source 'zip:file': use docker-archive:FILE, oci-archive:FILE or oci:DIRECTORY, and append :NAME for one of several images
    ");
}

#[tokio::test]
async fn the_platform_is_shown() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("platform regions").await, @"
    exit code 0
    ----- stdout -----
     NAME │ CODE │ CAPACITY
     local │ local │ 64
    ");
    assert_snapshot!(stand.run("platform vm-sizes").await, @"
    exit code 0
    ----- stdout -----
    Machines platform
     NAME │ CPU CORES │ MEMORY
     shared-cpu-1x │ 1 │ 256 MB
     shared-cpu-2x │ 2 │ 512 MB
     shared-cpu-4x │ 4 │ 1024 MB
     shared-cpu-6x │ 6 │ 1536 MB
     shared-cpu-8x │ 8 │ 2048 MB

     NAME │ CPU CORES │ MEMORY
     performance-1x │ 1 │ 2048 MB
     performance-2x │ 2 │ 4096 MB
     performance-4x │ 4 │ 8192 MB
     performance-6x │ 6 │ 12288 MB
     performance-8x │ 8 │ 16384 MB
     performance-10x │ 10 │ 20480 MB
     performance-12x │ 12 │ 24576 MB
     performance-14x │ 14 │ 28672 MB
     performance-16x │ 16 │ 32768 MB
    ");
    let sizes = stand.run("platform vm-sizes --json").await.ok().json();
    assert_eq!(sizes["shared-cpu-1x"]["memory_mb"], 256);
}

#[tokio::test]
async fn codes_are_explained() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("explain insufficient_capacity").await, @"
    exit code 0
    ----- stdout -----
    insufficient_capacity (HTTP 422; the same request may succeed later)

    No host has enough free CPUs, memory or disk; stopped and suspended machines keep theirs reserved.

    What to do: The message says what is free and what would fit. Ask for less, destroy machines, or use another region.
    ");
    assert_snapshot!(stand.run("explain 126").await, @"
    exit code 0
    ----- stdout -----
    Exit code 126

    Timed out. The operation continues in the background.

    What to do: Check with 'caddis machine status', or wait longer with --wait-timeout.
    ");
    assert_snapshot!(stand.run("explain 418").await, @"
    exit code 1
    ----- stderr -----
    Error: unknown code '418'
    'caddis explain' lists all codes.
    ");
    assert_snapshot!(stand.run("explain name-taken --json").await, @r#"
    exit code 0
    ----- stdout -----
    {
        "code": "name_taken",
        "status": 422,
        "retryable": false,
        "means": "The name is already in use, by an app or by a machine of the app.",
        "remedy": "Choose another name, or omit it to get a generated one."
    }
    "#);
    assert_eq!(stand.run("explain --json").await.ok().json().as_array().map(Vec::len), Some(46));
    assert!(stand.run("explain").await.ok().stdout.contains("rate_limited"));
}
