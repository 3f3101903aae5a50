//! The volumes of the machine: when they are mounted, what is asked of them, and their end.
//!
//! ```text
//! start:  [Configure] ▸ mounted by a process ▸ programs
//! end:    programs have ended, or it failed ▸ all other processes are killed ▸ none is left
//!         ▸ unmounted by a process ▸ the end is told
//! ```

use std::time::{Duration, Instant};

use caddis_guest_protocol::{
    GuestMessage, GuestState, MachineSpec, UNMOUNT_TIMEOUT, spec::MountSpec,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Guest, watch};
use crate::{
    configure::Prepared,
    task::{Held, Late, Task},
    volumes::{self, hold},
};

/// Time to mount all: what was not written when the power was cut is recovered from the journal,
/// and a file system that was grown meanwhile grows.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);
/// Time to grow one.
const GROW_TIMEOUT: Duration = Duration::from_secs(120);
/// Time to look how full they are, and to let them go on.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to write out everything before the VM is saved.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time that they are held still.
const MOST_STILL: Duration = Duration::from_secs(300);
/// Of the time that they may be held still, this part is left for telling that they are.
const TELLING_PART: u32 = 8;
/// Time that killed processes have to be gone. One may wait for a disk.
const KILLED_TIMEOUT: Duration = Duration::from_secs(5);
/// What is being done to volumes that are held still, for messages.
const THAWING: &str = "thawing the volumes";
/// Requests that are worked on at a time.
const MOST_REQUESTS: usize = 16;

/// All there is to know of them.
#[derive(Default)]
pub(super) struct Volumes {
    /// Those that may be mounted.
    mounts: Vec<MountSpec>,
    /// What mounts them, and what is to come then.
    mounting: Option<(Task, Prepared)>,
    requests: Vec<Request>,
    /// Those that are held still.
    still: Option<Still>,
    release: Option<Release>,
    /// They are unmounted, or were given up.
    released: bool,
    /// The host wants the VM to end.
    powering_off: bool,
}

/// They are held still.
struct Still {
    /// As [`hold::freeze`] says it.
    since: Option<u64>,
    /// The process that holds them.
    held: Held,
    /// When they go on by themselves.
    until: Instant,
}

/// What the host has asked, and is worked on.
struct Request {
    /// Of the question; `None` for what nobody asked.
    id: Option<u32>,
    kind: Kind,
    task: Task,
}

enum Kind {
    /// Answered by whether it was done.
    Plain,
    /// Answered by what was found out.
    Usage,
    /// When they go on by themselves, and what holds them, if it was done.
    Freeze(Instant, Held),
    /// By the process that held them still, since then.
    Resume(Option<u64>),
    /// By another one, where that could not. Answered by how long they stood still, as the former.
    Thaw(Option<u64>),
}

/// Their end.
struct Release {
    /// What is told then.
    status: Option<GuestState>,
    begun: Instant,
    /// No process is left but init.
    alone: bool,
    unmounting: Option<Task>,
}

impl Volumes {
    /// Nothing has to be unmounted.
    pub(super) fn are_none(&self) -> bool {
        self.mounts.is_empty()
    }

    /// They are being unmounted, or were.
    pub(super) fn are_going(&self) -> bool {
        self.release.is_some() || self.released
    }

    /// Whether the VM is to end, and nothing has to be waited for any more.
    pub(super) fn may_power_off(&self) -> bool {
        self.powering_off && self.are_none()
    }

    /// All processes have ended.
    pub(super) fn no_process_left(&mut self) {
        if let Some(release) = &mut self.release {
            release.alone = true;
        }
    }

    /// When something is to be done next, though nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let mounting = self.mounting.iter().map(|(task, _)| task.deadline());
        let requests = self.requests.iter().map(|request| request.task.deadline());
        let release = self.release.iter().map(|release| match &release.unmounting {
            Some(task) => task.deadline(),
            None => release.begun + KILLED_TIMEOUT,
        });
        let still = self.still.iter().map(|still| still.until);
        mounting.chain(requests).chain(still).chain(release).min()
    }
}

impl Guest {
    /// Has the volumes mounted; programs start then.
    pub(super) fn mount_volumes(
        &mut self,
        spec: &MachineSpec,
        prepared: Prepared,
    ) -> Result<(), String> {
        let user = &prepared.user;
        let task = Task::start("mounting the volumes", MOUNT_TIMEOUT, Late::Killed, || {
            volumes::mount_all(spec, user)
        })?;
        self.volumes.mounts.clone_from(&spec.mounts);
        watch(&self.epoll, task.pipe())?;
        self.volumes.mounting = Some((task, prepared));
        Ok(())
    }

