//! Services, balancing, wake and sleep: the data plane of an installation's HTTP, TCP and UDP
//! traffic.
//!
//! ```text
//!  client ─▶ Listeners ─▶ app by Host, SNI or address ─▶ service by port ─▶ choice ─▶ machine
//!                                                                            │  ▲
//!                                     none is running, or all are at their   ▼  │
//!                                     soft limit                            wake (one at a time)
//!  Table ◀─ apply(app, routes)        last stream ends ─▶ idle timer ─▶ drain ─▶ sleep
//! ```
//! What serves knows nothing of the view, the catalog or the bus: it is given each app's routes as
//! [`AppRoutes`], starts and stops machines through [`Machines`] and reports to a [`Journal`]. What
//! is between them and the rest of an installation: [`feed`], [`Workers`], [`AppLog`].
#![forbid(unsafe_code)]

mod admission;
mod app;
mod app_log;
mod autostop;
mod certificates;
mod choice;
mod config;
mod connection;
mod connections;
mod core;
mod counters;
mod error;
pub mod feed;
mod forward;
mod handshakes;
mod headers;
mod listeners;
mod machine;
mod machines;
mod pool;
mod private;
mod proxy;
mod rare;
mod replay_body;
mod request_guard;
mod request_head;
mod routes;
mod select;
mod serving;
mod slow_client;
mod socket;
mod startup;
mod table;
mod tcp;
mod translate;
mod udp;
mod wake;
mod websocket;
mod workers;

pub use app_log::{AppLog, AppLogWriter};
pub use config::{Config, HandshakeLimit, MinimumRate, Placeholder};
pub use counters::{Activity, AppCounters, ConnectionCounters, Decision, MachineCounters};
pub use error::{ErrorCode, ProxyError, WakeError};
pub use listeners::ListenerStatus;
pub use machines::{AccessRecord, Journal, Machines, Sleep};
pub use private::{PrivateClient, PrivateNetworks};
pub use proxy::{Proxy, StartError};
pub use routes::{
    AppName, AppRoutes, Autostop, Concurrency, ConcurrencyKind, Handlers, HeaderChange,
    HttpOptions, MachineRoute, MachineState, PortRoute, Protocol, ProxyProtocol, ServiceRoute,
    TlsOptions, TlsVersion,
};
pub use table::Table;
pub use workers::Workers;
