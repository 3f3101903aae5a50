//! Health checks: listed, shown with their machines, and waited for.

use caddis_testkit::fake::Answer;
use insta::assert_snapshot;

use crate::stand::{Outcome, Stand};

const WEB: &str = "servicecheck-00-http-8080";

/// Arguments of a machine with a check of a service and one of its own.
fn checked() -> String {
    let config = serde_json::json!({
        "services": [{
            "internal_port": 8080,
            "checks": [{ "type": "http", "grace_period": "0s", "path": "/health" }],
        }],
        "checks": {
            "db": { "type": "tcp", "port": 5432, "grace_period": "0s", "kind": "readiness" },
        },
    });
    format!("web --name web --restart no --machine-config '{config}'")
}

#[tokio::test]
async fn checks_are_listed_and_shown_with_their_machines() {
    let stand = Stand::with_app().await;
    let list = stand.run("checks list -a shop").await;
    assert_snapshot!(list, @"
    exit code 0
    ----- stdout -----
    Health Checks for shop
     NAME │ STATUS │ MACHINE │ LAST UPDATED │ OUTPUT
    ");
    let id = stand.machine_with(&checked()).await;
    assert_snapshot!(stand.run("checks list -a shop").await, @"
    exit code 0
    ----- stdout -----
    Health Checks for shop
     NAME │ STATUS │ MACHINE │ LAST UPDATED │ OUTPUT
     servicecheck-00-http-8080 │ passing │ machine-id-001 │ [AGO] │ HTTP GET http://[IPV4]:8080/health: Success
     db │ passing │ machine-id-001 │ [AGO] │ TCP connect [IPV4]:5432: Success
    ");
    assert_snapshot!(stand.run("checks list -a shop -m web --check-name db --json").await, @r#"
    exit code 0
    ----- stdout -----
    {
        "machine-id-001": [
            {
                "name": "db",
                "status": "passing",
                "output": "TCP connect [IPV4]:5432: Success",
                "updated_at": "[TIME]",
                "kind": "readiness"
            }
        ]
    }
    "#);
    assert_snapshot!(stand.run("checks list -a shop -m wep").await, @r#"
    exit code 1
    ----- stderr -----
    Error: machine ID wep was not found in app 'shop'
    Did you mean "web"?
    "#);
    let status = stand.run("status -a shop").await.ok();
    assert!(status.stdout.contains("2 total, 2 passing"), "{status}");
    let machines = stand.run("machine list -a shop").await.ok();
    assert!(machines.stdout.contains("2/2"), "{machines}");
    let shown = stand.run(&format!("machine status {id} -a shop")).await.ok();
    let from = shown.stdout.find("Checks [").unwrap();
    let until = shown.stdout.find("Event Logs").unwrap();
    assert_snapshot!(stand.steady(&shown.stdout[from..until]), @"
    Checks [2/2]
     NAME │ STATUS │ LAST UPDATED │ OUTPUT
     servicecheck-00-http-8080 │ passing │ [TIME] │ HTTP GET http://[IPV4]:8080/health: Success
     db │ passing │ [TIME] │ TCP connect [IPV4]:5432: Success
    ");

    // The results of one that does not run are from before.
    stand.run("machine stop web -a shop").await.ok();
    stand.run("machine wait web -a shop --state stopped").await.ok();
    assert_snapshot!(stand.run("checks list -a shop").await, @"
    exit code 0
    ----- stdout -----
    Health Checks for shop
     NAME │ STATUS │ MACHINE │ LAST UPDATED │ OUTPUT
     servicecheck-00-http-8080 │ n/a │ machine-id-001 │ [AGO] │ HTTP GET http://[IPV4]:8080/health: Success
     db │ n/a │ machine-id-001 │ [AGO] │ TCP connect [IPV4]:5432: Success
    ");
    let machines = stand.run("machine list -a shop").await.ok();
    assert!(machines.stdout.contains("n/a") && !machines.stdout.contains("2/2"), "{machines}");
    let shown = stand.run(&format!("machine status {id} -a shop")).await.ok();
    assert!(shown.stdout.contains("Checks [n/a]"), "{shown}");
    let kept = stand.run("checks list -a shop --json").await.ok().json();
    assert_eq!(kept[&id][0]["status"], "passing");
}

/// Runs a command while the check fails, and has it pass once it was tried a few times more.
async fn run_and_recover(stand: &Stand, line: &str) -> Outcome {
    let attempts = stand.server.prober.attempts(WEB);
    stand.server.prober.set(WEB, Answer::Fails("connection refused".to_owned()));
    let recover = async {
        stand.server.prober.until_tried(WEB, attempts + 6).await;
        stand.server.prober.set(WEB, Answer::Passes);
    };
    tokio::join!(stand.run(line), recover).0
}

/// How the check stands of the machine of this name.
async fn status(stand: &Stand, name: &str) -> String {
    let list = stand.run(&format!("checks list -a shop -m {name} --check-name {WEB} --json")).await;
    let by_machine = list.ok().json();
    let checks = by_machine.as_object().and_then(|machines| machines.values().next());
    let status = checks.and_then(|checks| checks[0]["status"].as_str());
    status.unwrap_or_else(|| panic!("no check {WEB} in {by_machine}")).to_owned()
}

#[tokio::test]
async fn commands_wait_until_all_checks_pass() {
    let stand = Stand::with_app().await;
    let ran = run_and_recover(&stand, &format!("machine run {} -a shop", checked())).await.ok();
    assert!(ran.stdout.contains("==> Monitoring health checks"), "{ran}");
    assert!(ran.stderr.contains(" to become healthy (started, 1/2)\n"), "{ran}");
    assert!(!ran.stderr.contains("No health checks found"), "{ran}");
    assert_eq!(status(&stand, "web").await, "passing");
    for (name, line) in [
        ("web", "machine update web -a shop -e A=B --yes"),
        ("web", "machine restart web -a shop"),
        ("other", "machine clone web -a shop --name other"),
    ] {
        let waited = run_and_recover(&stand, line).await.ok();
        assert!(waited.stderr.contains(" to become healthy "), "{waited}");
        assert_eq!(status(&stand, name).await, "passing", "{line}");
    }
}

#[tokio::test]
async fn commands_do_not_wait_for_checks_where_that_is_asked_for() {
    let stand = Stand::with_app().await;
    stand.server.prober.set(WEB, Answer::Fails("connection refused".to_owned()));
    for (name, line) in [
        ("web", &*format!("machine run {} -a shop --detach", checked())),
        ("web", "machine update web -a shop -e A=B --yes --skip-health-checks"),
        ("web", "machine update web -a shop -e A=C --yes --detach"),
        ("web", "machine restart web -a shop --skip-health-checks"),
        ("other", "machine clone web -a shop --name other --detach"),
    ] {
        let outcome = stand.run(line).await.ok();
        assert!(!outcome.stderr.contains("healthy"), "{outcome}");
        assert_ne!(status(&stand, name).await, "passing", "{line}");
    }
}

#[tokio::test]
async fn a_machine_that_stops_is_not_waited_for() {
    let stand = Stand::with_app().await;
    stand.server.prober.set(WEB, Answer::Fails("connection refused".to_owned()));
    stand.run(&format!("machine run {} -a shop --detach", checked())).await.ok();
    stand.run("machine wait web -a shop --state started").await.ok();
    let attempts = stand.server.prober.attempts(WEB);
    // While the command waits for the check. On a busy machine its program may not have been looked
    // at for long enough by then, and another error says that it has ended.
    let kill = async {
        stand.server.prober.until_tried(WEB, attempts + 20).await;
        stand.run("machine kill web -a shop").await.ok();
    };
    let (restarted, ()) = tokio::join!(stand.run("machine restart web -a shop"), kill);
    assert_eq!(restarted.code, 1, "{restarted}");
    let says = ["and not healthy", "its program ended", "is now stopped"];
    assert!(says.iter().any(|text| restarted.stderr.contains(text)), "{restarted}");
}
