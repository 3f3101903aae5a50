//! `caddis wireguard status`.

use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::Which;
use crate::{CliError, render::time, session::Session};

/// A session is good for so long: a peer with an older handshake has none.
const SESSION: SignedDuration = SignedDuration::from_secs(180);

/// `caddis wireguard status`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis wireguard status personal laptop")]
pub struct Status {
    #[command(flatten)]
    which: Which,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(status: Status, session: &Session) -> Result<(), CliError> {
    let Which { org, name, network } = status.which;
    let peer = session.client()?.wireguard_peer(&org, network.as_deref(), &name).await;
    let peer = peer.map_err(|error| {
        CliError::attempted(format!("could not show WireGuard peer {name}"), error)
    })?;
    if status.json {
        return Ok(session.printer.json(&peer)?);
    }
    let now = Timestamp::now();
    let handshake = peer.last_handshake_at.as_deref();
    let at = handshake.and_then(|at| at.parse::<Timestamp>().ok());
    let is_alive = at.is_some_and(|at| now.duration_since(at) < SESSION);
    let facts = [
        ("Alive", is_alive.to_string()),
        ("Address", peer.peer_ip.clone()),
        ("Endpoint", peer.endpoint.clone().unwrap_or_default()),
        ("Last Handshake", handshake.map_or("never".to_owned(), |at| time::relative(at, now))),
        ("Received", format!("{} bytes", peer.received_bytes)),
        ("Sent", format!("{} bytes", peer.sent_bytes)),
        ("Refused", format!("{} packets", peer.refused_packets)),
    ];
    Ok(session.printer.facts("", &facts)?)
}
