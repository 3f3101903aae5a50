//! The steps of operations. Each is a future of its own that knows nothing of the owner's state but
//! what it was given, so that the owner stays free to hear requests; what a step found comes back
//! as a [`Done`].
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

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use base64::Engine as _;
use caddis_api::{ApiError, MachineConfig, MachineId};
use caddis_guest_protocol::{
    OWN_FILES_SINCE,
    host::{Session, SessionError},
    spec::FileSpec,
};
use caddis_image::{OwnFile, Progress, RootDisk};
use caddis_vmm::{BindSpec, LaunchSpec, Shape, StartKind, Vm, VmExit, VmmError};
use futures::future::BoxFuture;
use rand::RngCore as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{
    clock::{now_ms, now_ns},
    engine::Shared,
    live::{Guest, RunningVm},
    operations::{OperationKind, Resume, Start, StartReason, StopPlan},
    restart,
    row::{EndCause, MachineRow, ProgramEnd},
    spec,
};

/// How long init may take to unmount and end the VM after its exit report was acknowledged.
const POWER_OFF_GRACE: Duration = Duration::from_secs(5);
/// How long a SIGKILL may take to show in an exit report before the VM is killed. Under emulation
/// on a busy host three seconds were too short.
const KILL_GRACE: Duration = Duration::from_secs(10);

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
            Step::Pull => pull(context).await,
            Step::BackOff => back_off(context).await,
            Step::PrepareRoot => prepare_root(context).await,
            Step::Launch => launch(context).await,
            Step::Boot => boot(context).await,
            Step::Configure => configure(context).await,
            Step::Signal => signal(context).await,
            Step::AwaitExit => await_exit(context).await,
            Step::PowerOff => power_off(context).await,
            Step::Queue => queue(context).await,
            Step::Freeze => freeze(context).await,
            Step::Save => save(context).await,
            Step::EndVm => end_vm(&context).await,
            Step::Thaw => thaw_or_gone(context).await,
            Step::Release => release(context).await,
            Step::RemoveFiles => remove_files(context).await,
        }
    })
}

async fn pull(context: Context) -> Result<Done, Failure> {
    root_disk(&context).await?;
    Ok(Done::Next)
}

async fn root_disk(context: &Context) -> Result<RootDisk, Failure> {
    let images = &context.shared.images;
    let image = &context.row.image;
    if let Some(disk) = images.ready_root_disk(&image.reference.digest) {
        return Ok(disk);
    }
    context.shared.make_room().await;
    Ok(images.root_disk(image, &context.progress).await?)
}

/// Files that the machine has of its own.
fn own_files(context: &Context) -> Vec<OwnFile> {
    let network = context.shared.network.guest_spec(&context.row.addresses);
    spec::own_files(&context.row, &context.config, &network)
}

/// Those that are not in its root already. One that was to be resumed has been used since they
/// were.
async fn unwritten(context: &Context) -> Result<Vec<FileSpec>, Failure> {
    let (files, used, disk) =
        (own_files(context), is_resume(&context.row), root_disk(context).await?);
    let shared = context.shared.clone();
    let files = blocking(move || shared.images.unwritten(&disk.path, files, used))
        .await
        .map_err(|e| Failure::retry(format!("can't read the root disk: {e}")))?;
    let encode = |file: OwnFile| FileSpec {
        path: file.path.to_owned(),
        content: base64::engine::general_purpose::STANDARD.encode(file.content),
        mode: 0,
        only_in_place: file.only_in_place,
    };
    Ok(files.into_iter().map(encode).collect())
}

async fn back_off(context: Context) -> Result<Done, Failure> {
    let kind = context.row.operation.map(|operation| operation.kind);
    let not_before = kind.as_ref().and_then(|kind| kind.rules().not_before()).unwrap_or(0);
    // Never longer than any back-off: the clock may have been set back while no server ran.
    let wait =
        Duration::from_millis(not_before.saturating_sub(now_ms())).min(restart::MAX_BACK_OFF);
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    if kind != Some(Start::because(StartReason::Recovery)) {
        return Ok(Done::Next);
    }
    // Never closed; and without a turn the start would only come earlier.
    Ok(context
        .shared
        .queues
        .recoveries
        .clone()
        .acquire_owned()
        .await
        .map_or(Done::Next, Done::Turn))
}

