//! Ends: of processes, of programs and of the machine.

use std::time::{Duration, Instant};

use caddis_guest_protocol::{GuestMessage, GuestState, VICTIMS_SINCE};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, waitpid},
    unistd::Pid,
};

use super::Guest;
use crate::{execs::Exec, oom::Victim, program};

/// Time that an exec which was hung up on has to end.
const HANG_UP_TIMEOUT: Duration = Duration::from_secs(5);

impl Guest {
    /// Tells of processes that the kernel has killed for want of memory.
    pub(super) fn note_victims(&mut self) {
        for Victim { pid, name } in self.victims.read() {
            self.warn(Err(format!("out of memory: the kernel killed process {pid} ({name})")));
            // Where nobody takes it the line in the log has to do.
            if !self.programs.has(pid) && self.protocol >= VICTIMS_SINCE && self.port.has_room() {
                self.port.send(&GuestMessage::OutOfMemory { pid, name }, b"");
            }
        }
    }

    /// Collects processes that have ended.
    pub(super) fn reap(&mut self) {
        // The kernel says why before they end.
        self.note_victims();
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => match (status.pid(), program::end(status)) {
                    (Some(pid), Some(end)) => self.process_ended(pid.as_raw(), end),
                    (None, _) => return,
                    _ => {}
                },
                Err(Errno::EINTR) => {}
                Err(_) => return self.volumes.no_process_left(),
            }
        }
    }

    pub(super) fn process_ended(&mut self, pid: i32, end: program::End) {
        let end = program::End { oom_killed: self.victims.take(pid), ..end };
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid) {
            exec.note_end(end.code, end.signal);
        }
        // What it was comes before how it ended.
        self.settle(Instant::now());
        if let Some(end) = self.programs.ended(pid, end, &mut self.logs) {
            let end = GuestState::Exited(program::report(end));
            match self.held {
                true => self.held_end = Some(end),
                false => self.end(end),
            }
        }
    }

    /// Ends the machine when what held it is over. True when there is something to be said at once.
    pub(super) fn let_go(&mut self, now: Instant) -> bool {
        let held = self.execs.iter().any(|exec| exec.holds_machine);
        if !std::mem::replace(&mut self.held, held) || held {
            return false;
        }
        match self.held_end.take() {
            Some(end) => {
                self.end(end);
                true
            }
            None => {
                self.programs.end(now);
                false
            }
        }
    }

    pub(super) fn hang_up(&mut self, which: impl Fn(&Exec) -> bool) {
        let at = Instant::now() + HANG_UP_TIMEOUT;
        self.hung_up
            .extend(self.execs.extract_if(.., |exec| which(exec)).map(|exec| (exec.hang_up(), at)));
    }

    /// The machine's end, which is told once its volumes are unmounted: the host may kill the VM
    /// then.
    pub(super) fn end(&mut self, status: GuestState) {
        if self.volumes.are_none() {
            self.tell_end(status);
        } else {
            self.release_volumes(Some(status));
        }
    }

    pub(super) fn tell_end(&mut self, status: GuestState) {
        self.status = status;
        self.ended_at = Some(Instant::now());
    }
}
