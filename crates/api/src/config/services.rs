//! Services: which ports of a machine answer on which addresses and ports of its app, and when the
//! machine sleeps and wakes because of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, schema::OneOfBuilder},
};

use crate::{ApiDuration, config::Check};

/// Connections or requests of a machine from which on others are preferred, unless its service
/// says otherwise.
pub const DEFAULT_SOFT_LIMIT: u32 = 20;

/// A port of the machine that is reached through its app's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Service {
    /// What it carries; TCP unless given.
    #[serde(deserialize_with = "empty_is_none")]
    pub protocol: Option<Protocol>,
    /// Port in the VM.
    pub internal_port: Option<u16>,
    /// Ports on the app's addresses.
    pub ports: Option<Vec<ServicePort>>,
    /// How much at once the machine takes.
    pub concurrency: Option<Concurrency>,
    /// What becomes of the machine when there is no traffic for it.
    pub autostop: Option<Autostop>,
    /// Whether traffic starts it; true unless given. Datagrams never do.
    pub autostart: Option<bool>,
    /// Number of machines of the app that are never stopped when idle.
    pub min_machines_running: Option<u32>,
    /// Stops the machine once it has had no connection for this long. Caddis extension.
    pub idle_timeout: Option<ApiDuration>,
    /// How long streams may go on once it is to stop because other machines are enough. Unless
    /// given, it is not stopped while one is open. It has no effect with `idle_timeout`. Caddis
    /// extension.
    pub max_drain: Option<ApiDuration>,
    /// Checks that must pass before it gets traffic.
    pub checks: Option<Vec<Check>>,
    /// Name of the secret that a request must carry to be sent to one given machine.
    pub force_instance_key: Option<String>,
    /// What that is for.
    pub force_instance_description: Option<String>,
}

impl Service {
    /// What it carries, with the default applied.
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_default()
    }

    /// Those of its ports that are served only on an address of the app's own, as those for
    /// datagrams always are.
    pub fn own_ports(&self) -> impl Iterator<Item = &ServicePort> {
        let is_udp = self.protocol() == Protocol::Udp;
        self.ports.iter().flatten().filter(move |port| is_udp || !port.is_shared())
    }

    /// Whether there is such a port.
    pub fn needs_own_address(&self) -> bool {
        self.own_ports().next().is_some()
    }

    /// What becomes of the machine without traffic, with the default applied.
    pub fn autostop(&self) -> Autostop {
        self.autostop.unwrap_or_default()
    }

    /// Whether traffic starts it, with the default applied.
    pub fn autostart(&self) -> bool {
        self.autostart.unwrap_or(true)
    }
}

/// What a service carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Streams.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port, or a range of ports, on the app's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ServicePort {
    /// The port.
    pub port: Option<u16>,
    /// First port of a range, instead of `port`.
    pub start_port: Option<u16>,
    /// Last port of the range.
    pub end_port: Option<u16>,
    /// What is done to the stream on its way; none passes it on as it is.
    pub handlers: Option<Vec<PortHandler>>,
    /// Answers HTTP with a redirect to HTTPS.
    pub force_https: Option<bool>,
    /// Of the `http` handler.
    pub http_options: Option<HttpOptions>,
    /// Of the `tls` handler.
    pub tls_options: Option<TlsOptions>,
    /// Of the `proxy_proto` handler.
    pub proxy_proto_options: Option<ProxyProtoOptions>,
}

impl ServicePort {
    /// First and last port; `None` when the port is missing.
    pub fn range(&self) -> Option<(u16, u16)> {
        match (self.port, self.start_port, self.end_port) {
            (Some(port), _, _) => Some((port, port)),
            (None, Some(start), Some(end)) if start <= end => Some((start, end)),
            _ => None,
        }
    }

    /// Whether the listeners that all apps share can serve it, which tell apps apart by host name:
    /// HTTP on port 80, TLS on port 443. Anything else is on an address of the app's own.
    pub fn is_shared(&self) -> bool {
        match self.range() {
            Some((80, 80)) => self.has(PortHandler::Http) && !self.has(PortHandler::Tls),
            Some((443, 443)) => self.has(PortHandler::Tls),
            _ => false,
        }
    }

    /// Whether it has a handler.
    pub fn has(&self, handler: PortHandler) -> bool {
        self.handlers.iter().flatten().any(|given| *given == handler)
    }
}

/// What is done to a stream between the client and the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PortHandler {
    /// Requests are read, and sent to machines one by one.
    Http,
    /// TLS ends here.
    Tls,
    /// TLS ends here, asked for as PostgreSQL's clients do.
    PgTls,
    /// The machine is told who the client is, in a header of the PROXY protocol.
    ProxyProto,
    /// Nothing; the same as no handler.
    Tcp,
}

