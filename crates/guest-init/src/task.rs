//! Work in a process of its own: what may wait for a disk, since init has one thread and must never
//! wait. The process is a copy of init that does one thing, says over a pipe what came of it, and
//! ends.
#![expect(unsafe_code, reason = "fork, and the end of its child")]

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::{ForkResult, Pid, fork, pipe2},
};

use crate::spawn::non_blocking;

/// Begins what a process says that has done it.
const DONE: u8 = b'+';
/// Begins what one says that could not.
const FAILED: u8 = b'!';

/// What becomes of a process that takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// It is killed.
    Killed,
    /// It undoes what it has done when it gets there, which a killed one would not.
    Left,
}

/// Work under way.
pub struct Task {
    pid: i32,
    pipe: File,
    said: Vec<u8>,
    what: &'static str,
    patience: Duration,
    deadline: Instant,
    late: Late,
}

impl Task {
    /// Has a process do something, for which it has so much time; `what` says what, as in "was not
    /// done within".
    pub fn start(
        what: &'static str,
        patience: Duration,
        late: Late,
        work: impl FnOnce() -> Result<String, String>,
    ) -> Result<Self, String> {
        let failed = |error: nix::Error| format!("can't start {what}: {error}");
        let (ours, theirs): (OwnedFd, OwnedFd) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let pipe = non_blocking(ours)?;
        // SAFETY: this process has one thread, so its child may do whatever it may.
        match unsafe { fork() }.map_err(failed)? {
            ForkResult::Parent { child } => Ok(Self {
                pid: child.as_raw(),
                pipe,
                said: Vec::new(),
                what,
                patience,
                deadline: Instant::now() + patience,
                late,
            }),
            ForkResult::Child => {
                let said = match work() {
                    Ok(text) => [&[DONE], text.as_bytes()].concat(),
                    Err(text) => [&[FAILED], text.as_bytes()].concat(),
                };
                // Where nobody listens any more it does not matter.
                let _ = File::from(theirs).write_all(&said);
                // SAFETY: nothing of the parent's is undone or written twice by the child's end.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// To be watched.
    pub fn pipe(&self) -> &File {
        &self.pipe
    }

    /// When it is given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What came of it, once, when it is over or given up.
    pub fn settle(&mut self, now: Instant) -> Option<Result<String, String>> {
        let mut buffer = [0; 4096];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => return Some(self.outcome()),
                Ok(count) => self.said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if now < self.deadline {
            return None;
        }
        if self.late == Late::Killed {
            // It may wait for the disk in a way that no signal ends; nobody waits for it.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        Some(Err(format!("{} was not done within {:?}", self.what, self.patience)))
    }

    /// Waits for what comes of it.
    pub fn wait(mut self) -> Result<String, String> {
        loop {
            let now = Instant::now();
            if let Some(outcome) = self.settle(now) {
                return outcome;
            }
            let left = self.deadline.saturating_duration_since(now).as_millis() + 1;
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // Interrupted or not: it is looked at again.
            let _ = poll(&mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }

    fn outcome(&self) -> Result<String, String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.said.split_first() {
            Some((&DONE, rest)) => Ok(text(rest)),
            Some((_, rest)) => Err(text(rest)),
            None => Err(format!("{} was interrupted", self.what)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(late: Duration) -> (Task, File) {
        let (ours, theirs): (OwnedFd, OwnedFd) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        let task = Task {
            // No process has this id.
            pid: i32::MAX,
            pipe: ours.into(),
            said: Vec::new(),
            what: "mounting",
            patience: late,
            deadline: Instant::now() + late,
            late: Late::Killed,
        };
        (task, theirs.into())
    }

    #[test]
    fn what_a_process_says_is_told_at_its_end() {
        for (said, expected) in [
            (&b"+text"[..], Ok("text".to_owned())),
            (b"!it is damaged", Err("it is damaged".to_owned())),
            (b"", Err("mounting was interrupted".to_owned())),
        ] {
            let (mut task, mut end) = pair(Duration::from_secs(1000));
            let now = Instant::now();
            end.write_all(said).unwrap();
            assert_eq!(task.settle(now), None);
            drop(end);
            assert_eq!(task.settle(now), Some(expected));
        }
    }

    #[test]
    fn one_that_takes_too_long_is_given_up() {
        let (mut task, _end) = pair(Duration::from_secs(1000));
        assert_eq!(task.settle(task.deadline() - Duration::from_millis(1)), None);
        let late = task.settle(task.deadline()).unwrap().unwrap_err();
        assert_eq!(late, "mounting was not done within 1000s");
    }
}
