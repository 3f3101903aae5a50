//! What commands say a machine has come to is so, and a program that failed is an error.

use std::time::Duration;

use caddis_testkit::fake::FakeOptions;

use crate::stand::{Outcome, Stand};

async fn state(stand: &Stand, id: &str) -> String {
    let list = stand.run("machine list -a shop --json").await.ok().json();
    let found = list.as_array().into_iter().flatten().find(|machine| machine["id"] == id);
    found.map_or("gone".to_owned(), |machine| {
        machine["state"].as_str().unwrap_or_default().to_owned()
    })
}

/// A machine that runs this.
async fn machine(stand: &Stand, flags: &str, program: &str) -> String {
    let outcome =
        stand.run(&format!("machine run web -a shop {flags} --detach -- {program}")).await.ok();
    let id = outcome.stdout.lines().find_map(|line| line.trim().strip_prefix("Machine ID: "));
    let id = id.unwrap_or_else(|| panic!("no id in {outcome}")).to_owned();
    stand.run(&format!("machine wait {id} -a shop")).await.ok();
    id
}

fn failed(outcome: &Outcome, text: &str) {
    assert_eq!(outcome.code, 1, "{outcome}");
    assert!(outcome.stderr.contains(text), "{outcome}");
}

#[tokio::test]
async fn a_job_that_fails_is_an_error_and_one_that_works_is_not() {
    let stand = Stand::with_app().await;
    for (flags, text) in [
        ("--restart no", "its program ended with exit code 3\n"),
        ("--rm", "its program ended with exit code 3\n"),
        ("--restart on-failure", "its program ended with exit code 3, it is being restarted\n"),
    ] {
        let run = stand.run(&format!("machine run web -a shop {flags} -- exit 3")).await;
        failed(&run, text);
        assert!(!run.stdout.contains("Machine started"), "{run}");
        let hint = "See 'caddis logs -a shop -m ";
        assert!(run.stderr.contains(hint), "{run}");
        assert_eq!(run.stderr.contains("and remains"), flags != "--rm", "{run}");
    }
    let crash = stand.run("machine run web -a shop --restart no -- crash").await;
    failed(&crash, "exit code 139 (SIGSEGV)");
    let oom = stand.run("machine run web -a shop --restart no -- oom").await;
    failed(&oom, "guest_oom");
    for flags in ["--restart no", "--rm"] {
        let run = stand.run(&format!("machine run web -a shop {flags} -- exit 0")).await.ok();
        assert!(run.stdout.contains("The machine ran and is now "), "{run}");
    }
    let job = machine(&stand, "--name job --restart no", "exit 3").await;
    stand.run(&format!("machine wait {job} -a shop --state stopped")).await.ok();
    failed(
        &stand.run(&format!("machine clone {job} -a shop --name again")).await,
        "ended with exit code 3",
    );
    failed(&stand.run(&format!("machine restart {job} -a shop")).await, "ended with exit code 3");
    let waits = stand.run(&format!("machine wait {job} -a shop --state started")).await;
    failed(
        &waits,
        "machine will not reach started: its program has ended with exit code 3 and is not \
         restarted",
    );
}

#[tokio::test]
async fn stopped_started_and_destroyed_are_said_of_machines_that_are() {
    let stand = Stand::with_app().await;
    let id = machine(&stand, "--name polite --restart no", "sleep inf").await;
    let stop = stand.run(&format!("machine stop {id} -a shop")).await.ok();
    assert!(stop.stdout.contains("has been successfully stopped\n"), "{stop}");
    assert_eq!(state(&stand, &id).await, "stopped");
    // Where nothing is asked the answer is taken all the same.
    let start = stand.run(&format!("machine start {id} -a shop --yes")).await.ok();
    assert!(start.stdout.contains("has been started\n"), "{start}");
    assert_eq!(state(&stand, &id).await, "started");
    let restart = stand.run(&format!("machine restart {id} -a shop --yes")).await.ok();
    assert!(restart.stdout.contains("restarted successfully!\n"), "{restart}");
    let destroy = stand.run(&format!("machine destroy {id} -a shop --force")).await.ok();
    assert!(destroy.stdout.contains("has been destroyed\n"), "{destroy}");
    assert_eq!(state(&stand, &id).await, "gone");

    let id = machine(&stand, "--name stubborn --restart no", "ignore-signals").await;
    let stop = stand.run(&format!("machine stop {id} -a shop --timeout 300 -w 0")).await.ok();
    assert!(
        stop.stdout.contains("is being stopped\n") && !stop.stdout.contains("success"),
        "{stop}"
    );
    let stop = stand.run(&format!("machine stop {id} -a shop --timeout 300 -w 1s")).await;
    assert!(stop.code == 126 && !stop.stdout.contains("success"), "{stop}");
    // Another may shorten the stop while the first one waits.
    let waiting = format!("machine stop {id} -a shop --timeout 300");
    let (stop, _) = tokio::join!(stand.run(&waiting), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stand.run(&format!("machine stop {id} -a shop --timeout 0")).await
    });
    assert!(stop.code == 0 && stop.stdout.contains("successfully stopped"), "{stop}");

    let id = machine(&stand, "--name fleeting --rm", "sleep inf").await;
    let stop = stand.run(&format!("machine stop {id} -a shop")).await.ok();
    assert!(stop.stdout.contains("has been successfully stopped"), "{stop}");
}

#[tokio::test]
async fn the_log_of_a_machine_that_goes_on_writing_ends_and_a_quiet_one_has_one() {
    let stand = Stand::with_app().await;
    let quiet = machine(&stand, "--name quiet --restart no", "sleep inf").await;
    let log = stand.run(&format!("logs -a shop -m {quiet} --no-tail")).await.ok();
    assert!(
        log.stdout.contains(&format!(" runner[{quiet}] local [info]Machine started in ")),
        "{log}"
    );
    stand.run(&format!("machine stop {quiet} -a shop")).await.ok();
    let log = stand.run(&format!("logs -a shop -m {quiet} --no-tail")).await.ok();
    assert!(log.stdout.contains("[info]Machine exited with exit code "), "{log}");
    assert!(
        log.stdout.lines().last().is_some_and(|line| line.ends_with(", stop requested")),
        "{log}"
    );

    machine(&stand, "--name flood --restart no", "flood").await;
    for arguments in ["", " --since 1h", " --until 2100-01-01T00:00:00Z"] {
        let logs = format!("logs -a shop --no-tail{arguments}");
        let log = tokio::time::timeout(Duration::from_secs(60), stand.run(&logs)).await;
        let log = log.unwrap_or_else(|_| panic!("{arguments}: it does not end")).ok();
        // What the fake program writes is of long ago.
        assert!(arguments.contains("since") || log.stdout.len() > 1000, "{arguments}: {log}");
    }
}

#[tokio::test]
async fn a_server_that_is_asked_too_often_is_waited_for() {
    let stand = Stand::with(FakeOptions { rate_limit: 2.0, ..FakeOptions::default() }).await;
    stand.run("apps create shop").await.ok();
    // Six at once and two a second: the later ones are told to wait, with a body and without.
    for number in 0..8 {
        stand.run("machine list -a shop").await.ok();
        stand.run(&format!("machine create web -a shop --name m{number}")).await.ok();
    }
    let id = machine(&stand, "--name busy", "sleep inf").await;
    for _ in 0..8 {
        stand.run(&format!("ssh console -a shop --machine {id} -C 'echo hello'")).await.ok();
    }
}
