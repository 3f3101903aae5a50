//! When a machine with a schedule runs next. Pure.

use std::time::Duration;

use caddis_api::{MachineConfig, MachineState, UnixMillis};

use crate::row::MachineRow;

const HOUR: Duration = Duration::from_secs(3600);

/// Time between two runs. A month has 30 days.
fn interval(schedule: &str) -> Option<Duration> {
    Some(match schedule {
        "hourly" => HOUR,
        "daily" => HOUR * 24,
        "weekly" => HOUR * 24 * 7,
        "monthly" => HOUR * 24 * 30,
        _ => return None,
    })
}

/// When the machine is to start: at the first multiple of its interval, counted from its creation,
/// after it came to rest. What passes while it runs is left out, what passes while no server runs
/// is made up for, once. `None` while it does anything else but rest, and before its first start,
/// which is not ours.
pub fn due(config: &MachineConfig, row: &MachineRow) -> Option<UnixMillis> {
    let interval = interval(config.schedule.as_deref()?)?;
    // One that could not be started is tried again the next time.
    let is_stopped = matches!(row.state, MachineState::Stopped | MachineState::Failed)
        && row.operation.is_none();
    let waits_for_a_user = row.is_quarantined || row.superseded_by.is_some();
    if !is_stopped || row.next.is_some() || !row.launched || row.drained || waits_for_a_user {
        return None;
    }
    let rested_for = row.rested_at.max(UnixMillis::new(row.boot)).since(row.created_at);
    let runs = u32::try_from(rested_for.as_millis() / interval.as_millis() + 1).ok()?;
    Some(row.created_at + interval * runs)
}
