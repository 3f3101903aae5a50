//! Work in a process of its own: what may wait for a disk, since init has one thread and must never
//! wait. The process is a copy of init that does one thing, says over a pipe what came of it, and
//! ends. Or it does one thing and says so, waits, and does another ([`Task::start_in_two`]).
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
    timeout: Duration,
    deadline: Instant,
    late: Late,
}

/// A process that has done the first part of its work, and does the second when it is told to, or
/// when this is dropped.
pub struct Held {
    order: Order,
    task: Task,
}

impl Held {
    /// To be watched from the start on.
    pub fn pipe(&self) -> &File {
        self.task.pipe()
    }

    /// Has it do the rest, for which it has so much time.
    pub fn resume(self, what: &'static str, timeout: Duration) -> Task {
        let Self { order, mut task } = self;
        drop(order);
        task.what = what;
        task.timeout = timeout;
        task.deadline = Instant::now() + timeout;
        task
    }
}

/// Tells a process to go on, when it is dropped. That the pipe ends would not be enough: copies of
/// this process have it open, too.
struct Order(File);

impl Drop for Order {
    fn drop(&mut self) {
        // It may be gone, as whoever waits for it hears.
        let _ = self.0.write_all(b"+");
    }
}

impl Task {
    /// Has a process do something, for which it has so much time; `what` says what, as in "was not
    /// done within".
    pub fn start(
        what: &'static str,
        timeout: Duration,
        late: Late,
        work: impl FnOnce() -> Result<String, String>,
    ) -> Result<Self, String> {
        let (said, theirs) = Self::pipe_of(what)?;
        let child = fork_for(what)?;
        let Some(pid) = child else {
            say(theirs, &work());
            end()
        };
        Ok(Self::of(pid, said, what, timeout, late))
    }

    /// Has a process do something, say so, wait to be told to go on, and do something else then,
    /// for which it has what the first left. No second process is started for it, and it begins at
    /// once.
    pub fn start_in_two<T>(
        what: &'static str,
        timeout: Duration,
        late: Late,
        first: impl FnOnce() -> Result<(String, T), String>,
        second: impl FnOnce(T) -> Result<String, String>,
    ) -> Result<(Self, Held), String> {
        let (first_said, first_theirs) = Self::pipe_of(what)?;
        let (second_said, second_theirs) = Self::pipe_of(what)?;
        let (orders, order) = pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(what, error))?;
        let Some(pid) = fork_for(what)? else {
            // Its own copy would keep the pipe from ending.
            drop(order);
            match first() {
                Ok((text, left)) => {
                    say(first_theirs, &Ok(text));
                    // Whether it is told or nobody is there any more to tell it.
                    let _ = File::from(orders).read(&mut [0]);
                    say(second_theirs, &second(left));
                }
                Err(text) => say(first_theirs, &Err(text)),
            }
            end()
        };
        let task = |said| Self::of(pid, said, what, timeout, late);
        let held = Held { order: Order(File::from(order)), task: task(second_said) };
        Ok((task(first_said), held))
    }

    /// What a process says is read from the first.
    fn pipe_of(what: &'static str) -> Result<(File, OwnedFd), String> {
        let (ours, theirs): (OwnedFd, OwnedFd) =
            pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(what, error))?;
        Ok((non_blocking(ours)?, theirs))
    }

    fn of(pid: i32, pipe: File, what: &'static str, timeout: Duration, late: Late) -> Self {
        let deadline = Instant::now() + timeout;
        Self { pid, pipe, said: Vec::new(), what, timeout, deadline, late }
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
        Some(Err(format!("{} was not done within {:?}", self.what, self.timeout)))
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

fn failed(what: &str, error: nix::Error) -> String {
    format!("can't start {what}: {error}")
}

/// The id of a copy of this process; in the copy, none.
fn fork_for(what: &str) -> Result<Option<i32>, String> {
    // SAFETY: this process has one thread, so its child may do whatever it may.
    match unsafe { fork() }.map_err(|error| failed(what, error))? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        ForkResult::Child => Ok(None),
    }
}

/// Tells init what came of it.
fn say(pipe: OwnedFd, outcome: &Result<String, String>) {
    let said = match outcome {
        Ok(text) => [&[DONE], text.as_bytes()].concat(),
        Err(text) => [&[FAILED], text.as_bytes()].concat(),
    };
    // Where nobody listens any more it does not matter.
    let _ = File::from(pipe).write_all(&said);
}

fn end() -> ! {
    // SAFETY: nothing of the parent's is undone or written twice by the child's end.
    unsafe { libc::_exit(0) }
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
            timeout: late,
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
    fn one_that_waits_to_go_on_is_told_once_whatever_becomes_of_it() {
        for is_dropped in [false, true] {
            let (task, mut said) = pair(Duration::from_secs(1000));
            let (mut orders, order) = std::io::pipe().unwrap();
            let held = Held { order: Order(OwnedFd::from(order).into()), task };
            let mut task = match is_dropped {
                true => {
                    drop(held);
                    None
                }
                false => Some(held.resume("resuming", Duration::from_secs(2000))),
            };
            let mut told = String::new();
            orders.read_to_string(&mut told).unwrap();
            assert_eq!(told, "+");
            if let Some(task) = &mut task {
                said.write_all(b"+resumed").unwrap();
                drop(said);
                assert_eq!(task.settle(Instant::now()), Some(Ok("resumed".to_owned())));
                assert_eq!(
                    (task.what, task.timeout),
                    ("resuming", Duration::from_secs(2000)),
                    "it has time from then on"
                );
            }
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
