//! Apps, and the organisations they belong to.

use caddis_api::{
    app::{App, CreateAppReply, CreateAppRequest, ListAppsReply, Organization},
    organization::OrganizationList,
};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET /v1/orgs`: those that the token reaches.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn organizations(&self) -> Result<Vec<Organization>, ClientError> {
        let list: OrganizationList = self.read(Request::get(["v1", "orgs"])).await?;
        Ok(list.organizations)
    }

    /// `POST /v1/apps`.
    ///
    /// # Errors
    /// 422 `name_taken`, 422 for an illegal name.
    pub async fn create_app(&self, app: &CreateAppRequest) -> Result<CreateAppReply, ClientError> {
        self.read_with(Request::post(["v1", "apps"]), app).await
    }

    /// All apps, or those of an organisation, over all pages.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list_apps(&self, org: Option<&str>) -> Result<Vec<App>, ClientError> {
        let request = || match org {
            Some(org) => Request::get(["v1", "apps"]).query("org_slug", org),
            None => Request::get(["v1", "apps"]),
        };
        self.read_pages(request, |page: ListAppsReply| (page.apps, page.next_cursor)).await
    }

    /// `GET /v1/apps/{app}`.
    ///
    /// # Errors
    /// 404.
    pub async fn get_app(&self, app: &str) -> Result<App, ClientError> {
        self.read(Request::get(["v1", "apps", app])).await
    }

    /// `DELETE /v1/apps/{app}`, with its machines.
    ///
    /// # Errors
    /// 404.
    pub async fn delete_app(&self, app: &str) -> Result<(), ClientError> {
        self.send(&Request::delete(["v1", "apps", app])).await.map(drop)
    }
}
