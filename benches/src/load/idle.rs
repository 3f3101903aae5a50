//! Clients that were answered once and stay connected.

use anyhow::{Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use nix::sys::resource::{Resource, getrlimit};

use super::{announce, generator::Connection, input_ends, proxy::host};

/// Connections that are made at a time.
const AT_A_TIME: usize = 64;
/// Descriptors of a process beside those of its connections.
const OTHER_FILES: u64 = 500;

/// Holds so many connections until standard input ends, and says when all are there.
///
/// # Errors
/// When one can't be made or is not answered.
pub async fn hold(port: u16, connections: usize) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(
        connections as u64 + OTHER_FILES <= limit,
        "{connections} connections need a limit of open files above {limit}: ulimit -n"
    );
    let path = "/v1/apps/bench/machines/00000000000000";
    let held: Vec<_> = stream::iter(0..connections)
        .map(|_| async move {
            let mut connection = Connection::open(port, &host(0), false).await?;
            connection.prepare(path, "");
            connection.ask().await?;
            anyhow::Ok(connection)
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await?;
    announce(&held.len())?;
    input_ends().await;
    Ok(())
}
