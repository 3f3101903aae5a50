//! `caddis wireguard create`.

use std::path::PathBuf;

use caddis_api::{names, wireguard::CreateWireGuardPeer};
use clap::Args;

use super::file::{KeyPair, Target};
use crate::{CliError, organization, session::Session};

/// `caddis wireguard create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  caddis wireguard create personal local laptop caddis.conf\n  sudo \
                  wg-quick up ./caddis.conf"
)]
pub struct Create {
    /// Slug of the organization; may be omitted if there is only one.
    #[arg(value_name = "ORG")]
    org: Option<String>,
    /// Region; this server has one.
    #[arg(value_name = "REGION")]
    region: Option<String>,
    /// Name of the peer, NAME._peer.internal for machines [default: a made-up one].
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// File to write [default: standard output].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Private network [default: the organization's default].
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Print as JSON, which holds the configuration where no file is named.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let target = Target::check(create.file, false)?;
    let client = session.client()?;
    let org = organization::choose(session, &client, create.org.as_deref()).await?;
    if let Some(region) = &create.region {
        let known = client.regions().await?.regions;
        if known.iter().all(|known| known.code != *region.as_str()) {
            let known: Vec<_> = known.iter().map(|known| known.code.as_str()).collect();
            let known = known.join(", ");
            return Err(CliError::new(format!("unknown region '{region}'; available: {known}")));
        }
    }
    let keys = KeyPair::random()?;
    let request = CreateWireGuardPeer {
        name: create.name.unwrap_or_else(names::generate),
        public_key: keys.public.clone(),
        network: create.network,
    };
    let reply = client.create_wireguard_peer(&org, &request).await;
    let reply = reply.map_err(|error| {
        CliError::attempted(format!("could not create WireGuard peer {}", request.name), error)
    })?;
    session.printer.note(format_args!(
        "Created WireGuard peer {} with address {}; its private key is in the configuration only.",
        reply.peer.name, reply.peer.peer_ip
    ))?;
    target.write(session, &org, &keys, &reply, create.json)
}
