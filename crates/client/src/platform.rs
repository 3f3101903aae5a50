//! Regions, and whether the server is well.

use caddis_api::platform::RegionsReply;
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

    /// `GET /v1/tokens/current`: what the token may reach.
    ///
    /// # Errors
    /// 401 for a bad token, 404 from servers without this endpoint.
    pub async fn current_tokens(&self) -> Result<Value, ClientError> {
        self.read(Request::get(["v1", "tokens", "current"])).await
    }

    /// `GET /healthz`: whether requests will succeed.
    ///
    /// # Errors
    /// 503 with the reason when they would not.
    pub async fn health(&self) -> Result<(), ClientError> {
        self.send(&Request::get(["healthz"])).await.map(drop)
    }
}
