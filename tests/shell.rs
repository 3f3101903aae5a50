//! `machine run --shell`: a machine that is there for one session.

use anyhow::Result;
use caddis_testkit::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::stand::{APP, Stand};

/// Waits until the apps made for shells are gone, and the VMs with them.
async fn until_removed(stand: &Stand<'_>) -> Result<()> {
    stand.server.until_no_vm().await?;
    let deadline = std::time::Instant::now() + caddis_testkit::DEADLINE;
    loop {
        let apps: Value = stand.server.api().get("/v1/apps?org_slug=personal").await?.ok()?;
        let apps: Vec<_> = apps["apps"].as_array().into_iter().flatten().collect();
        if apps.len() == 1 {
            return Ok(());
        }
        anyhow::ensure!(std::time::Instant::now() < deadline, "apps are left: {apps:?}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_shell_in_a_fresh_machine_leaves_nothing_behind_however_it_ends() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let image = stand.busybox()?;
    let run = ["machine", "run", &image, "--shell"];

    let mut shell = stand.server.terminal(&run, 90, 25)?;
    shell
        .expect("Success! A Machine has been successfully launched in app interactive-shells-")
        .await?;
    shell.expect(" Machine ID: ").await?;
    let id = shell.expect("\r\n").await?.trim().to_owned();
    shell.expect("complete").await?;
    shell.expect("# ").await?;
    shell.send("uname -a; stty size; exit 5\r").await?;
    shell.expect(&format!("Linux {id} ")).await?;
    shell.expect("25 90\r\n").await?;
    assert_eq!(shell.end().await?.code(), Some(5), "{}", shell.screen());
    until_removed(&stand).await?;

    // Killed outright: nobody is left to clean up but the server and the machine.
    let mut shell = stand.server.terminal(&run, 90, 25)?;
    shell.expect("complete").await?;
    shell.expect("# ").await?;
    shell.kill().await?;
    until_removed(&stand).await?;

    // Interrupted before there is a shell.
    let mut shell = stand.server.terminal(&run, 90, 25)?;
    shell.expect(" Machine ID: ").await?;
    kill(Pid::from_raw(shell.pid()?), Signal::SIGINT)?;
    assert_eq!(shell.end().await?.code(), Some(127), "{}", shell.screen());
    until_removed(&stand).await?;

    // In an app of one's own, which stays; the program is another's.
    let run = [&run[..], &["-a", APP, "--user", "www", "--command", "id -un"]].concat();
    let output = stand.server.cli(&run).await?;
    assert_eq!((output.code, &*output.stdout), (Some(0), "www\n"), "{output:?}");
    until_removed(&stand).await?;
    assert_eq!(stand.server.api().get(&format!("/v1/apps/{APP}")).await?.status, 200);
    Ok(())
}
