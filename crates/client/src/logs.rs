//! Logs.

use std::time::Duration;

use caddis_api::logs::LogsReply;

use crate::{Client, ClientError, machines::GRACE, transport::Request};

/// Which log entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogsQuery {
    /// Only of this machine.
    pub instance: Option<String>,
    /// Only of this region.
    pub region: Option<String>,
    /// Where the last page ended.
    pub next_token: Option<String>,
    /// Not what was written before: RFC 3339.
    pub since: Option<String>,
    /// Not what was written after: RFC 3339.
    pub until: Option<String>,
    /// Not what was written after this place: the `next_token` of a page.
    pub until_token: Option<String>,
    /// At most so many entries.
    pub limit: Option<u64>,
    /// How long the server may wait for the first entry, seconds; 0 to answer at once.
    pub wait_seconds: u64,
}

impl Client {
    /// `GET /api/v1/apps/{app}/logs`: a page of entries, oldest first, and where to go on.
    ///
    /// # Errors
    /// 404 for an unknown app.
    pub async fn logs(&self, app: &str, query: &LogsQuery) -> Result<LogsReply, ClientError> {
        let mut request = Request::get(["api", "v1", "apps", app, "logs"])
            .timeout(Some(Duration::from_secs(query.wait_seconds) + GRACE));
        for (name, value) in [
            ("instance", &query.instance),
            ("region", &query.region),
            ("since", &query.since),
            ("until", &query.until),
            ("next_token", &query.next_token),
            ("until_token", &query.until_token),
            ("limit", &query.limit.map(|limit| limit.to_string())),
        ] {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        if query.wait_seconds > 0 {
            request = request.query("wait_seconds", query.wait_seconds);
        }
        self.read(request).await
    }
}
