//! A machine from its making to its end.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn a_machine_is_run_stopped_started_and_destroyed() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine list -a shop").await, @"
    exit code 0
    ----- stdout -----
    No machines are available on this app shop
    ");
    let outcome = stand.run("machine run web -a shop --name web --restart no -e COLOUR=red").await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    Image: docker.io/library/web:latest@sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf
    Image size: 30 MB

    Success! A Machine has been successfully launched in app shop
     Machine ID: machine-id-001
     Instance ID: 01000000000000000000000001
     State: creating
     Attempting to start machine...

    ==> Monitoring health checks

    Machine started, you can connect via the following private ip
      [IPV6]

    ----- stderr -----
    Searching for image 'web' remotely...
    No health checks found
    ");
    assert_snapshot!(stand.run("machine list -a shop").await, @"
    exit code 0
    ----- stdout -----
    1 machine has been retrieved from app shop.

    shop
     ID │ NAME │ STATE │ CHECKS │ REGION │ ROLE │ IMAGE │ IP ADDRESS │ VOLUME │ CREATED │ LAST UPDATED │ PROCESS GROUP │ SIZE
     machine-id-001 │ web │ started │ │ local │ │ library/web:latest │ [IPV6] │ │ [AGO] │ [AGO] │ │ shared-cpu-1x:256MB
    ");
    assert_snapshot!(stand.run("machine list -a shop -q").await, @"
    exit code 0
    ----- stdout -----
     machine-id-001
    ");
    let id = stand.run("machine list -a shop -q").await.stdout.trim().to_owned();
    assert_eq!(stand.run("machine list -a shop --json").await.ok().json()[0]["id"], *id);
    assert_snapshot!(stand.run(&format!("machine status {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Machine ID: machine-id-001
    Instance ID: 01000000000000000000000001
    State: started
    HostStatus: ok

    VM
     ID │ machine-id-001
     Instance ID │ 01000000000000000000000001
     State │ started
     Image │ docker.io/library/web:latest@sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf
     Name │ web
     Private IP │ [IPV6]
     Region │ local
     Process Group │
     CPU Kind │ shared
     vCPUs │ 1
     Memory │ 256 MB
     Created │ [TIME]
     Updated │ [TIME]
     Entrypoint │ []
     Command │ []
     Isolation │ emulated

    Event Logs
     STATE │ EVENT │ SOURCE │ TIMESTAMP │ INFO
     started │ start │ user │ [TIME] │
     starting │ start │ user │ [TIME] │
     created │ launch │ user │ [TIME] │
     pending │ launch │ flyd │ [TIME] │
    ");
    assert_snapshot!(stand.run(&format!("machine status {id} -a shop -d")).await, @r#"
    exit code 0
    ----- stdout -----
    {
      "image": "web",
      "env": {
        "COLOUR": "red"
      },
      "restart": {
        "policy": "no"
      },
      "guest": {
        "cpu_kind": "shared",
        "cpus": 1,
        "memory_mb": 256
      },
      "init": {}
    }
    "#);
    assert_snapshot!(stand.run(&format!("machine exec {id} 'echo hello world' -a shop")).await, @"
    exit code 0
    ----- stdout -----
    hello world
    ");
    assert_snapshot!(stand.run("machine exec web -a shop").await, @"
    exit code 1
    ----- stderr -----
    Error: got only 'web': a machine and a command are needed
    Write 'caddis machine exec MACHINE COMMAND', or the command in words after --.
    ");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'exit 3' -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Exit code: 3
    ");
    let outcome =
        stand.run(&format!("machine exec {id} 'exit 3' -a shop --exit-code --json")).await;
    assert_snapshot!(outcome, @r#"
    exit code 3
    ----- stdout -----
    {
        "exit_code": 3,
        "exit_signal": 0,
        "stdout": "",
        "stderr": ""
    }
    "#);
    let outcome =
        stand.run(&format!("machine exec {id} -a shop -- echo 'two  words' --flag")).await;
    assert_snapshot!(outcome, @"
    exit code 0
    ----- stdout -----
    two  words --flag
    ");
    assert_snapshot!(stand.run("machine exec web -a shop --exit-code -- exit 4").await, @"
    exit code 4
    ----- stdout -----
    Exit code: 4
    ");
    assert_snapshot!(stand.run("machine exec -a shop -- echo hello").await, @"
    exit code 1
    ----- stderr -----
    Error: a machine ID must be specified when not running interactively
    ");
    assert_snapshot!(stand.run(&format!("machine exec {id} nothing -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Exit code: 127

    ----- stderr -----
    nothing: no such program
    ");
    let long = stand.run(&format!("machine exec {id} 'echo hi' --timeout 100 -a shop")).await;
    let warning = "Warning: --timeout 100 is beyond the longest time, 60 seconds";
    assert!(long.stderr.starts_with(warning), "{long}");
    assert_snapshot!(stand.run(&format!("machine exec {id} 'sleep 60' --timeout 1 -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Exit code: 137

    ----- stderr -----
    The command was killed: it did not finish within 1s (--timeout).
    ");
    assert_snapshot!(stand.run(&format!("machine restart {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    Restarting machine machine-id-001
    Machine machine-id-001 restarted successfully!

    ----- stderr -----
    No health checks found
    ");
    assert_snapshot!(stand.run(&format!("machine suspend {id} -a shop -w 60s")).await, @"
    exit code 0
    ----- stdout -----
    machine-id-001 has been suspended
    ");
    assert_snapshot!(stand.run(&format!("machine start {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    machine-id-001 has been started
    ");
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state started")).await, @r#"
    exit code 0
    ----- stdout -----
    Machine machine-id-001 reached state "started"

    ----- stderr -----
    Waiting up to 5m for machine machine-id-001 to reach "started"...
    "#);
    assert_snapshot!(stand.run(&format!("machine destroy {id} -a shop")).await, @"
    exit code 1
    ----- stderr -----
    Error: machine machine-id-001 currently started, either stop first or use --force flag
    ");
    assert_snapshot!(stand.run(&format!("machine stop {id} -a shop -w 60s")).await, @"
    exit code 0
    ----- stdout -----
    Sending kill signal to machine machine-id-001...
    machine-id-001 has been successfully stopped
    ");
    assert_snapshot!(stand.run(&format!("machine destroy {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    machine machine-id-001 was found and is currently in stopped state, attempting to destroy...
    machine-id-001 has been destroyed
    ");
}

#[tokio::test]
async fn a_machine_is_made_without_being_started() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine create web -a shop --name web").await, @"
    exit code 0
    ----- stdout -----
    Image: docker.io/library/web:latest@sha256:e5d91dbc0da362123eefad0753815a0bb95c224f9cff81d411759fa4eeba6aaf
    Image size: 30 MB

    Success! A Machine has been successfully created in app shop
     Machine ID: machine-id-001
     Instance ID: 01000000000000000000000001
     State: creating

    ----- stderr -----
    Searching for image 'web' remotely...
    ");
}

#[tokio::test]
async fn a_killed_machine_is_stopped() {
    let stand = Stand::with_app().await;
    let id = stand.machine("web").await;
    assert_snapshot!(stand.run(&format!("machine kill {id} -a shop")).await, @"
    exit code 0
    ----- stdout -----
    machine machine-id-001 was found and is currently in a started state, attempting to kill...
    kill signal has been sent
    ");
    assert_snapshot!(stand.run(&format!("machine wait {id} -a shop --state stopped")).await, @r#"
    exit code 0
    ----- stdout -----
    Machine machine-id-001 reached state "stopped"

    ----- stderr -----
    Waiting up to 5m for machine machine-id-001 to reach "stopped"...
    "#);
}
