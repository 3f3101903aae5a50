//! What can't be done, and what is said then.

use caddis_testkit::fake::{FakeOptions, Faults, Stage};
use insta::assert_snapshot;
use serde_json::json;

use crate::stand::Stand;

#[tokio::test]
async fn wrong_names_are_told() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine list -a ship").await, @"");
    assert_snapshot!(stand.run("machine run web -a ship").await, @"");
    assert_snapshot!(stand.run("machine status 148ed193b95389 -a shop").await, @"");
    assert_snapshot!(stand.run("machine stop web -a shop").await, @"");
    assert_snapshot!(stand.run("machine start -a shop").await, @"");
    assert_snapshot!(stand.run("machine list").await, @"");
    assert_snapshot!(stand.run("machine run missing:1 -a shop").await, @"");
    assert_snapshot!(stand.run("machine run -a shop").await, @"");
    assert_snapshot!(stand.run("machine run 'a image' -a shop").await, @"");
    assert_snapshot!(stand.run("machine wait 148ed193b95389 -a shop --state tired").await, @"");
}

#[tokio::test]
async fn a_dead_server_and_a_refused_token_are_told() {
    let mut stand = Stand::with_app().await;
    let url = stand.server.url();
    let wrong = [("CADDIS_API_URL", url.as_str()), ("CADDIS_API_TOKEN", "wrong")];
    assert_snapshot!(stand.run_in("machine list -a shop", &wrong, std::future::pending()).await, @"");
    stand.server.stop().await.unwrap();
    assert_snapshot!(stand.run("machine list -a shop").await, @"");
    stand.server.go_on().await.unwrap();
    assert_snapshot!(stand.run("machine list -a shop").await, @"");
}

#[tokio::test]
async fn a_full_host_says_what_would_fit() {
    let stand = Stand::with(FakeOptions { memory_mib: 300, ..FakeOptions::default() }).await;
    stand.run("apps create shop").await.ok();
    stand.machine("web").await;
    assert_snapshot!(stand.run("machine run web -a shop").await, @"");
}

#[tokio::test]
async fn an_image_that_can_not_be_pulled_is_told_by_run() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine run broken -a shop --name web --restart no").await, @"");
}

#[tokio::test]
async fn time_that_runs_out_is_126_and_ctrl_c_127() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state stopped -w 1s")).await, @"");
    let soon = tokio::time::sleep(std::time::Duration::from_millis(100));
    assert_snapshot!(stand.run_until(&format!("machine wait {id} -a shop --state stopped"), soon).await, @"");
}

#[tokio::test]
async fn a_machine_that_another_client_has_leased_is_refused_to_others() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    let api = stand.server.api().unwrap();
    let lease = api.post(&format!("/v1/apps/shop/machines/{id}/lease"), json!({ "ttl": 2 })).await.unwrap();
    lease.ok().unwrap();
    // It is waited for.
    assert_snapshot!(stand.run(&format!("machine stop {id} -a shop -w 60s")).await, @"");
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
    let soon = tokio::time::sleep(std::time::Duration::from_secs(1));
    let outcome = stand.run_until("machine run web -a shop --name web", soon).await;
    assert_eq!(outcome.code, 127, "{outcome}");
    stand.server.images.release();
    let id = stand.run("machine list -a shop -q").await.ok().stdout.trim().to_owned();
    stand.run(&format!("machine wait {id} -a shop --state started")).await.ok();
}
