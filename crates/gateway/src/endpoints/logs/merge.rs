//! The log of an app whose machines are on several hosts: each host gives its part in the order of
//! its own positions, and the parts are merged by time. The place in such a log is a place in each
//! part, so that every line comes once, also where a host was away for a while.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    http::{self, Request},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use caddis_api::{
    ApiError, WorkerId,
    logs::{LogEntry, LogsMeta, LogsReply},
    platform::HostState,
};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::http::{context::Context, errors::HttpError, forward, query::invalid};

/// Begins a place in several logs; one in a single log is its host's own.
const MERGED: &str = "hosts.";

/// Entries of a page unless the client wants fewer.
const PAGE: u64 = 100;

/// What is asked of each host.
pub(super) struct Query {
    pub app: String,
    pub instance: Option<String>,
    pub limit: Option<u64>,
    pub region: Option<String>,
    /// Nanoseconds since the Unix epoch.
    pub since: Option<String>,
    pub until: Option<String>,
}

/// Where a client is: in the log of one host, or of each that there was when the place was given.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    One(String),
    Several(BTreeMap<WorkerId, Part>),
}

/// A place in a host's part of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Part {
    /// After what this token stands for.
    After(String),
    /// Its newest lines are yet to be given: it could not be asked.
    Newest,
}

impl Place {
    fn read(name: &str, text: &str) -> Result<Self, ApiError> {
        let Some(text) = text.strip_prefix(MERGED) else { return Ok(Self::One(text.to_owned())) };
        let invalid = || invalid(name, text, "what a page gave as next_token");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        serde_json::from_slice(&bytes).map(Self::Several).map_err(|_| invalid())
    }

