//! What follows the end of a program that nobody asked for. Pure.

use std::time::Duration;

use caddis_api::{
    UnixMillis,
    config::{MachineConfig, RestartPolicy},
};
use serde::{Deserialize, Serialize};

use crate::row::{EndCause, ProgramEnd};

/// Restarts are counted within this time, as the reference has it.
pub const WINDOW: Duration = Duration::from_secs(5 * 60);
/// Longest back-off.
pub const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Rest.
    Stop,
    /// Rest, because there were too many restarts.
    GiveUp,
    /// Start again after this many milliseconds.
    Restart {
        /// Back-off.
        after_ms: u64,
    },
    /// Remove the machine.
    Destroy,
}

/// Restarts that still count at `now`.
pub fn recent(restarts: &[UnixMillis], now: UnixMillis) -> impl Iterator<Item = UnixMillis> {
    // None is to come: the clock was set back while no server ran.
    restarts.iter().copied().filter(move |at| *at <= now && *at + WINDOW > now)
}

/// Decides after `end`, given when the policy restarted the machine before.
pub fn decide(
    config: &MachineConfig,
    end: &ProgramEnd,
    restarts: &[UnixMillis],
    now: UnixMillis,
) -> Verdict {
    let count = recent(restarts, now).count();
    let rest = if config.auto_destroy == Some(true) { Verdict::Destroy } else { Verdict::Stop };
    let wanted = match config.restart_policy() {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => end.is_failure(),
    };
    if !wanted {
        return rest;
    }
    let limited = config.restart_policy() == RestartPolicy::OnFailure;
    if limited && count >= usize::try_from(config.max_retries()).unwrap_or(usize::MAX) {
        return if rest == Verdict::Destroy { rest } else { Verdict::GiveUp };
    }
    Verdict::Restart { after_ms: back_off(count) }
}

/// Whether a machine may be restarted whose health check has failed: where its program would be if
/// it had failed itself. `restarts` is when it was restarted before without anyone asking.
pub fn lets_unhealthy_restart(
    config: &MachineConfig,
    restarts: &[UnixMillis],
    now: UnixMillis,
) -> bool {
    let end = ProgramEnd::unreported(EndCause::Killed, None);
    matches!(decide(config, &end, restarts, now), Verdict::Restart { .. })
}

/// 0, 1, 2, 4, … 30 s.
fn back_off(restarts_before: usize) -> u64 {
    let seconds = match u32::try_from(restarts_before) {
        Ok(0) => 0,
        Ok(count) => 1_u64.checked_shl(count - 1).unwrap_or(u64::MAX),
        Err(_) => u64::MAX,
    };
    seconds.min(MAX_BACK_OFF.as_secs()) * 1000
}

#[cfg(test)]
mod tests {
    use caddis_api::config::Restart;
    use caddis_guest_protocol::message::ExitReport;

    use super::*;

    fn config(policy: RestartPolicy) -> MachineConfig {
        MachineConfig {
            restart: Some(Restart { policy: Some(policy), max_retries: Some(3) }),
            ..Default::default()
        }
    }

    fn end(code: i32) -> ProgramEnd {
        ProgramEnd::reported(ExitReport {
            code,
            signal: None,
            oom_killed: false,
            exited_at_ns: 0,
            logs_complete: true,
        })
    }

    #[test]
    fn each_policy_decides_by_exit_code() {
        let now = UnixMillis::new(1_000_000);
        let restart = Verdict::Restart { after_ms: 0 };
        for (policy, code, expected) in [
            (RestartPolicy::No, 1, Verdict::Stop),
            (RestartPolicy::Always, 0, restart),
            (RestartPolicy::Always, 1, restart),
            (RestartPolicy::OnFailure, 0, Verdict::Stop),
            (RestartPolicy::OnFailure, 1, restart),
        ] {
            assert_eq!(
                decide(&config(policy), &end(code), &[], now),
                expected,
                "{policy:?} {code}"
            );
        }
    }

    #[test]
    fn on_failure_gives_up_within_the_window_and_recovers_after_it() {
        let now = UnixMillis::new(10_000_000);
        let config = config(RestartPolicy::OnFailure);
        let ago = |milliseconds| now - Duration::from_millis(milliseconds);
        assert_eq!(decide(&config, &end(1), &[ago(3), ago(2), ago(1)], now), Verdict::GiveUp);
        assert_eq!(
            decide(&config, &end(1), &[ago(400_000), ago(2), ago(1)], now),
            Verdict::Restart { after_ms: 2000 }
        );
    }

    #[test]
    fn an_unhealthy_machine_is_restarted_as_a_failed_program_would_be() {
        let now = UnixMillis::new(10_000_000);
        let lets = |policy, restarts: &[UnixMillis]| {
            lets_unhealthy_restart(&config(policy), restarts, now)
        };
        let three = [now - Duration::from_millis(1); 3];
        assert!(!lets(RestartPolicy::No, &[]));
        assert!(lets(RestartPolicy::OnFailure, &three[..2]));
        assert!(!lets(RestartPolicy::OnFailure, &three), "it may be restarted three times");
        assert!(lets(RestartPolicy::Always, &three));
    }

    #[test]
    fn back_off_doubles_up_to_its_limit() {
        let config = config(RestartPolicy::Always);
        let (at, now) = (UnixMillis::new(10_000_000), UnixMillis::new(10_000_001));
        let delays: Vec<_> = (0..8)
            .map(|count| match decide(&config, &end(1), &vec![at; count], now) {
                Verdict::Restart { after_ms } => after_ms / 1000,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(delays, [0, 1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn auto_destroy_takes_the_place_of_rest() {
        let config = MachineConfig { auto_destroy: Some(true), ..config(RestartPolicy::No) };
        assert_eq!(decide(&config, &end(0), &[], UnixMillis::EPOCH), Verdict::Destroy);
    }
}
