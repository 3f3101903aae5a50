//! The steps of operations. Each is a future of its own that knows nothing of the owner's state but
//! what it was given, so that the owner stays free to hear requests; what a step found comes back
//! as a [`Done`].
//!
//! | step | what it does | repeated after a crash | undone by |
//! |---|---|---|---|
//! | `pull` | root disk of the image; waits for volumes | goes on where it was | nothing: shared |
//! | `back_off` | waits until a restart is due | waits for what is left | – |
//! | `prepare_root` | blank overlay | replaced | `release` |
//! | `launch` | volumes, slot, tap, VM; uses up a snapshot | a VM that runs is kept | `release` |
//! | `boot` | waits for init | – | `release` |
//! | `configure` | makes the VM the machine, waits for its program | configured again | `release` |
//! | `signal` | sends the stop signal | sent again | – |
//! | `await_exit` | waits for the program's end, then kills | waits for what is left | – |
//! | `power_off` | lets init unmount what is kept and end the VM | – | – |
//! | `queue` | waits until fewer machines are being suspended | waits again | – |
//! | `freeze` | has the guest's programs stand still | they do already | `thaw` |
//! | `save` | memory and devices to a file | saved again | `release` |
//! | `end_vm` | kills the VM, then gives back slot and tap | nothing left to do | is the undo |
//! | `thaw` | has VM and programs go on, with the right time | they do already | – |
//! | `release` | unmounts volumes, `end_vm`, removes the rest | nothing left to do | is the undo |
//! | `remove_files` | the machine's directory | nothing left to do | no undo: asked for |
//!
//! An image that is no longer used is removed by itself. `launch` resumes the VM where there is a
//! snapshot. Init takes the same configuration twice.

use std::{io, sync::Arc};

use caddis_api::{ApiError, MachineConfig};
use caddis_guest_protocol::host::Session;
use caddis_image::Progress;
use caddis_vmm::Vm;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{
    engine::Shared,
    files::MachineFiles,
    live::{Guest, RunningVm},
    row::{MachineRow, ProgramEnd},
    volumes::SavedVolume,
};

mod boot;
mod clear;
mod launch;
mod root;
mod stop;
mod suspend;
mod turn;
mod volumes;

pub use self::{
    boot::entropy, clear::gone, stop::end_of_vm, suspend::forget_snapshot, turn::turn_to_launch,
};

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

/// What a step found.
pub enum Done {
    /// Nothing to note.
    Next,
    /// A VM runs.
    Launched(RunningVm),
    /// It is saved, and had these volumes.
    Saved(Vec<SavedVolume>),
    /// The program has ended.
    Ended(ProgramEnd),
    /// Nothing of a VM is left.
    Released,
    /// The VM does nothing any more; its process is not gone yet.
    Killed,
    /// It is this machine's turn; to be kept until the operation has ended.
    Turn(OwnedSemaphorePermit),
    /// It may launch; the step that does is still to come.
    MayLaunch(OwnedSemaphorePermit),
}

/// Why a step failed.
#[derive(Debug)]
pub struct Failure {
    /// For the user.
    pub message: String,
    /// Whether the operation is worth another try from its first step.
    pub retry: bool,
}

impl Failure {
    fn retry(message: impl ToString) -> Self {
        Self { message: message.to_string(), retry: true }
    }

    fn last(message: impl ToString) -> Self {
        Self { message: message.to_string(), retry: false }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let retry = error.code.is_retryable() || error.code == caddis_api::ErrorCode::Internal;
        Self { message: error.message, retry }
    }
}

/// What a step works with.
#[derive(Clone)]
pub struct Context {
    /// Everything shared by the machines of this worker.
    pub shared: Arc<Shared>,
    /// The machine as recorded when the step began.
    pub row: MachineRow,
    /// Its configuration, read.
    pub config: Arc<MachineConfig>,
    /// Its VM, if one runs.
    pub live: Option<RunningVmHandle>,
    /// For steps that count bytes.
    pub progress: watch::Sender<Progress>,
}

impl Context {
    fn files(&self) -> MachineFiles {
        self.shared.machine_files(&self.row.id)
    }
}

/// What steps need of a running VM.
#[derive(Clone)]
pub struct RunningVmHandle {
    vm: Arc<dyn Vm>,
    session: Session,
    guest: watch::Sender<Guest>,
}

impl From<&RunningVm> for RunningVmHandle {
    fn from(live: &RunningVm) -> Self {
        Self { vm: live.vm.clone(), session: live.session.clone(), guest: live.guest.clone() }
    }
}

impl RunningVmHandle {
    /// What the guest says to something it is told, unless its VM ends first: nobody says anything
    /// then.
    async fn told<T, E: ToString>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, String> {
        tokio::select! {
            answer = answer => answer.map_err(|e| e.to_string()),
            _ = self.vm.wait() => Err("the VM is gone".to_owned()),
        }
    }

    /// Waits until `condition` holds of the guest.
    async fn until(&mut self, condition: impl FnMut(&Guest) -> bool) -> Guest {
        let mut guest = self.guest.subscribe();
        let found = guest.wait_for(condition).await.map(|guest| guest.clone()).ok();
        match found {
            Some(guest) => guest,
            // Not while this handle holds the sender.
            None => std::future::pending().await,
        }
    }
}

/// Does one step.
pub fn run(step: Step, context: Context) -> BoxFuture<'static, Result<Done, Failure>> {
    Box::pin(async move {
        match step {
            Step::Pull => root::pull(context).await,
            Step::BackOff => turn::back_off(context).await,
            Step::PrepareRoot => root::prepare_root(context).await,
            Step::Launch => launch::launch(context).await,
            Step::Boot => boot::boot(context).await,
            Step::Configure => boot::configure(context).await,
            Step::Signal => stop::signal(context).await,
            Step::AwaitExit => stop::await_exit(context).await,
            Step::PowerOff => stop::power_off(context).await,
            Step::Queue => turn::queue(context).await,
            Step::Freeze => suspend::freeze(context).await,
            Step::Save => suspend::save(context).await,
            Step::EndVm => clear::end_vm(&context).await,
            Step::Thaw => suspend::thaw_or_gone(context).await,
            Step::Release => clear::release(context).await,
            Step::RemoveFiles => clear::remove_files(context).await,
        }
    })
}

fn no_vm() -> Failure {
    Failure::retry("the VM is gone")
}

/// Runs file operations off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