    fn write(parts: &BTreeMap<WorkerId, Part>) -> String {
        // Plain data with string keys, for which serialisation has no way to fail.
        format!("{MERGED}{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(parts).unwrap_or_default()))
    }

    /// The place in one host's part. A host that was not there when the place was given begins with
    /// its first line; a place in a single log is of the host that this gateway began with.
    fn of(&self, worker: &WorkerId, is_first: bool) -> Part {
        let begin = || Part::After("0".to_owned());
        match self {
            Self::One(token) if is_first => Part::After(token.clone()),
            Self::One(_) => begin(),
            Self::Several(parts) => parts.get(worker).cloned().unwrap_or_else(begin),
        }
    }
}

/// A page of the log that one host has.
pub(super) async fn page_of_one(
    context: &Context,
    worker: &WorkerId,
    query: &Query,
    (from, bound): (Option<&str>, Option<&str>),
    wait: Option<u64>,
) -> Result<Response, HttpError> {
    let part = |name: &str, text: Option<&str>| {
        let place = text.map(|text| Place::read(name, text)).transpose()?;
        Ok::<_, ApiError>(place.map(|place| place.of(worker, true)))
    };
    let (from, bound) = (part("next_token", from)?, part("until_token", bound)?);
    // As it comes: a page may have megabytes.
    forward::call(context, worker, request(query, (from.as_ref(), bound.as_ref()), wait)).await
}

/// A page of an app's log, of all hosts that have machines of it.
pub(super) async fn page(
    context: &Context,
    query: &Query,
    (from, bound): (Option<&str>, Option<&str>),
    wait: Option<u64>,
) -> Result<Response, HttpError> {
    let place = from.map(|text| Place::read("next_token", text)).transpose()?;
    let until = bound.map(|text| Place::read("until_token", text)).transpose()?;
    let hosts = context.view.hosts().all();
    if let [(worker, _)] = &hosts[..]
        && !matches!(place, Some(Place::Several(_)))
    {
        return page_of_one(context, worker, query, (from, bound), wait).await;
    }
    let mut changes = context.view.watch_app(&query.app);
    let end = Instant::now() + Duration::from_secs(wait.unwrap_or(0));
    let shown = context.view.of_app(&query.app);
    let mut workers: BTreeSet<_> = shown.iter().map(|shown| shown.record.worker.clone()).collect();
    if let Some(Place::Several(parts)) = &place {
        workers.extend(parts.keys().cloned());
    }
    let is_first = |worker: &WorkerId| context.view.hosts().first().contains(worker);
    let mut parts: BTreeMap<_, _> = workers
        .iter()
        .map(|worker| {
            let part =
                place.as_ref().map_or(Part::Newest, |place| place.of(worker, is_first(worker)));
            (worker.clone(), part)
        })
        .collect();
    let bounds: BTreeMap<_, _> = until
        .iter()
        .flat_map(|until| {
            workers.iter().map(|worker| (worker.clone(), until.of(worker, is_first(worker))))
        })
        .collect();
    let is_away = |worker: &WorkerId| {
        hosts.iter().any(|(id, host)| id == worker && host.state == HostState::Unreachable)
    };
    let there: Vec<_> = workers.iter().filter(|worker| !is_away(worker)).collect();

    let asked =
        |worker, wait| ask(context, worker, query, (parts.get(worker), bounds.get(worker)), wait);
    let answers =
        join_all(there.iter().map(|worker| async { (*worker, asked(worker, None).await) })).await;
    let all_failed = !answers.is_empty() && answers.iter().all(|(_, answer)| answer.is_err());
    let mut pages = Vec::new();
    for (worker, answer) in answers {
        match answer {
            Ok(page) => pages.push((worker.clone(), page)),
            Err(failure) if all_failed => return Err(failure),
            // What it has comes with a later page.
            Err(HttpError(error)) => {
                tracing::warn!(%worker, error = error.message, "can't read a host's part of a log")
            }
        }
    }
    if wait.is_some_and(|wait| wait > 0) && pages.iter().all(|(_, page)| page.data.is_empty()) {
        let mut waiting: FuturesUnordered<_> =
            there.iter().map(|worker| async { (*worker, asked(worker, wait).await) }).collect();
        while let Some((worker, answer)) = waiting.next().await {
            if let Ok(page) = answer
                && !page.data.is_empty()
            {
                pages.retain(|(other, _)| other != worker);
                pages.push((worker.clone(), page));
                break;
            }
        }
        if pages.iter().all(|(_, page)| page.data.is_empty()) {
            // Where nobody could be asked, or has answered early: until the app changes, or the
            // time is over.
            let _ = tokio::time::timeout_at(end, changes.recv()).await;
        }
    }
    let limit = usize::try_from(query.limit.unwrap_or(PAGE)).unwrap_or(usize::MAX);
    let is_newest = place.is_none() && query.since.is_none() && query.until.is_none();
    let data = merge(&mut parts, pages, limit, is_newest);
    let meta = LogsMeta { next_token: Place::write(&parts) };
    Ok(Json(LogsReply { data, meta }).into_response())
}

/// Merges the pages of hosts by time, and moves the place in each part behind what is given of it.
fn merge(
    parts: &mut BTreeMap<WorkerId, Part>,
    pages: Vec<(WorkerId, LogsReply)>,
    limit: usize,
    is_newest: bool,
) -> Vec<LogEntry> {
    let mut queues = Vec::new();
    let mut ends = Vec::new();
    for (worker, page) in pages {
        queues.push(VecDeque::from(page.data));
        ends.push((worker, page.meta.next_token));
    }
    let mut given = Vec::new();
    let mut last: Vec<Option<String>> = vec![None; ends.len()];
    // Lines of one host stay in its order, by which its part is given, whatever its clock did.
    while let Some((host, line)) = earliest(&mut queues) {
        if given.len() == limit && !is_newest {
            queues[host].push_front(line);
            break;
        }
        last[host] = position(&line);
        given.push(line);
    }
    for (((worker, end), rest), last) in ends.into_iter().zip(queues).zip(last) {
        let place = match rest.front() {
            None => end,
            // Before the first that is not given, where none is.
            Some(next) => last.or_else(|| before(next)).unwrap_or(end),
        };
        parts.insert(worker, Part::After(place));
    }
    if is_newest {
        // Older ones than the newest of all hosts are not given at all.
        given.drain(..given.len().saturating_sub(limit));
    }
    given
}

/// Takes the earliest of the lines that come next, and says whose it is. Their timestamps are of
/// one form, so that the texts compare as the times do.
fn earliest(queues: &mut [VecDeque<LogEntry>]) -> Option<(usize, LogEntry)> {
    let next = queues
        .iter()
        .enumerate()
        .filter_map(|(host, queue)| Some((&queue.front()?.attributes.timestamp, host)));
    let (_, host) = next.min()?;
    Some((host, queues[host].pop_front()?))
}

/// The place of a line in its host's log, which is part of its id.
fn position(entry: &LogEntry) -> Option<String> {
    Some(entry.id.rsplit_once('-')?.1.to_owned())
}

/// The place just before a line.
fn before(entry: &LogEntry) -> Option<String> {
    let place: u64 = position(entry)?.parse().ok()?;
    Some(place.saturating_sub(1).to_string())
}

async fn ask(
    context: &Context,
    worker: &WorkerId,
    query: &Query,
    places: (Option<&Part>, Option<&Part>),
    wait: Option<u64>,
) -> Result<LogsReply, HttpError> {
    let answer = forward::call(context, worker, request(query, places, wait)).await?;
    let unreadable = |reason: String| {
        HttpError(ApiError::internal(format!(
            "worker {worker} gave a page of a log that can't be read: {reason}"
        )))
    };
    let body = answer.into_body().collect().await.map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| unreadable(error.to_string()))
}

/// What a host is asked for its part.
fn request(
    query: &Query,
    (from, bound): (Option<&Part>, Option<&Part>),
    wait: Option<u64>,
) -> http::Result<Request<Body>> {
    let token = |part: Option<&Part>| match part {
        Some(Part::After(token)) => Some(token.clone()),
        Some(Part::Newest) | None => None,
    };
    let optional = [
        ("instance", query.instance.clone()),
        ("next_token", token(from)),
        ("until_token", token(bound)),
        ("limit", query.limit.map(|limit| limit.to_string())),
        ("wait_seconds", wait.map(|wait| wait.to_string())),
        ("region", query.region.clone()),
        ("since_ns", query.since.clone()),
        ("until_ns", query.until.clone()),
    ];
    let given = optional.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let text = forward::query(std::iter::once(("app", query.app.clone())).chain(given));
    Request::get(format!("/logs?{text}")).body(Body::empty())
}

#[cfg(test)]
mod tests;
