//! A program on its way: between fork and exec its process does all that touches the image, since a
//! file system may not answer (FUSE, NFS) and init has one thread. It reports over a pipe that exec
//! closes; one that takes too long is given up, and what it was about is told.
//!
//! ```text
//! fork ▸ [Begin] ▸ [User] ▸ [Directory] ▸ [Program] ▸ [Enter] ▸ [Execute] ▸ exec: the pipe ends
//!                     └──────────┴───────────┴───────────┴─────────┴──────▸ failed: `!`, exit
//!                                                                           status and why
//! ```

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Time a program has to begin. On a busy host under emulation a large one from a cold disk takes
/// seconds.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Begins the reason of a failure.
const FAILED: u8 = b'!';
/// What a failure says is cut here, bytes.
const LONGEST_REASON: usize = 4096;

/// What a process is about before it is the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Streams, cgroup, session.
    Begin = b'a',
    /// Who it runs as, by the image's files.
    User,
    /// Makes the working directory.
    Directory,
    /// Looks for the program.
    Program,
    /// Enters the working directory.
    Enter,
    /// Becomes the program.
    Execute,
}

impl Stage {
    const ALL: [Self; 6] =
        [Self::Begin, Self::User, Self::Directory, Self::Program, Self::Enter, Self::Execute];

    fn what(self) -> &'static str {
        match self {
            Self::Begin => "setting up its streams",
            Self::User => "reading /etc/passwd and /etc/group",
            Self::Directory => "making its working directory",
            Self::Program => "looking for the program",
            Self::Enter => "entering its working directory",
            Self::Execute => "executing the program",
        }
    }
}

/// The process's end of the pipe.
pub struct Report(pub File);

impl Report {
    /// Says what comes next. Nobody listens only when init has given it up.
    pub fn stage(&mut self, stage: Stage) {
        let _ = self.0.write_all(&[stage as u8]);
    }

    /// Says why there will be no program.
    pub fn failed(&mut self, NotBegun { code, reason }: &NotBegun) {
        let cut = reason.len().min(LONGEST_REASON);
        let code = code.and_then(|code| u8::try_from(code).ok()).unwrap_or(0);
        let _ = self.0.write_all(&[&[FAILED, code], &reason.as_bytes()[..cut]].concat());
    }
}

/// Why there is no program, for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotBegun {
    /// Exit status that a shell would give, where it is about the program.
    pub code: Option<i32>,
    pub reason: String,
}

impl NotBegun {
    /// There is none of that name.
    pub fn missing(reason: String) -> Self {
        Self { code: Some(127), reason }
    }

    /// It can't be executed.
    pub fn unusable(reason: String) -> Self {
        Self { code: Some(126), reason }
    }
}

impl From<String> for NotBegun {
    fn from(reason: String) -> Self {
        Self { code: None, reason }
    }
}

/// Init's end: a process that is not yet, or no longer only, a copy of init.
pub struct Launch {
    pid: i32,
    pipe: File,
    stage: Stage,
    reason: Option<Vec<u8>>,
    deadline: Instant,
}

impl Launch {
    /// Of a process that was just forked; the pipe does not block.
    pub fn new(pid: i32, pipe: File) -> Self {
        Self { pid, pipe, stage: Stage::Begin, reason: None, deadline: Instant::now() + TIMEOUT }
    }

    /// To be watched.
    pub fn pipe(&self) -> &File {
        &self.pipe
    }

    /// When it is given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether it is over: the program runs, or why it never will. One whose time is over is
    /// killed.
    pub fn settle(&mut self, now: Instant) -> Option<Result<(), NotBegun>> {
        let mut buffer = [0; 512];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => {
                    let Some(said) = self.reason.take() else { return Some(Ok(())) };
                    let (code, reason) = said.split_first().unwrap_or((&0, &[]));
                    let code = Some(i32::from(*code)).filter(|code| *code != 0);
                    return Some(Err(NotBegun {
                        code,
                        reason: String::from_utf8_lossy(reason).into_owned(),
                    }));
                }
                Ok(count) => self.hear(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if now < self.deadline {
            return None;
        }
        // It may lead its group already.
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let (what, seconds) = (self.stage.what(), TIMEOUT.as_secs());
        Some(Err(format!("the program did not begin within {seconds} s: it was {what}").into()))
    }

    fn hear(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if let Some(reason) = &mut self.reason {
                reason.extend_from_slice(bytes);
                return;
            }
            if *first == FAILED {
                self.reason = Some(Vec::new());
            } else if let Some(stage) = Stage::ALL.into_iter().find(|stage| *stage as u8 == *first)
            {
                self.stage = stage;
            }
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{fcntl::OFlag, unistd::pipe2};

    use super::*;

    fn pair() -> (Launch, Report) {
        let (ours, theirs): (OwnedFd, OwnedFd) =
            pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        // No process has this id.
        (Launch::new(i32::MAX, ours.into()), Report(theirs.into()))
    }

    #[test]
    fn a_program_runs_when_the_pipe_ends_and_a_failure_says_why() {
        let now = Instant::now();
        let (mut launch, mut report) = pair();
        report.stage(Stage::User);
        assert_eq!(launch.settle(now), None);
        drop(report);
        assert_eq!(launch.settle(now), Some(Ok(())));

        let (mut launch, mut report) = pair();
        report.stage(Stage::Program);
        report.failed(&NotBegun::missing("there is no abc!".to_owned()));
        assert_eq!(launch.settle(now), None);
        drop(report);
        assert_eq!(launch.settle(now), Some(Err(NotBegun::missing("there is no abc!".to_owned()))));

        let (mut launch, mut report) = pair();
        report.failed(&"no such user".to_owned().into());
        drop(report);
        assert_eq!(
            launch.settle(now),
            Some(Err(NotBegun { code: None, reason: "no such user".to_owned() }))
        );
    }

    #[test]
    fn what_takes_too_long_is_given_up_and_says_what_it_was_about() {
        let (mut launch, mut report) = pair();
        for stage in Stage::ALL.into_iter().take(5) {
            report.stage(stage);
        }
        let at = launch.deadline();
        assert_eq!(launch.settle(at - Duration::from_millis(1)), None);
        let given_up = launch.settle(at).unwrap().unwrap_err().reason;
        assert!(
            given_up.contains("60 s") && given_up.contains("entering its working directory"),
            "{given_up}"
        );
    }
}
