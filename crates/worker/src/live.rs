//! A machine's running VM: the process, the session with its init, and what init has said so far.

use std::sync::Arc;

use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState,
    host::{AgentStream, Connector, GuestEvent, Pace, Session},
};
use caddis_vmm::{Pause, Vm, VmExit};
use tokio::sync::{mpsc, watch};

use crate::row::ProgramEnd;

/// What is known of the guest. Published by the owner task, awaited by steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guest {
    /// Init has answered at least once.
    pub up: bool,
    /// It has been told which machine it is.
    pub configured: bool,
    /// The program runs, or ran.
    pub started: bool,
    /// Where the guest's time went until then: name and microseconds.
    pub boot_steps: Vec<(String, u64)>,
    /// Programs stand still, or may; true for a VM that was taken over, of which nobody knows.
    pub frozen: bool,
    /// The VM itself stands still, or may.
    pub halted: bool,
    /// The program has ended.
    pub ended: Option<ProgramEnd>,
    /// Init could not start the program.
    pub failed: Option<String>,
    /// The VM process is gone.
    pub gone: Option<VmExit>,
    /// Init does not answer.
    pub silent: bool,
}

/// Why a running machine's host does not vouch for it: its `host_status` is `unknown` then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostReason {
    /// Init does not answer.
    GuestSilent,
    /// The VM stands still: there is no room for what it writes to its disk.
    DiskFull,
    /// The VM stands still: its disk can't be written.
    DiskError,
}

impl HostReason {
    /// Its code on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestSilent => "guest_silent",
            Self::DiskFull => "disk_full",
            Self::DiskError => "disk_error",
        }
    }
}

/// A running VM.
pub struct RunningVm {
    /// The process.
    pub vm: Arc<dyn Vm>,
    /// The session with init.
    pub session: Session,
    /// What the session hears.
    pub events: mpsc::Receiver<GuestEvent>,
    /// What is known so far.
    pub guest: watch::Sender<Guest>,
    /// Whether the VM stands still because of its disk.
    pub pause: watch::Receiver<Option<Pause>>,
    /// Distinguishes the boots of a machine in its log: numbers of log records begin anew with
    /// each.
    pub boot: u64,
    /// Why it was booted and not resumed, where that was found out before its driver could.
    pub not_resumed: Option<String>,
}

struct Agent(Arc<dyn Vm>);

#[async_trait]
impl Connector for Agent {
    async fn connect(&self) -> std::io::Result<Box<dyn AgentStream>> {
        match self.0.connect_agent().await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(e) => Err(std::io::Error::other(e)),
        }
    }
}

impl Guest {
    /// Whether it must be told to go on before it can heed anything.
    pub fn may_be_frozen(&self) -> bool {
        self.frozen && self.ended.is_none() && self.gone.is_none()
    }

    /// Whether the VM runs, as far as is known.
    pub fn runs(&self) -> bool {
        !self.halted && self.gone.is_none()
    }

    /// Why the host does not vouch for the machine, if it does not. The first that holds explains
    /// the others.
    pub fn host_reason(&self) -> Option<HostReason> {
        self.silent.then_some(HostReason::GuestSilent)
    }
}

impl RunningVm {
    /// Opens the session with a VM that was launched.
    pub fn open(vm: Arc<dyn Vm>, boot: u64, pace: Pace) -> Self {
        Self::with(vm, boot, 0, pace, Guest::default())
    }

    /// Opens the session with a VM that an earlier server launched. `acknowledged` is the last log
    /// record of this boot that is safe.
    pub fn adopted(vm: Arc<dyn Vm>, boot: u64, acknowledged: u64, pace: Pace) -> Self {
        // One that can't be saved never stood still.
        let frozen = vm.can_save();
        Self::with(
            vm,
            boot,
            acknowledged,
            pace,
            Guest { frozen, halted: frozen, ..Guest::default() },
        )
    }

    /// Opens the session with a VM that goes on where it was saved, but for its programs.
    pub fn resumed(vm: Arc<dyn Vm>, boot: u64, acknowledged: u64, pace: Pace) -> Self {
        Self::with(vm, boot, acknowledged, pace, Guest { frozen: true, ..Guest::default() })
    }

    fn with(vm: Arc<dyn Vm>, boot: u64, acknowledged: u64, pace: Pace, guest: Guest) -> Self {
        let (session, events) = Session::open_at(Arc::new(Agent(vm.clone())), acknowledged, pace);
        let mut pause = vm.pause();
        // So that one that stands still already is heard of.
        pause.mark_changed();
        let guest = watch::Sender::new(guest);
        Self { vm, session, events, guest, pause, boot, not_resumed: None }
    }

    /// Takes note of what init says it is doing.
    pub fn note_status(&self, status: GuestState) {
        self.guest.send_modify(|guest| {
            guest.up = true;
            match status {
                GuestState::Waiting => {}
                GuestState::Preparing => guest.configured = true,
                GuestState::Running { .. } => {
                    guest.configured = true;
                    guest.started = true;
                }
                GuestState::Exited(report) => {
                    guest.configured = true;
                    guest.started = true;
                    guest.ended.get_or_insert(ProgramEnd::reported(report));
                }
                GuestState::Failed { message } => {
                    guest.configured = true;
                    guest.failed.get_or_insert(message);
                }
            }
        });
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.session.close();
    }
}
