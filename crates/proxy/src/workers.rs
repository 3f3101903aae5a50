//! Starts machines and puts them to sleep by asking their workers.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use caddis_api::{ApiError, ErrorCode as ApiErrorCode, MachineId, MachineState, WorkerId};
use caddis_bus::{
    AskError, BusError, WorkerClient,
    message::{SleepMode, WhyNotWoken, WorkerReply, WorkerRequest},
};
use caddis_view::View;

use crate::{Machines, Sleep, WakeError};

/// How long a worker may take to answer that it has begun.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a machine may take to go to sleep: its program has up to five minutes to end.
const ASLEEP: Duration = Duration::from_secs(330);

/// The workers, as the proxy asks them.
pub struct Workers {
    client: WorkerClient,
    wake_timeout: Duration,
    view: OnceLock<Arc<View>>,
}

impl Workers {
    /// Asks over `client`; a start is waited for `wake_timeout`.
    pub fn new(client: WorkerClient, wake_timeout: Duration) -> Self {
        Self { client, wake_timeout, view: OnceLock::new() }
    }

    /// Has what workers answer go into a view, which also tells when machines sleep.
    pub fn tell(&self, view: Arc<View>) {
        // The first stays: there is one view.
        let _ = self.view.set(view);
    }

    async fn ask(
        &self,
        worker: &WorkerId,
        request: WorkerRequest,
        deadline: Duration,
    ) -> Result<WorkerReply, WakeError> {
        let reply = self.client.ask(worker, request, deadline).await.map_err(refused)?;
        if let Some(view) = self.view.get() {
            view.heard(worker);
            if let WorkerReply::Woken { record, .. }
            | WorkerReply::NotWoken { record, .. }
            | WorkerReply::Sleeping { record, .. }
            | WorkerReply::NotSleeping { record, .. } = &reply
            {
                // Where its configuration is not known here, the view finds its way.
                view.apply((**record).clone());
            }
        }
        Ok(reply)
    }

    /// Waits until a machine that is going to sleep does.
    async fn asleep(&self, machine: &MachineId) -> Result<(), WakeError> {
        use MachineState as S;
        let Some(mut shown) = self.view.get().and_then(|view| view.watch(machine)) else {
            return Ok(());
        };
        let is_over = |state| !matches!(state, S::Stopping | S::Suspending);
        let settled = shown.wait_for(|shown| is_over(shown.state()));
        let state = match tokio::time::timeout(ASLEEP, settled).await {
            Ok(Ok(shown)) => shown.state(),
            // It was destroyed and forgotten.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(WakeError::TimedOut("it is still going to sleep".to_owned())),
        };
        match state {
            S::Starting | S::Started | S::Restarting => {
                Err(WakeError::Conflict(format!("it was called off, the machine is {state}")))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Machines for Workers {
    async fn wake(&self, machine: &MachineId, worker: &WorkerId) -> Result<(), WakeError> {
        let deadline_ms = u64::try_from(self.wake_timeout.as_millis()).unwrap_or(u64::MAX);
        let request = WorkerRequest::Wake { machine: machine.clone(), deadline_ms };
        match self.ask(worker, request, self.wake_timeout + ANSWER).await? {
            WorkerReply::Woken { .. } => Ok(()),
            WorkerReply::NotWoken { why, message, .. } => Err(match why {
                WhyNotWoken::Capacity => WakeError::Refused(message),
                WhyNotWoken::TimedOut => WakeError::TimedOut(message),
                WhyNotWoken::Failed => WakeError::Failed(message),
                WhyNotWoken::State => WakeError::WrongState(message),
            }),
            other => Err(unexpected(&other)),
        }
    }

    async fn may_sleep(
        &self,
        machine: &MachineId,
        worker: &WorkerId,
        how: Sleep,
    ) -> Result<(), WakeError> {
        let request = WorkerRequest::MaySleep { machine: machine.clone(), mode: mode(how) };
        match self.ask(worker, request, ANSWER).await? {
            WorkerReply::MaySleep => Ok(()),
            WorkerReply::NotSleeping { message, .. } => Err(WakeError::Conflict(message)),
            other => Err(unexpected(&other)),
        }
    }

    async fn sleep(
        &self,
        machine: &MachineId,
        worker: &WorkerId,
        how: Sleep,
        reason: &str,
    ) -> Result<(), WakeError> {
        let (mode, reason) = (mode(how), reason.to_owned());
        let request = WorkerRequest::Sleep { machine: machine.clone(), mode, reason };
        match self.ask(worker, request, ANSWER).await? {
            WorkerReply::Sleeping { .. } => self.asleep(machine).await,
            WorkerReply::NotSleeping { message, .. } => Err(WakeError::Conflict(message)),
            other => Err(unexpected(&other)),
        }
    }
}

fn mode(how: Sleep) -> SleepMode {
    match how {
        Sleep::Stop => SleepMode::Stop,
        Sleep::Suspend => SleepMode::Suspend,
    }
}

fn unexpected(reply: &WorkerReply) -> WakeError {
    WakeError::Failed(format!("unexpected reply of its host: {reply:?}"))
}

fn refused(error: AskError) -> WakeError {
    match error {
        AskError::Bus(BusError::NotDelivered(subject)) => {
            WakeError::Unreachable(format!("{subject} does not answer"))
        }
        AskError::Bus(error @ BusError::TimedOut { .. }) => WakeError::TimedOut(error.to_string()),
        AskError::Bus(error) => WakeError::Failed(error.to_string()),
        AskError::Refused(ApiError { code: ApiErrorCode::NotFound, message, .. }) => {
            WakeError::Gone(message)
        }
        AskError::Refused(error) => WakeError::Failed(error.message),
    }
}
