//! Following the machines of an app.

use caddis_api::watch::MachinesUpdate;
use futures::{Stream, StreamExt as _, stream::BoxStream};

use crate::{Client, ClientError, transport::Request};

impl Client {
    /// `GET …/machines/watch`: a snapshot, then changes as they come. The stream ends with the app and with the
    /// server; ask again to know which.
    ///
    /// # Errors
    /// 404 for an unknown app; what breaks the connection also within the stream.
    pub async fn watch_machines(
        &self,
        app: &str,
    ) -> Result<BoxStream<'static, Result<MachinesUpdate, ClientError>>, ClientError> {
        let request = Request::get(["v1", "apps", app, "machines", "watch"]).timeout(None);
        let response = self.send(&request).await?;
        let name = request.name();
        Ok(updates(self.lines(name.clone(), response), name).boxed())
    }
}

fn updates(
    lines: impl Stream<Item = Result<String, ClientError>>,
    request: String,
) -> impl Stream<Item = Result<MachinesUpdate, ClientError>> {
    lines.filter_map(move |line| {
        let update = match line {
            // Keeps the connection alive.
            Ok(line) if line.trim().is_empty() => None,
            Ok(line) => Some(
                serde_json::from_str(&line)
                    .map_err(|error| ClientError::Unreadable { request: request.clone(), reason: error.to_string() }),
            ),
            Err(error) => Some(Err(error)),
        };
        async move { update }
    })
}