async fn prepare_root(context: Context) -> Result<Done, Failure> {
    let disk = root_disk(&context).await?;
    let directory = context.shared.machine_directory(&context.row.id);
    let overlay = directory.join(OVERLAY);
    let size = context.config.rootfs_gib() << 30;
    let (shared, files) = (context.shared.clone(), own_files(&context));
    blocking(move || {
        make_directory(&directory)?;
        shared.images.create_overlay(&overlay, size, &disk.path, &files)
    })
    .await
    .map_err(|e| Failure::retry(format!("can't write the overlay of the root disk: {e}")))?;
    Ok(Done::Next)
}

/// Name of the overlay in a machine's directory.
const OVERLAY: &str = "root.qcow2";
/// Name of what the machine was saved to.
const SNAPSHOT: &str = "memory.snapshot";
/// Its name until it is whole.
const HALF_SNAPSHOT: &str = "memory.new";
/// How long programs may take to stand still, and to go on.
const FREEZE_DEADLINE: Duration = Duration::from_secs(20);

fn make_directory(directory: &PathBuf) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

async fn launch(context: Context) -> Result<Done, Failure> {
    if context.live.is_some() {
        return Ok(Done::Next);
    }
    let disk = root_disk(&context).await?;
    let snapshot = snapshot_to_use(&context, &disk).await?;
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let vm = match snapshot {
        None => match bind_waiting(&context, &disk).await? {
            Some(vm) => vm,
            None => launch_new(&context, disk, None).await?,
        },
        snapshot => launch_new(&context, disk, snapshot).await?,
    };
    if vm.start().kind == StartKind::Resume {
        let (logs, id, boot) = (shared.logs.clone(), row.id.clone(), row.boot);
        let acknowledged = blocking(move || Ok(logs.acknowledged(&id, boot))).await.unwrap_or(0);
        return Ok(Done::Launched(RunningVm::resumed(
            vm,
            boot,
            acknowledged,
            shared.config.guest_pace,
        )));
    }
    tracing::debug!(machine = %row.id, memory_mib = config.memory_mib(), start = ?vm.start(), "VM launched");
    // A machine that was to be resumed and is not begins a boot that was not foreseen.
    let boot = if is_resume(row) { now_ms() } else { row.boot };
    Ok(Done::Launched(RunningVm::open(vm, boot, shared.config.guest_pace)))
}

fn is_resume(row: &MachineRow) -> bool {
    row.operation.as_ref().is_some_and(|operation| operation.kind.rules().resumes())
}

/// What a machine is to be resumed from, if it is. Where its disk is lost, there is nothing to
/// resume.
async fn snapshot_to_use(context: &Context, disk: &RootDisk) -> Result<Option<PathBuf>, Failure> {
    let kind = context.row.operation.as_ref().map(|operation| &operation.kind);
    let Some(OperationKind::Resume(Resume { spoiled })) = kind else { return Ok(None) };
    let directory = context.shared.machine_directory(&context.row.id);
    let (overlay, snapshot) = (directory.join(OVERLAY), directory.join(SNAPSHOT));
    let (spoiled, size) = (*spoiled, context.config.rootfs_gib() << 30);
    let (shared, disk) = (context.shared.clone(), disk.path.clone());
    let prepared = blocking(move || {
        if spoiled || !overlay.exists() {
            remove_file(&snapshot)?;
        }
        if !overlay.exists() {
            make_directory(&directory)?;
            // Its files are the guest's to write: it is to be resumed.
            shared.images.create_overlay(&overlay, size, &disk, &[])?;
        }
        Ok(snapshot)
    });
    prepared
        .await
        .map(Some)
        .map_err(|e| Failure::retry(format!("can't prepare what the machine was saved to: {e}")))
}

