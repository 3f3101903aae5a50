//! Addresses of apps.

use caddis_api::addresses::{AssignIpReply, AssignIpRequest, IpAssignment, IpAssignments};

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
    ) -> Result<IpAssignment, ClientError> {
        let post = Request::post(["v1", "apps", app, "ip_assignments"]);
        let reply: AssignIpReply = self.read_with(post, request).await?;
        Ok(reply.assignment)
    }

    /// `DELETE /v1/apps/{app}/ip_assignments/{address}`.
    ///
    /// # Errors
    /// 404 when the app does not have the address.
    pub async fn release_address(&self, app: &str, address: &str) -> Result<(), ClientError> {
        let request = Request::delete(["v1", "apps", app, "ip_assignments", address]);
        self.send(&request).await.map(drop)
    }
}
