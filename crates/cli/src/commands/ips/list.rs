//! `caddis ips list`.

use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis ips list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis ips list -a hello\n  caddis ips list -a hello --json")]
pub struct List {
    #[command(flatten)]
    app: AppArgs,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let app = session.app(&list.app)?;
    let addresses = client.list_addresses(&app).await?;
    if list.json {
        return Ok(printer.json(&addresses)?);
    }
    if addresses.is_empty() {
        return Ok(printer.out(format_args!("App {app} has no addresses"))?);
    }
    super::table(session, &addresses)
}
