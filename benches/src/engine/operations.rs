//! Operations through the durable engine, and beside them what they have recorded, without an
//! engine.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result};
use caddis_worker::DatabaseUse;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::host::{AT_ONCE, Host};

const MACHINES: usize = 64;
/// Starts and stops of each machine per round.
const CYCLES: usize = 4;

/// What was measured, a value per round.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Operations {
    /// Operations per second.
    pub engine: Vec<f64>,
    /// As many per second, if they were nothing but their transactions.
    pub bare: Vec<f64>,
    /// Transactions per operation that were written through to the disk.
    pub synced: Vec<f64>,
    /// Transactions per operation that were not.
    pub unsynced: Vec<f64>,
    /// Bytes per transaction.
    pub bytes: Vec<f64>,
}

/// Measures.
pub async fn measure(directory: &Path, rounds: usize) -> Result<Operations> {
    let host = Host::new(directory).await?;
    let worker = host.worker().await?;
    let machines = host.create(&worker, MACHINES).await?;
    let bare = Bare::open(&directory.join("bare.db"))?;
    let operations = (MACHINES * CYCLES * 2) as f64;
    let mut found = Operations::default();
    // The first fills caches and is not counted.
    for round in 0..=rounds {
        let (began, before) = (Instant::now(), worker.database_use());
        stream::iter(&machines)
            .map(async |machine| {
                for _ in 0..CYCLES {
                    host.start(&worker, machine).await?;
                    host.stop(&worker, machine).await?;
                }
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        let seconds = began.elapsed().as_secs_f64();
        let used = worker.database_use() - before;
        let bare_seconds = bare.write(&used)?;
        if round == 0 {
            continue;
        }
        let transactions = used.synced + used.unsynced;
        found.engine.push(operations / seconds);
        found.bare.push(operations / bare_seconds);
        found.synced.push(used.synced as f64 / operations);
        found.unsynced.push(used.unsynced as f64 / operations);
        found.bytes.push(used.bytes as f64 / transactions as f64);
    }
    worker.shutdown().await;
    Ok(found)
}

/// A database of the same kind, written by one thread that does nothing else.
struct Bare(Connection);

impl Bare {
    fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.execute_batch(
            "CREATE TABLE records (id INTEGER PRIMARY KEY, record TEXT NOT NULL) STRICT",
        )?;
        Ok(Self(connection))
    }

    /// Seconds that so many transactions of that size take, each of one row, over as many rows as
    /// there are machines.
    fn write(&self, used: &DatabaseUse) -> Result<f64> {
        let transactions = used.synced + used.unsynced;
        let size = used.bytes.checked_div(transactions).context("nothing was recorded")?;
        let size = usize::try_from(size)?;
        let began = Instant::now();
        for number in 0..transactions {
            // The two kinds come mixed, as they do in the engine.
            let synced =
                (number + 1) * used.synced / transactions > number * used.synced / transactions;
            self.0.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
            // SQLite does not write what is there already.
            let record = format!("{number:0size$}");
            let transaction = self.0.unchecked_transaction()?;
            transaction
                .prepare_cached(
                    "INSERT INTO records VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE \
                                 SET record = ?2",
                )?
                .execute(params![(number % MACHINES as u64) as i64, record])?;
            transaction.commit()?;
        }
        Ok(began.elapsed().as_secs_f64())
    }
}
