//! The way of a machine's service to readiness, as those who wait for it see it.

use tokio::sync::watch;

use crate::{ErrorCode, error::Failure};

/// How far the way of a machine's service to readiness is.
#[derive(Debug, Clone)]
pub(crate) enum Progress {
    /// The machine is being started.
    Waking,
    /// The machine runs; the port may not accept yet, or its checks not pass.
    Running,
    Done(Result<(), Failure>),
}

/// The way of a machine's service to readiness, which any number can wait for.
#[derive(Debug, Clone)]
pub(crate) struct Startup {
    progress: watch::Receiver<Progress>,
    /// Whether it is to the service that is waited for; of another one only the start matters.
    is_own: bool,
}

impl Startup {
    pub(crate) fn new(progress: watch::Receiver<Progress>) -> Self {
        Self { progress, is_own: true }
    }

    /// One to another service of the machine: it matters until the machine runs.
    pub(crate) fn of_another(progress: watch::Receiver<Progress>) -> Self {
        Self { progress, is_own: false }
    }

    /// Ends with the startup and gives its result, or ends with the machine's start where that is
    /// all that matters: what became of it, the machine then tells.
    pub(crate) async fn over(&mut self) -> Result<(), Failure> {
        let is_own = self.is_own;
        let is_over = |progress: &Progress| match progress {
            Progress::Waking => false,
            Progress::Running => !is_own,
            Progress::Done(_) => true,
        };
        match self.progress.wait_for(is_over).await.as_deref() {
            Ok(Progress::Done(result)) if is_own => result.clone(),
            Ok(_) => Ok(()),
            // Whoever was on it is gone: the proxy ends.
            Err(_) => Err(Failure::new(ErrorCode::PM02, "the start was given up")),
        }
    }
}
