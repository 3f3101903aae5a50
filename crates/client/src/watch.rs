//! Following the machines of an app.

use caddis_api::watch::MachinesUpdate;
use futures::{StreamExt as _, stream::BoxStream};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET …/machines/watch`: a snapshot, then changes as they come. The stream ends with the app
    /// and with the server; ask again to know which.
    ///
    /// # Errors
    /// 404 for an unknown app; what breaks the connection also within the stream.
    pub async fn watch_machines(
        &self,
        app: &str,
    ) -> Result<BoxStream<'static, Result<MachinesUpdate, ClientError>>, ClientError> {
        let request = Request::get(["v1", "apps", app, "machines", "watch"]).timeout(None);
        let response = self.send(&request).await?;
        Ok(self.documents(request.name(), response).boxed())
    }
}
