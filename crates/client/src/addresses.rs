//! Addresses of apps.

use caddis_api::addresses::{
    AssignIpReply, AssignIpRequest, EgressIp, EgressIps, IpAssignment, IpAssignments, ReleasedIp,
};
use reqwest::StatusCode;

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET /v1/apps/{app}/ip_assignments`.
    ///
    /// # Errors
    /// 404.
    pub async fn list_addresses(&self, app: &str) -> Result<Vec<IpAssignment>, ClientError> {
        let list: IpAssignments =
            self.read(Request::get(["v1", "apps", app, "ip_assignments"])).await?;
        Ok(list.ips)
    }

    /// `POST /v1/apps/{app}/ip_assignments`.
    ///
    /// # Errors
    /// 409 when the wanted address is in use, 412 for a type that the server has none of, 422 when
    /// none is free.
    pub async fn assign_address(
        &self,
        app: &str,
        request: &AssignIpRequest,
    ) -> Result<AssignIpReply, ClientError> {
        let post = Request::post(["v1", "apps", app, "ip_assignments"]);
        self.read_with(post, request).await
    }

    /// `DELETE /v1/apps/{app}/ip_assignments/{address}`. Gives the warnings: what does not work any
    /// more without it.
    ///
    /// # Errors
    /// 404 when the app does not have the address.
    pub async fn release_address(
        &self,
        app: &str,
        address: &str,
    ) -> Result<Vec<String>, ClientError> {
        let request = Request::delete(["v1", "apps", app, "ip_assignments", address]);
        let response = self.send(&request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Vec::new());
        }
        let released: ReleasedIp = self.decode(&request, response).await?;
        Ok(released.warnings)
    }

    /// `GET /v1/apps/{app}/egress_ips`: of all machines of the app that have some.
    ///
    /// # Errors
    /// 404.
    pub async fn list_egress_ips(&self, app: &str) -> Result<Vec<EgressIp>, ClientError> {
        self.egress_ips(Request::get(["v1", "apps", app, "egress_ips"])).await
    }

    /// `POST /v1/apps/{app}/machines/{machine}/egress_ips`.
    ///
    /// # Errors
    /// 404; 409 when the machine has some of its own, 412 when the server has none, 422 when none
    /// is free.
    pub async fn allocate_egress_ips(
        &self,
        app: &str,
        machine: &str,
    ) -> Result<Vec<EgressIp>, ClientError> {
        self.egress_ips(Request::post(["v1", "apps", app, "machines", machine, "egress_ips"])).await
    }

    /// `DELETE /v1/apps/{app}/machines/{machine}/egress_ips`: what the machine had.
    ///
    /// # Errors
    /// 404, also when it has none of its own.
    pub async fn release_egress_ips(
        &self,
        app: &str,
        machine: &str,
    ) -> Result<Vec<EgressIp>, ClientError> {
        let parts = ["v1", "apps", app, "machines", machine, "egress_ips"];
        self.egress_ips(Request::delete(parts)).await
    }

    /// `POST /v1/apps/{app}/machines/{machine}/egress_ips/promote`: what was the machine's own.
    ///
    /// # Errors
    /// 404, also when it has none of its own.
    pub async fn promote_egress_ips(
        &self,
        app: &str,
        machine: &str,
    ) -> Result<Vec<EgressIp>, ClientError> {
        let parts = ["v1", "apps", app, "machines", machine, "egress_ips", "promote"];
        self.egress_ips(Request::post(parts)).await
    }

    async fn egress_ips(&self, request: Request<'_>) -> Result<Vec<EgressIp>, ClientError> {
        let reply: EgressIps = self.read(request).await?;
        Ok(reply.egress_ips)
    }
}
