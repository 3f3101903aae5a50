//! How long a worker that is started again takes until it has all its machines.

use std::{path::Path, time::Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::host::{AT_ONCE, Host};

/// As many as run on a host at most, where it is not told otherwise. All others rest.
const RUNNING: usize = 1000;

/// What was measured, a value per round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Recovery {
    /// Milliseconds from the worker's start until it answers for all machines.
    pub known: Vec<f64>,
    /// Milliseconds from the worker's start until the guest of each running machine has answered.
    pub reached: Vec<f64>,
}

/// Measures.
pub async fn measure(directory: &Path, machines: usize, rounds: usize) -> Result<Recovery> {
    let host = Host::new(directory).await?;
    let mut worker = host.worker().await?;
    let ids = host.create(&worker, machines).await?;
    let running = &ids[..RUNNING.min(machines)];
    let start = async |id| host.start(&worker, id).await;
    stream::iter(running).map(start).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let mut found = Recovery::default();
    for _ in 0..rounds {
        worker.shutdown().await;
        let began = Instant::now();
        worker = host.worker().await?;
        let listed = host.list(&worker).await?.len();
        ensure!(listed == machines, "{listed} of {machines} machines are there again");
        found.known.push(began.elapsed().as_secs_f64() * 1000.0);
        let reach = async |id| host.reach(&worker, id).await;
        stream::iter(running).map(reach).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        found.reached.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    worker.shutdown().await;
    Ok(found)
}
