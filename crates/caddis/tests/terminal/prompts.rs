//! Questions and menus.

use anyhow::Result;

use crate::stand::Stand;

#[tokio::test]
async fn a_machine_is_chosen_from_a_menu() -> Result<()> {
    let stand = Stand::new().await?;
    let (first, second) = (stand.machine("one").await?, stand.machine("two").await?);
    let mut terminal = stand.terminal(&["machine", "status", "-a", "shop"])?;
    let menu = terminal.expect("Select a machine:").await?;
    assert!(menu.contains(&format!("{first} one (started, region local")), "{menu}");
    assert!(menu.contains(&format!("{second} two (started, region local")), "{menu}");
    terminal.send(if first < second { "2\r" } else { "1\r" }).await?;
    terminal.expect(&format!("Machine ID: {second}")).await?;
    let status = terminal.end().await?;
    assert_eq!(status.code(), Some(0), "{}", terminal.screen());
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
