//! `caddis orgs`.

use caddis_api::app::Organization;
use clap::{Args, Subcommand};
use serde_json::{Map, json};

use crate::{CliError, organization::PERSONAL, session::Session};

/// `caddis orgs …`.
#[derive(Debug, Args)]
pub struct Orgs {
    #[command(subcommand)]
    command: OrgsCommand,
}

#[derive(Debug, Subcommand)]
enum OrgsCommand {
    /// List the organizations the access token has access to.
    #[command(visible_alias = "ls", after_help = "Example:\n  caddis orgs list --json")]
    List {
        /// Print names by slug as JSON.
        #[arg(short, long)]
        json: bool,
    },
}

pub async fn run(orgs: Orgs, session: &Session) -> Result<(), CliError> {
    let OrgsCommand::List { json } = orgs.command;
    let organizations = session.client()?.organizations().await?;
    if json {
        let by_slug: Map<_, _> =
            organizations.into_iter().map(|org| (org.slug, json!(org.name))).collect();
        return Ok(session.printer.json(&by_slug)?);
    }
    let row = |org: Organization| {
        let kind = if org.slug == PERSONAL { "PERSONAL" } else { "SHARED" };
        vec![org.name, org.slug, kind.to_owned()]
    };
    let rows: Vec<_> = organizations.into_iter().map(row).collect();
    Ok(session.printer.table("", &["Name", "Slug", "Type"], &rows)?)
}
