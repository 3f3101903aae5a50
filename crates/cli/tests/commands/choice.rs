//! Which machines commands are about: by id, by name, by image, several at once.

use caddis_testkit::fake::Faults;
use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn machines_are_named_by_id_or_name_and_close_names_are_told() {
    let stand = Stand::with_app().await;
    let id = stand.machine("front").await;
    assert_eq!(
        stand.run("machine status front -a shop --json").await.ok().json()["id"],
        id.as_str()
    );
    // Without an app: only ids tell a machine among all apps.
    assert_eq!(
        stand.run(&format!("machine status {id} --json")).await.ok().json()["name"],
        "front"
    );
    assert_snapshot!(stand.run("machine stop frnot -a shop").await, @r#"
    exit code 1
    ----- stderr -----
    Error: machine ID frnot was not found in app 'shop'
    Did you mean "front"?
    "#);
    assert_snapshot!(stand.run("machine stop front").await, @"
    exit code 1
    ----- stderr -----
    Error: 'front' is not a machine ID, and machine names need an app
    Name the app with -a.
    ");
    assert_snapshot!(stand.run("machine stop 148ed193b95389").await, @"
    exit code 1
    ----- stderr -----
    Error: machine ID machine-id-002 was not found in any app
    'caddis apps list' and 'caddis machine list -a APP' show what exists.
    ");
    assert_snapshot!(stand.run("machine stop").await, @"
    exit code 1
    ----- stderr -----
    Error: a machine ID or an app name is required
    ");
    assert_snapshot!(stand.run("machine stop front -a shop --select").await, @"
    exit code 1
    ----- stderr -----
    Error: machine IDs can't be used with --select
    ");
    assert_snapshot!(stand.run("machine stop --select").await, @"
    exit code 1
    ----- stderr -----
    Error: an app name must be specified to use --select
    ");
    assert_snapshot!(stand.run("machine stop -a shop --select").await, @"
    exit code 1
    ----- stderr -----
    Error: a machine ID must be specified when not running interactively
    ");
    assert_snapshot!(stand.run("machine wait front -a shop --state startde").await, @r#"
    exit code 1
    ----- stderr -----
    Error: unknown machine state 'startde'
    Did you mean "started" or "starting"?
    "#);
    assert_snapshot!(stand.run("machine kill front -a shop").await, @"
    exit code 0
    ----- stdout -----
    machine machine-id-001 was found and is currently in a started state, attempting to kill...
    kill signal has been sent
    ");
}

#[tokio::test]
async fn several_machines_are_worked_on_at_once_and_all_failures_are_told() {
    let stand = Stand::with_app().await;
    let mut ids = Vec::new();
    for number in 0..25 {
        ids.push(stand.machine(&format!("m{number}")).await);
    }
    let all = ids.join(" ");
    let stopped = stand.run(&format!("machine stop {all} {} -a shop -w 60s", ids[0])).await.ok();
    for id in &ids {
        let line = format!("{id} has been successfully stopped\n");
        assert_eq!(stopped.stdout.matches(&line).count(), 1, "{}", stopped.stdout);
    }
    stand.run(&format!("machine start {} {} -a shop", ids[0], ids[1])).await.ok();
    stand.run(&format!("machine wait {} -a shop --state started", ids[0])).await.ok();
    stand.run(&format!("machine wait {} -a shop --state started", ids[1])).await.ok();
    // Two run and can't be destroyed; the third goes all the same.
    let outcome =
        stand.run(&format!("machine destroy {} {} {} -a shop", ids[0], ids[1], ids[2])).await;
    assert_snapshot!(outcome, @"
    exit code 1
    ----- stdout -----
    machine machine-id-003 was found and is currently in stopped state, attempting to destroy...
    machine-id-003 has been destroyed

    ----- stderr -----
    Error: machine machine-id-001 currently started, either stop first or use --force flag
    Error: machine machine-id-002 currently started, either stop first or use --force flag
    ");
    stand.run(&format!("machine wait {} -a shop --state destroyed", ids[2])).await.ok();
}

#[tokio::test]
async fn machines_of_an_image_are_destroyed_after_a_question() {
    let stand = Stand::with_app().await;
    let one = stand.machine("one").await;
    stand.machine_with("other:2 --name two --restart no").await;
    assert_snapshot!(stand.run("machine destroy -a shop --image library/web:latest --force").await, @"
    exit code 1
    ----- stderr -----
    Error: yes flag must be specified when not running interactively
    ");
    let outcome =
        stand.run("machine destroy -a shop --image library/web:latest --force --yes").await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    machine machine-id-001 was found and is currently in started state, attempting to destroy...
    machine-id-001 has been destroyed
    ");
    let outcome =
        stand.run("machine destroy -a shop --image library/web:latest --force --yes").await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    No machine to destroy, exiting
    ");
    stand.run(&format!("machine wait {one} -a shop --state destroyed")).await.ok();
    assert_snapshot!(stand.run("machine list -a shop -q").await, @"
    exit code 0
    ----- stdout -----
     machine-id-002
    ");
}

#[tokio::test]
async fn what_several_machines_ran_into_decides_the_exit_code() {
    let stand = Stand::with_app().await;
    let one = stand.machine_with("web ignore-signals --name one --restart no").await;
    let two = stand.machine_with("web ignore-signals --name two --restart no").await;
    // Neither ends in time.
    let outcome = stand.run(&format!("machine stop {one} {two} -a shop --timeout 60 -w 1s")).await;
    assert_snapshot!(outcome, @"
    exit code 126
    ----- stdout -----
    Sending kill signal to machine machine-id-001...
    Sending kill signal to machine machine-id-002...

    ----- stderr -----
    Error: machine-id-001: timeout reached waiting for machine's state to change; it is stopping (stop in progress, step await_exit)
    Error: machine-id-002: timeout reached waiting for machine's state to change; it is stopping (stop in progress, step await_exit)
    ");
}

#[tokio::test]
async fn a_restart_that_fails_is_told() {
    let stand = Stand::with_app().await;
    let id = stand.machine("one").await;
    stand.server.host.set_faults(Faults { failing_launches: 100, ..Faults::default() });
    let restart = stand.run(&format!("machine restart {id} -a shop")).await;
    assert_eq!(restart.code, 1, "{restart}");
    assert!(restart.stderr.contains(&format!("machine {id} failed to start: ")), "{restart}");
    assert!(!restart.stdout.contains("restarted successfully"), "{restart}");
}