    /// Takes in what became of what is under way.
    pub(super) fn settle_volumes(&mut self, now: Instant) {
        if self.volumes.are_none() && self.volumes.requests.is_empty() {
            return;
        }
        self.settle_mounting(now);
        self.settle_requests(now);
        if let Some(still) = self.volumes.still.take_if(|still| still.until <= now) {
            self.thaw_held(None, still);
        }
        self.settle_release(now);
    }

    fn settle_mounting(&mut self, now: Instant) {
        let Some((task, _)) = &mut self.volumes.mounting else { return };
        let Some(outcome) = task.settle(now) else { return };
        let Some((_, prepared)) = self.volumes.mounting.take() else { return };
        self.timing.step("volumes");
        let spec = self.spec.clone().unwrap_or_default();
        let started = outcome.and_then(|warnings| {
            let warnings: Vec<String> = serde_json::from_str(&warnings).unwrap_or_default();
            warnings.into_iter().for_each(|warning| self.warn(Err(warning)));
            self.run_programs(&spec, prepared)
        });
        if let Err(message) = started {
            self.end(GuestState::Failed { message });
        }
    }

    fn settle_requests(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(request) = self.volumes.requests.get_mut(at) {
            match request.task.settle(now) {
                None => at += 1,
                Some(outcome) => {
                    let Request { id, kind, .. } = self.volumes.requests.remove(at);
                    self.settled(id, kind, outcome);
                }
            }
        }
    }

    fn settled(&mut self, id: Option<u32>, kind: Kind, outcome: Result<String, String>) {
        match (kind, outcome) {
            (Kind::Freeze(until, held), Ok(since)) => {
                let since = since.parse().ok();
                self.volumes.still = Some(Still { since, held, until });
                self.tell(id, Ok(()));
            }
            (Kind::Freeze(_, held), Err(reason)) => {
                // They may stand still, of which it could not tell in time. Where an earlier
                // request holds them, they go on at that one's time.
                drop(held);
                if self.volumes.still.is_none() && !self.volumes.are_going() {
                    self.end_freeze(None, Kind::Plain);
                }
                self.tell(id, Err(reason));
            }
            // It may have been killed.
            (Kind::Resume(since), Err(_)) => self.end_freeze(id, Kind::Thaw(since)),
            (Kind::Resume(since) | Kind::Thaw(since), Ok(until)) => {
                let Some(id) = id else { return };
                let until = until.parse::<u64>().ok();
                let still_us = until.zip(since).and_then(|(to, from)| to.checked_sub(from));
                self.port.send(&GuestMessage::Answer { id, failure: None, still_us }, b"");
            }
            (Kind::Usage, Ok(text)) => {
                let Some(id) = id else { return };
                match serde_json::from_str(&text) {
                    Ok(volumes) => self.port.send(&GuestMessage::VolumeUsage { id, volumes }, b""),
                    Err(error) => self.answer(id, Err(error.to_string())),
                }
            }
            (Kind::Plain, Ok(_)) => self.tell(id, Ok(())),
            (Kind::Plain | Kind::Usage | Kind::Thaw(_), Err(reason)) => self.tell(id, Err(reason)),
        }
    }

    /// Answers a question; what nobody has asked is told only if it failed.
    fn tell(&mut self, id: Option<u32>, outcome: Result<(), String>) {
        match id {
            Some(id) => self.answer(id, outcome),
            None => self.warn(outcome),
        }
    }

    /// Has a process work on what was asked.
    fn work_on(
        &mut self,
        id: Option<u32>,
        kind: Kind,
        task: impl FnOnce(&[MountSpec]) -> Result<Task, String>,
    ) {
        let started = self.may_work().and_then(|()| task(&self.volumes.mounts));
        let watched = started.and_then(|task| watch(&self.epoll, task.pipe()).map(|()| task));
        match watched {
            Ok(task) => self.volumes.requests.push(Request { id, kind, task }),
            Err(failure) => self.tell(id, Err(failure)),
        }
    }

    /// Whether there is room for another request.
    fn may_work(&self) -> Result<(), String> {
        if self.volumes.requests.len() >= MOST_REQUESTS {
            Err("too much is being asked at once".to_owned())
        } else if self.volumes.are_going() {
            Err("the machine is being stopped".to_owned())
        } else {
            Ok(())
        }
    }

    pub(super) fn grow_volume(&mut self, id: u32, volume: u8, size: u64) {
        self.work_on(Some(id), Kind::Plain, |mounts| {
            let mount = mounts.iter().find(|mount| mount.volume == volume);
            let mount = mount.ok_or_else(|| format!("the machine has no volume {volume}"))?;
            Task::start("growing the file system", GROW_TIMEOUT, Late::Killed, || {
                volumes::grow(mount, size)
            })
        });
    }

