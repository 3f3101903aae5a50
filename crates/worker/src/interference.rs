//! Where tests step in: any step can be made to fail, to be done twice, or to be the last thing its
//! process did.

use async_trait::async_trait;
use caddis_api::MachineId;
use futures::future::BoxFuture;

use crate::{
    engine::Shared,
    steps::{self, Context, Done, Failure, RunningVmHandle, Step},
};

/// What becomes of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultInjection {
    /// It is done.
    None,
    /// It fails before it does anything.
    Fail {
        /// It is worth another try.
        retry: bool,
    },
    /// It is done, and done again, as after a crash that came before it was recorded.
    Twice,
}

/// Told of each step by the names it has in the API. What never ends stands for a process that dies
/// there.
#[async_trait]
pub trait StepHook: Send + Sync {
    /// A step is about to be done.
    async fn before(&self, machine: &MachineId, operation: &str, step: &str) -> FaultInjection;
    /// A step was done; nothing of that is recorded yet.
    async fn after(&self, machine: &MachineId, operation: &str, step: &str);
    /// Something that is done with volumes beside their machines has come so far.
    async fn reached(&self, _point: &str) {}
}

impl Shared {
    /// Tells the hook, if there is one, that something has come so far.
    pub async fn reach(&self, point: &str) {
        if let Some(hook) = &self.hook {
            hook.reached(point).await;
        }
    }
}

/// Does one step, and what the hook wants of it.
pub fn run(step: Step, context: Context) -> BoxFuture<'static, Result<Done, Failure>> {
    let Some(hook) = context.shared.hook.clone() else { return steps::run(step, context) };
    Box::pin(async move {
        let machine = context.row.id.clone();
        let operation =
            context.row.operation.as_ref().map_or("", |operation| operation.kind.rules().name());
        let done = match hook.before(&machine, operation, step.as_str()).await {
            FaultInjection::None => steps::run(step, context.clone()).await?,
            FaultInjection::Fail { retry } => {
                return Err(Failure { message: "told to fail".to_owned(), retry });
            }
            FaultInjection::Twice => twice(step, context.clone()).await?,
        };
        hook.after(&machine, operation, step.as_str()).await;
        Ok(done)
    })
}

async fn twice(step: Step, mut context: Context) -> Result<Done, Failure> {
    let first = steps::run(step, context.clone()).await?;
    if let Done::Launched(live) = first {
        context.live = Some(RunningVmHandle::from(&live));
        steps::run(step, context).await?;
        return Ok(Done::Launched(live));
    }
    // A turn among others is given back before it is asked for again.
    drop(first);
    steps::run(step, context).await
}
