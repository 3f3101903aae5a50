//! `caddis wireguard list`.

use caddis_api::wireguard::WireGuardPeer;
use clap::Args;
use jiff::Timestamp;

use crate::{CliError, organization, render::time, session::Session};

/// `caddis wireguard list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis wireguard list personal --json")]
pub struct List {
    /// Slug of the organization; may be omitted if there is only one.
    #[arg(value_name = "ORG")]
    org: Option<String>,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let org = organization::choose(session, &client, list.org.as_deref()).await?;
    let peers = client.wireguard_peers(&org).await;
    let peers = peers.map_err(|e| CliError::attempted("could not list WireGuard peers", e))?;
    if list.json {
        return Ok(session.printer.json(&peers)?);
    }
    let now = Timestamp::now();
    let row = |peer: WireGuardPeer| {
        let handshake = peer.last_handshake_at.as_deref().map(|at| time::relative(at, now));
        vec![peer.name, peer.network, peer.peer_ip, handshake.unwrap_or_else(|| "never".to_owned())]
    };
    let rows: Vec<_> = peers.into_iter().map(row).collect();
    let headers = ["Name", "Network", "Peer IP", "Last Handshake"];
    Ok(session.printer.table("", &headers, &rows)?)
}
