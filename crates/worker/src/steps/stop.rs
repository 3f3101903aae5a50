//! Stopping: asks the program to end, kills it when it does not, and lets init end the VM.

use std::time::Duration;

use caddis_guest_protocol::UNMOUNT_TIMEOUT;
use caddis_vmm::VmExit;

use super::{Context, Done, Failure, RunningVmHandle, suspend, volumes};
use crate::{
    clock::Clock,
    live::Guest,
    operations::StopPlan,
    row::{EndCause, MachineRow, ProgramEnd},
};

/// How long init may take to unmount and end the VM after its exit report was acknowledged.
const POWER_OFF_GRACE: Duration = Duration::from_secs(5);

/// How long a SIGKILL may take to show in an exit report before the VM is killed. Under emulation
/// on a busy host three seconds were too short.
const KILL_GRACE: Duration = Duration::from_secs(10);

pub(super) async fn signal(context: Context) -> Result<Done, Failure> {
    if context.live.as_ref().is_some_and(|live| live.guest.borrow().silent) {
        // It hears nothing either.
        return Ok(Done::Next);
    }
    if let Some(live) = &context.live
        && live.guest.borrow().may_be_frozen()
        && let Err(e) = suspend::thaw(live, false).await
    {
        tracing::warn!(machine = %context.row.id, error = %e.message, "can't resume the machine to \
            stop it");
    }
    if let (Some(mut live), Some(plan)) = (context.live, stop_plan(&context.row)) {
        match live.told(live.session.stop(plan.signal.number(), plan.is_default)).await {
            // Whether an adopted VM runs a program, which the next step needs to know, init says
            // before it hears anything; here it may be heard of a little later.
            Ok(()) => {
                let known = live.until(|guest| guest.up || guest.gone.is_some());
                let _ = context.shared.clock.timeout(KILL_GRACE, known).await;
            }
            // The next step's timeout ends a program that was never asked.
            Err(error) => {
                tracing::warn!(machine = %context.row.id, error, "can't deliver the stop signal");
            }
        }
    }
    Ok(Done::Next)
}

fn stop_plan(row: &MachineRow) -> Option<&StopPlan> {
    row.operation.as_ref().and_then(|operation| operation.kind.rules().stop_plan())
}

pub(super) async fn await_exit(context: Context) -> Result<Done, Failure> {
    if context.row.ended.is_some() {
        return Ok(Done::Next);
    }
    let has_volumes = volumes::has_any(&context);
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let over =
        |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
    let (begun, timeout) = match (&context.row.operation, stop_plan(&context.row)) {
        (Some(operation), Some(plan)) => {
            (operation.started_at, Duration::from_millis(plan.timeout_ms))
        }
        _ => (context.shared.clock.unix_now(), Duration::ZERO),
    };
    let left = (begun + timeout).since(context.shared.clock.unix_now()).min(timeout);
    // A program that has not begun can't heed a signal, and nobody hears of the end of one in a
    // guest that says nothing.
    let heeds = live.guest.borrow().started && !live.guest.borrow().silent;
    let left = if heeds { left } else { Duration::ZERO };
    let clock = &context.shared.clock;
    match clock.timeout(left, live.until(over)).await {
        Some(guest) => Ok(ended(guest)),
        None => Ok(kill_program(live, clock, has_volumes).await),
    }
}

/// Kills the program and waits for the report of its end.
pub(super) async fn kill_program(
    mut live: RunningVmHandle,
    clock: &Clock,
    has_volumes: bool,
) -> Done {
    if live.guest.borrow().silent {
        let text = "the machine's init did not answer, its VM was killed";
        return Done::Ended(ProgramEnd::unreported(EndCause::Killed, Some(text.to_owned())));
    }
    let over =
        |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
    let ask = async {
        if !live.guest.borrow().started {
            return None;
        }
        live.session.signal(caddis_api::Signal::KILL.number()).await.ok()?;
        Some(live.until(over).await)
    };
    // Init unmounts them before it reports the end.
    let unmounting = if has_volumes { UNMOUNT_TIMEOUT } else { Duration::ZERO };
    match clock.timeout(KILL_GRACE + unmounting, ask).await {
        Some(Some(guest)) => ended(guest),
        Some(None) | None => Done::Ended(ProgramEnd::unreported(EndCause::Killed, None)),
    }
}

fn ended(guest: Guest) -> Done {
    let gone = guest.gone;
    Done::Ended(guest.ended.unwrap_or_else(|| match gone {
        Some(exit) => end_of_vm(&exit),
        None => ProgramEnd::unreported(EndCause::Killed, guest.failed),
    }))
}

/// What a VM's end means for its program, when the guest reported nothing.
pub fn end_of_vm(exit: &VmExit) -> ProgramEnd {
    match exit {
        VmExit::HostOom => ProgramEnd::unreported(
            EndCause::HostOom,
            Some("the VM exceeded its memory bound on the host".to_owned()),
        ),
        VmExit::DiskFull { message } => {
            ProgramEnd::unreported(EndCause::DiskFull, Some(message.clone()))
        }
        VmExit::Crashed { message } => {
            ProgramEnd::unreported(EndCause::VmmCrashed, Some(message.clone()))
        }
        VmExit::Ended => {
            let text = "a program in the machine powered it off or rebooted it";
            ProgramEnd::unreported(EndCause::PoweredOff, Some(text.to_owned()))
        }
    }
}

pub(super) async fn power_off(context: Context) -> Result<Done, Failure> {
    let has_volumes = volumes::has_any(&context);
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let end = live.guest.borrow().ended.clone();
    // The disk is blank at the next start, so nothing has to be written any more: `release` ends
    // the VM at once.
    let said_all =
        end.as_ref().and_then(|end| end.report.as_ref()).is_some_and(|report| report.logs_complete);
    if said_all && !has_volumes {
        // The last lines are safe before the VM, which has them too, is gone.
        context.shared.logs.written().await;
    } else if end.is_some() {
        live.session.acknowledge_exit();
        // `release` kills what does not end by itself in time.
        let gone = live.until(|guest| guest.gone.is_some());
        let _ = context.shared.clock.timeout(POWER_OFF_GRACE, gone).await;
    }
    Ok(Done::Next)
}