/// Makes a VM that waits the machine's, if there is one for it.
async fn bind_waiting(context: &Context, disk: &RootDisk) -> Result<Option<Arc<dyn Vm>>, Failure> {
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    if !config.kernel_args().is_empty() {
        return Ok(None);
    }
    let shape = Shape { vcpus: config.cpus(), memory_mib: config.memory_mib() };
    let Some(waiting) = shared.vmm.take(shape).await else { return Ok(None) };
    // Held until the network is detached, should it come to that: its tap must not be another's by
    // then.
    let slot = waiting.slot().clone();
    let tap = slot.tap_name();
    let directory = shared.machine_directory(&row.id);
    let spec = BindSpec {
        machine_id: row.id.to_string(),
        root_overlay: directory.join(OVERLAY),
        root_size: config.rootfs_gib() << 30,
        directory,
        cpu_weight: cpu_weight(config),
        root_base: disk.path.clone(),
    };
    let connected = shared.network.adopt(&tap, &row.addresses).await;
    let bound = match connected {
        Ok(()) => waiting.bind(spec).await.map_err(|e| e.to_string()),
        Err(e) => Err(e.message),
    };
    match bound {
        Ok(vm) => Ok(Some(vm)),
        Err(error) => {
            // There is the longer way.
            tracing::warn!(machine = %row.id, error, "a VM that waited could not become the machine's");
            detach_after_failure(context, &tap).await;
            drop(slot);
            Ok(None)
        }
    }
}

async fn detach_after_failure(context: &Context, tap: &str) {
    if let Err(e) = context.shared.network.detach(tap, &context.row.addresses).await {
        tracing::warn!(machine = %context.row.id, error = %e, "can't detach the network of a VM that did not start");
    }
}

async fn launch_new(
    context: &Context,
    disk: RootDisk,
    snapshot: Option<PathBuf>,
) -> Result<Arc<dyn Vm>, Failure> {
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let directory = shared.machine_directory(&row.id);
    let slot = shared.slots.lease().map_err(Failure::retry)?;
    // Held until the network is detached, should it come to that: its tap must not be another's by
    // then.
    let (held, tap_name) = (slot.clone(), slot.tap_name());
    let tap = shared.network.attach(&tap_name, &row.addresses).await?;
    let spec = LaunchSpec {
        machine_id: row.id.to_string(),
        root_overlay: directory.join(OVERLAY),
        root_size: config.rootfs_gib() << 30,
        directory,
        slot,
        vcpus: config.cpus(),
        memory_mib: config.memory_mib(),
        cpu_weight: cpu_weight(config),
        root_base: disk.path,
        tap,
        mac: row.addresses.mac.clone(),
        kernel_args: config.kernel_args(),
        snapshot,
    };
    match shared.vmm.launch(spec).await {
        Ok(vm) => Ok(vm),
        Err(e) => {
            detach_after_failure(context, &tap_name).await;
            drop(held);
            Err(match e {
                VmmError::Unusable { .. } => Failure::last(e),
                _ => Failure::retry(e),
            })
        }
    }
}

/// Weight of a VM against the others: dedicated processors count double, and more processors count
/// more.
fn cpu_weight(config: &MachineConfig) -> u32 {
    let each = if config.has_dedicated_cpus() { 200 } else { 100 };
    config.cpus().saturating_mul(each).min(10_000)
}

fn no_vm() -> Failure {
    Failure::retry("the VM is gone")
}

fn died(exit: &VmExit) -> Failure {
    Failure::retry(match exit {
        VmExit::Ended => "the VM ended before its program ran".to_owned(),
        VmExit::HostOom => {
            "the VM exceeded its memory bound on the host before its program ran".to_owned()
        }
        VmExit::DiskFull { message } | VmExit::Crashed { message } => {
            format!("the VM died before its program ran: {message}")
        }
    })
}

async fn boot(context: Context) -> Result<Done, Failure> {
    let mut live = context.live.ok_or_else(no_vm)?;
    if live.vm.start().kind == StartKind::Resume {
        // Also where the server that resumed it was killed before it removed that: from here on its
        // disk changes.
        forget_snapshot(&context.shared, &context.row).await?;
    }
    // Its server may have been killed before it had the VM go on.
    go_on(&live).await?;
    let guest = live.until(|guest| guest.up || guest.gone.is_some()).await;
    guest.gone.as_ref().map_or(Ok(Done::Next), |exit| Err(died(exit)))
}

