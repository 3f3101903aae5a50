//! `caddis apps list`.

use caddis_api::app::App;
use clap::Args;

use crate::{CliError, app_name::is_for_shells, session::Session};

/// Network of apps that name none.
const DEFAULT_NETWORK: &str = "default";

/// `caddis apps list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis apps list\n  caddis apps list --quiet")]
pub struct List {
    /// Only apps of this organization.
    #[arg(short, long, value_name = "SLUG")]
    org: Option<String>,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    /// Print names only.
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let apps = client.list_apps(list.org.as_deref()).await?;
    if list.json {
        printer.json(&apps)?;
    } else if list.quiet {
        apps.iter().try_for_each(|app| printer.out(&app.name))?;
    } else if apps.is_empty() {
        printer.out("No apps found")?;
    } else {
        let networks = apps.iter().any(|app| app.network != DEFAULT_NETWORK);
        let mut headers = vec!["Name", "Owner", "Status"];
        headers.extend(networks.then_some("Network"));
        headers.push("Machines");
        let row = |app: &App| {
            let shells = is_for_shells(&app.name) && !session.globals.verbose;
            let name =
                if shells { "(interactive shells app)".to_owned() } else { app.name.to_string() };
            let mut row = vec![name, app.organization.slug.clone(), app.status.clone()];
            row.extend(networks.then(|| app.network.to_string()));
            row.push(app.machine_count.to_string());
            row
        };
        let rows: Vec<_> = apps.iter().map(row).collect();
        printer.table("", &headers, &rows)?;
    }
    Ok(())
}
