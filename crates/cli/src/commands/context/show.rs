//! `caddis context show`.

use clap::Args;
use serde_json::json;

use crate::{CliError, session::Session};

/// `caddis context show`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis context show")]
pub struct Show {
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub fn run(show: &Show, session: &Session) -> Result<(), CliError> {
    let (connection, printer) = (session.connection()?, &session.printer);
    if show.json {
        let shown = json!({
            "api_url": connection.url,
            "api_url_source": connection.url_source,
            "access_token_source": connection.token_source,
        });
        return Ok(printer.json(&shown)?);
    }
    printer.out(format_args!("Server: {} (from {})", connection.url, connection.url_source))?;
    let source =
        connection.token.map_or("none".to_owned(), |_| format!("from {}", connection.token_source));
    printer.out(format_args!("Access token: {source}"))?;
    Ok(())
}