async fn configure(mut context: Context) -> Result<Done, Failure> {
    let mut live = context.live.take().ok_or_else(no_vm)?;
    if live.vm.start().kind == StartKind::Resume {
        thaw(&live, true).await?;
        return Ok(Done::Next);
    }
    let network = context.shared.network.guest_spec(&context.row.addresses);
    // With its files, which are kept nowhere else.
    let config = caddis_api::validate::read(&context.row.config)?;
    let mut machine = spec::machine_spec(&context.row, &config, network)?;
    machine.own_files = unwritten(&context).await?;
    machine.entropy = entropy();
    machine.time_ns = now_ns();
    machine.env.push(("CADDIS_START_KIND".to_owned(), live.vm.start().kind.as_str().to_owned()));
    // Repeating the same configuration is harmless, so a server that was restarted in between
    // simply sends it again; only a program that has begun already must not be configured a second
    // time.
    if !live.guest.borrow().configured {
        let guest = live.until(|guest| guest.up || guest.gone.is_some()).await;
        // Its server was another release: what it was given is not what this one tells.
        if guest.gone.is_none() && !live.session.speaks(OWN_FILES_SINCE) {
            return Err(Failure::retry("the VM was started by an earlier release"));
        }
        live.told(live.session.configure(machine)).await.map_err(Failure::retry)?;
    }
    let settled = |guest: &Guest| guest.started || guest.failed.is_some() || guest.gone.is_some();
    let guest = live.until(settled).await;
    if let Some(message) = guest.failed {
        return Err(Failure::last(message));
    }
    match guest.gone {
        Some(exit) if guest.ended.is_none() => Err(died(&exit)),
        _ => Ok(Done::Next),
    }
}

/// Fresh random bytes for a guest.
pub fn entropy() -> String {
    let mut entropy = [0; 64];
    rand::rng().fill_bytes(&mut entropy);
    base64::engine::general_purpose::STANDARD.encode(entropy)
}

/// Waits for a machine's turn to launch, which comes in the order in which they asked.
pub async fn turn_to_launch(context: Context) -> Result<Done, Failure> {
    let turn = context.shared.queues.launches.clone().acquire_owned().await;
    // Never closed.
    turn.map(Done::MayLaunch).map_err(Failure::retry)
}

async fn queue(context: Context) -> Result<Done, Failure> {
    // Never closed; and without a turn the disk would only be slower.
    Ok(context.shared.queues.suspends.clone().acquire_owned().await.map_or(Done::Next, Done::Turn))
}

async fn freeze(context: Context) -> Result<Done, Failure> {
    let live = context.live.ok_or_else(no_vm)?;
    live.guest.send_modify(|guest| guest.frozen = true);
    live.told(live.session.freeze(FREEZE_DEADLINE))
        .await
        .map_err(|e| Failure::last(format!("programs can't be held still: {e}")))?;
    let guest = live.guest.borrow();
    if guest.ended.is_some() || guest.failed.is_some() {
        return Err(Failure::last("its program has ended"));
    }
    Ok(Done::Next)
}

async fn save(context: Context) -> Result<Done, Failure> {
    let live = context.live.ok_or_else(no_vm)?;
    let (shared, needed) = (&context.shared, context.config.memory_mib() << 20);
    let free = shared
        .free_disk()
        .map_err(|e| Failure::last(format!("can't read the free disk space: {e}")))?;
    if free < needed {
        let text = format!(
            "disk is full: its memory may take {} MiB, {} MiB are free",
            needed >> 20,
            free >> 20
        );
        return Err(Failure::last(text));
    }
    let directory = shared.machine_directory(&context.row.id);
    live.guest.send_modify(|guest| guest.halted = true);
    let saved = live.vm.save(&directory.join(SNAPSHOT), &directory.join(OVERLAY), needed).await;
    saved.map(|()| Done::Next).map_err(Failure::last)
}

/// Has a VM go on, if it may stand still.
async fn go_on(live: &RunningVmHandle) -> Result<(), Failure> {
    if live.guest.borrow().halted && live.guest.borrow().gone.is_none() {
        live.vm.go_on().await.map_err(Failure::retry)?;
        live.guest.send_modify(|guest| guest.halted = false);
    }
    Ok(())
}

