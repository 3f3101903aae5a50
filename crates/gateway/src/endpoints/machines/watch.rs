//! Follows the machines of an app, by push from the view.
//!
//! ```text
//! snapshot ─▶ its machines ─▶ changes and removals ─▶ the end: of the app, the time, the server
//!    ▲                               │
//!    └──── the client was too slow ──┘
//! ```

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse as _, Response},
};
use bytes::{BufMut as _, Bytes, BytesMut};
use caddis_api::{AppName, MachineId, MachineState, watch::MachinesUpdate};
use caddis_view::CachedMachine;
use futures::stream;
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::{Instant, sleep, sleep_until},
};

use crate::http::{
    authorization::AppPath,
    context::Context,
    errors::HttpError,
    query::Params,
    responses::{BadParameter, NoApp},
};

/// After so long without a change an empty line shows that the connection lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Bytes after which a snapshot goes on in another piece, once the client has taken this one.
const PIECE: usize = 64 * 1024;

/// Follow the machines of an app.
///
/// Sends a snapshot of the machines that are not destroyed, then each change. A line is a machine
/// as it is when the line is written; states in between may be skipped. A client that falls behind
/// gets a new snapshot. Empty lines only keep the connection alive. The stream ends when the app is
/// deleted or the server stops; reconnect then. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/watch",
    operation_id = "Machines_watch",
    tag = "Machines",
    params(
        AppPath,
        ("timeout" = Option<String>, Query,
            description = "End after this time, whole seconds or Go's notation; default: when the \
                           app is deleted"),
    ),
    responses(
        (status = 200, description = "One update per line", body = MachinesUpdate,
            content_type = "application/x-ndjson"),
        BadParameter,
        NoApp,
    ),
)]
pub(crate) async fn watch(
    State(context): State<Context>,
    path: AppPath,
    params: Params,
) -> Result<Response, HttpError> {
    let end = params.duration("timeout")?.and_then(|timeout| Instant::now().checked_add(timeout.0));
    context.synced().await?;
    let app = path.look_up(&context).await?.name;
    let changes = context.view.watch_app(&app);
    // It may have gone before we followed it, and then nothing would end us.
    path.look_up(&context).await?;
    let watching = Watching {
        context,
        app,
        changes,
        end,
        told: HashMap::new(),
        rest: VecDeque::new(),
        begun: false,
    };
    let lines = stream::unfold(watching, |mut watching| async move {
        let piece = watching.next().await?;
        Some((Ok::<_, Infallible>(piece), watching))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

struct Watching {
    context: Context,
    app: AppName,
    changes: Receiver<MachineId>,
    end: Option<Instant>,
    /// What the client knows of each machine.
    told: HashMap<MachineId, Known>,
    /// Of a snapshot.
    rest: VecDeque<Arc<CachedMachine>>,
    begun: bool,
}

/// By what one state of a machine is told from another: its host's does not count its revisions.
#[derive(Debug, PartialEq, Eq)]
struct Known {
    revision: u64,
    host_status: String,
}

impl Known {
    fn of(shown: &CachedMachine) -> Self {
        let record = &shown.record;
        Self { revision: record.revision, host_status: record.machine.host_status.clone() }
    }
}

impl Watching {
    /// What the client is told next. It is asked for only when the client has taken what came
    /// before.
    async fn next(&mut self) -> Option<Bytes> {
        if self.context.closing.is_cancelled()
            || self.end.is_some_and(|end| self.begun && end <= Instant::now())
        {
            return None;
        }
        if !self.begun {
            self.begun = true;
            return Some(self.snapshot());
        }
        if !self.rest.is_empty() {
            return Some(self.piece(BytesMut::new()));
        }
        let mut silence = std::pin::pin!(sleep(KEEP_ALIVE));
        let end = self.end;
        let mut end = std::pin::pin!(async move {
            match end {
                Some(end) => sleep_until(end).await,
                None => pending().await,
            }
        });
        let context = self.context.clone();
        let mut closing = std::pin::pin!(context.closing.cancelled());
        loop {
            tokio::select! {
                change = self.changes.recv() => match change {
                    Ok(id) => if let Some(line) = self.change(&id) {
                        return Some(line);
                    },
                    Err(RecvError::Lagged(_)) => return Some(self.snapshot()),
                    Err(RecvError::Closed) => return None,
                },
                () = &mut silence => return Some(Bytes::from_static(b"\n")),
                () = &mut end => return None,
                () = &mut closing => return None,
            }
        }
    }

    fn snapshot(&mut self) -> Bytes {
        // What waits is older than what we read now.
        self.changes = self.changes.resubscribe();
        let mut machines = self.context.view.of_app(&self.app);
        machines.retain(|shown| shown.state() != MachineState::Destroyed);
        self.told = machines
            .iter()
            .map(|shown| (shown.record.machine.id.clone(), Known::of(shown)))
            .collect();
        self.rest = machines.into();
        self.piece(line(&MachinesUpdate::Snapshot { machines: self.rest.len() as u64 }))
    }

    fn piece(&mut self, mut piece: BytesMut) -> Bytes {
        while piece.len() < PIECE
            && let Some(shown) = self.rest.pop_front()
        {
            machine(&mut piece, &shown);
        }
        piece.freeze()
    }

    /// A change that the client does not know yet.
    #[expect(clippy::disallowed_methods, reason = "only machines of the app are told of")]
    fn change(&mut self, id: &MachineId) -> Option<Bytes> {
        let shown =
            self.context.view.get(id).filter(|shown| shown.state() != MachineState::Destroyed);
        let Some(shown) = shown else {
            self.told.remove(id)?;
            return Some(line(&MachinesUpdate::Removed(id.clone())).freeze());
        };
        let known = Known::of(&shown);
        if self.told.get(id) == Some(&known) {
            return None;
        }
        self.told.insert(id.clone(), known);
        let mut text = BytesMut::new();
        machine(&mut text, &shown);
        Some(text.freeze())
    }
}

/// [`MachinesUpdate::Machine`], from what is written once for all who read it.
fn machine(text: &mut BytesMut, shown: &CachedMachine) {
    text.extend_from_slice(b"{\"machine\":");
    text.extend_from_slice(&shown.body());
    text.extend_from_slice(b"}\n");
}

fn line(update: &MachinesUpdate) -> BytesMut {
    // Plain data with string keys, for which serialisation has no way to fail.
    let mut text = BytesMut::from(serde_json::to_vec(update).unwrap_or_default().as_slice());
    text.put_u8(b'\n');
    text
}
