//! Health checks: what is tried of a machine, how often, and what failing means.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ApiDuration;

/// An attempt to reach a machine that its host makes again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Check {
    /// What is tried; required.
    #[serde(rename = "type")]
    pub kind: Option<CheckType>,
    /// Port in the VM; a service's own unless given.
    pub port: Option<u16>,
    /// Time between two attempts; 15 s for TCP, 10 s for HTTP unless given.
    pub interval: Option<ApiDuration>,
    /// Time for the answer; 2 s unless given.
    pub timeout: Option<ApiDuration>,
    /// Time after a start before the first attempt; 1 s for TCP, 5 s for HTTP unless given.
    pub grace_period: Option<ApiDuration>,
    /// HTTP method, GET unless given.
    pub method: Option<String>,
    /// HTTP path, `/` unless given.
    pub path: Option<String>,
    /// Whether over TLS.
    pub protocol: Option<CheckProtocol>,
    /// Headers of the request.
    pub headers: Option<Vec<CheckHeader>>,
    /// Accepts any certificate.
    pub tls_skip_verify: Option<bool>,
    /// Name that the certificate must have.
    pub tls_server_name: Option<String>,
    /// What its failing means, for a check of the machine; those of services are for readiness.
    #[serde(rename = "kind")]
    pub purpose: Option<CheckPurpose>,
    /// Restarts the machine after this many failures in a row. Caddis extension.
    pub liveness: Option<Liveness>,
}

impl Check {
    /// Time between two attempts, with the default applied.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(self.by_type(15, 10), |interval| interval.0)
    }

    /// Time for the answer, with the default applied.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(2), |timeout| timeout.0)
    }

    /// Time after a start before the first attempt, with the default applied.
    pub fn grace_period(&self) -> Duration {
        self.grace_period.map_or(self.by_type(1, 5), |grace| grace.0)
    }

    fn by_type(&self, tcp: u64, http: u64) -> Duration {
        Duration::from_secs(if self.kind == Some(CheckType::Http) { http } else { tcp })
    }
}

/// What a check tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckType {
    /// Whether the port accepts connections.
    Tcp,
    /// Whether a request is answered with 2xx.
    Http,
}

impl CheckType {
    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }
}

/// What an HTTP check speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckProtocol {
    /// Plain HTTP.
    #[default]
    Http,
    /// HTTP over TLS.
    Https,
}

/// A header that a check sends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct CheckHeader {
    /// Name.
    pub name: String,
    /// Values.
    pub values: Vec<String>,
}

/// What a failing check of a machine means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckPurpose {
    /// It is shown.
    #[default]
    Informational,
    /// The machine gets no traffic.
    Readiness,
}

/// When a failing check restarts the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Liveness {
    /// Failures in a row, at least 1; 3 unless given.
    pub failures: Option<u32>,
}

impl Liveness {
    /// Failures in a row, with the default applied.
    pub fn failures(self) -> u32 {
        self.failures.unwrap_or(3).max(1)
    }
}
