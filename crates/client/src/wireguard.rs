//! WireGuard peers.

use caddis_api::wireguard::{
    CreateWireGuardPeer, ResetWireGuardPeer, WireGuardPeer, WireGuardPeerReply, WireGuardPeers,
};

use crate::{Client, ClientError, transport::Request};

const PEERS: &str = "wireguard_peers";

impl Client {
    /// `GET /v1/orgs/{org}/wireguard_peers`.
    ///
    /// # Errors
    /// 404.
    pub async fn wireguard_peers(&self, org: &str) -> Result<Vec<WireGuardPeer>, ClientError> {
        let list: WireGuardPeers = self.read(Request::get(["v1", "orgs", org, PEERS])).await?;
        Ok(list.peers)
    }

    /// `POST /v1/orgs/{org}/wireguard_peers`.
    ///
    /// # Errors
    /// 409 when the name or the key is in use, 412 when the server does not listen for WireGuard.
    pub async fn create_wireguard_peer(
        &self,
        org: &str,
        request: &CreateWireGuardPeer,
    ) -> Result<WireGuardPeerReply, ClientError> {
        self.read_with(Request::post(["v1", "orgs", org, PEERS]), request).await
    }

    /// `GET /v1/orgs/{org}/wireguard_peers/{name}`.
    ///
    /// # Errors
    /// 404.
    pub async fn wireguard_peer(
        &self,
        org: &str,
        network: Option<&str>,
        name: &str,
    ) -> Result<WireGuardPeer, ClientError> {
        let mut request = Request::get(["v1", "orgs", org, PEERS, name]);
        if let Some(network) = network {
            request = request.query("network", network);
        }
        self.read(request).await
    }

    /// `POST /v1/orgs/{org}/wireguard_peers/{name}/reset`.
    ///
    /// # Errors
    /// 404, 409 when the key is in use, 412 when the server does not listen for WireGuard.
    pub async fn reset_wireguard_peer(
        &self,
        org: &str,
        name: &str,
        request: &ResetWireGuardPeer,
    ) -> Result<WireGuardPeerReply, ClientError> {
        self.read_with(Request::post(["v1", "orgs", org, PEERS, name, "reset"]), request).await
    }

    /// `DELETE /v1/orgs/{org}/wireguard_peers/{name}`.
    ///
    /// # Errors
    /// 404.
    pub async fn remove_wireguard_peer(
        &self,
        org: &str,
        network: Option<&str>,
        name: &str,
    ) -> Result<(), ClientError> {
        let mut request = Request::delete(["v1", "orgs", org, PEERS, name]);
        if let Some(network) = network {
            request = request.query("network", network);
        }
        self.send(&request).await.map(drop)
    }
}
