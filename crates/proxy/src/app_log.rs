//! Writes the proxy's errors, and its requests where that is chosen, into the logs of machines.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use caddis_api::{MachineId, MachineState, WorkerId};
use caddis_bus::{
    WorkerClient,
    message::{HostLine, WorkerRequest},
};
use caddis_view::View;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

use crate::{AccessRecord, AppName, ErrorCode, Journal, ProxyError};

/// Lines that wait to be written; more are dropped, and counted.
const WAITING: usize = 4096;
/// How long a worker may take to write lines.
const DEADLINE: Duration = Duration::from_secs(10);

/// Errors of one kind of an app that are written in a second; others are counted. Anybody can cause
/// some, and they are not to push the app's own lines out of its log.
const ERRORS_PER_SECOND: u32 = 10;
/// Kinds of errors of apps that are counted at once.
const COUNTED: usize = 10_000;

/// A journal that writes into the logs of machines.
pub struct AppLog {
    lines: mpsc::Sender<Entry>,
    dropped: Arc<AtomicU64>,
    errors: Mutex<HashMap<(AppName, Option<ErrorCode>), Second>>,
}

/// Errors within a second.
struct Second {
    began: Instant,
    count: u32,
}

/// What becomes of an error.
enum Turn {
    Written,
    /// With how many were left out before it.
    After(u32),
    LeftOut,
}

impl Second {
    fn turn(&mut self, now: Instant) -> Turn {
        if now < self.began + Duration::from_secs(1) {
            self.count += 1;
            return if self.count <= ERRORS_PER_SECOND { Turn::Written } else { Turn::LeftOut };
        }
        let left_out = self.count.saturating_sub(ERRORS_PER_SECOND);
        *self = Self { began: now, count: 1 };
        if left_out > 0 { Turn::After(left_out) } else { Turn::Written }
    }
}

struct Entry {
    app: AppName,
    machine: Option<MachineId>,
    line: HostLine,
}

impl AppLog {
    /// A journal, and what reads from it.
    pub fn new() -> (Self, AppLogWriter) {
        let (lines, waiting) = mpsc::channel(WAITING);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = Self { lines, dropped: dropped.clone(), errors: Mutex::default() };
        (log, AppLogWriter { waiting, dropped })
    }

    fn push(&self, app: AppName, machine: Option<MachineId>, is_error: bool, text: String) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        let line = HostLine { time_ns, is_error, text };
        if self.lines.try_send(Entry { app, machine, line }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Journal for AppLog {
    fn proxy_error(&self, error: ProxyError) {
        let ProxyError { app, machine, code, request_id, text } = error;
        let turn = {
            let mut errors = self.errors.lock();
            if errors.len() >= COUNTED {
                errors.clear();
            }
            let now = Instant::now();
            let new = || Second { began: now, count: 0 };
            errors.entry((app.clone(), code)).or_insert_with(new).turn(now)
        };
        let what = match code {
            Some(code) => format!("[{code}]"),
            None => "refused a request:".to_owned(),
        };
        match turn {
            Turn::Written => {}
            Turn::After(count) => {
                let text = format!("{what} {count} more errors like this in a second");
                self.push(app.clone(), machine.clone(), true, text);
            }
            Turn::LeftOut => return,
        }
        let text = match request_id {
            Some(id) => format!("{what} {text} (request {id})"),
            None => format!("{what} {text}"),
        };
        self.push(app, machine, true, text);
    }

    fn access(&self, record: AccessRecord) {
        let AccessRecord { app, machine, request_id, client, method, path, status, duration } =
            record;
        let milliseconds = duration.as_secs_f64() * 1e3;
        let client = client.ip();
        let text =
            format!("{client} {method} {path} {status} {milliseconds:.1}ms (request {request_id})");
        self.push(app, machine, false, text);
    }
}

/// Writes what a journal has taken.
pub struct AppLogWriter {
    waiting: mpsc::Receiver<Entry>,
    dropped: Arc<AtomicU64>,
}

impl AppLogWriter {
    /// Writes until the journal is gone.
    pub async fn run(mut self, view: Arc<View>, client: WorkerClient) {
        let mut entries = Vec::with_capacity(HostLine::MOST);
        while self.waiting.recv_many(&mut entries, HostLine::MOST).await > 0 {
            let mut by_machine: HashMap<(MachineId, WorkerId), Vec<HostLine>> = HashMap::new();
            for Entry { app, machine, line } in entries.drain(..) {
                // What is no machine's goes to the log of the app's first that has one.
                let found = match &machine {
                    Some(id) => view.get(id),
                    None => view
                        .of_app(&app)
                        .into_iter()
                        .find(|machine| machine.state() != MachineState::Destroyed),
                };
                let Some(found) = found else { continue };
                let key = (found.record.machine.id.clone(), found.record.worker.clone());
                by_machine.entry(key).or_default().push(line);
            }
            // At once: what goes to other hosts with it does not wait for one that is slow.
            let writes = by_machine.into_iter().map(|((machine, worker), lines)| {
                let client = &client;
                async move {
                    let request = WorkerRequest::Log { machine: machine.clone(), lines };
                    if let Err(error) = client.ask(&worker, request, DEADLINE).await {
                        tracing::debug!(%machine, ?error, "can't write lines into its log");
                    }
                }
            });
            futures::future::join_all(writes).await;
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "more lines of the proxy than could be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_errors_like_each_other_are_some_lines_and_a_count() {
        let (log, mut writer) = AppLog::new();
        let error = |code| ProxyError {
            app: "shop".into(),
            machine: None,
            code,
            request_id: None,
            text: "no".to_owned(),
        };
        for _ in 0..25 {
            log.proxy_error(error(Some(ErrorCode::PR01)));
        }
        log.proxy_error(error(Some(ErrorCode::PR02)));
        for _ in 0..11 {
            log.proxy_error(error(None));
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        log.proxy_error(error(Some(ErrorCode::PR01)));
        log.proxy_error(error(None));
        drop(log);
        let mut entries = Vec::new();
        while writer.waiting.recv_many(&mut entries, 100).await > 0 {}
        let lines: Vec<_> = entries.into_iter().map(|entry| entry.line.text).collect();
        assert_eq!(lines.len(), 25, "{lines:?}");
        assert_eq!(lines[10..12], ["[PR02] no", "refused a request: no"]);
        assert_eq!(
            lines[21..],
            [
                "[PR01] 15 more errors like this in a second",
                "[PR01] no",
                "refused a request: 1 more errors like this in a second",
                "refused a request: no"
            ]
        );
    }
}
