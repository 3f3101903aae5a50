//! The one thread that owns the connection. Calls are closures in a queue; their order is the order
//! of changes.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
};

use caddis_disk::Reserve;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::error::failed;
use crate::{StoreError, store::Stored};

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// Hands work to the thread. The thread ends, and closes the file, when this is dropped.
pub(super) struct Owner {
    jobs: mpsc::Sender<Job>,
    path: PathBuf,
    reserve: Arc<Reserve>,
}

impl Owner {
    /// Gives the connection to the database at `path` to a thread of its own.
    pub(super) fn new(
        mut connection: Connection,
        path: PathBuf,
        reserve: Arc<Reserve>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("catalog".to_owned()).spawn(move || {
            for job in queue {
                job(&mut connection);
            }
        })?;
        Ok(Self { jobs, path, reserve })
    }

    /// Runs what frees room, or must be recorded for that: it does not fail while there is any
    /// reserve.
    pub(super) async fn run_anyway<T: Send + 'static>(
        &self,
        attempt: &'static str,
        mut work: impl FnMut(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Stored<T> {
        let (path, reserve) = (self.path.clone(), self.reserve.clone());
        self.run(attempt, move |connection| reserve.with(&path, || work(connection))).await
    }

    /// Runs `work`. It is carried out even when the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Stored<T> {
        let (answer, result) = oneshot::channel();
        let path = self.path.clone();
        let job: Job = Box::new(move |connection| {
            // The caller may have gone; the work counts all the same.
            let _ = answer.send(work(connection).map_err(|error| failed(attempt, &error, &path)));
        });
        self.jobs.send(job).map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}
