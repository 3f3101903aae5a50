//! A full table of connections: the kernel drops what machines begin then, silently. It is told in
//! the events of machines that run, and by the server's health.

use std::{sync::Arc, time::Duration};

use caddis_network::Tracked;
use serde_json::json;

use crate::{engine::Shared, owner::Message};

/// Time between two looks, since nothing tells of it.
const LOOK: Duration = Duration::from_secs(10);
/// At most one event in so long.
const BACKOFF: Duration = Duration::from_secs(60);

fn full(tracked: &Tracked) -> String {
    format!(
        "the host's table of connections is full ({} of {}), so new connections time out: raise \
         net.netfilter.nf_conntrack_max",
        tracked.count, tracked.most
    )
}

/// What health says of it, while it is so.
pub async fn warning(shared: &Shared) -> Option<String> {
    // What does not say is no warning of this.
    let tracked = shared.network.tracked().await.ok()?;
    tracked.is_full().then(|| full(&tracked))
}

/// Tells running machines of packets that were dropped; never ends.
pub async fn note(shared: Arc<Shared>) {
    let mut known = None;
    loop {
        let mut pause = LOOK;
        match shared.network.tracked().await {
            Ok(tracked) => {
                let more = tracked.dropped.saturating_sub(known.unwrap_or(tracked.dropped));
                if more > 0 && tracked.is_full() {
                    tell(&shared, &tracked, more).await;
                    pause = BACKOFF;
                }
                known = Some(tracked.dropped);
            }
            Err(error) => tracing::warn!(%error, "can't learn how many connections there are"),
        }
        shared.clock.sleep(pause).await;
    }
}

async fn tell(shared: &Shared, tracked: &Tracked, dropped: u64) {
    let message = full(tracked);
    tracing::warn!(dropped, connections = tracked.count, most = tracked.most, "{message}");
    let details = json!({
        "dropped": dropped, "connections": tracked.count, "message": message, "level": "warning"
    });
    for owner in shared.all_owners() {
        // One that has just ended hears of nothing.
        let _ = owner.send(Message::Note { kind: "network", details: details.clone() }).await;
    }
}
