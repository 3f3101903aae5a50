//! What the machines of an app use of their hosts, as the hosts tell it.

use std::{convert::Infallible, future::ready, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    http::{Request, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use caddis_api::usage::UsageSample;
use futures::{StreamExt as _, TryStreamExt as _, stream::select_all};
use tokio::time::sleep;
use tokio_util::{
    codec::{FramedRead, LinesCodec},
    io::StreamReader,
};

use crate::http::{
    authorization::AppPath,
    context::Context,
    errors::HttpError,
    forward,
    query::{Params, invalid},
    responses::{BadParameter, NoApp},
};

/// Unless the client wants another.
const INTERVAL: Duration = Duration::from_secs(2);
/// What it may want.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);
/// Longest line of a host, bytes.
const MAX_LINE: usize = 8 << 20;

/// Follow the CPU and memory usage of an app's machines.
///
/// Sends a line per host at once and after each interval, with the CPU time and memory of the
/// machines that have a VM there. The stream ends when the app is deleted or the server stops;
/// reconnect then. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/usage",
    operation_id = "Machines_usage",
    tag = "Machines",
    params(
        AppPath,
        ("interval" = Option<String>, Query,
            description = "Time between two lines of a host, 1s to 60s, whole seconds or Go's \
                           notation; default 2s"),
        ("timeout" = Option<String>, Query,
            description = "End after this time, whole seconds or Go's notation; default: when the \
                           app is deleted"),
    ),
    responses(
        (status = 200, description = "One sample per line", body = UsageSample,
            content_type = "application/x-ndjson"),
        BadParameter,
        NoApp,
    ),
)]
pub(crate) async fn usage(
    State(context): State<Context>,
    app: AppPath,
    params: Params,
) -> Result<Response, HttpError> {
    let interval = params.duration("interval")?.map_or(INTERVAL, |interval| interval.0);
    if !INTERVALS.contains(&interval) {
        return Err(invalid(
            "interval",
            params.get("interval").unwrap_or_default(),
            "a time from 1s to 60s",
        )
        .into());
    }
    let timeout = params.duration("timeout")?;
    context.synced().await?;
    let name = app.look_up(&context).await?.name.to_string();
    let query = forward::query([("app", name), ("interval_ms", interval.as_millis().to_string())]);
    let mut hosts = Vec::new();
    for worker in &context.view.hosts().reachable() {
        let request = Request::get(format!("/usage?{query}")).body(Body::empty());
        // A host that does not answer, or whose line ends early, has nothing to tell.
        let Ok(answer) = forward::call(&context, worker, request).await else { continue };
        let reader =
            StreamReader::new(answer.into_body().into_data_stream().map_err(std::io::Error::other));
        let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_LINE));
        hosts.push(Box::pin(
            lines.take_while(|line| ready(line.is_ok())).filter_map(|line| ready(line.ok())),
        ));
    }
    let closing = context.closing.clone().cancelled_owned();
    let end = async move {
        match timeout {
            Some(timeout) => tokio::select! { () = sleep(timeout.0) => {}, () = closing => {} },
            None => closing.await,
        }
    };
    let app = Arc::new(app);
    let lines = select_all(hosts).take_until(end).take_while(move |_| {
        let (context, app) = (context.clone(), app.clone());
        async move { app.look_up(&context).await.is_ok() }
    });
    let body = Body::from_stream(lines.map(|line| Ok::<_, Infallible>(Bytes::from(line + "\n"))));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
