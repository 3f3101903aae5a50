//! A VM process: started with next to no rights, watched and killed by its pidfd, so that neither
//! needs it to be our child: the same code serves processes that an earlier server started.
#![expect(unsafe_code, reason = "tokio can't know that a descriptor stays open")]

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, pidfd_getfd, pidfd_open,
    pidfd_send_signal, waitid,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::record::ProcessId;

mod child;

pub(crate) use child::{Spawn, spawn};

/// How a process ended, as far as its parent can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Killed(i32),
    /// It was not our child.
    Unknown,
}

/// A process that can't be mistaken for another.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    descriptor: OwnedFd,
}

impl Process {
    /// The process of that number, as it is now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw =
            i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let descriptor = pidfd_open(raw, PidfdFlags::empty())?;
        // In this order: what the descriptor refers to can't change any more.
        let start_time = stat(pid)?.start_time;
        Ok(Self { id: ProcessId { pid, start_time }, descriptor })
    }

    /// The very process that was recorded; `None` when it is gone.
    pub(crate) fn reopen(id: ProcessId) -> Option<Self> {
        Self::open(id.pid).ok().filter(|process| process.id == id)
    }

    /// Kills it. Succeeds when it is already gone.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Asks it to end. Succeeds when it is already gone.
    pub(crate) fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A copy of one of its descriptors: the same open file, locks included.
    pub(crate) fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(&self.descriptor, number, PidfdGetfdFlags::empty())?)
    }

    /// Which number an open file has in it that it was given a descriptor of.
    pub(crate) fn number_of(&self, descriptor: impl AsFd) -> io::Result<u32> {
        let file = rustix::fs::fstat(descriptor)?;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.id.pid))?.flatten() {
            let found = std::fs::metadata(entry.path())
                .is_ok_and(|found| (found.dev(), found.ino()) == (file.st_dev, file.st_ino));
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            if let Some(number) = number.filter(|_| found) {
                return Ok(number);
            }
        }
        Err(io::Error::other("it does not have a descriptor that it was given"))
    }

    /// For waiting, by as many as want to.
    pub(crate) fn watch(&self) -> io::Result<Watch> {
        let descriptor = self.descriptor.try_clone()?;
        // SAFETY: an `OwnedFd` keeps its descriptor open and the same until it is dropped.
        let descriptor =
            unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
        Ok(Watch { descriptor })
    }

    /// An error once it has ended. To be asked after connecting to a socket in its directory: who
    /// takes its place there has sockets of the same names.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self.has_ended_within(Duration::ZERO)? {
            true => Err(io::Error::other("the VM process has ended")),
            false => Ok(()),
        }
    }

    fn has_ended_within(&self, time: Duration) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit =
            Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        let mut events = [PollFd::new(&self.descriptor, PollFlags::IN)];
        Ok(poll(&mut events, Some(&limit))? > 0)
    }

    /// Waits for its end on this thread, and reaps it if it is our child.
    pub(crate) fn wait_blocking(&self, deadline: Duration) -> io::Result<()> {
        if !self.has_ended_within(deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        reap(&self.descriptor);
        Ok(())
    }

    /// Memory it holds: its own, and its share of what it shares, bytes.
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.id.pid))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| io::Error::other("no Pss in smaps_rollup"))
    }

    /// Processor time used.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let ticks = stat(self.id.pid)?.ticks;
        let second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_micros(ticks.saturating_mul(1_000_000) / second))
    }
}

/// Tells when a process is gone.
#[derive(Debug)]
pub(crate) struct Watch {
    descriptor: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Waits until it is gone, and reaps it if it is our child; only the first to get there learns
    /// how it ended.
    pub(crate) async fn ended(&self) -> Status {
        // A pidfd is readable from the end of its process on, for ever.
        while self.descriptor.readable().await.is_err() {
            tokio::task::yield_now().await;
        }
        reap(self.descriptor.get_ref())
    }
}

fn reap(descriptor: &OwnedFd) -> Status {
    match waitid(WaitId::PidFd(descriptor.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => status
            .exit_status()
            .map(Status::Exited)
            .or(status.terminating_signal().map(Status::Killed))
            .unwrap_or(Status::Unknown),
        _ => Status::Unknown,
    }
}

struct Stat {
    ticks: u64,
    start_time: u64,
}

fn stat(pid: u32) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::Error::other("unexpected /proc/PID/stat"))
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the program's name and may hold anything; it ends with the last
    // parenthesis.
    let fields = text.rsplit_once(')')?.1.split_whitespace().collect::<Vec<_>>();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(Stat { ticks: field(14)? + field(15)?, start_time: field(22)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let line =
            "42 (a) R 1 (b c) S 1 42 42 0 -1 4194560 100 0 0 0 11 22 0 0 20 0 1 0 8888 1 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.ticks, stat.start_time), (33, 8888));
    }

    #[tokio::test]
    #[expect(clippy::zombie_processes, reason = "what is tested reaps it")]
    async fn a_child_is_reaped_with_its_status_and_a_recycled_pid_is_not_taken_for_it() {
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert_eq!(process.watch().unwrap().ended().await, Status::Exited(3));
        assert_eq!(process.watch().unwrap().ended().await, Status::Unknown, "reaped once only");
        assert!(process.kill().is_ok(), "killing what is gone succeeds");
        let mut id = Process::open(std::process::id()).unwrap().id;
        assert!(Process::reopen(id).is_some());
        id.start_time += 1;
        assert!(Process::reopen(id).is_none());
    }
}
