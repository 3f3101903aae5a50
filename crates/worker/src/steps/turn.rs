//! Waiting: for the time of a restart, and for a machine's turn among others.

use super::{Context, Done, Failure};
use crate::{
    operations::{Start, StartReason},
    restart,
};

pub(super) async fn back_off(context: Context) -> Result<Done, Failure> {
    let kind = context.row.operation.map(|operation| operation.kind);
    let not_before = kind.as_ref().and_then(|kind| kind.rules().not_before()).unwrap_or_default();
    // Never longer than any back-off: the clock may have been set back while no server ran.
    let wait = not_before.since(context.shared.clock.unix_now()).min(restart::MAX_BACK_OFF);
    if !wait.is_zero() {
        context.shared.clock.sleep(wait).await;
    }
    if kind != Some(Start::because(StartReason::Recovery)) {
        return Ok(Done::Next);
    }
    // Never closed; and without a turn the start would only come earlier.
    Ok(context
        .shared
        .queues
        .recoveries
        .clone()
        .acquire_owned()
        .await
        .map_or(Done::Next, Done::Turn))
}

pub(super) async fn queue(context: Context) -> Result<Done, Failure> {
    // Never closed; and without a turn the disk would only be slower.
    Ok(context.shared.queues.suspends.clone().acquire_owned().await.map_or(Done::Next, Done::Turn))
}

/// Waits for a machine's turn to launch, which comes in the order in which they asked.
pub async fn turn_to_launch(context: Context) -> Result<Done, Failure> {
    let turn = context.shared.queues.launches.clone().acquire_owned().await;
    // Never closed.
    turn.map(Done::MayLaunch).map_err(Failure::retry)
}
