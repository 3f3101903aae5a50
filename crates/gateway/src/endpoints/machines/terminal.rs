//! Interactive sessions: a WebSocket, relayed to the worker that has the machine.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{
        State,
        ws::{
            CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    http::{Request, StatusCode},
    response::{IntoResponse as _, Response},
};
use caddis_api::{
    ApiError, ErrorCode, MachineState,
    terminal::{MAX_MESSAGE_BYTES, ServerMessage},
};
use caddis_bus::stream::frames::{self, Frame};
use caddis_view::CachedMachine;
use futures::{
    SinkExt as _, Stream, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use crate::{
    deletion,
    http::{
        authorization::MachinePath,
        context::Context,
        errors::HttpError,
        extract::{NONCE, Nonce},
        forward,
        query::Params,
        responses::{BadParameter, NoMachine, Refused},
    },
};

/// How often a client is asked whether it is there.
const PING: Duration = Duration::from_secs(20);
/// A client that says nothing for so long, not even that it is there, has gone.
const SILENCE: Duration = Duration::from_secs(60);
/// What of a client's words waits for the worker, messages. It takes them at once.
const AHEAD: usize = 16;

/// Run a program in a machine, interactively.
///
/// Over a WebSocket, with or without a terminal. The client's first message is a text that says
/// what to run (`ClientMessage`, type `start`); later ones resize the terminal, send a signal or
/// end the input. The first byte of a binary message is its channel: 0 for standard input, of which
/// at most 256 KiB may be sent beyond what the server credits, 1 for standard output, 2 for
/// standard error. The server's last text says how the program ended, or why it could not be run.
/// When the client disconnects, the program gets SIGHUP, and SIGKILL five seconds later. Caddis
/// extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/exec/ws",
    operation_id = "Machines_exec_ws",
    tag = "Machines",
    params(
        MachinePath,
        Nonce,
        ("remove_app" = Option<bool>, Query,
            description = "Delete the app at the end of the session, unless it has another \
                           machine. Caddis extension"),
    ),
    responses(
        (status = 101, description = "The session begins"),
        NoMachine,
        BadParameter,
        Refused,
        (status = 426, description = "Not a WebSocket request",
            body = caddis_api::error::ErrorBody),
    ),
)]
pub(crate) async fn session(
    State(context): State<Context>,
    path: MachinePath,
    nonce: Nonce,
    params: Params,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    let remove_app = params.flag("remove_app")?;
    let shown = path.look_up(&context).await?;
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(_) => return Ok(no_upgrade()),
    };
    let mut request = Request::post(format!("/machines/{}/session", shown.record.machine.id));
    if let Some(nonce) = &nonce.0 {
        request = request.header(NONCE, nonce.as_str());
    }
    let (sender, mut receiver) = mpsc::channel::<Frame>(AHEAD);
    let frames = futures::stream::poll_fn(move |task| receiver.poll_recv(task));
    let body =
        Body::from_stream(frames.map(|frame| Ok::<_, std::convert::Infallible>(frame.encode())));
    let answer = forward::call(&context, &shown.record.worker, request.body(body)).await?;
    // Whatever becomes of the connection.
    let end = remove_app.then(|| RemoveApp { context: context.clone(), shown });
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    Ok(upgrade.on_upgrade(async move |socket| {
        let _end = end;
        relay(&context, socket, sender, frames::read(answer.into_body())).await;
    }))
}

fn no_upgrade() -> Response {
    let error = ApiError::invalid(
        "invalid request: this is a WebSocket, ask for an upgrade to one (HTTP/1.1)",
    );
    let mut response = HttpError(error).into_response();
    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
    response
}

/// Deletes an app when it is dropped.
struct RemoveApp {
    context: Context,
    /// The machine of the session.
    shown: Arc<CachedMachine>,
}

impl Drop for RemoveApp {
    fn drop(&mut self) {
        let (context, record) = (self.context.clone(), &self.shown.record);
        let (app, id) = (record.app.clone(), record.machine.id.clone());
        self.context.background(async move {
            let is_other = |state, machine| state != MachineState::Destroyed && machine != &id;
            if context
                .view
                .of_app(&app)
                .iter()
                .any(|shown| is_other(shown.state(), &shown.record.machine.id))
            {
                return;
            }
            // Deleted by its client already, it may be; anything else the next session of its kind
            // tries again.
            if context.catalog.begin_app_deletion(&app).await.is_ok()
                && !context.catalog.finish_app_deletion(&app).await.unwrap_or(false)
            {
                deletion::begin(&context, &app);
            }
        });
    }
}

/// Moves messages until one side has ended.
async fn relay(
    context: &Context,
    socket: WebSocket,
    worker: mpsc::Sender<Frame>,
    answers: impl Stream<Item = Result<Frame, String>> + Unpin,
) {
    let (mut sink, source) = socket.split();
    let told = tokio::select! {
        () = listen(source, worker) => return,
        told = tell(&mut sink, answers) => told,
        () = context.closing.cancelled() => {
            Some(ServerMessage::Error {
                code: ErrorCode::Unavailable,
                error: "unavailable: the server is stopping".to_owned(),
            })
        }
    };
    let farewell = async {
        if let Some(message) = told {
            let _ = sink
                .send(Message::Text(serde_json::to_string(&message).unwrap_or_default().into()))
                .await;
        }
        let close = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        let _ = sink.send(Message::Close(Some(close))).await;
        let _ = sink.close().await;
    };
    // A client that does not read is not waited for.
    let _ = timeout(SILENCE, farewell).await;
}

/// From the client to the worker, until it has gone.
async fn listen(mut source: SplitStream<WebSocket>, worker: mpsc::Sender<Frame>) {
    while let Ok(Some(Ok(message))) = timeout(SILENCE, source.next()).await {
        let frame = match message {
            Message::Text(text) => Frame::Text(text.into()),
            Message::Binary(data) => Frame::Data(data),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => return,
        };
        if worker.send(frame).await.is_err() {
            // It has ended, and says so on the other way.
            std::future::pending::<()>().await;
        }
    }
}

/// From the worker to the client, until the worker has said all. What is left to say when it did
/// not end well.
async fn tell(
    sink: &mut SplitSink<WebSocket, Message>,
    mut answers: impl Stream<Item = Result<Frame, String>> + Unpin,
) -> Option<ServerMessage> {
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            answer = answers.next() => match answer {
                None => return None,
                Some(Ok(Frame::Data(data))) => Message::Binary(data),
                Some(Ok(Frame::Text(text))) => match Utf8Bytes::try_from(text) {
                    Ok(text) => Message::Text(text),
                    Err(error) => return Some(unreadable(&error.to_string())),
                },
                Some(Err(error)) => return Some(unreadable(&error)),
            },
            _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
        };
        if sink.send(message).await.is_err() {
            return None;
        }
    }
}

fn unreadable(error: &str) -> ServerMessage {
    let error =
        format!("unavailable: the session with the machine's host was interrupted: {error}");
    ServerMessage::Error { code: ErrorCode::Unavailable, error }
}
