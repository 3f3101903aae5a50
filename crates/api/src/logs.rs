//! Log entries as `GET /api/v1/apps/{app}/logs` returns them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::RegionCode;

/// A page of log entries, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogsReply {
    /// The entries.
    pub data: Vec<LogEntry>,
    /// Where the next page begins.
    pub meta: LogsMeta,
}

/// Where the next page begins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogsMeta {
    /// Opaque; pass it as `next_token` to get what comes after this page, without gaps or
    /// duplicates.
    pub next_token: String,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Unique per machine.
    pub id: String,
    /// Content of the entry.
    pub attributes: LogAttributes,
}

/// One line of log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogAttributes {
    /// RFC 3339 with nanoseconds.
    pub timestamp: String,
    /// The line, without its line end.
    pub message: String,
    /// The line is longer than 16 KiB and continues in the next entry of its stream. Caddis
    /// extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// `error` for standard error and for what went wrong with the machine, else `info`.
    pub level: String,
    /// Machine id.
    pub instance: String,
    /// Region.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Where it came from.
    pub meta: LogEntryMeta,
}

/// Where an entry came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntryMeta {
    /// Instance, again.
    pub instance: String,
    /// Region, again.
    #[schema(value_type = String)]
    pub region: RegionCode,
    /// Source.
    pub event: LogProvider,
}

/// `app` for the program, `runner` for messages of the platform and the machine's init: starts,
/// exits, restarts, suspends and failures; `proxy` for errors of connections and requests to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogProvider {
    /// `app`, `runner` or `proxy`.
    pub provider: String,
}
