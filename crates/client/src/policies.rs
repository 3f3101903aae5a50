//! Network policies of apps.

use caddis_api::policies::{NetworkPolicy, PutPolicyRequest};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET /v1/apps/{app}/network_policies`.
    ///
    /// # Errors
    /// 404.
    pub async fn list_policies(&self, app: &str) -> Result<Vec<NetworkPolicy>, ClientError> {
        self.read(Request::get(["v1", "apps", app, "network_policies"])).await
    }

    /// `POST /v1/apps/{app}/network_policies`: makes a policy, or replaces the one of its id.
    ///
    /// # Errors
    /// 409 when another policy of the app has the name.
    pub async fn put_policy(
        &self,
        app: &str,
        request: &PutPolicyRequest,
    ) -> Result<NetworkPolicy, ClientError> {
        self.read_with(Request::post(["v1", "apps", app, "network_policies"]), request).await
    }

    /// `DELETE /v1/apps/{app}/network_policies/{policy}`.
    ///
    /// # Errors
    /// 404.
    pub async fn delete_policy(&self, app: &str, policy: &str) -> Result<(), ClientError> {
        let request = Request::delete(["v1", "apps", app, "network_policies", policy]);
        self.send(&request).await.map(drop)
    }
}
