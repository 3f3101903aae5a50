//! `caddis apps destroy`.

use std::time::Duration;

use caddis_client::Client;
use clap::Args;

use crate::{CliError, prompt, session::Session};

/// How long an app may take to go away with its machines.
const GONE_PATIENCE: Duration = Duration::from_secs(120);
const GONE_INTERVAL: Duration = Duration::from_millis(100);

/// `caddis apps destroy`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis apps destroy hello\n  caddis apps destroy hello other --yes")]
pub struct Destroy {
    /// Their names.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Don't ask.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
}

/// Runs it.
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
            let unasked = "yes flag must be specified when not running interactively";
            prompt::confirm(printer, &format!("Destroy app {name}?"), unasked).await?;
        }
        client.delete_app(name).await?;
        until_gone(&client, name).await?;
        printer.out(format_args!("Destroyed app {name}"))?;
    }
    Ok(())
}

/// The server answers before the app's machines are gone; there is nothing that would tell when they are.
async fn until_gone(client: &Client, name: &str) -> Result<(), CliError> {
    let deadline = tokio::time::Instant::now() + GONE_PATIENCE;
    loop {
        match client.get_app(name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if !error.is_transient() => return Err(error.into()),
            _ if tokio::time::Instant::now() > deadline => {
                let text = format!("app {name} is still being destroyed after {GONE_PATIENCE:?}; it goes on by itself");
                return Err(CliError::DeadlineExceeded(text));
            }
            _ => tokio::time::sleep(GONE_INTERVAL).await,
        }
    }
}
