//! The steps of operations. Each is a future of its own that knows nothing of the owner's state but what it was given,
//! so that the owner stays free to hear requests; what a step found comes back as a [`Done`].

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use base64::Engine as _;
use caddis_api::{ApiError, MachineConfig};
use caddis_guest_protocol::host::Session;
use caddis_image::{Progress, RootDisk};
use caddis_vmm::{LaunchSpec, Vm, VmExit, VmmError};
use futures::future::BoxFuture;
use rand::RngCore as _;
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::{
    clock::{now_ms, now_ns},
    engine::Shared,
    live::{Guest, Live},
    operation::{OperationKind, Step},
    row::{EndCause, MachineRow, ProgramEnd},
    spec,
};

/// How long init may take to unmount and end the VM after its exit report was acknowledged.
const POWER_OFF_GRACE: Duration = Duration::from_secs(5);
/// How long a SIGKILL may take to show in an exit report before the VM is killed.
const KILL_GRACE: Duration = Duration::from_secs(3);

/// What a step found.
pub enum Done {
    /// Nothing to note.
    Next,
    /// A VM runs.
    Launched(Live),
    /// The program has ended.
    Ended(ProgramEnd),
    /// Nothing of a VM is left.
    Released,
    /// It is this machine's turn; to be kept until the start has ended.
    Turn(OwnedSemaphorePermit),
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
pub struct Context {
    /// Everything shared by the machines of this worker.
    pub shared: Arc<Shared>,
    /// The machine as recorded when the step began.
    pub row: MachineRow,
    /// Its configuration, read.
    pub config: Arc<MachineConfig>,
    /// Its VM, if one runs.
    pub live: Option<LiveHandle>,
    /// For steps that count bytes.
    pub progress: watch::Sender<Progress>,
}

/// What steps need of a running VM.
#[derive(Clone)]
pub struct LiveHandle {
    vm: Arc<dyn Vm>,
    session: Session,
    guest: watch::Receiver<Guest>,
}

impl From<&Live> for LiveHandle {
    fn from(live: &Live) -> Self {
        Self { vm: live.vm.clone(), session: live.session.clone(), guest: live.guest.subscribe() }
    }
}

impl LiveHandle {
    /// Waits until `condition` holds of the guest.
    async fn until(&mut self, condition: impl FnMut(&Guest) -> bool) -> Guest {
        let found = self.guest.wait_for(condition).await.map(|guest| guest.clone()).ok();
        match found {
            Some(guest) => guest,
            // The owner has dropped the VM, and with it this step's purpose: the step is about to be dropped too.
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

async fn back_off(context: Context) -> Result<Done, Failure> {
    let kind = context.row.operation.map(|operation| operation.kind);
    let Some(OperationKind::Start { not_before, recovery, .. }) = kind else { return Ok(Done::Next) };
    let wait = not_before.saturating_sub(now_ms());
    if wait > 0 {
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }
    if !recovery {
        return Ok(Done::Next);
    }
    // Never closed; and without a turn the start would only come earlier.
    Ok(context.shared.recoveries.clone().acquire_owned().await.map_or(Done::Next, Done::Turn))
}

async fn prepare_root(context: Context) -> Result<Done, Failure> {
    let directory = context.shared.machine_directory(&context.row.id);
    let overlay = directory.join(OVERLAY);
    let size = spec::rootfs_gib(&context.config) << 30;
    let shared = context.shared.clone();
    blocking(move || {
        make_directory(&directory)?;
        shared.images.create_overlay(&overlay, size)
    })
    .await
    .map_err(|e| Failure::retry(format!("can't write the overlay of the root disk: {e}")))?;
    Ok(Done::Next)
}

/// Name of the overlay in a machine's directory.
const OVERLAY: &str = "root.qcow2";

fn make_directory(directory: &PathBuf) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

async fn launch(context: Context) -> Result<Done, Failure> {
    if context.live.is_some() {
        return Ok(Done::Next);
    }
    let disk = root_disk(&context).await?;
    let (shared, row, config) = (&context.shared, &context.row, &context.config);
    let directory = shared.machine_directory(&row.id);
    let slot = shared.slots.lease().map_err(Failure::retry)?;
    let tap_name = slot.tap_name();
    let tap = shared.network.attach(&tap_name, &row.addresses).await?;
    let spec = LaunchSpec {
        machine_id: row.id.to_string(),
        root_overlay: directory.join(OVERLAY),
        directory,
        slot,
        vcpus: config.cpus(),
        memory_mib: config.memory_mib(),
        cpu_weight: cpu_weight(config),
        root_base: disk.path,
        tap,
        mac: row.addresses.mac.clone(),
        kernel_args: config.kernel_args(),
    };
    match shared.vmm.launch(spec).await {
        Ok(vm) => Ok(Done::Launched(Live::open(vm, row.boot, 0))),
        Err(e) => {
            if let Err(e) = shared.network.detach(&tap_name, &row.addresses).await {
                tracing::warn!(machine = %row.id, error = %e, "can't detach the network of a VM that did not start");
            }
            Err(match e {
                VmmError::Unusable { .. } => Failure::last(e),
                _ => Failure::retry(e),
            })
        }
    }
}

/// Weight of a VM against the others: dedicated processors count double, and more processors count more.
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
        VmExit::HostOom => "the VM exceeded its memory bound on the host before its program ran".to_owned(),
        VmExit::Crashed { message } => format!("the VM died before its program ran: {message}"),
    })
}

async fn boot(context: Context) -> Result<Done, Failure> {
    let mut live = context.live.ok_or_else(no_vm)?;
    let guest = live.until(|guest| guest.up || guest.gone.is_some()).await;
    guest.gone.as_ref().map_or(Ok(Done::Next), |exit| Err(died(exit)))
}

async fn configure(context: Context) -> Result<Done, Failure> {
    let mut live = context.live.ok_or_else(no_vm)?;
    let network = context.shared.network.guest_spec(&context.row.addresses);
    let mut machine = spec::machine_spec(&context.row, &context.config, network)?;
    let mut entropy = [0; 64];
    rand::rng().fill_bytes(&mut entropy);
    machine.entropy = base64::engine::general_purpose::STANDARD.encode(entropy);
    machine.time_ns = now_ns();
    machine.env.push(("CADDIS_START_KIND".to_owned(), live.vm.start_kind().as_str().to_owned()));
    // Repeating the same configuration is harmless, so a server that was restarted in between simply sends it again;
    // only a program that has begun already must not be configured a second time.
    if !live.guest.borrow().configured {
        live.session.configure(machine).await.map_err(Failure::retry)?;
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

async fn signal(context: Context) -> Result<Done, Failure> {
    if let (Some(live), Some(plan)) = (&context.live, stop_plan(&context.row))
        && let Err(e) = live.session.signal(plan.signal.number()).await
    {
        // The next step's timeout ends a program that was never asked.
        tracing::warn!(machine = %context.row.id, error = %e, "can't deliver the stop signal");
    }
    Ok(Done::Next)
}

fn stop_plan(row: &MachineRow) -> Option<&crate::operation::Stop> {
    match row.operation.as_ref().map(|operation| &operation.kind) {
        Some(OperationKind::Stop(plan) | OperationKind::Restart(plan)) => Some(plan),
        _ => None,
    }
}

async fn await_exit(context: Context) -> Result<Done, Failure> {
    if context.row.ended.is_some() {
        return Ok(Done::Next);
    }
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let over = |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
    let (begun, timeout) = match (&context.row.operation, stop_plan(&context.row)) {
        (Some(operation), Some(plan)) => (operation.started_at, plan.timeout_ms),
        _ => (now_ms(), 0),
    };
    let left = Duration::from_millis((begun + timeout).saturating_sub(now_ms()));
    // A program that has not begun can't heed a signal.
    let left = if live.guest.borrow().started { left } else { Duration::ZERO };
    let guest = match tokio::time::timeout(left, live.until(over)).await {
        Ok(guest) => guest,
        Err(_) => return Ok(kill_program(live).await),
    };
    Ok(ended(guest))
}

async fn kill_program(mut live: LiveHandle) -> Done {
    let over = |guest: &Guest| guest.ended.is_some() || guest.failed.is_some() || guest.gone.is_some();
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
        VmExit::HostOom => {
            ProgramEnd::unreported(EndCause::HostOom, Some("the VM exceeded its memory bound on the host".to_owned()))
        }
        VmExit::Crashed { message } => ProgramEnd::unreported(EndCause::VmmCrashed, Some(message.clone())),
        VmExit::Ended => {
            ProgramEnd::unreported(EndCause::VmmCrashed, Some("the VM ended without an exit report".to_owned()))
        }
    }
}

async fn power_off(context: Context) -> Result<Done, Failure> {
    let Some(mut live) = context.live else { return Ok(Done::Next) };
    let reported = live.guest.borrow().ended.is_some();
    if reported {
        live.session.acknowledge_exit();
        // `release` kills what does not end by itself in time.
        let _ = tokio::time::timeout(POWER_OFF_GRACE, live.until(|guest| guest.gone.is_some())).await;
    }
    Ok(Done::Next)
}

async fn release(context: Context) -> Result<Done, Failure> {
    let shared = &context.shared;
    if let Some(live) = context.live {
        live.vm.kill().await.map_err(Failure::retry)?;
        live.vm.wait().await;
        shared.network.detach(&live.vm.slot().tap_name(), &context.row.addresses).await?;
    }
    let overlay = shared.machine_directory(&context.row.id).join(OVERLAY);
    blocking(move || remove_file(&overlay))
        .await
        .map_err(|e| Failure::retry(format!("can't remove the overlay of the root disk: {e}")))?;
    Ok(Done::Released)
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
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
