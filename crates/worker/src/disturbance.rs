//! What other programs of the host do to the network of machines, in the events of those that run.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use crate::{engine::Shared, owner::Message};

/// At most one event in so long: who flushes a firewall in a loop shall not push everything else out.
const PAUSE: Duration = Duration::from_secs(60);

/// Tells running machines; never ends.
pub async fn note(shared: Arc<Shared>) {
    let Some(mut told) = shared.network.disturbances() else { return std::future::pending().await };
    let mut known = told.borrow().count;
    while told.wait_for(|told| told.count != known).await.is_ok() {
        let news = told.borrow_and_update().clone();
        let times = news.count - known;
        let message = format!("Network restored: another program of the host had removed its {}", news.what);
        let details = json!({ "removed": news.what, "times": times, "message": message, "level": "info" });
        known = news.count;
        for owner in shared.all_owners() {
            // One that has just ended hears of nothing.
            let _ = owner.send(Message::Note { kind: "network", details: details.clone() }).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    // The network ends with the server.
    std::future::pending().await
}
