//! `caddis machine leases`.

use caddis_api::{MachineId, time};
use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use super::choice;
use crate::{CliError, session::Session};

/// `caddis machine leases …`.
#[derive(Debug, Args)]
pub struct Leases {
    #[command(subcommand)]
    command: LeasesCommand,
}

#[derive(Debug, Subcommand)]
enum LeasesCommand {
    /// Show the leases of machines.
    #[command(after_help = "Example:\n  caddis machine leases view 148ed193b95389 -a hello")]
    View(View),
    /// Clear leases, whoever holds them.
    #[command(after_help = "Example:\n  caddis machine leases clear 148ed193b95389 -a hello")]
    Clear(Clear),
}

#[derive(Debug, Args)]
struct View {
    #[command(flatten)]
    which: choice::Many,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Clear {
    #[command(flatten)]
    which: choice::Many,
}

pub async fn run(leases: Leases, session: &Session) -> Result<(), CliError> {
    match leases.command {
        LeasesCommand::View(view) => self::view(view, session).await,
        LeasesCommand::Clear(clear) => self::clear(clear, session).await,
    }
}

async fn view(view: View, session: &Session) -> Result<(), CliError> {
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
            .map(|at| time::seconds(time::from_unix_ms(at.saturating_mul(1000))));
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

async fn clear(clear: Clear, session: &Session) -> Result<(), CliError> {
    let (client, app, machines) = clear.which.find(session).await?;
    choice::each(session, &machines, async |machine| {
        let id = &machine.id;
        let lease = match client.get_lease(&app, id).await {
            Ok(lease) => lease,
            Err(error) if no_lease(&error) => return Ok(()),
            Err(error) => return Err(failed(id, error)),
        };
        session.printer.out(format_args!("clearing lease for machine {id}"))?;
        match client.release_lease(&app, id, &lease.nonce).await {
            // It has just ended.
            Err(error) if !no_lease(&error) => Err(CliError::attempted(
                format!("could not clear the lease of machine {id}"),
                error,
            )),
            _ => Ok(()),
        }
    })
    .await?;
    session.printer.out("Lease(s) cleared")?;
    Ok(())
}

fn no_lease(error: &caddis_client::ClientError) -> bool {
    error.to_string().contains("lease not found")
}

fn failed(id: &MachineId, error: caddis_client::ClientError) -> CliError {
    CliError::attempted(format!("could not get the lease of machine {id}"), error)
}
