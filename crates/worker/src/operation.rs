//! Operations: every change of a machine's state is one, recorded before it begins, done in steps
//! that each may be repeated, and ended by a deadline at the latest.
//!
//! | step | what it does | repeated after a crash | undone by |
//! |---|---|---|---|
//! | `pull` | root disk of the image | goes on where blobs are complete | nothing: shared, removed when unused |
//! | `back_off` | waits until a restart is due | waits for what is left | – |
//! | `prepare_root` | blank overlay | replaced | `release` |
//! | `launch` | slot, tap, VM process; resumed where there is a snapshot, which is used up | a VM that runs already is kept | `release` |
//! | `boot` | waits for init | – | `release` |
//! | `configure` | makes the VM the machine, waits for its program | init takes the same configuration twice | `release` |
//! | `signal` | sends the stop signal | sent again | – |
//! | `await_exit` | waits for the program's end, then kills | waits for what is left | – |
//! | `power_off` | lets init unmount what is kept and end the VM | – | – |
//! | `queue` | waits until fewer machines are being suspended | waits again | – |
//! | `freeze` | has the guest's programs stand still | they do already | `thaw` |
//! | `save` | memory and devices to a file | saved again | `release` |
//! | `end_vm` | kills the VM, gives back slot and tap when its process is gone | nothing left to do | no undo: it is the undo |
//! | `thaw` | has VM and programs go on, with the right time | they do already | – |
//! | `release` | `end_vm`, and removes overlay and snapshot | nothing left to do | no undo: it is the undo |
//! | `remove_files` | the machine's directory | nothing left to do | no undo: asked for |

use std::time::Duration;

use caddis_api::{MachineState, Signal};
use serde::{Deserialize, Serialize};

use crate::restart::{MAX_BACK_OFF, Verdict};

/// What is being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum OperationKind {
    /// Prepares a new machine.
    Create,
    /// Boots it.
    Start {
        /// Not before this time, milliseconds since the Unix epoch.
        not_before: u64,
        /// The restart policy does it, not a user.
        automatic: bool,
        /// It ran before the host went down: waits for its turn among the others of the host.
        recovery: bool,
        /// A suspend follows. Only of what is queued: once it begins, the suspend is what is
        /// queued.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        suspend_after: bool,
    },
    /// Ends it because someone asked.
    Stop(Stop),
    /// Ends it and boots it again.
    Restart(Stop),
    /// Gets what the new version runs while the old one goes on, ends that, and boots the new one.
    Update {
        /// How to end the old one.
        stop: Stop,
        /// Boot the new one.
        run: bool,
    },
    /// Saves it and ends its VM.
    Suspend,
    /// Has it go on where it was saved; where it can't, boots it with the disk it had.
    Resume {
        /// The host was rebooted meanwhile: nobody knows whether the snapshot was used.
        spoiled: bool,
    },
    /// Ends what there is of its VM after a suspend or resume that failed when all was saved.
    Rest {
        /// Why it failed.
        reason: String,
    },
    /// Has it go on after a suspend that came to nothing.
    #[serde(rename = "wake")]
    CancelSuspend {
        /// Why it did; `None` when a client asked for it.
        failure: Option<String>,
    },
    /// Clears up after the program ended by itself.
    Exit {
        /// What follows.
        then: Verdict,
    },
    /// Removes it.
    Destroy,
    /// Gives up on what was being done.
    Abandon {
        /// Where that ends.
        into: MachineState,
        /// What was being done.
        of: String,
        /// Why, for the user.
        reason: String,
    },
}

/// How to end a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Sent first; SIGKILL sends nothing else.
    pub signal: Signal,
    /// Then SIGKILL. Milliseconds.
    pub timeout_ms: u64,
    /// Neither request, configuration nor image name the signal: the guest may know a better one.
    #[serde(default)]
    pub is_default: bool,
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Pull,
    BackOff,
    PrepareRoot,
    Launch,
    Boot,
    Configure,
    Signal,
    AwaitExit,
    PowerOff,
    Queue,
    Freeze,
    Save,
    EndVm,
    Thaw,
    Release,
    RemoveFiles,
}

impl Step {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::BackOff => "back_off",
            Self::PrepareRoot => "prepare_root",
            Self::Launch => "launch",
            Self::Boot => "boot",
            Self::Configure => "configure",
            Self::Signal => "signal",
            Self::AwaitExit => "await_exit",
            Self::PowerOff => "power_off",
            Self::Queue => "queue",
            Self::Freeze => "freeze",
            Self::Save => "save",
            Self::EndVm => "end_vm",
            Self::Thaw => "thaw",
            Self::Release => "release",
            Self::RemoveFiles => "remove_files",
        }
    }

    /// Whether nothing of an earlier VM may be left before it.
    pub fn comes_after_the_last_vm(self) -> bool {
        matches!(self, Self::EndVm | Self::Release)
    }

    /// Whether it may be broken off: it only waits, or what it has begun is cleared away by
    /// `release`.
    pub fn may_be_dropped(self) -> bool {
        use Step::{
            AwaitExit, BackOff, Boot, Configure, Freeze, PowerOff, Pull, Queue, Save, Thaw,
        };
        matches!(
            self,
            Pull | BackOff | Boot | Configure | AwaitExit | PowerOff | Queue | Freeze | Save | Thaw
        )
    }
}

