//! What a worker does beside its machines, for as long as it runs.

use std::{sync::Arc, time::Duration};

use caddis_api::MachineId;
use caddis_bus::message::ANNOUNCE_INTERVAL;
use tokio::time::MissedTickBehavior;

use crate::{clock, engine::Shared, owner::Message, requests, volumes};

/// How often, at least, destroyed machines are looked through for those to be forgotten.
const HOUSEKEEPING: Duration = Duration::from_secs(600);

/// Says again and again that this worker is there.
pub async fn announce(shared: Arc<Shared>) {
    let mut interval = tokio::time::interval(ANNOUNCE_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        shared.announce();
    }
}

/// Tells all machines when the host's clock was set, so that their guests know the time at once;
/// never ends.
pub async fn watch_clock(shared: Arc<Shared>) {
    let mut known = clock::offset_ms();
    let mut interval = tokio::time::interval(clock::LOOK_INTERVAL);
    loop {
        interval.tick().await;
        let offset = clock::offset_ms();
        if (offset - known).abs() < clock::SET_MS {
            continue;
        }
        tracing::info!(by_ms = offset - known, "the host's clock was set");
        volumes::clock_was_set(&shared, offset - known).await;
        known = offset;
        for owner in shared.all_owners() {
            // One that is busy looks at the clock by itself, one that is gone needs none.
            let _ = owner.try_send(Message::ClockSet);
        }
    }
}

/// Forgets destroyed machines when their time is over; never ends.
pub async fn forget_destroyed(shared: Arc<Shared>) {
    let often = HOUSEKEEPING.min(shared.config.destroyed_retention).max(Duration::from_secs(1));
    let mut interval = tokio::time::interval(often);
    loop {
        interval.tick().await;
        let before = shared.clock.unix_now() - shared.config.destroyed_retention;
        let expired = match shared.store.destroyed_before(before).await {
            Ok(expired) => expired,
            Err(e) => {
                tracing::warn!(error = %e, "can't look for destroyed machines");
                continue;
            }
        };
        for machine in expired {
            forget(&shared, &machine).await;
        }
        if let Err(e) = shared.store.accepted_since(requests::remembered_since(&shared.clock)).await
        {
            tracing::warn!(error = %e, "can't forget old requests");
        }
    }
}

async fn forget(shared: &Shared, machine: &MachineId) {
    shared.logs.remove(machine);
    match shared.store.forget(machine).await {
        Ok(()) => shared.publisher.forget(machine),
        Err(e) => {
            tracing::warn!(machine = %machine, error = %e, "can't forget a destroyed machine")
        }
    }
}
