//! `caddis wireguard reset`.

use std::path::PathBuf;

use caddis_api::wireguard::ResetWireGuardPeer;
use clap::Args;

use super::{
    Which,
    file::{KeyPair, Target},
};
use crate::{CliError, session::Session};

/// `caddis wireguard reset`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis wireguard reset personal laptop caddis.conf")]
pub struct Reset {
    #[command(flatten)]
    which: Which,
    /// File to write or replace [default: standard output].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print as JSON, which holds the configuration where no file is named.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(reset: Reset, session: &Session) -> Result<(), CliError> {
    let target = Target::check(reset.file, true)?;
    let keys = KeyPair::random()?;
    let Which { org, name, network } = reset.which;
    let request = ResetWireGuardPeer { public_key: keys.public.clone(), network };
    let reply = session.client()?.reset_wireguard_peer(&org, &name, &request).await;
    let reply = reply.map_err(|error| {
        CliError::attempted(format!("could not reset WireGuard peer {name}"), error)
    })?;
    session.printer.note(format_args!(
        "Gave WireGuard peer {name} a new key; the former configuration no longer works."
    ))?;
    target.write(session, &org, &keys, &reply, reset.json)
}
