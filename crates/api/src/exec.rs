//! Running a program beside the machine's own, and its process list.

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

/// Default and largest time an exec may take, seconds: proxies in the field cut requests at a
/// minute.
pub const MAX_TIMEOUT_SECONDS: u64 = 60;

/// What is kept of each output stream, bytes; the rest is dropped and `truncated` says so.
pub const OUTPUT_LIMIT: usize = 4 * 1024 * 1024;

/// Body of `POST …/exec`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({ "command": ["uname", "-a"] }))]
pub struct ExecRequest {
    /// Program and arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// One command line, split into words without a shell; some clients send an array here.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "words_or_line")]
    pub cmd: Option<CommandLine>,
    /// Which container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Standard input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Seconds.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "crate::duration::whole_seconds"
    )]
    #[schema(schema_with = crate::duration::whole_seconds_schema)]
    pub timeout: Option<u64>,
}

/// `cmd` as sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum CommandLine {
    /// To be split.
    Line(String),
    /// Split already.
    Words(Vec<String>),
}

fn words_or_line<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<CommandLine>, D::Error> {
    Option::<CommandLine>::deserialize(deserializer)
        .map_err(|_| de::Error::custom("cmd must be a string"))
}

/// Reply of `POST …/exec`, also when the program failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecReply {
    /// Exit status, or 128 + signal number.
    #[serde(default)]
    pub exit_code: i32,
    /// Signal that ended it, 0 for none.
    #[serde(default)]
    pub exit_signal: i32,
    /// Standard output; invalid UTF-8 is replaced.
    #[serde(default)]
    pub stdout: String,
    /// Standard error.
    #[serde(default)]
    pub stderr: String,
    /// Output beyond 4 MiB of a stream was dropped. Caddis extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// It timed out and was killed. Caddis extension.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
}

/// One row of `GET …/ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessStat {
    /// Process id in the guest.
    pub pid: i32,
    /// System time, milliseconds.
    pub stime: u64,
    /// Time since its start, milliseconds.
    pub rtime: u64,
    /// Command line.
    pub command: String,
    /// Working directory.
    pub directory: String,
    /// CPU time, milliseconds.
    pub cpu: u64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Sockets it listens on.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListenSocket {
    /// `tcp`, `udp`, …
    pub proto: String,
    /// Address and port.
    pub address: String,
}
