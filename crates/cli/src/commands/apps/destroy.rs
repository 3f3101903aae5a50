//! `caddis apps destroy`.

use std::time::Duration;

use caddis_client::{Client, ListMachines};
use clap::Args;
use futures::StreamExt as _;

use crate::{CliError, prompt, session::Session};

/// How long an app may take to go away with its machines.
const GONE_TIMEOUT: Duration = Duration::from_secs(120);
/// Before a server that does not answer is asked again.
const BACKOFF: Duration = Duration::from_millis(500);

/// `caddis apps destroy`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis apps destroy hello\n  caddis apps destroy hello other --yes"
)]
pub struct Destroy {
    /// Names of the apps.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
}

pub async fn run(destroy: Destroy, session: &Session) -> Result<(), CliError> {
    if destroy.names.is_empty() {
        return Err(CliError::new("no app names provided"));
    }
    let (client, printer) = (session.client()?, &session.printer);
    // A name that is mistyped is told before any other app is gone.
    for name in &destroy.names {
        client.get_app(name).await?;
    }
    for name in &destroy.names {
        if !destroy.yes {
            printer.note(printer.paint_error("Destroying an app is not reversible."))?;
            if let Some(lost) = what_is_lost(&client, name).await? {
                printer.note(printer.paint_error(&lost))?;
            }
            prompt::confirm(printer, &format!("Destroy app {name}?"), prompt::NO_YES).await?;
        }
        client.delete_app(name).await?;
        until_gone(&client, name).await?;
        printer.out(format_args!("Destroyed app {name}"))?;
    }
    Ok(())
}

/// What an app has that is destroyed with it.
async fn what_is_lost(client: &Client, name: &str) -> Result<Option<String>, CliError> {
    let all = ListMachines::default();
    let (machines, volumes) =
        tokio::join!(client.list_machines(name, &all), client.list_volumes(name));
    let volumes = volumes?.iter().filter(|volume| !volume.state.is_deleted()).count();
    let counted = [(machines?.len(), "machine"), (volumes, "volume")];
    let counted = counted.iter().filter(|(count, _)| *count > 0);
    let words: Vec<_> = counted
        .map(|(count, noun)| format!("{count} {noun}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    Ok((!words.is_empty()).then(|| {
        let undelete = if volumes > 0 { " Its volumes can't be undeleted afterwards." } else { "" };
        format!("App {name} has {}, destroyed with it.{undelete}", words.join(" and "))
    }))
}

/// The server answers before the app's machines are gone. Who follows them hears when the app is.
pub async fn until_gone(client: &Client, name: &str) -> Result<(), CliError> {
    let gone = async {
        loop {
            match client.watch_machines(name).await {
                Ok(updates) => updates.for_each(|_| std::future::ready(())).await,
                Err(error) if error.is_not_found() => return Ok(()),
                // It is started again, perhaps.
                Err(error) if error.is_transient() => tokio::time::sleep(BACKOFF).await,
                Err(error) => return Err(error.into()),
            }
        }
    };
    tokio::time::timeout(GONE_TIMEOUT, gone).await.unwrap_or_else(|_| {
        let text = format!(
            "app {name} is still being destroyed after {GONE_TIMEOUT:?}; it continues in the \
             background"
        );
        Err(CliError::DeadlineExceeded(text))
    })
}
