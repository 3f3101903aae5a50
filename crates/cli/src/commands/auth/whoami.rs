//! `caddis auth whoami`.

use clap::Args;
use serde_json::json;

use crate::{CliError, session::Session};

/// `caddis auth whoami`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis auth whoami")]
pub struct Whoami {
    /// Print as JSON, without the token.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(whoami: Whoami, session: &Session) -> Result<(), CliError> {
    let (connection, printer) = (session.connection()?, &session.printer);
    session.client()?.list_apps(Some("personal")).await?;
    let (server, server_from) = (&connection.url, &connection.url_source);
    let token_from = &connection.token_source;
    if whoami.json {
        let shown =
            json!({ "server": server, "server_from": server_from, "token_from": token_from });
        return Ok(printer.json(&shown)?);
    }
    printer.out(format_args!("Server: {server} (from {server_from})"))?;
    printer.out(format_args!("Access token: accepted (from {token_from})"))?;
    Ok(())
}
