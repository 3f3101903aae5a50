//! `apps`, `image`, `platform`, `auth`.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn apps_come_and_go() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("apps list").await, @"");
    assert_snapshot!(stand.run("apps create shop").await, @"");
    assert_snapshot!(stand.run("apps create shop").await, @"");
    assert_snapshot!(stand.run("apps create Shop_").await, @"");
    assert_snapshot!(stand.run("apps create").await, @"");
    assert_snapshot!(stand.run("apps list").await, @"");
    assert_snapshot!(stand.run("apps list -q").await, @"");
    assert_eq!(stand.run("apps list --json").await.ok().json()[0]["name"], "shop");
    assert_snapshot!(stand.run("apps destroy shop").await, @"");
    assert_snapshot!(stand.run("apps destroy").await, @"");
    assert_snapshot!(stand.run("apps destroy shop -y").await, @"");
    assert_snapshot!(stand.run("apps destroy shop -y").await, @"");
}

#[tokio::test]
async fn images_that_machines_use_stay() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("image list").await, @"");
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run("image list").await, @"");
    assert_eq!(stand.run("image list --json").await.ok().json()[0]["machines"], 1);
    assert_snapshot!(stand.run("image rm docker.io/library/web:latest").await, @"");
    assert_snapshot!(stand.run("image rm nothing:1").await, @"");
    stand.run(&format!("machine destroy {id} -a shop --force")).await.ok();
    stand.run(&format!("machine wait {id} -a shop --state destroyed")).await.ok();
    assert_snapshot!(stand.run("image rm docker.io/library/web:latest").await, @"");
    assert_snapshot!(stand.run("image import oci:nowhere").await, @"");
    assert_snapshot!(stand.run("image import zip:file").await, @"");
}

#[tokio::test]
async fn the_platform_is_shown() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("platform regions").await, @"");
    assert_snapshot!(stand.run("platform vm-sizes").await, @"");
    let sizes = stand.run("platform vm-sizes --json").await.ok().json();
    assert_eq!(sizes["shared-cpu-1x"]["memory_mb"], 256);
}

#[tokio::test]
async fn codes_are_explained() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("explain insufficient_capacity").await, @"");
    assert_snapshot!(stand.run("explain 126").await, @"");
    assert_snapshot!(stand.run("explain 418").await, @"");
    assert_snapshot!(stand.run("explain name-taken --json").await, @"");
    assert_eq!(stand.run("explain --json").await.ok().json().as_array().map(Vec::len), Some(20));
    assert!(stand.run("explain").await.ok().stdout.contains("rate_limited"));
}