/// Time a create may take: a large image over a slow line.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// Time a start may take beyond its back-off. Under emulation on a busy host a boot takes many
/// seconds.
pub const START_DEADLINE: Duration = Duration::from_secs(4 * 60);
/// Time a suspend may take: its turn among others, and a large memory on a slow disk.
pub const SUSPEND_DEADLINE: Duration = Duration::from_secs(4 * 60);
/// Time the clearing-up after a program's end may take.
pub const CLEAR_DEADLINE: Duration = Duration::from_secs(60);
/// How often a step is tried.
pub const MAX_ATTEMPTS: u32 = 3;

impl OperationKind {
    /// A start that a client asked for.
    pub const START: Self =
        Self::Start { not_before: 0, automatic: false, recovery: false, suspend_after: false };

    /// Its steps, in order.
    pub fn steps(&self) -> &'static [Step] {
        use Step::{
            AwaitExit, BackOff, Boot, Configure, EndVm, Freeze, Launch, PowerOff, PrepareRoot,
            Pull, Queue, Release, RemoveFiles, Save, Signal, Thaw,
        };
        match self {
            Self::Create => &[Pull],
            // `release` first: whatever an earlier VM left behind must be gone before the next.
            Self::Start { .. } => &[BackOff, Release, Pull, PrepareRoot, Launch, Boot, Configure],
            Self::Stop(_) => &[Signal, AwaitExit, PowerOff, Release],
            Self::Restart(_) => {
                &[Signal, AwaitExit, PowerOff, Release, Pull, PrepareRoot, Launch, Boot, Configure]
            }
            Self::Update { run: true, .. } => {
                &[Pull, Signal, AwaitExit, PowerOff, Release, PrepareRoot, Launch, Boot, Configure]
            }
            Self::Update { run: false, .. } => &[Pull, Signal, AwaitExit, PowerOff, Release],
            Self::Suspend => &[Queue, Freeze, Save, EndVm],
            // No `release`: the disk is kept.
            Self::Resume { .. } => &[EndVm, Pull, Launch, Boot, Configure],
            Self::Rest { .. } => &[EndVm],
            Self::CancelSuspend { .. } => &[Thaw],
            Self::Exit { .. } => &[PowerOff, Release],
            Self::Destroy => &[Release, RemoveFiles],
            Self::Abandon { .. } => &[Release],
        }
    }

    /// Whether the machine rests afterwards, whatever is left of its VM's process: the kernel takes
    /// tens of milliseconds to remove one that it has killed, in which nothing of it runs. Whatever
    /// comes next waits for that.
    pub fn rests(&self) -> bool {
        matches!(
            self,
            Self::Stop(_)
                | Self::Exit { .. }
                | Self::Suspend
                | Self::Rest { .. }
                | Self::Update { run: false, .. }
        )
    }

    /// Its name on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start { .. } => "start",
            Self::Stop(_) => "stop",
            Self::Restart(_) => "restart",
            Self::Update { .. } => "update",
            Self::Suspend => "suspend",
            // What clients asked for and see.
            Self::Resume { .. } => "start",
            Self::CancelSuspend { failure: None } => "start",
            Self::CancelSuspend { failure: Some(_) } | Self::Rest { .. } => "suspend",
            Self::Exit { .. } => "exit",
            Self::Destroy => "destroy",
            Self::Abandon { .. } => "abandon",
        }
    }

    /// The state a machine shows meanwhile.
    pub fn state(&self) -> MachineState {
        match self {
            Self::Create => MachineState::Creating,
            Self::Start { .. } | Self::Resume { .. } | Self::CancelSuspend { .. } => {
                MachineState::Starting
            }
            Self::Suspend | Self::Rest { .. } => MachineState::Suspending,
            Self::Stop(_) | Self::Exit { .. } | Self::Abandon { .. } => MachineState::Stopping,
            Self::Restart(_) => MachineState::Restarting,
            Self::Update { .. } => MachineState::Replacing,
            Self::Destroy => MachineState::Destroying,
        }
    }

    /// The host's clock was set: a start that waits for its time waits as long as before.
    pub fn clock_was_set(&mut self, by_ms: i64) {
        if let Self::Start { not_before, .. } = self
            && *not_before > 0
        {
            *not_before = not_before.saturating_add_signed(by_ms);
        }
    }

    /// How long it may take from `now_ms` on, as a time: milliseconds since the Unix epoch.
    pub fn deadline(&self, now_ms: u64) -> u64 {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        match self {
            Self::Create => now_ms + millis(CREATE_DEADLINE),
            Self::Start { not_before, .. } => now_ms.max(*not_before) + millis(START_DEADLINE),
            Self::Stop(stop) => now_ms + stop.timeout_ms + millis(CLEAR_DEADLINE),
            Self::Restart(stop) => {
                now_ms + stop.timeout_ms + millis(CLEAR_DEADLINE) + millis(START_DEADLINE)
            }
            Self::Update { stop, .. } => {
                now_ms
                    + millis(CREATE_DEADLINE)
                    + stop.timeout_ms
                    + millis(CLEAR_DEADLINE)
                    + millis(START_DEADLINE)
            }
            Self::Suspend => now_ms + millis(SUSPEND_DEADLINE),
            Self::Resume { .. } => now_ms + millis(START_DEADLINE),
            Self::Exit { .. }
            | Self::CancelSuspend { .. }
            | Self::Rest { .. }
            | Self::Destroy
            | Self::Abandon { .. } => now_ms + millis(CLEAR_DEADLINE),
        }
    }
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// What.
    #[serde(flatten)]
    pub kind: OperationKind,
    /// Index into its steps.
    pub step: usize,
    /// How often the step has been tried, from 1.
    pub attempt: u32,
    /// Milliseconds since the Unix epoch.
    pub started_at: u64,
    /// Milliseconds since the Unix epoch.
    pub deadline: u64,
    /// The step's last failure.
    pub last_error: Option<String>,
    /// When it is tried again after that, milliseconds since the Unix epoch.
    #[serde(default)]
    pub retry_at: Option<u64>,
}

