//! `caddis ips private`.

use caddis_client::ListMachines;
use clap::Args;
use serde_json::json;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis ips private`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis ips private -a hello")]
pub struct Private {
    #[command(flatten)]
    app: AppArgs,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(private: Private, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let app = session.app(&private.app)?;
    let machines = client.list_machines(&app, &ListMachines::default()).await?;
    if private.json {
        let shown: Vec<_> = machines
            .iter()
            .map(|machine| {
                json!({ "id": machine.id, "region": machine.region, "ip": machine.private_ip })
            })
            .collect();
        return Ok(printer.json(&shown)?);
    }
    let rows: Vec<_> = machines
        .iter()
        .map(|machine| {
            vec![machine.id.to_string(), machine.region.to_string(), machine.private_ip.clone()]
        })
        .collect();
    Ok(printer.table("", &["ID", "Region", "IP"], &rows)?)
}
