//! A machine from its making to its end.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn a_machine_is_run_stopped_started_and_destroyed() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine list -a shop").await, @"");
    assert_snapshot!(stand.run("machine run web -a shop --name web --restart no -e COLOUR=red").await, @"");
    assert_snapshot!(stand.run("machine list -a shop").await, @"");
    assert_snapshot!(stand.run("machine list -a shop -q").await, @"");
    let id = stand.run("machine list -a shop -q").await.stdout.trim().to_owned();
    assert_eq!(stand.run("machine list -a shop --json").await.ok().json()[0]["id"], *id);
    assert_snapshot!(stand.run(&format!("machine status {id} -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine status {id} -a shop -d")).await, @"");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'echo hello world' -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'exit 3' -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'exit 3' -a shop --exit-code --json")).await, @"");
    assert_snapshot!(stand.run(&format!("machine exec {id} nothing -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'sleep 60' --timeout 1 -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine restart {id} -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine suspend {id} -a shop -w 60s")).await, @"");
    assert_snapshot!(stand.run(&format!("machine start {id} -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state started")).await, @"");
    assert_snapshot!(stand.run(&format!("machine destroy {id} -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine stop {id} -a shop -w 60s")).await, @"");
    assert_snapshot!(stand.run(&format!("machine destroy {id} -a shop")).await, @"");
}

#[tokio::test]
async fn a_machine_is_made_without_being_started() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine create web -a shop --name web").await, @"");
}

#[tokio::test]
async fn a_killed_machine_is_stopped() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run(&format!("machine kill {id} -a shop")).await, @"");
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state stopped")).await, @"");
}
