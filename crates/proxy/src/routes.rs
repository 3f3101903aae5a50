//! What the proxy is told about an app: its addresses, its machines and their services.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use caddis_api::{MachineId, WorkerId};
use http::{HeaderName, HeaderValue};

/// An app's name, which is also the first label of its host name.
pub type AppName = Arc<str>;

/// All that is routed to one app. Services belong to machines: the app's ports are the union of
/// those of its machines' services, and a port's traffic goes to the machines that have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AppRoutes {
    /// Addresses of the app's own, on which any of its ports is served.
    pub addresses: Vec<IpAddr>,
    /// Addresses within private networks, on which its TCP ports without TLS are served.
    pub private_addresses: Vec<Ipv6Addr>,
    /// Where `min_machines_running` counts. None: everywhere.
    pub primary_region: Option<String>,
    /// The machines. Where two disagree about the options of a port, the first one decides: list
    /// the newest configuration first.
    pub machines: Vec<MachineRoute>,
}

/// A machine and its services.
#[derive(Debug, Clone, PartialEq)]
pub struct MachineRoute {
    /// The machine.
    pub id: MachineId,
    /// The worker that has it.
    pub worker: WorkerId,
    /// Its region.
    pub region: String,
    /// Its private address, which services listen on: IPv4 in the reference.
    pub address: IpAddr,
    /// What it does now.
    pub state: MachineState,
    /// Whether it has no VM yet, or none any more: connections to it lead nowhere.
    pub is_off: bool,
    /// Whether it is taken out of routing. It is not put to sleep either.
    pub cordoned: bool,
    /// Why it must not be put to sleep: a hold, a lease, an update, an exec session.
    pub hold: Option<String>,
    /// Until when it is leased: like a hold, as long as it lasts.
    pub leased_until: Option<SystemTime>,
    /// When its VM was booted: another VM has another time.
    pub booted_at: SystemTime,
    /// When it last came to run.
    pub started_at: SystemTime,
    /// Its services.
    pub services: Vec<ServiceRoute>,
}

/// A machine's state, as far as traffic cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineState {
    /// Runs.
    Started,
    /// Is on its way to run.
    Starting,
    /// Can be started by a request.
    Stopped,
    /// Can be resumed by a request.
    Suspended,
    /// Anything else: gets no traffic and is not started by it. Machines that were created and
    /// never started, and those with a schedule, belong here.
    Other,
}

impl MachineRoute {
    /// Whether it must not be put to sleep now.
    pub fn is_held(&self) -> bool {
        self.hold.is_some() || self.leased_until.is_some_and(|until| until > SystemTime::now())
    }
}

impl MachineState {
    /// Whether a request may start it.
    pub fn is_asleep(self) -> bool {
        matches!(self, Self::Stopped | Self::Suspended)
    }
}

/// One service of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceRoute {
    /// What it carries. Of a UDP service `autostart` does not count: datagrams start nothing.
    pub protocol: Protocol,
    /// The port in the machine.
    pub internal_port: u16,
    /// The ports it is published at. Those of UDP services have no handlers.
    pub ports: Vec<PortRoute>,
    /// How much it takes at once.
    pub concurrency: Concurrency,
    /// Whether a request starts the machine.
    pub autostart: bool,
    /// What an idle machine is put to.
    pub autostop: Autostop,
    /// Machines of the primary region that are not put to sleep.
    pub min_machines_running: u32,
    /// Puts the machine to sleep this long after its last stream ended, instead of by the periodic
    /// rule. Needs `autostop`.
    pub idle_timeout: Option<Duration>,
    /// How long open streams may go on once the periodic rule finds the machine to be in excess.
    /// None: a machine with open streams is never put to sleep.
    pub max_drain: Option<Duration>,
    /// Whether the checks that gate traffic pass; true when there are none. A machine that does
    /// not run and has checks must be given as false.
    pub healthy: bool,
    /// How long its checks wait after a start before they begin: so much longer a start may take.
    pub grace: Duration,
}

impl ServiceRoute {
    /// What tells it from other services of its machine.
    pub(crate) fn key(&self) -> ServiceKey {
        (self.protocol, self.internal_port)
    }
}

