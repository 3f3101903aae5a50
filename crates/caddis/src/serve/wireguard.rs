//! WireGuard peers: who they are, as the catalog says, and the way from them to machines.

use std::{
    collections::BTreeSet,
    io,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use caddis_api::UnixMillis;
use caddis_catalog::{Catalog, PeerRecord};
use caddis_gateway::{WireGuardInfo, WireGuardStatus};
use caddis_network::Network;
use caddis_wireguard::{
    Device, Peer, Peers, PrivateKey, Server, Socket, WireGuardError, create_device, open_socket,
};
use tokio::{task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::PORT_TIMEOUT;
use crate::settings::WireGuardSettings;

/// Time until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Serves peers until dropped.
pub struct WireGuard {
    _server: Server,
    info: Arc<Info>,
    following: JoinHandle<()>,
}

#[derive(Debug)]
struct Info {
    peers: Arc<Peers>,
    endpoint: String,
}

impl WireGuard {
    /// Listens, and follows the catalog.
    pub async fn start(
        settings: &WireGuardSettings,
        key: &PrivateKey,
        network: Arc<Network>,
        catalog: Catalog,
    ) -> Result<Self> {
        let peers = Arc::new(Peers::new(key));
        let socket = listen(settings).await?;
        let create = |name: &str| create_device(name).map_err(io::Error::other);
        let device = network.attach_peers(Device::MOST_SEGMENTS, create).await?;
        let server = Server::start(peers.clone(), socket, device)?;
        let info = Arc::new(Info { peers: peers.clone(), endpoint: settings.endpoint.clone() });
        info!(
            address = %settings.listen, endpoint = settings.endpoint,
            public_key = %peers.public_key(), "listening for WireGuard"
        );
        let following = tokio::spawn(follow(catalog, network, peers));
        Ok(Self { _server: server, info, following })
    }

    /// What the gateway tells of it.
    pub fn info(&self) -> Arc<dyn WireGuardInfo> {
        self.info.clone()
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        self.following.abort();
    }
}

/// A server that was just killed may still have the port.
async fn listen(settings: &WireGuardSettings) -> Result<Socket> {
    let begun = Instant::now();
    loop {
        match open_socket(settings.listen) {
            Err(WireGuardError::Io { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && begun.elapsed() < PORT_TIMEOUT =>
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome.context("choose another address with --wireguard-listen"),
        }
    }
}

async fn follow(catalog: Catalog, network: Arc<Network>, peers: Arc<Peers>) {
    let mut changes = catalog.peers_changed();
    loop {
        match take(&catalog, &network, &peers).await {
            Ok(()) if changes.changed().await.is_err() => return,
            Ok(()) => {}
            // Nothing tells when it works again; those who are peers already stay.
            Err(error) => {
                warn!(error = format!("{error:#}"), "can't take over the WireGuard peers");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn take(catalog: &Catalog, network: &Network, peers: &Peers) -> Result<()> {
    let known: Result<Vec<_>> = catalog.peers().await?.iter().map(read).collect();
    let known = known?;
    let networks: BTreeSet<_> = known.iter().map(|peer| peer.network).collect();
    // Those who are no peers any more reach nothing from here on, whatever the routes.
    peers.replace(known)?;
    Ok(network.route_peers(networks).await?)
}

fn read(record: &PeerRecord) -> Result<Peer> {
    let attempted = || format!("WireGuard peer {} in the catalog", record.name);
    Ok(Peer {
        key: record.key.parse().with_context(attempted)?,
        address: record.address,
        network: record.network_prefix.parse().with_context(attempted)?,
    })
}

impl WireGuardInfo for Info {
    fn public_key(&self) -> String {
        self.peers.public_key().to_string()
    }

    fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    fn status(&self, key: &str) -> Option<WireGuardStatus> {
        let status = self.peers.status(&key.parse().ok()?)?;
        let at = status.last_handshake.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Some(WireGuardStatus {
            endpoint: status.endpoint.map(|at| (at.ip().to_canonical(), at.port()).into()),
            last_handshake_at: at.map(|at| UnixMillis::new(at.as_millis() as u64)),
            received_bytes: status.received,
            sent_bytes: status.sent,
            refused_packets: status.refused,
        })
    }
}
