//! Apps.

use caddis_api::app::{App, CreateAppReply, CreateAppRequest, ListAppsReply};

use crate::{Client, ClientError, transport::Request};

impl Client {
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
        let mut apps = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut request = Request::get(["v1", "apps"]);
            if let Some(org) = org {
                request = request.query("org_slug", org);
            }
            if let Some(cursor) = &cursor {
                request = request.query("cursor", cursor);
            }
            let page: ListAppsReply = self.read(request).await?;
            apps.extend(page.apps);
            match page.next_cursor {
                // A server that gives the same cursor again would keep us here forever.
                Some(next) if !next.is_empty() && cursor.as_ref() != Some(&next) => cursor = Some(next),
                _ => return Ok(apps),
            }
        }
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