/// Has the programs of a VM go on that may stand still.
async fn thaw(live: &RunningVmHandle, resumed: bool) -> Result<(), Failure> {
    go_on(live).await?;
    let thawed = live.told(live.session.thaw(entropy(), resumed, FREEZE_DEADLINE)).await;
    thawed.map_err(|error| {
        // A guest that says nothing is not asked over and over: it has been told. One that was
        // resumed may be slow.
        let silent = error == SessionError::NoAnswer(FREEZE_DEADLINE).to_string();
        Failure { message: error, retry: resumed || !silent }
    })?;
    live.guest.send_modify(|guest| guest.frozen = false);
    Ok(())
}

/// Where the VM is gone, what follows is its end's business.
async fn thaw_or_gone(context: Context) -> Result<Done, Failure> {
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let thawing = live.clone();
    tokio::select! {
        thawed = thaw(&thawing, false) => match thawed {
            Err(_) if live.guest.borrow().gone.is_some() => {}
            outcome => outcome?,
        },
        _ = live.until(|guest| guest.gone.is_some()) => {}
    }
    forget_snapshot(&context.shared, &context.row).await?;
    Ok(Done::Next)
}

/// Where a machine is saved to.
pub fn snapshot(shared: &Shared, machine: &MachineId) -> PathBuf {
    shared.machine_directory(machine).join(SNAPSHOT)
}

/// What was saved is of the past.
pub async fn forget_snapshot(shared: &Shared, row: &MachineRow) -> Result<(), Failure> {
    let directory = shared.machine_directory(&row.id);
    blocking(move || {
        remove_file(&directory.join(SNAPSHOT))
            .and_then(|()| remove_file(&directory.join(HALF_SNAPSHOT)))
    })
    .await
    .map_err(|e| Failure::retry(format!("can't remove a snapshot: {e}")))
}

async fn signal(context: Context) -> Result<Done, Failure> {
    if context.live.as_ref().is_some_and(|live| live.guest.borrow().silent) {
        // It hears nothing either.
        return Ok(Done::Next);
    }
    if let Some(live) = &context.live
        && live.guest.borrow().may_be_frozen()
        && let Err(e) = thaw(live, false).await
    {
        tracing::warn!(machine = %context.row.id, error = %e.message, "can't have it go on to be stopped");
    }
    if let (Some(mut live), Some(plan)) = (context.live, stop_plan(&context.row)) {
        match live.told(live.session.stop(plan.signal.number(), plan.is_default)).await {
            // Whether an adopted VM runs a program, which the next step needs to know, init says
            // before it hears anything; here it may be heard of a little later.
            Ok(()) => {
                let known = live.until(|guest| guest.up || guest.gone.is_some());
                let _ = tokio::time::timeout(KILL_GRACE, known).await;
            }
            // The next step's timeout ends a program that was never asked.
            Err(error) => {
                tracing::warn!(machine = %context.row.id, error, "can't deliver the stop signal");
            }
        }
    }
    Ok(Done::Next)
}

fn stop_plan(row: &MachineRow) -> Option<&StopPlan> {
    row.operation.as_ref().and_then(|operation| operation.kind.rules().stop_plan())
}

async fn await_exit(context: Context) -> Result<Done, Failure> {
    if context.row.ended.is_some() {
        return Ok(Done::Next);
    }
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let over =
        |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
    let (begun, timeout) = match (&context.row.operation, stop_plan(&context.row)) {
        (Some(operation), Some(plan)) => (operation.started_at, plan.timeout_ms),
        _ => (now_ms(), 0),
    };
    let left = Duration::from_millis((begun + timeout).saturating_sub(now_ms()).min(timeout));
    // A program that has not begun can't heed a signal, and nobody hears of the end of one in a
    // guest that says nothing.
    let heeds = live.guest.borrow().started && !live.guest.borrow().silent;
    let left = if heeds { left } else { Duration::ZERO };
    let guest = match tokio::time::timeout(left, live.until(over)).await {
        Ok(guest) => guest,
        Err(_) => return Ok(kill_program(live).await),
    };
    Ok(ended(guest))
}

