//! Settings of a proxy.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::PrivateNetworks;

/// A page shown while a machine starts. See [`Config::placeholder`].
#[derive(Debug, Clone)]
pub struct Placeholder {
    /// The page, in HTML.
    pub html: Bytes,
    /// How long a start may take before the page is shown.
    pub after: Duration,
}

/// How often TLS handshakes may begin, for each range of source addresses (/24 of IPv4, /64 of
/// IPv6) and for each name.
#[derive(Debug, Clone)]
pub struct HandshakeLimit {
    /// In the long run.
    pub per_second: NonZeroU32,
    /// At once.
    pub burst: NonZeroU32,
    /// Whether those from the host itself are limited too.
    pub limits_loopback: bool,
}

impl Default for HandshakeLimit {
    fn default() -> Self {
        let (per_second, burst) = (NonZeroU32::new(100), NonZeroU32::new(200));
        Self {
            per_second: per_second.unwrap_or(NonZeroU32::MIN),
            burst: burst.unwrap_or(NonZeroU32::MIN),
            limits_loopback: false,
        }
    }
}

/// The least that a client has to take or to send while it is waited for. Not for WebSockets, other
/// upgrades and connections without HTTP.
#[derive(Debug, Clone)]
pub struct MinimumRate {
    /// How long the client may take over so many bytes.
    pub window: Duration,
    /// Bytes.
    pub bytes: u64,
}

impl Default for MinimumRate {
    fn default() -> Self {
        Self { window: Duration::from_secs(300), bytes: 300 << 10 }
    }
}

/// Settings of a proxy. All durations of waiting bound what a client can hold here.
#[derive(Debug, Clone)]
pub struct Config {
    /// The shared listener for HTTP, which serves each app's port 80. None: no such listener.
    pub http: Option<SocketAddr>,
    /// The shared listener for TLS, which serves each app's port 443. None: no such listener.
    pub https: Option<SocketAddr>,
    /// Shared addresses that something else may have: they are tried again until they are free,
    /// where others are an error at the start.
    pub may_be_taken: Vec<SocketAddr>,
    /// Where private addresses of apps are listened to. None: nowhere.
    pub private_networks: Option<Arc<dyn PrivateNetworks>>,
    /// Apps are `APP.DOMAIN` on the shared listeners.
    pub domain: String,
    /// The region of this proxy, whose machines are preferred.
    pub region: String,
    /// The version that `server` headers tell.
    pub version: String,
    /// How long a call to start a machine may take.
    pub wake_timeout: Duration,
    /// How long a started machine may take until its port accepts and its checks pass.
    pub ready_timeout: Duration,
    /// How long a request may wait for a machine that is at its hard limit.
    pub queue_timeout: Duration,
    /// How long a request may wait in all: for starts that fail one after the other, and the queue.
    pub hold_timeout: Duration,
    /// Requests and connections of one app that may wait for a machine at once. Beyond, they are
    /// refused with `retry-after`. Bodies are not read while they wait.
    pub max_waiting: u32,
    /// Connections of clients at once. Beyond, they are closed when they come.
    pub max_connections: usize,
    /// Connections at once to the addresses of one app's own, all of its ports together.
    pub max_connections_per_app: usize,
    /// How long no further machine is started after one was: it is given this time to help.
    pub recently_started: Duration,
    /// How often the periodic rule looks for a machine in excess, one for each app, service and
    /// region.
    pub autostop_interval: Duration,
    /// Time for connecting to a machine.
    pub connect_timeout: Duration,
    /// Unused connections to machines are kept this long: less than what servers commonly keep.
    pub pool_idle: Duration,
    /// How long a client may take to send a request's head, or stay without a request.
    pub headers_read_timeout: Duration,
    /// An HTTP/1 connection of a client without a request for so long gives up its buffers until
    /// the next one.
    pub park_after: Duration,
    /// The least that a client has to take of its responses while more is there for it: whoever
    /// takes less is cut off, as the machine would be kept awake. Time in which it is the machine
    /// that has nothing to say does not count.
    pub download_limit: MinimumRate,
    /// The least that a client has to send of a request's body while the machine waits for it:
    /// whoever sends less is answered 408. Time in which the machine reads none of it does not
    /// count.
    pub upload_limit: MinimumRate,
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// How often TLS handshakes may begin.
    pub handshake_limit: HandshakeLimit,
    /// Bytes of a request's body that are kept in memory to send it again.
    pub replay_memory: usize,
    /// Bytes of it that are kept in a file; a longer body is not sent again.
    pub replay_disk: u64,
    /// Ports of one app that are listened to on each of its addresses; more are not.
    pub max_ports_per_address: usize,
    /// How long a client of a UDP service is kept at its machine without a datagram.
    pub udp_idle: Duration,
    /// Clients of an app's UDP services at once, each of which has a socket to its machine. Beyond,
    /// datagrams are dropped.
    pub max_udp_flows: usize,
    /// A page shown to browsers while a machine starts.
    pub placeholder: Option<Placeholder>,
    /// Whether nothing is accepted before [`crate::Proxy::routes_are_known`]: who connects waits,
    /// instead of being told that there is no such app.
    pub awaits_routes: bool,
    /// Whether each request is reported to [`crate::Journal::access`].
    pub access_log: bool,
    /// Whether a client that closes its side while its request waits for a machine is taken to have
    /// left. One that shuts its writing side only, and still reads, can't be told from it.
    pub half_close_leaves: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            http: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
            https: Some(SocketAddr::from(([127, 0, 0, 1], 8443))),
            may_be_taken: Vec::new(),
            private_networks: None,
            domain: "localhost".to_owned(),
            region: "local".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            wake_timeout: Duration::from_secs(60),
            ready_timeout: Duration::from_secs(30),
            queue_timeout: Duration::from_secs(30),
            hold_timeout: Duration::from_secs(90),
            max_waiting: 10_000,
            max_connections: 16_384,
            max_connections_per_app: 2048,
            recently_started: Duration::from_secs(20),
            autostop_interval: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            pool_idle: Duration::from_secs(4),
            headers_read_timeout: Duration::from_secs(60),
            park_after: Duration::from_secs(2),
            download_limit: MinimumRate::default(),
            upload_limit: MinimumRate::default(),
            handshake_timeout: Duration::from_secs(10),
            handshake_limit: HandshakeLimit::default(),
            replay_memory: 1 << 20,
            replay_disk: 10 << 20,
            max_ports_per_address: 1024,
            udp_idle: Duration::from_secs(60),
            max_udp_flows: 4096,
            placeholder: None,
            awaits_routes: false,
            access_log: false,
            half_close_leaves: true,
        }
    }
}
