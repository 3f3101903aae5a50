//! Sessions in the sense of setsid(2): a program with all that it has started and that has not left
//! it on purpose.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How often those are looked for that were born while others were killed.
const ROUNDS: usize = 10;

/// Sends a signal to all processes of a session. Says whether there were any.
pub fn signal(session: i32, signal: Signal) -> bool {
    let mut any = false;
    for pid in members(session) {
        any = true;
        // It may have just ended.
        let _ = kill(Pid::from_raw(pid), signal);
    }
    any
}

/// Kills all processes of a session.
pub fn kill_all(session: i32) {
    for _ in 0..ROUNDS {
        if !signal(session, Signal::SIGKILL) {
            return;
        }
    }
}

fn members(session: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stat = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    pids.filter(|pid| *pid != 1 && lives_in(&stat(pid), session)).collect()
}

/// By a line of `/proc/PID/stat`: state, parent, process group, session after the name, which may
/// hold anything.
fn lives_in(stat: &str, session: i32) -> bool {
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<_> = rest.split_whitespace().collect();
    let alive = !matches!(fields.first(), None | Some(&"Z" | &"X"));
    alive && fields.get(3).and_then(|field| field.parse().ok()) == Some(session)
}

#[cfg(test)]
mod tests {
    use super::lives_in;

    #[test]
    fn a_session_is_read_past_any_name_and_the_dead_are_in_none() {
        assert!(lives_in("7 (sh) S 1 7 42 0 -1", 42));
        assert!(lives_in("7 (a ) Z 1) b) R 1 7 42 0 -1", 42));
        assert!(!lives_in("7 (sh) Z 1 7 42 0 -1", 42));
        assert!(!lives_in("7 (sh) S 1 42 7 0 -1", 42));
        assert!(!lives_in("", 42));
    }
}
