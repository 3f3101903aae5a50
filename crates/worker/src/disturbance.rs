//! What other programs of the host do to the network of machines, in the events of those that run.

use std::{sync::Arc, time::Duration};

use caddis_api::{UnixMillis, time};
use jiff::Timestamp;
use serde_json::json;

use crate::{engine::Shared, owner::Message};

/// At most one event in so long: who flushes a firewall in a loop shall not push everything else
/// out.
const BACKOFF: Duration = Duration::from_secs(60);

/// So long the server's health tells of it.
const RECENT: Duration = Duration::from_secs(3600);

/// What health says of it, while it is recent.
pub fn warning(shared: &Shared) -> Option<String> {
    let told = shared.network.disturbances()?.borrow().clone();
    let last = UnixMillis::from(Timestamp::try_from(told.last?).ok()?);
    if told.count == 0 || shared.clock.unix_now().since(last) > RECENT {
        return None;
    }
    let last = time::seconds(last.into());
    let (what, count) = (told.what, told.count);
    Some(format!(
        "another program removed part of the machines' network from this host (last at {last}: \
         {what}); it was restored, {count} times since the server started"
    ))
}

/// Tells running machines; never ends.
pub async fn note(shared: Arc<Shared>) {
    let Some(mut told) = shared.network.disturbances() else { return std::future::pending().await };
    let mut known = told.borrow().count;
    while told.wait_for(|told| told.count != known).await.is_ok() {
        let news = told.borrow_and_update().clone();
        let times = news.count - known;
        let message =
            format!("Network restored: another program on the host had removed its {}", news.what);
        let details =
            json!({ "removed": news.what, "times": times, "message": message, "level": "info" });
        known = news.count;
        for owner in shared.all_owners() {
            // One that has just ended hears of nothing.
            let _ = owner.send(Message::Note { kind: "network", details: details.clone() }).await;
        }
        shared.clock.sleep(BACKOFF).await;
    }
    // The network ends with the server.
    std::future::pending().await
}