    pub(super) fn tell_volume_usage(&mut self, id: u32) {
        if self.volumes.are_none() {
            let none = GuestMessage::VolumeUsage { id, volumes: Vec::new() };
            return self.port.send(&none, b"");
        }
        self.work_on(Some(id), Kind::Usage, |mounts| {
            Task::start("looking at the volumes", LOOK_TIMEOUT, Late::Killed, || {
                volumes::usage(mounts)
            })
        });
    }

    pub(super) fn freeze_volumes(&mut self, id: u32, deadline_ms: u64) {
        let timeout = Duration::from_millis(deadline_ms).min(MOST_STILL);
        let until = Instant::now() + timeout;
        let held_by = until - timeout / TELLING_PART;
        let what = "holding the volumes still";
        let started = self.may_work().and_then(|()| {
            let mounts = &self.volumes.mounts;
            let freeze = || hold::freeze(mounts, held_by);
            let (task, held) = Task::start_in_two(what, timeout, Late::Left, freeze, hold::let_go)?;
            watch(&self.epoll, task.pipe())?;
            watch(&self.epoll, held.pipe())?;
            Ok(Request { id: Some(id), kind: Kind::Freeze(until, held), task })
        });
        match started {
            Ok(request) => self.volumes.requests.push(request),
            Err(failure) => self.answer(id, Err(failure)),
        }
    }

    pub(super) fn thaw_volumes(&mut self, id: u32) {
        match self.volumes.still.take() {
            Some(still) => self.thaw_held(Some(id), still),
            None => self.answer(id, Err("the volumes went on before".to_owned())),
        }
    }

    /// Has the process that holds them let them go on.
    fn thaw_held(&mut self, id: Option<u32>, still: Still) {
        let Still { since, held, .. } = still;
        let task = held.resume(THAWING, LOOK_TIMEOUT);
        self.volumes.requests.push(Request { id, kind: Kind::Resume(since), task });
    }

    fn end_freeze(&mut self, id: Option<u32>, kind: Kind) {
        self.work_on(id, kind, |mounts| {
            Task::start(THAWING, LOOK_TIMEOUT, Late::Left, || hold::thaw(mounts))
        });
    }

    /// Writes out all file systems, and answers.
    pub(super) fn write_out(&mut self, id: u32) {
        if self.volumes.are_none() {
            nix::unistd::sync();
            return self.answer(id, Ok(()));
        }
        self.work_on(Some(id), Kind::Plain, |_| {
            Task::start("writing out the volumes", WRITE_TIMEOUT, Late::Left, || {
                nix::unistd::sync();
                Ok(String::new())
            })
        });
    }

    /// The host wants the VM to end. True when it may at once.
    pub(super) fn power_off(&mut self) -> bool {
        if self.volumes.are_none() {
            return true;
        }
        self.volumes.powering_off = true;
        self.release_volumes(None);
        false
    }

    /// Ends all processes, unmounts the volumes, and tells the end then.
    pub(super) fn release_volumes(&mut self, status: Option<GuestState>) {
        if let Some(release) = &mut self.volumes.release {
            release.status = release.status.take().or(status);
            return;
        }
        // All but ourselves.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        self.volumes.mounting = None;
        self.volumes.still = None;
        let begun = Instant::now();
        self.volumes.release = Some(Release { status, begun, alone: false, unmounting: None });
    }

    fn settle_release(&mut self, now: Instant) {
        if self.volumes.release.as_ref().is_some_and(|release| !release.alone) {
            // There may have been none whose end is told.
            self.reap();
        }
        let Some(release) = &mut self.volumes.release else { return };
        if release.unmounting.is_none() {
            if !release.alone && now < release.begun + KILLED_TIMEOUT {
                return;
            }
            let mounts = &self.volumes.mounts;
            let timeout = UNMOUNT_TIMEOUT.saturating_sub(now - release.begun);
            let started = Task::start("unmounting the volumes", timeout, Late::Left, || {
                volumes::release(mounts)
            });
            match started.and_then(|task| watch(&self.epoll, task.pipe()).map(|()| task)) {
                Ok(task) => release.unmounting = Some(task),
                Err(error) => return self.released(Err(error)),
            }
        }
        let outcome = release.unmounting.as_mut().and_then(|task| task.settle(now));
        if let Some(outcome) = outcome {
            self.released(outcome.map(drop));
        }
    }

    fn released(&mut self, outcome: Result<(), String>) {
        self.warn(outcome);
        self.volumes.mounts.clear();
        self.volumes.released = true;
        if let Some(status) = self.volumes.release.take().and_then(|release| release.status) {
            self.tell_end(status);
        }
    }
}
