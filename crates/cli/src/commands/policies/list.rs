//! `caddis network-policies list`.

use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis network-policies list`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis network-policies list -a hello\n  caddis network-policies \
                  list -a hello --json"
)]
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
    let policies = client.list_policies(&app).await?;
    if list.json {
        return Ok(printer.json(&policies)?);
    }
    if policies.is_empty() {
        return Ok(printer.out(format_args!("App {app} has no network policies"))?);
    }
    super::table(session, &policies)
}
