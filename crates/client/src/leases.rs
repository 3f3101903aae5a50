//! Leases.

use caddis_api::{
    LeaseNonce, MachineId,
    lease::{Lease, LeaseReply},
};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// Takes a lease for `ttl_seconds`, or with `nonce` prolongs it.
    ///
    /// # Errors
    /// 409 when someone else holds it.
    pub async fn acquire_lease(
        &self,
        app: &str,
        machine: &MachineId,
        ttl_seconds: u64,
        nonce: Option<&LeaseNonce>,
    ) -> Result<Lease, ClientError> {
        let request =
            Request::post(lease_path(app, machine)).query("ttl", ttl_seconds).nonce(nonce);
        self.read::<LeaseReply>(request).await.map(|reply| reply.data)
    }

    /// The current lease.
    ///
    /// # Errors
    /// 404 `lease not found` when there is none.
    pub async fn get_lease(&self, app: &str, machine: &MachineId) -> Result<Lease, ClientError> {
        self.read::<LeaseReply>(Request::get(lease_path(app, machine)))
            .await
            .map(|reply| reply.data)
    }

    /// The current lease, as the server wrote it.
    ///
    /// # Errors
    /// 404 `lease not found` when there is none.
    pub async fn get_lease_json(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<serde_json::Value, ClientError> {
        self.read(Request::get(lease_path(app, machine))).await
    }

    /// Gives a lease back.
    ///
    /// # Errors
    /// 404 `lease not found` when it is over already.
    pub async fn release_lease(
        &self,
        app: &str,
        machine: &MachineId,
        nonce: &LeaseNonce,
    ) -> Result<(), ClientError> {
        self.send(&Request::delete(lease_path(app, machine)).nonce(Some(nonce))).await.map(drop)
    }
}

fn lease_path<'a>(app: &'a str, machine: &'a MachineId) -> [&'a str; 6] {
    ["v1", "apps", app, "machines", machine.as_str(), "lease"]
}
