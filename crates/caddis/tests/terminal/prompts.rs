//! Questions and menus.

use std::time::Duration;

use anyhow::Result;
use caddis_testkit::fake::{Faults, Stage};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::stand::Stand;

#[tokio::test]
async fn a_machine_is_chosen_from_a_menu() -> Result<()> {
    let stand = Stand::new().await?;
    let (first, second) = (stand.machine("one").await?, stand.machine("two").await?);
    let mut terminal = stand.terminal(&["machine", "status", "-a", "shop"])?;
    terminal.expect("Select a machine:").await?;
    let mut options = [
        format!("{first} one (started, region local)"),
        format!("{second} two (started, region local)"),
    ];
    options.sort();
    for option in options {
        terminal.expect(&option).await?;
    }
    // Down to the second, where it isn't the first.
    terminal.send(if first < second { "\u{1b}[B\r" } else { "\r" }).await?;
    terminal.expect(&format!("Machine ID: {second}")).await?;
    let status = terminal.end().await?;
    assert_eq!(status.code(), Some(0), "{}", terminal.screen());
    Ok(())
}

#[tokio::test]
async fn some_machines_are_chosen_from_a_menu() -> Result<()> {
    let stand = Stand::new().await?;
    let mut ids =
        [stand.machine("one").await?, stand.machine("two").await?, stand.machine("three").await?];
    ids.sort();
    let mut terminal = stand.terminal(&["machine", "stop", "-a", "shop", "--select"])?;
    terminal.expect("Select machines:").await?;
    // The first and the last.
    terminal.send(" \u{1b}[B\u{1b}[B \r").await?;
    let status = terminal.end().await?;
    assert_eq!(status.code(), Some(0), "{}", terminal.screen());
    for (at, stopped) in [true, false, true].into_iter().enumerate() {
        let said =
            terminal.screen().contains(&format!("{} has been successfully stopped", ids[at]));
        assert_eq!(said, stopped, "{at}: {}", terminal.screen());
    }
    Ok(())
}

#[tokio::test]
async fn a_menu_is_left_by_escape_and_by_ctrl_c() -> Result<()> {
    let stand = Stand::new().await?;
    stand.machine("one").await?;
    for (command, key, code, words) in [
        ("status", "\u{1b}", 0, ""),
        ("stop", "\u{1b}", 1, "no machines selected"),
        ("stop", "\r", 1, "no machines selected"),
        ("stop", "\u{3}", 127, ""),
    ] {
        let mut terminal = stand.terminal(&["machine", command, "-a", "shop"])?;
        terminal.expect("one (started").await?;
        terminal.send(key).await?;
        let status = terminal.end().await?;
        assert_eq!(status.code(), Some(code), "{}", terminal.screen());
        assert!(terminal.screen().contains(words), "{}", terminal.screen());
        // The cursor is there again.
        let shown = terminal.screen().rfind("\u{1b}[?25h");
        assert!(shown > terminal.screen().rfind("\u{1b}[?25l"), "{:?}", terminal.screen());
    }
    Ok(())
}