/// A service of a machine, and the same one of other machines of the app.
pub(crate) type ServiceKey = (Protocol, u16);

/// What a service carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Streams.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

/// An external port, or a range of them, and what is done with its traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct PortRoute {
    /// First port.
    pub start: u16,
    /// Last port; the same as `start` for one port.
    pub end: u16,
    /// What is done with its traffic.
    pub handlers: Handlers,
    /// Whether plain HTTP is redirected to HTTPS with 301.
    pub force_https: bool,
    /// Options of the `http` handler.
    pub http: HttpOptions,
    /// Options of the `tls` and `pg_tls` handlers.
    pub tls: TlsOptions,
}

/// Handlers of a port. None at all: bytes are passed on as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handlers {
    /// HTTP requests are read and sent on.
    pub http: bool,
    /// TLS ends at the proxy.
    pub tls: bool,
    /// Like `tls`, after the negotiation that PostgreSQL clients begin with.
    pub pg_tls: bool,
    /// Connections to the machine begin with a PROXY header.
    pub proxy_protocol: Option<ProxyProtocol>,
}

impl Handlers {
    /// Whether TLS ends at the proxy, so that it needs a certificate.
    pub(crate) fn ends_tls(self) -> bool {
        self.tls || self.pg_tls
    }
}

/// Versions of the PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// Options of the `http` handler.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HttpOptions {
    /// Whether the machine is spoken to in HTTP/2 without TLS, with prior knowledge.
    pub h2_backend: bool,
    /// Client connections over which nothing went for this long are closed.
    pub idle_timeout: Option<Duration>,
    /// How long a client may take to send a request's head. Applies where the port is known before
    /// the first request: addresses of the app's own, and TLS.
    pub headers_read_timeout: Option<Duration>,
    /// Changes to the heads of responses.
    pub response_headers: Vec<(HeaderName, HeaderChange)>,
    /// Whether `server`, `via` and `fly-request-id` are left out of responses.
    pub pristine: bool,
}

/// What is done with a field of a response.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderChange {
    /// It has these values, whatever the machine sent.
    Set(Vec<HeaderValue>),
    /// It is left out.
    Delete,
}

/// Options of the `tls` and `pg_tls` handlers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct TlsOptions {
    /// Protocols offered. Empty: `h2` and `http/1.1` for HTTP, none else.
    pub alpn: Vec<String>,
    /// Versions accepted. Empty: both.
    pub versions: Vec<TlsVersion>,
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// How much a service takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// What is counted.
    pub kind: ConcurrencyKind,
    /// From here on other machines of the region are preferred, and one more is started.
    pub soft_limit: u32,
    /// Never exceeded. None: no limit.
    pub hard_limit: Option<u32>,
}

impl Default for Concurrency {
    /// As in the reference: 20 connections, no hard limit.
    fn default() -> Self {
        Self { kind: ConcurrencyKind::Connections, soft_limit: 20, hard_limit: None }
    }
}

/// What a service's concurrency counts. For HTTP it is requests in progress either way, each of
/// which has a connection to the machine of its own unless that is HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConcurrencyKind {
    /// A connection to the machine serves one client connection.
    Connections,
    /// Connections to the machine are shared by all clients, and kept for some seconds.
    Requests,
}

/// What an idle machine is put to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autostop {
    /// Nothing: it goes on running.
    Off,
    /// Stopped.
    Stop,
    /// Suspended, or stopped where it can't be.
    Suspend,
}

impl ServiceRoute {
    /// Whether the periodic rule puts its machine to sleep.
    pub(crate) fn has_periodic_rule(&self) -> bool {
        self.autostop != Autostop::Off && self.idle_timeout.is_none()
    }

    /// After which time its machine is put to sleep, if after any.
    pub(crate) fn idle_rule(&self) -> Option<Duration> {
        self.idle_timeout.filter(|_| self.autostop != Autostop::Off)
    }
}

impl PortRoute {
    /// Whether it serves `port`.
    pub fn contains(&self, port: u16) -> bool {
        (self.start..=self.end).contains(&port)
    }
}