impl PortHandler {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::PgTls => "pg_tls",
            Self::ProxyProto => "proxy_proto",
            Self::Tcp => "tcp",
        }
    }
}

/// Options of the `http` handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HttpOptions {
    /// Compresses responses.
    pub compress: Option<bool>,
    /// The machine speaks HTTP/2 without TLS.
    pub h2_backend: Option<bool>,
    /// Closes a client's connection that has been without a request for this long, seconds.
    pub idle_timeout: Option<u32>,
    /// Time for a request's headers, seconds.
    pub headers_read_timeout: Option<u32>,
    /// What is changed in responses.
    pub response: Option<HttpResponseOptions>,
    /// Where replays are remembered.
    pub replay_cache: Option<Vec<Value>>,
}

/// What is changed in responses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct HttpResponseOptions {
    /// Headers that are set; a list sets several, `false` removes one.
    pub headers: Option<BTreeMap<String, HeaderChange>>,
    /// Adds no header of its own.
    pub pristine: Option<bool>,
}

/// What becomes of a header of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum HeaderChange {
    /// Removed; only `false` is meant.
    Remove(bool),
    /// Set to one value.
    Set(String),
    /// Set to several values.
    SetAll(Vec<String>),
}

/// Options of the `tls` handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TlsOptions {
    /// Protocols that are offered, `h2` and `http/1.1` unless given.
    pub alpn: Option<Vec<String>>,
    /// Versions that are offered, both unless given.
    pub versions: Option<Vec<TlsVersion>>,
    /// Uses a self-signed certificate where there is none for the name.
    pub default_self_signed: Option<bool>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum TlsVersion {
    /// 1.2.
    #[serde(rename = "TLSv1.2")]
    V1_2,
    /// 1.3.
    #[serde(rename = "TLSv1.3")]
    V1_3,
}

/// Options of the `proxy_proto` handler.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ProxyProtoOptions {
    /// Form of the header; 1 unless given.
    #[serde(deserialize_with = "empty_is_none")]
    pub version: Option<ProxyProtoVersion>,
    /// Adds more about the client.
    pub fly_src: Option<bool>,
}

/// Form of the PROXY protocol's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtoVersion {
    /// A line of text.
    #[default]
    V1,
    /// Binary.
    V2,
}

/// How much at once a machine takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Concurrency {
    /// What is counted.
    #[serde(rename = "type", deserialize_with = "empty_is_none")]
    pub kind: Option<ConcurrencyKind>,
    /// From this many on other machines are preferred; 20 unless given.
    pub soft_limit: Option<u32>,
    /// The machine never has more than this many; no limit unless given.
    pub hard_limit: Option<u32>,
}

/// What counts against the limits of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConcurrencyKind {
    /// Connections of clients.
    #[default]
    Connections,
    /// Requests that have no answer yet.
    Requests,
}

/// What becomes of a machine without traffic. Clients send words or booleans; replies have
/// `false`, `true` or `"suspend"`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Autostop {
    /// It goes on.
    #[default]
    Off,
    /// It is stopped.
    Stop,
    /// It is suspended, or stopped where that can't be.
    Suspend,
}

impl Serialize for Autostop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Stop => serializer.serialize_bool(true),
            Self::Suspend => serializer.serialize_str("suspend"),
        }
    }
}

impl<'de> Deserialize<'de> for Autostop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Sent {
            Flag(bool),
            Word(String),
        }
        let sent = Sent::deserialize(deserializer);
        match sent {
            Ok(Sent::Flag(false)) => Ok(Self::Off),
            Ok(Sent::Flag(true)) => Ok(Self::Stop),
            Ok(Sent::Word(word)) => match word.as_str() {
                "off" | "false" => Ok(Self::Off),
                "stop" | "true" => Ok(Self::Stop),
                "suspend" => Ok(Self::Suspend),
                _ => Err(de::Error::custom(AUTOSTOP_FORMS)),
            },
            Err(_) => Err(de::Error::custom(AUTOSTOP_FORMS)),
        }
    }
}

/// What clients may send.
const AUTOSTOP_FORMS: &str = "use off, stop, suspend or a boolean";

impl PartialSchema for Autostop {
    fn schema() -> RefOr<Schema> {
        Schema::OneOf(OneOfBuilder::new().item(bool::schema()).item(String::schema()).build())
            .into()
    }
}

impl ToSchema for Autostop {}

/// Some clients send an empty text for what is not given.
fn empty_is_none<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    match Option::<Value>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(de::Error::custom),
    }
}