#[tokio::test]
async fn ctrl_c_at_a_question_changes_nothing() -> Result<()> {
    let stand = Stand::new().await?;
    let mut terminal = stand.terminal(&["apps", "destroy", "shop"])?;
    terminal.expect("Destroy app shop?").await?;
    terminal.send("\u{3}").await?;
    let status = terminal.end().await?;
    assert_eq!(status.code(), Some(127), "{}", terminal.screen());
    assert_eq!(stand.server.api()?.get("/v1/apps/shop").await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn an_update_shows_what_it_changes_and_asks() -> Result<()> {
    let stand = Stand::new().await?;
    let id = stand.machine("one").await?;
    let update = ["machine", "update", &id, "-a", "shop", "-e", "COLOUR=red", "--vm-memory", "512"];
    let path = format!("/v1/apps/shop/machines/{id}");
    for (answer, words, colour) in
        [("n", "No changes to apply", None), ("y", "updated successfully!", Some("red"))]
    {
        let mut terminal = stand.terminal(&update)?;
        let difference = terminal.expect("Apply changes? (y/N)").await?;
        for line in [
            "\u{1b}[31m-     \"memory_mb\": 256",
            "\u{1b}[32m+     \"memory_mb\": 512",
            "\u{1b}[32m+     \"COLOUR\": \"red\"",
        ] {
            assert!(difference.contains(line), "{line:?} is not in {difference}");
        }
        terminal.send(format!("{answer}\r")).await?;
        terminal.expect(words).await?;
        let status = terminal.end().await?;
        assert_eq!(status.code(), Some(0), "{}", terminal.screen());
        let machine = stand.server.api()?.get(&path).await?;
        assert_eq!(machine.body["config"]["env"]["COLOUR"].as_str(), colour);
    }
    Ok(())
}

#[tokio::test]
async fn ctrl_c_at_each_stage_of_a_run_says_what_may_be_left() -> Result<()> {
    let stand = Stand::new().await?;
    for (stage, words) in [
        (Stage::Resolve, "A machine may have been created in app shop"),
        (Stage::Pull, "was created in app shop and remains"),
    ] {
        stand.server.images.hold(stage);
        let mut terminal = stand.terminal(&["machine", "run", "web:1", "-a", "shop"])?;
        stand.server.images.reached(stage).await;
        if stage == Stage::Pull {
            terminal.expect("Attempting to start machine").await?;
        }
        terminal.send("\u{3}").await?;
        terminal.expect(words).await?;
        let status = terminal.end().await?;
        assert_eq!(status.code(), Some(127), "{}", terminal.screen());
        stand.server.images.release();
    }
    // While its VM is started, which takes long.
    let launch_delay = Duration::from_secs(10);
    stand.server.host.set_faults(Faults { launch_delay, ..Faults::default() });
    let mut terminal =
        stand.terminal(&["machine", "run", "web:1", "-a", "shop", "--name", "slow"])?;
    terminal.expect("Starting the VM").await?;
    terminal.send("\u{3}").await?;
    terminal.expect("was created in app shop and remains").await?;
    assert_eq!(terminal.end().await?.code(), Some(127), "{}", terminal.screen());
    stand.server.host.set_faults(Faults::default());
    // What it says is what there is.
    let destroy = ["machine", "destroy", "slow", "-a", "shop", "--force"];
    let mut terminal = stand.terminal(&destroy)?;
    terminal.expect("has been destroyed").await?;
    assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
    Ok(())
}

#[tokio::test]
async fn run_offers_to_make_an_app_and_can_be_left_at_each_question() -> Result<()> {
    let stand = Stand::new().await?;
    let gone = async |app: &str| -> Result<bool> {
        Ok(stand.server.api()?.get(&format!("/v1/apps/{app}")).await?.status == 404)
    };
    let question = "App 'fresh' does not exist, would you like to create it?";
    let other = "Running a Machine without specifying an app will create one for you, is this \
                 what you want?";
    for (arguments, question, answer, code) in [
        (["machine", "run", "web:1", "-a", "fresh"].as_slice(), question, "\u{3}", 127),
        (&["machine", "run", "web:1", "-a", "fresh"], question, "n\r", 0),
        (&["machine", "run", "web:1"], other, "\u{3}", 127),
        (&["machine", "run", "web:1"], other, "n\r", 0),
    ] {
        let mut terminal = stand.terminal(arguments)?;
        terminal.expect(question).await?;
        terminal.send(answer).await?;
        assert_eq!(terminal.end().await?.code(), Some(code), "{}", terminal.screen());
        assert!(gone("fresh").await?);
    }
    let mut terminal = stand.terminal(&["machine", "run", "web:1"])?;
    terminal.expect(other).await?;
    terminal.send("y\r").await?;
    terminal.expect("App Name:").await?;
    terminal.send("\u{3}").await?;
    assert_eq!(terminal.end().await?.code(), Some(127), "{}", terminal.screen());

    let mut terminal = stand.terminal(&["machine", "run", "web:1"])?;
    terminal.expect(other).await?;
    terminal.send("y\r").await?;
    terminal.expect("App Name:").await?;
    terminal.send("fresh\r").await?;
    terminal.expect("Machine started, you can connect via the following private ip").await?;
    assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
    assert!(!gone("fresh").await?);
    Ok(())
}

#[tokio::test]
async fn q_ends_a_screen_and_the_terminal_is_as_before() -> Result<()> {
    let stand = Stand::new().await?;
    stand.machine("one").await?;
    for command in
        [["machine", "top"].as_slice(), &["machine", "list", "--watch"], &["status", "--watch"]]
    {
        for (signal, code) in [(None, 0), (Some(Signal::SIGTERM), 143), (Some(Signal::SIGINT), 127)]
        {
            let mut terminal = stand.terminal(&[command, &["-a", "shop"]].concat())?;
            terminal.expect("started").await?;
            match signal {
                Some(signal) => kill(Pid::from_raw(terminal.pid()?), signal)?,
                None => terminal.send("xq").await?,
            }
            let status = terminal.end().await?;
            assert_eq!(status.code(), Some(code), "{status:?} {}", terminal.screen());
            assert!(terminal.echoes()?, "keys are shown again");
            assert!(
                !terminal.lines().iter().any(|line| line.contains("xq")),
                "{}",
                terminal.screen()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn tables_fit_a_terminal() -> Result<()> {
    let stand = Stand::new().await?;
    let id = stand.machine("one").await?;
    for columns in [200, 110, 60] {
        let mut terminal = stand.terminal_of(&["machine", "list", "-a", "shop"], columns)?;
        assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
        let lines = terminal.lines();
        let row: Vec<_> = lines.iter().filter(|line| line.contains(&id)).collect();
        assert_eq!(row.len(), 1, "{lines:#?}");
        assert!(
            lines.iter().any(|line| line.contains(" ID ")) && row[0].contains(" started "),
            "{lines:#?}"
        );
        // Columns that say nothing are not there, and one that has no room is named.
        assert!(
            !lines.iter().any(|line| line.contains("ROLE") || line.contains("VOLUME")),
            "{lines:#?}"
        );
        assert_eq!(
            lines.iter().any(|line| line.contains("Not shown")),
            columns < 200,
            "{lines:#?}"
        );
        assert!(
            terminal.screen().contains("\u{1b}[32mstarted"),
            "in green: {:?}",
            terminal.screen()
        );
    }
    Ok(())
}

/// What a command prints, which needs nobody to answer.
async fn said(stand: &Stand, arguments: &[&str]) -> Result<String> {
    let mut terminal = stand.terminal(arguments)?;
    assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
    Ok(terminal.screen().to_owned())
}

#[tokio::test]
async fn a_deleted_volume_is_only_offered_to_be_undeleted() -> Result<()> {
    let stand = Stand::new().await?;
    for name in ["gone", "kept"] {
        said(&stand, &["volumes", "create", name, "-a", "shop", "--yes"]).await?;
    }
    let list = said(&stand, &["volumes", "list", "-a", "shop"]).await?;
    let line = list.lines().find(|line| line.contains("gone")).unwrap_or_default();
    let id = line.split_whitespace().next().unwrap_or_default();
    said(&stand, &["volumes", "destroy", id, "-a", "shop", "--yes"]).await?;
    let mut terminal = stand.terminal(&["volumes", "show", "-a", "shop"])?;
    terminal.expect("Select volume").await?;
    terminal.expect("kept created 1GB").await?;
    terminal.send("\r").await?;
    terminal.expect("Name: kept").await?;
    terminal.end().await?;
    assert!(!terminal.screen().contains("gone"), "{}", terminal.screen());
    let mut terminal = stand.terminal(&["volumes", "undelete", "-a", "shop"])?;
    terminal.expect("gone pending_destroy 1GB").await?;
    terminal.send("\r").await?;
    terminal.expect("Name: gone").await?;
    terminal.end().await?;
    assert!(!terminal.screen().contains("kept"), "{}", terminal.screen());
    Ok(())
}

#[tokio::test]
async fn a_console_asks_which_of_several_machines_it_is_for() -> Result<()> {
    let stand = Stand::new().await?;
    let (first, second) = (stand.machine("one").await?, stand.machine("two").await?);
    let mut terminal = stand.terminal(&["ssh", "console", "-a", "shop"])?;
    terminal.expect("Select VM:").await?;
    terminal.expect("two").await?;
    terminal.send(if first < second { "\u{1b}[B\r" } else { "\r" }).await?;
    terminal.expect(&format!("Using machine {second} (two)")).await?;
    terminal.expect("session of root on ").await?;
    terminal.send("\u{4}").await?;
    assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_here_is_offered_where_the_registry_is_away() -> Result<()> {
    let stand = Stand::new().await?;
    stand.machine("one").await?;
    stand.server.images.set_registries_away(true);
    let mut terminal = stand.terminal(&["machine", "run", "--shell"])?;
    terminal.expect("Use an image that the server already has?").await?;
    terminal.send("\r").await?;
    terminal.expect("Searching for image 'docker.io/library/web:latest@sha256:").await?;
    terminal.expect("session of root on ").await?;
    terminal.send("\u{4}").await?;
    assert_eq!(terminal.end().await?.code(), Some(0), "{}", terminal.screen());
    // Who wants none of them hears what is wrong.
    let mut terminal = stand.terminal(&["machine", "run", "ubuntu", "-a", "shop"])?;
    terminal.expect("Use an image that the server already has?").await?;
    terminal.send("\u{1b}").await?;
    terminal.expect("could not launch machine: registry docker.io is unavailable").await?;
    assert_eq!(terminal.end().await?.code(), Some(1), "{}", terminal.screen());
    assert!(!terminal.screen().contains("may have been created"), "{}", terminal.screen());
    Ok(())
}

#[tokio::test]
async fn screens_that_watch_are_drawn_anew_as_machines_change() -> Result<()> {
    let stand = Stand::new().await?;
    let id = stand.machine("one").await?;
    for command in
        [["machine", "top"].as_slice(), &["machine", "list", "--watch"], &["status", "--watch"]]
    {
        let arguments = [command, &["-a", "shop"]].concat();
        let mut terminal = stand.terminal(&arguments)?;
        terminal.expect("started").await?;
        if command[1] == "top" {
            // The fake VM's, as its host tells it.
            terminal.expect("32 MiB").await?;
            terminal.expect("0.0%").await?;
        }
        let api = stand.server.api()?;
        api.post(&format!("/v1/apps/shop/machines/{id}/stop"), serde_json::json!({})).await?;
        terminal.expect("stopped").await?;
        terminal.send("\u{3}").await?;
        let status = terminal.end().await?;
        assert_eq!(status.code(), Some(127), "{}", terminal.screen());
        api.post(&format!("/v1/apps/shop/machines/{id}/start"), serde_json::json!({})).await?;
        api.get(&format!("/v1/apps/shop/machines/{id}/wait?state=started&timeout=30")).await?;
    }
    Ok(())
}
