//! How many connections clients have: strangers are not to use up descriptors and memory.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use crate::{
    connection::Entry,
    core::Core,
    counters::{self, ConnectionCounters, Reported},
};

/// Counts connections, up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: AtomicUsize,
    refused: AtomicU64,
    reported: Reported,
}

impl Connections {
    fn count(self: &Arc<Self>, most: usize) -> Option<Counted> {
        let one_more = |open| (open < most).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            counters::add(&self.refused, 1);
            return None;
        }
        Some(Counted(self.clone()))
    }

    pub(crate) fn counters(&self) -> ConnectionCounters {
        let open = self.open.load(Ordering::Relaxed);
        ConnectionCounters { open, refused: counters::read(&self.refused) }
    }
}

/// A connection that is counted, until dropped.
#[derive(Debug)]
struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client connection counts as, until dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    _of_app: Option<Counted>,
    _of_all: Counted,
}

/// Counts a connection. None: there are too many.
pub(crate) fn admit(core: &Core, entry: &Entry) -> Option<Admitted> {
    let now = core.clock.now();
    let mut of_app = None;
    if let Entry::Own { app, .. } = entry {
        let app = core.table.get(app)?;
        let most = core.config.max_connections_per_app;
        of_app = app.connections.count(most);
        if of_app.is_none() {
            if app.connections.reported.may_report(now) {
                tracing::warn!(app = %app.name, most, "too many connections to an app: closed");
            }
            return None;
        }
    }
    let most = core.config.max_connections;
    let Some(of_all) = core.connections.count(most) else {
        if core.connections.reported.may_report(now) {
            tracing::warn!(most, "too many connections of clients: closed");
        }
        return None;
    };
    Some(Admitted { _of_app: of_app, _of_all: of_all })
}
