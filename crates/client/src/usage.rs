//! What machines use of their hosts.

use std::time::Duration;

use caddis_api::usage::UsageSample;
use futures::{StreamExt as _, stream::BoxStream};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET …/machines/usage`: a sample per host at once, then one per interval. The stream ends
    /// with the app and with the server; ask again to know which.
    ///
    /// # Errors
    /// 404 for an unknown app, 400 for an interval below 1 s or above 60 s; what breaks the
    /// connection also within the stream.
    pub async fn machine_usage(
        &self,
        app: &str,
        interval: Duration,
    ) -> Result<BoxStream<'static, Result<UsageSample, ClientError>>, ClientError> {
        let path = ["v1", "apps", app, "machines", "usage"];
        let request = Request::get(path)
            .query("interval", format!("{}ms", interval.as_millis()))
            .timeout(None);
        let response = self.send(&request).await?;
        Ok(self.documents(request.name(), response).boxed())
    }
}
