//! What is being done to a machine, as server-sent events. Caddis extension.

use std::{convert::Infallible, sync::Arc};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use caddis_api::{MachineState, machine::Operation};
use caddis_view::CachedMachine;
use futures::stream::{self, Stream};
use serde_json::json;
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::http::{
    authorization::MachinePath, context::Context, errors::HttpError, responses::NoMachine,
};

/// An event of the stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is written by hand")]
pub(crate) struct OperationEvent {
    /// `operation`, then `done`.
    event: String,
    /// JSON: an `Operation`, then `{"state": …}`.
    data: String,
}

/// Follow the operation in progress on a machine.
///
/// Sends an `operation` event now and at each change, then `done` with the state. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/operation",
    operation_id = "Machines_follow_operation",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "Server-sent events", body = OperationEvent,
            content_type = "text/event-stream"),
        NoMachine,
    ),
)]
pub(crate) async fn operation(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpError> {
    let mut machine = path.watch(&context).await?;
    machine.mark_changed();
    let follow = Some((machine, None));
    let events = stream::unfold(follow, move |follow| {
        let context = context.clone();
        async move {
            let (machine, last) = follow?;
            tokio::select! {
                next = next(machine, last) => Some(next),
                // The client sees the end without `done` and may ask again.
                () = context.closing.cancelled() => None,
            }
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

type Follow = Option<(watch::Receiver<Arc<CachedMachine>>, Option<Operation>)>;

/// The next event, and how to go on after it; not at all after `done`.
async fn next(
    mut machine: watch::Receiver<Arc<CachedMachine>>,
    last: Option<Operation>,
) -> (Result<Event, Infallible>, Follow) {
    while machine.changed().await.is_ok() {
        let shown = machine.borrow_and_update().clone();
        match &shown.record.machine.operation {
            None => return (done(shown.state()), None),
            Some(operation) if Some(operation) == last.as_ref() => {}
            Some(operation) => {
                let event = Event::default().event("operation").data(json!(operation).to_string());
                return (Ok(event), Some((machine, Some(operation.clone()))));
            }
        }
    }
    // Forgotten, which only destroyed machines are.
    (done(MachineState::Destroyed), None)
}

fn done(state: MachineState) -> Result<Event, Infallible> {
    Ok(Event::default().event("done").data(json!({ "state": state }).to_string()))
}
