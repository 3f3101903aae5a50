//! Waits for a machine that is about to run: what is asked of it right after a create or start is
//! not refused because it came a moment early.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, ErrorCode, MachineState};
use tokio::time::Instant;

use caddis_view::CachedMachine;

use crate::http::{authorization::MachinePath, context::Context};

/// How long a signal waits: less than clients wait for an answer.
pub(super) const SIGNAL_TIMEOUT: Duration = Duration::from_secs(45);

/// Whom what is asked is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Whatever program will run.
    Any,
    /// The program that is there, which one that follows it must not be taken for.
    TheOneStarted,
}

/// Whether it will run without anybody's doing.
fn is_on_its_way(shown: &CachedMachine, whom: For) -> bool {
    use MachineState::{Created, Creating, Pending, Replacing, Restarting, Starting, Updating};
    let machine = &shown.record.machine;
    if machine.operation.as_ref().is_some_and(|operation| operation.retry_at.is_some()) {
        // It has failed, and nobody knows whether the next attempt does better.
        return false;
    }
    match machine.state {
        Creating | Pending | Starting => true,
        Restarting | Replacing | Updating => whom == For::Any,
        // Its first start follows.
        Created => machine.operation.is_some(),
        _ => false,
    }
}

/// The machine, once it is no longer on its way.
///
/// # Errors
/// 404; 408 when it is still on its way after this time.
pub(super) async fn settled(
    context: &Context,
    path: &MachinePath,
    whom: For,
    patience: Duration,
) -> Result<Arc<CachedMachine>, ApiError> {
    let shown = path.look_up(context).await?;
    if !is_on_its_way(&shown, whom) {
        return Ok(shown);
    }
    let mut machine = path.watch(context).await?;
    let deadline = Instant::now() + patience;
    let mut closing = std::pin::pin!(context.closing.cancelled());
    loop {
        let shown = machine.borrow_and_update().clone();
        if !is_on_its_way(&shown, whom) {
            return Ok(shown);
        }
        tokio::select! {
            changed = machine.changed() => changed.map_err(|_| ApiError::machine_not_found())?,
            () = tokio::time::sleep_until(deadline) => {
                let (state, seconds) = (shown.state(), patience.as_secs());
                let text = format!("deadline_exceeded: the machine is still {state} after \
                                    {seconds} s");
                return Err(ApiError::new(ErrorCode::DeadlineExceeded, text));
            }
            () = &mut closing => {
                return Err(ApiError::new(ErrorCode::Unavailable, "unavailable: the server is \
                    stopping"));
            }
        }
    }
}
