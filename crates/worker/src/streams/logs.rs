//! Log pages.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
};
use caddis_api::{
    ApiError, MachineId, RegionCode,
    logs::{LogAttributes, LogEntry, LogEntryMeta, LogProvider, LogsMeta, LogsReply},
};
use tokio::time::Instant;

use super::{Failed, LogQuery};
use crate::{
    clock::host_now_ns,
    engine::Shared,
    logs::{Line, Selection},
};

/// Entries of a page unless the client wants fewer.
const PAGE: usize = 100;
/// Longest wait for the first entry.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// One page: those that follow the token, without one those since a time or, without that too, the
/// newest.
pub async fn read(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<LogQuery>,
) -> Result<Json<LogsReply>, Failed> {
    let bound = place("until_token", query.until_token.as_deref())?;
    let timed = query.since_ns.is_some() || query.until_ns.is_some();
    let after = place("next_token", query.next_token.as_deref())?.or(timed.then_some(0));
    let limit = query.limit.unwrap_or(PAGE).clamp(1, 1000);
    let wait = Duration::from_secs(query.wait_seconds.unwrap_or(0)).min(MAX_WAIT);
    // What comes later is not asked for.
    let left = query
        .until_ns
        .map_or(wait, |until| Duration::from_nanos(until.saturating_sub(host_now_ns())));
    let end = Instant::now() + wait.min(left);
    // What was published before is in the files then.
    shared.logs.written().await;
    let mut position = shared.logs.position();
    loop {
        let written = *position.borrow_and_update();
        let until = bound.map_or(written, |bound| bound.min(written));
        let reply = page(&shared, &query, after, until, limit).await?;
        if !reply.data.is_empty() || bound.is_some_and(|bound| bound <= written) {
            return Ok(Json(reply));
        }
        match tokio::time::timeout_at(end, position.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(Json(reply)),
        }
    }
}

/// A place in the log that a client gives back.
fn place(name: &str, token: Option<&str>) -> Result<Option<u64>, ApiError> {
    let token = token.filter(|token| !token.is_empty());
    token
        .map(|token| token.parse().map_err(|_| ApiError::invalid(format!("invalid {name}"))))
        .transpose()
}

async fn page(
    shared: &Arc<Shared>,
    query: &LogQuery,
    after: Option<u64>,
    until: u64,
    limit: usize,
) -> Result<LogsReply, ApiError> {
    let machines = query.machines(shared);
    let selection = Selection {
        after: after.unwrap_or(0),
        until,
        since_ns: query.since_ns.unwrap_or(0),
        until_ns: query.until_ns.unwrap_or(u64::MAX),
        limit,
        newest: after.is_none(),
    };
    let logs = shared.logs.clone();
    let lines = tokio::task::spawn_blocking(move || {
        let mut lines: Vec<(MachineId, Line)> = Vec::new();
        for machine in machines {
            let of_machine = logs.read(&machine, &selection)?;
            lines.extend(of_machine.into_iter().map(|line| (machine.clone(), line)));
        }
        Ok::<_, std::io::Error>(lines)
    });
    let mut lines = lines
        .await
        .map_err(ApiError::internal)?
        .map_err(|e| ApiError::internal(format!("can't read the logs: {e}")))?;
    lines.sort_by_key(|(_, line)| line.number);
    let complete = lines.len() <= limit;
    if after.is_none() {
        lines.drain(..lines.len().saturating_sub(limit));
    } else {
        lines.truncate(limit);
    }
    let next = match lines.last() {
        // More may follow below `until`: go on after the last one that was given.
        Some((_, last)) if after.is_some() && !complete => last.number,
        Some((_, last)) if lines.len() == limit => last.number,
        _ => until,
    };
    let region = shared.config.region.clone();
    let data = lines.into_iter().map(|(machine, line)| entry(&machine, line, &region)).collect();
    Ok(LogsReply { data, meta: LogsMeta { next_token: next.to_string() } })
}

fn entry(machine: &MachineId, line: Line, region: &RegionCode) -> LogEntry {
    let time = i128::from(line.time_ns);
    let timestamp = jiff::Timestamp::from_nanosecond(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let provider = match line.source.as_str() {
        "stdout" | "stderr" => "app",
        "proxy" => "proxy",
        _ => "runner",
    };
    let level =
        line.level.as_deref().unwrap_or(if line.source == "stderr" { "error" } else { "info" });
    LogEntry {
        id: format!("{machine}-{}", line.number),
        attributes: LogAttributes {
            timestamp: format!("{timestamp:.9}"),
            message: line.message,
            partial: line.partial,
            level: level.to_owned(),
            instance: machine.to_string(),
            region: region.clone(),
            meta: LogEntryMeta {
                instance: machine.to_string(),
                region: region.clone(),
                event: LogProvider { provider: provider.to_owned() },
            },
        },
    }
}
