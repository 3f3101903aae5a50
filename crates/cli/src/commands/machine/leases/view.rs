//! `caddis machine leases view`.

use caddis_api::{MachineId, UnixMillis, time};
use caddis_client::ClientError;
use clap::Args;
use serde_json::{Map, Value};

use crate::{CliError, commands::machine::choice, session::Session};

/// `caddis machine leases view`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis machine leases view 148ed193b95389 -a hello")]
pub struct View {
    #[command(flatten)]
    which: choice::Many,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(view: View, session: &Session) -> Result<(), CliError> {
    let (client, app, machines) = view.which.find(session).await?;
    let mut leases = Map::new();
    for machine in machines {
        match client.get_lease_json(&app, &machine.id).await {
            Ok(lease) => drop(leases.insert(machine.id.to_string(), lease)),
            Err(error) if no_lease(&error) => {}
            Err(error) => return Err(failed(&machine.id, error)),
        }
    }
    if view.json {
        return Ok(session.printer.json(&leases)?);
    }
    if leases.is_empty() {
        return Ok(session.printer.out("No leases found")?);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |(id, lease): (&String, &Value)| {
        let (status, data) = (&lease["status"], &lease["data"]);
        let expires = data["expires_at"]
            .as_u64()
            .map(|at| time::seconds(UnixMillis::from_seconds(at).into()));
        vec![
            id.clone(),
            text(&data["nonce"]),
            text(status),
            text(&data["owner"]),
            expires.unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = leases.iter().map(row).collect();
    let headers = ["Machine", "Nonce", "Status", "Owner", "Expires"];
    session.printer.table("", &headers, &rows)?;
    Ok(())
}

pub(super) fn no_lease(error: &ClientError) -> bool {
    error.to_string().contains("lease not found")
}

pub(super) fn failed(id: &MachineId, error: ClientError) -> CliError {
    CliError::attempted(format!("could not get the lease of machine {id}"), error)
}
