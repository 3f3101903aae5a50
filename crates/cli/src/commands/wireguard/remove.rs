//! `caddis wireguard remove`.

use clap::Args;

use super::Which;
use crate::{CliError, session::Session};

/// `caddis wireguard remove`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis wireguard remove personal laptop")]
pub struct Remove {
    #[command(flatten)]
    which: Which,
}

pub async fn run(remove: Remove, session: &Session) -> Result<(), CliError> {
    let Which { org, name, network } = remove.which;
    let removed = session.client()?.remove_wireguard_peer(&org, network.as_deref(), &name).await;
    removed.map_err(|error| {
        CliError::attempted(format!("could not remove WireGuard peer {name}"), error)
    })?;
    Ok(session.printer.out(format_args!("Removed WireGuard peer {name}"))?)
}