async fn kill_program(mut live: RunningVmHandle) -> Done {
    if live.guest.borrow().silent {
        let text = "the machine's init did not answer, its VM was ended";
        return Done::Ended(ProgramEnd::unreported(EndCause::Killed, Some(text.to_owned())));
    }
    let over =
        |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
    let ask = async {
        if !live.guest.borrow().started {
            return None;
        }
        live.session.signal(caddis_api::Signal::KILL.number()).await.ok()?;
        Some(live.until(over).await)
    };
    match tokio::time::timeout(KILL_GRACE, ask).await {
        Ok(Some(guest)) => ended(guest),
        Ok(None) | Err(_) => Done::Ended(ProgramEnd::unreported(EndCause::Killed, None)),
    }
}

fn ended(guest: Guest) -> Done {
    let gone = guest.gone;
    Done::Ended(guest.ended.unwrap_or_else(|| match gone {
        Some(exit) => end_of_vm(&exit),
        None => ProgramEnd::unreported(EndCause::Killed, guest.failed),
    }))
}

/// What a VM's end means for its program, when the guest reported nothing.
pub fn end_of_vm(exit: &VmExit) -> ProgramEnd {
    match exit {
        VmExit::HostOom => ProgramEnd::unreported(
            EndCause::HostOom,
            Some("the VM exceeded its memory bound on the host".to_owned()),
        ),
        VmExit::DiskFull { message } => {
            ProgramEnd::unreported(EndCause::DiskFull, Some(message.clone()))
        }
        VmExit::Crashed { message } => {
            ProgramEnd::unreported(EndCause::VmmCrashed, Some(message.clone()))
        }
        VmExit::Ended => {
            let text = "a program of the machine powered it off or rebooted it";
            ProgramEnd::unreported(EndCause::PoweredOff, Some(text.to_owned()))
        }
    }
}

async fn power_off(context: Context) -> Result<Done, Failure> {
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let end = live.guest.borrow().ended.clone();
    // The disk is blank at the next start, so nothing has to be written any more: `release` ends
    // the VM at once.
    let said_all =
        end.as_ref().and_then(|end| end.report.as_ref()).is_some_and(|report| report.logs_complete);
    let keeps_something = context.config.mounts.as_ref().is_some_and(|mounts| !mounts.is_empty());
    if said_all && !keeps_something {
        // The last lines are safe before the VM, which has them too, is gone.
        context.shared.logs.written().await;
    } else if end.is_some() {
        live.session.acknowledge_exit();
        // `release` kills what does not end by itself in time.
        let _ =
            tokio::time::timeout(POWER_OFF_GRACE, live.until(|guest| guest.gone.is_some())).await;
    }
    Ok(Done::Next)
}

async fn end_vm(context: &Context) -> Result<Done, Failure> {
    let Some(live) = &context.live else { return Ok(Done::Released) };
    live.vm.kill().await.map_err(Failure::retry)?;
    if context
        .row
        .operation
        .as_ref()
        .is_some_and(|operation| operation.kind.rules().rests_at_once())
    {
        return Ok(Done::Killed);
    }
    gone(&context.shared, live.vm.as_ref(), &context.row).await?;
    Ok(Done::Released)
}

/// Waits until the process of a VM that was killed is gone, and takes its network away.
pub async fn gone(shared: &Shared, vm: &dyn Vm, row: &MachineRow) -> Result<(), ApiError> {
    vm.wait().await;
    shared.network.detach(&vm.slot().tap_name(), &row.addresses).await
}

async fn release(context: Context) -> Result<Done, Failure> {
    let done = end_vm(&context).await?;
    let directory = context.shared.machine_directory(&context.row.id);
    blocking(move || {
        for name in [SNAPSHOT, HALF_SNAPSHOT] {
            remove_file(&directory.join(name))?;
        }
        remove_file(&directory.join(OVERLAY))
    })
    .await
    .map_err(|e| Failure::retry(format!("can't remove what is left of the VM: {e}")))?;
    Ok(done)
}

fn remove_file(path: &PathBuf) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

async fn remove_files(context: Context) -> Result<Done, Failure> {
    let directory = context.shared.machine_directory(&context.row.id);
    blocking(move || match fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    })
    .await
    .map_err(|e| Failure::retry(format!("can't remove the machine's directory: {e}")))?;
    Ok(Done::Next)
}

/// Runs file operations off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
