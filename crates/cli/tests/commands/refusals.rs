//! What can't be done, and what is said then.

use caddis_testkit::fake::{FakeOptions, Faults, Stage};
use insta::assert_snapshot;
use serde_json::json;
use tokio::time::timeout;

use crate::stand::{DEADLINE, Stand};

#[tokio::test]
async fn wrong_names_are_told() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine list -a ship").await, @r#"
    exit code 1
    ----- stderr -----
    Error: Could not find App "ship" (Request ID: …)
    Did you mean "shop"?
    "#);
    assert_snapshot!(stand.run("machine run web -a ship").await, @r#"
    exit code 1
    ----- stderr -----
    Error: could not launch machine: Could not find App "ship" (Request ID: …)
    Did you mean "shop"?
    "#);
    assert_snapshot!(stand.run("machine status 148ed193b95389 -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: machine ID machine-id-001 was not found in app 'shop'
    ");
    assert_snapshot!(stand.run("machine stop web -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: machine ID web was not found in app 'shop'
    ");
    assert_snapshot!(stand.run("machine start -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: the app shop has no machines
    ");
    assert_snapshot!(stand.run("machine list").await, @"
    exit code 1
    ----- stderr -----
    Error: the config for your app is missing an app name, add an app field to the fly.toml file or specify with the -a flag
    ");
    assert_snapshot!(stand.run("machine run missing:1 -a shop").await, @r#"
    exit code 1
    ----- stderr -----
    Searching for image 'missing:1' remotely...
    Error: could not find image "missing:1" (Request ID: …)
    Check its name and tag; --debug shows the registry's answer, 'caddis image list' the server's images.
    "#);
    let chain = stand.run("machine run missing:1 -a shop --debug").await;
    let words =
        "could not launch machine: image `missing:1` was not found: check the name and the tag";
    assert!(chain.code == 1 && chain.stderr.contains(words), "{chain}");
    let shell = stand.run("machine run missing:1 -a shop --shell").await;
    assert!(shell.stderr.contains("Error: could not find image \"missing:1\""), "{shell}");
    assert_snapshot!(stand.run("machine run -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: image argument can't be an empty string
    ");
    let config = r#"machine create -a shop --machine-config '{"imgae": "web"}'"#;
    assert_snapshot!(stand.run(config).await, @"
    exit code 1
    ----- stderr -----
    Error: image argument can't be an empty string
    Warning: config.imgae is not known, it is stored and has no effect; did you mean image?
    ");
    assert_snapshot!(stand.run("machine run 'a image' -a shop").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'a image' remotely...
    Error: could not launch machine: invalid image reference `a image`: a repository is lower-case letters and digits, separated by `.`, `_`, `-` or `/` (Request ID: …)
    ");
    assert_snapshot!(stand.run("machine wait 148ed193b95389 -a shop --state tired").await, @"
    exit code 1
    ----- stderr -----
    Error: unknown machine state 'tired'
    'caddis machine wait --help' lists the states.
    ");
}

#[tokio::test]
async fn a_dead_server_and_a_refused_token_are_told() {
    let mut stand = Stand::with_app().await;
    let url = stand.server.url();
    let wrong = [("CADDIS_API_URL", url.as_str()), ("CADDIS_API_TOKEN", "wrong")];
    assert_snapshot!(stand.run_in("machine list -a shop", &wrong, std::future::pending()).await, @"
    exit code 1
    ----- stderr -----
    Error: unauthenticated: the token is not valid on this server (Request ID: …)
    The server rejected this access token. Give another with --access-token or CADDIS_API_TOKEN, or store one with 'caddis auth login'; the server's first token is in the file root.token of its data directory.
    ");
    stand.server.stop().await.unwrap();
    assert_snapshot!(stand.run("machine list -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: could not connect to http://SERVER: Connection refused (os error 111)
    No server answers at http://SERVER. Start one with 'caddis serve', or name another with --api-url or CADDIS_API_URL.
    ");
    stand.server.start_again().await.unwrap();
    assert_snapshot!(stand.run("machine list -a shop").await, @"
    exit code 0
    ----- stdout -----
    No machines are available on this app shop
    ");
}

#[tokio::test]
async fn a_full_host_says_what_would_fit() {
    let stand = Stand::with(FakeOptions { memory_mib: 300, ..FakeOptions::default() }).await;
    stand.run("apps create shop").await.ok();
    stand.machine("web").await;
    assert_snapshot!(stand.run("machine run web -a shop").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'web' remotely...
    Error: could not launch machine: could not find a candidate host: the machine needs 1 CPUs, 256 MiB of memory and 8 GiB of disk; host 01000000000000000000000002 in local has [CPUS] CPUs, 44 MiB and [DISK] GiB free (256 MiB of memory needed, 44 of 300 free) (Request ID: …)
    Try choosing a different region for machine creation
    ");
}

#[tokio::test]
async fn an_image_that_can_not_be_pulled_is_told_by_run() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine run broken -a shop --name web --restart no").await, @"
    exit code 1
    ----- stdout -----
    Image: docker.io/library/broken:latest@sha256:8c118fcb4cd3a179a9bce46020614b062d1ece96e0d429c1d91597de559d6727
    Image size: 30 MB

    Success! A Machine has been successfully launched in app shop
     Machine ID: machine-id-001
     Instance ID: 01000000000000000000000001
     State: creating
     Attempting to start machine...


    ----- stderr -----
    Searching for image 'broken' remotely...
    Machine machine-id-001 was created in app shop and remains; 'caddis machine status machine-id-001 -a shop' shows it, 'caddis machine destroy machine-id-001 -a shop --force' removes it.
    Error: machine machine-id-001 failed to start: registry docker.io is unavailable for library/broken: told to fail; check the network and try again
    ");
}

#[tokio::test]
async fn where_a_registry_is_away_images_that_are_here_are_told() {
    let stand = Stand::with_app().await;
    stand.server.images.set_registries_away(true);
    assert_snapshot!(stand.run("machine run ubuntu -a shop").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'ubuntu' remotely...
    Error: could not launch machine: registry docker.io is unavailable for library/ubuntu: told to be away; check the network and try again (Request ID: …)
    Without a registry, 'caddis image import' imports an image from an archive.
    ");
    stand.server.images.set_registries_away(false);
    let id = stand.machine("web").await;
    stand.server.images.set_registries_away(true);
    assert_snapshot!(stand.run("machine run ubuntu -a shop").await, @"
    exit code 1
    ----- stderr -----
    Searching for image 'ubuntu' remotely...
    Error: could not launch machine: registry docker.io is unavailable for library/ubuntu: told to be away; check the network and try again (Request ID: …)
    The server has other images that need no registry: docker.io/library/web:latest.
    ");
    // Of another registry nothing is offered.
    let other = stand.run("machine run ghcr.io/a/b -a shop").await;
    assert!(other.code == 1 && !other.stderr.contains("The server has"), "{other}");
    // What is here by its digest needs none.
    stand.run(&format!("machine clone {id} -a shop")).await.ok();
    let shell = stand.run("machine run --shell").await;
    assert!(
        shell
            .stderr
            .contains("The server has other images that need no registry: docker.io/library/web"),
        "{shell}"
    );
    assert!(!shell.stderr.contains("may have been created"), "{shell}");
}

#[tokio::test]
async fn what_may_be_left_is_said_only_when_something_was_sent() {
    let mut stand = Stand::with_app().await;
    stand.server.stop().await.unwrap();
    for line in
        ["machine run web -a shop", "machine run web --shell -a shop", "machine create web -a shop"]
    {
        let outcome = stand.run(line).await;
        assert!(
            outcome.code == 1 && outcome.stderr.contains("No server answers at"),
            "{line}: {outcome}"
        );
        assert!(!outcome.stderr.contains("may have been created"), "{line}: {outcome}");
    }
}

#[tokio::test]
async fn time_that_runs_out_is_126_and_ctrl_c_127() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state stopped -w 1s")).await, @r#"
    exit code 126
    ----- stderr -----
    Waiting up to 1s for machine machine-id-001 to reach "stopped"...
    Error: machine machine-id-001 did not reach "stopped" within 1s: timeout reached waiting for machine's state to change; it is started
    "#);
    let soon = tokio::time::sleep(std::time::Duration::from_millis(100));
    let outcome =
        stand.run_until(&format!("machine wait {id} -a shop --state stopped"), soon).await;
    assert_snapshot!(outcome, @r#"
    exit code 127
    ----- stderr -----
    Waiting up to 5m for machine machine-id-001 to reach "stopped"...
    "#);
}

#[tokio::test]
async fn a_machine_that_another_client_has_leased_is_refused_to_others() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let api = stand.server.api().unwrap();
    let lease =
        api.post(&format!("/v1/apps/shop/machines/{id}/lease"), json!({ "ttl": 2 })).await.unwrap();
    lease.ok().unwrap();
    // It is waited for.
    assert_snapshot!(stand.run(&format!("machine stop {id} -a shop -w 60s")).await, @"
    exit code 0
    ----- stdout -----
    Sending kill signal to machine machine-id-001...
    machine-id-001 has been successfully stopped
    ");
}

#[tokio::test]
async fn a_start_that_fails_is_told() {
    let stand = Stand::with_app().await;
    stand.server.host.set_faults(Faults { failing_launches: 100, ..Faults::default() });
    let outcome = stand.run("machine run web -a shop --name web --restart no").await;
    assert_eq!(outcome.code, 1, "{outcome}");
    assert!(outcome.stderr.contains("failed to start"), "{outcome}");
}

#[tokio::test]
async fn a_run_that_is_broken_off_leaves_what_was_asked_for() {
    let stand = Stand::with_app().await;
    stand.server.images.hold(Stage::Pull);
    let made = async {
        while Box::pin(stand.run("machine list -a shop -q")).await.ok().stdout.is_empty() {}
    };
    let made = Box::pin(async { timeout(DEADLINE, made).await.unwrap() });
    let outcome = stand.run_until("machine run web -a shop --name web", made).await;
    assert_eq!(outcome.code, 127, "{outcome}");
    stand.server.images.release();
    let id = stand.run("machine list -a shop -q").await.ok().stdout.trim().to_owned();
    stand.run(&format!("machine wait {id} -a shop --state started")).await.ok();
}
