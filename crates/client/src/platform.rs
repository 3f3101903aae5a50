//! Regions, and whether the server is well.

use std::time::Duration;

use caddis_api::platform::{PlacementsReply, PlacementsRequest, PlatformStatus, RegionsReply};
use serde_json::Value;

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET /v1/platform/regions`; needs no token.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn regions(&self) -> Result<RegionsReply, ClientError> {
        self.read(Request::get(["v1", "platform", "regions"])).await
    }

    /// `POST /v1/platform/placements`: where machines would go.
    ///
    /// # Errors
    /// 404 for an unknown organisation, 422 where there is no room for so many.
    pub async fn placements(
        &self,
        request: &PlacementsRequest,
    ) -> Result<PlacementsReply, ClientError> {
        self.read_with(Request::post(["v1", "platform", "placements"]), request).await
    }

    /// `GET /v1/tokens/current`: what the token may reach.
    ///
    /// # Errors
    /// 401 for a bad token, 404 from servers without this endpoint.
    pub async fn current_tokens(&self) -> Result<Value, ClientError> {
        self.read(Request::get(["v1", "tokens", "current"])).await
    }

    /// `POST /v1/hosts/{id}/drain`: stops all guests of a host for its shutdown. Says how many were
    /// stopped. Without an id it asks a server of an earlier release, which knows one host, as it
    /// understands it.
    ///
    /// # Errors
    /// 404 when there is no such host, 408 when some still ran at the deadline.
    pub async fn drain_host(
        &self,
        host: Option<&str>,
        deadline: Duration,
    ) -> Result<u64, ClientError> {
        let body = serde_json::json!({ "timeout_seconds": deadline.as_secs() });
        let request = match host {
            Some(host) => Request::post(["v1", "hosts", host, "drain"]),
            None => Request::post(["v1", "host", "drain"]),
        };
        let request = request.timeout(Some(deadline + Duration::from_secs(30)));
        let reply: Value = self.read_with(request, &body).await?;
        Ok(reply.get("stopped").and_then(Value::as_u64).unwrap_or(0))
    }

    /// `GET /v1/platform/status`: how the server is, and what its hosts have left.
    ///
    /// # Errors
    /// 404 from servers without this endpoint.
    pub async fn platform_status(&self) -> Result<PlatformStatus, ClientError> {
        self.read(Request::get(["v1", "platform", "status"])).await
    }

    /// `GET /healthz`: whether requests will succeed.
    ///
    /// # Errors
    /// 503 with the reason when they would not.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.send(&Request::get(["healthz"])).await.map(drop)
    }
}