impl Operation {
    /// A new one at its first step.
    pub fn begin(kind: OperationKind, now_ms: u64) -> Self {
        let deadline = kind.deadline(now_ms);
        Self {
            kind,
            step: 0,
            attempt: 1,
            started_at: now_ms,
            deadline,
            last_error: None,
            retry_at: None,
        }
    }

    /// The step to go back to when a later one failed: where everything of an earlier VM is cleared
    /// away.
    pub fn retry_from(&self) -> usize {
        let released = self.kind.steps().iter().position(|step| step.comes_after_the_last_vm());
        released.map_or(self.step, |released| released.min(self.step))
    }

    /// The host's clock was set ahead by so many milliseconds, or back: its times move with it.
    pub fn clock_was_set(&mut self, by_ms: i64) {
        for at in [&mut self.started_at, &mut self.deadline].into_iter().chain(&mut self.retry_at) {
            *at = at.saturating_add_signed(by_ms);
        }
        self.kind.clock_was_set(by_ms);
    }

    /// How long it may still take. Never longer than any of its kind: the clock may have been set
    /// back while no server ran.
    pub fn left(&self, now_ms: u64) -> Duration {
        let most = match &self.kind {
            OperationKind::Start { .. } => START_DEADLINE + MAX_BACK_OFF,
            kind => Duration::from_millis(kind.deadline(0)),
        };
        Duration::from_millis(self.deadline.saturating_sub(now_ms)).min(most)
    }

    /// When it goes on, where it waits for its time: after a failure, or before a restart.
    /// Milliseconds since the Unix epoch.
    pub fn waits_until(&self) -> Option<u64> {
        let restart = match self.kind {
            OperationKind::Start { not_before, .. } if self.current() == Some(Step::BackOff) => {
                Some(not_before)
            }
            _ => None,
        };
        self.retry_at.or(restart.filter(|at| *at > 0))
    }

    /// Whether nothing comes after the step to do.
    pub fn is_at_last_step(&self) -> bool {
        self.step + 1 == self.kind.steps().len()
    }

    /// The step to do; `None` when all are done.
    pub fn current(&self) -> Option<Step> {
        self.kind.steps().get(self.step).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_neither_ends_nor_holds_up_what_is_under_way() {
        let (now, hours) = (1_000_000_000_u64, 2 * 3_600_000);
        let restart = OperationKind::Start {
            not_before: now + 4000,
            automatic: true,
            recovery: false,
            suspend_after: false,
        };
        let stop =
            OperationKind::Stop(Stop { signal: Signal::TERM, timeout_ms: 5000, is_default: false });
        for kind in
            [OperationKind::START, restart, stop, OperationKind::Suspend, OperationKind::Create]
        {
            let begun = Operation { retry_at: Some(now + 250), ..Operation::begin(kind, now) };
            for by in [hours, -hours] {
                let mut operation = begun.clone();
                operation.clock_was_set(by);
                let after = now.saturating_add_signed(by);
                assert_eq!(operation.left(after), begun.left(now), "{:?}", begun.kind);
                let waits =
                    |operation: &Operation, now: u64| operation.waits_until().map(|at| at - now);
                assert_eq!(waits(&operation, after), waits(&begun, now));
                // Set while no server ran, nothing moves with it.
                let left = begun.left(after);
                assert!(
                    left <= begun.left(now).max(START_DEADLINE + MAX_BACK_OFF),
                    "{:?}: {left:?}",
                    begun.kind
                );
            }
        }
    }
}
