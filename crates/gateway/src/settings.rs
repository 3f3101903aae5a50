//! What a gateway is made of, and its limits and deadlines.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use caddis_api::{
    RegionCode, UnixMillis, WorkerId, app::AppUrls, platform::Region, traffic::AppTraffic,
};
use caddis_bus::{Bus, stream::Streams};
use caddis_catalog::{AddressPool, Catalog};
use ipnet::IpNet;

/// What a gateway is made of.
pub struct GatewayParts {
    /// Reaches workers.
    pub bus: Arc<dyn Bus>,
    /// Reaches the stream endpoints of workers.
    pub streams: Arc<dyn Streams>,
    /// Unique facts.
    pub catalog: Catalog,
    /// The region this gateway is in.
    pub region: RegionCode,
    /// All regions. `capacity` is filled in when asked for.
    pub regions: Vec<Region>,
    /// Workers known from the start, whose machines the first requests wait for; others become
    /// known by announcing themselves.
    pub workers: Vec<WorkerId>,
    /// Limits and deadlines.
    pub settings: Settings,
}

/// Limits and deadlines of a gateway.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Largest request body but for uploads, bytes.
    pub max_body_bytes: usize,
    /// Largest image archive, bytes.
    pub max_upload_bytes: u64,
    /// Time a client has to send a request's head, and an idle connection is kept.
    pub head_timeout: Duration,
    /// Time a client has to send a request's body; of an upload, the longest it may send nothing.
    pub body_timeout: Duration,
    /// Most connections. Where all have a request in progress, new ones wait; else the one idle
    /// longest makes room.
    pub max_connections: usize,
    /// How long a new connection waits for room before it is told that there is none.
    pub place_timeout: Duration,
    /// Time requests in progress have to end when the server stops.
    pub drain_timeout: Duration,
    /// How long a worker may take to accept a machine; it resolves the image's manifest meanwhile.
    /// Asked twice.
    pub create_deadline: Duration,
    /// How long a worker may take to answer anything else. Asked twice.
    pub request_deadline: Duration,
    /// How long a host may say nothing before it is suspected; they announce themselves each
    /// second.
    pub suspected_after: Duration,
    /// How long before it is unreachable.
    pub unreachable_after: Duration,
    /// How long destroyed machines are shown.
    pub destroyed_retention: Duration,
    /// The reference's rate limits times this; 0 for none.
    pub rate_limit: f64,
    /// How services of apps are reached.
    pub traffic: TrafficSettings,
    /// Who serves WireGuard peers; nobody where none listens.
    pub wireguard: Option<Arc<dyn WireGuardInfo>>,
}

/// How services of apps are reached: what clients are told, and what apps may have.
#[derive(Debug, Clone)]
pub struct TrafficSettings {
    /// The listeners that all apps share; `None` where there are none.
    pub listeners: Option<SharedListeners>,
    /// Prefixes of the addresses that apps may have as their own.
    pub public_addresses: Vec<IpNet>,
    /// Addresses within them that are not given, beside those of the listeners.
    pub reserved: Vec<IpAddr>,
    /// Prefixes of egress addresses, which connections of machines come from.
    pub egress_addresses: Vec<IpNet>,
    /// Addresses within them that are not given: the host has them.
    pub reserved_egress: Vec<IpAddr>,
    /// Who knows of the traffic of machines; nobody where no proxy runs.
    pub info: Option<Arc<dyn TrafficInfo>>,
}

/// Knows of WireGuard peers: who listens for them.
pub trait WireGuardInfo: fmt::Debug + Send + Sync {
    /// The server's public key, in base64.
    fn public_key(&self) -> String;

    /// Host and port that peers send to.
    fn endpoint(&self) -> String;

    /// How the peer with this public key is; `None` of one that is not known yet.
    fn status(&self, key: &str) -> Option<WireGuardStatus>;
}

/// What is known of a WireGuard peer since the server was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireGuardStatus {
    /// Where it was last heard.
    pub endpoint: Option<SocketAddr>,
    /// When its last handshake was.
    pub last_handshake_at: Option<UnixMillis>,
    /// Bytes of packets that came from it.
    pub received_bytes: u64,
    /// Bytes of packets that were sent to it.
    pub sent_bytes: u64,
    /// Packets from it that were dropped.
    pub refused_packets: u64,
}

/// Knows of the traffic of machines: the proxy.
pub trait TrafficInfo: fmt::Debug + Send + Sync {
    /// What is known of an app; `None` of one whose machines have no services.
    fn traffic(&self, app: &str) -> Option<AppTraffic>;

    /// What keeps services from answering, for people.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The listeners that all apps share, as clients reach them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedListeners {
    /// Apps are `APP.DOMAIN`.
    pub domain: String,
    /// Stands for port 80.
    pub http: SocketAddr,
    /// Stands for port 443.
    pub https: SocketAddr,
}

impl SharedListeners {
    /// Where an app's services on ports 80 and 443 answer.
    pub(crate) fn urls(&self, app: &str) -> AppUrls {
        let hostname = format!("{app}.{}", self.domain);
        let url = |scheme: &str, port: u16, usual: u16| match port == usual {
            true => format!("{scheme}://{hostname}"),
            false => format!("{scheme}://{hostname}:{port}"),
        };
        AppUrls {
            http: url("http", self.http.port(), 80),
            https: url("https", self.https.port(), 443),
            hostname,
        }
    }
}

impl TrafficSettings {
    /// IPv4 addresses that apps may have as their own.
    pub(crate) fn pool_v4(&self) -> AddressPool {
        self.pool(|prefix| matches!(prefix, IpNet::V4(_)))
    }

    /// IPv6 addresses that apps may have as their own.
    pub(crate) fn pool_v6(&self) -> AddressPool {
        self.pool(|prefix| matches!(prefix, IpNet::V6(_)))
    }

    fn pool(&self, is_wanted: impl Fn(&IpNet) -> bool) -> AddressPool {
        let listeners = self.listeners.iter();
        let shared = listeners.flat_map(|listeners| [listeners.http.ip(), listeners.https.ip()]);
        AddressPool {
            prefixes: self.public_addresses.iter().copied().filter(is_wanted).collect(),
            reserved: shared.chain(self.reserved.iter().copied()).collect(),
        }
    }

    /// Egress addresses, IPv4 and IPv6.
    pub(crate) fn egress_pools(&self) -> (AddressPool, AddressPool) {
        let pool = |is_v4: bool| {
            let all = self.egress_addresses.iter();
            AddressPool {
                prefixes: all.filter(|it| it.addr().is_ipv4() == is_v4).copied().collect(),
                reserved: self.reserved_egress.clone(),
            }
        };
        (pool(true), pool(false))
    }

    /// The address of the shared listeners, if they have one of IPv4.
    pub(crate) fn shared_v4(&self) -> Option<Ipv4Addr> {
        match self.listeners.as_ref()?.http.ip() {
            IpAddr::V4(ip) if !ip.is_unspecified() => Some(ip),
            _ => None,
        }
    }
}

impl Default for TrafficSettings {
    /// Reached on the host alone.
    fn default() -> Self {
        let loopback = Ipv4Addr::LOCALHOST;
        Self {
            listeners: Some(SharedListeners {
                domain: "localhost".to_owned(),
                http: (loopback, 8080).into(),
                https: (loopback, 8443).into(),
            }),
            public_addresses: vec![default_public_addresses()],
            reserved: Vec::new(),
            egress_addresses: Vec::new(),
            reserved_egress: Vec::new(),
            info: None,
        }
    }
}

/// Addresses that apps may have as their own unless told otherwise: 127.64.0.0/16, which answers
/// on the host alone.
pub fn default_public_addresses() -> IpNet {
    // Its length is one that a prefix can have.
    IpNet::new_assert(Ipv4Addr::new(127, 64, 0, 0).into(), 16)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_body_bytes: 5 << 20,
            max_upload_bytes: 64 << 30,
            head_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            max_connections: 4096,
            place_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(10),
            create_deadline: Duration::from_secs(60),
            request_deadline: Duration::from_secs(15),
            suspected_after: Duration::from_secs(3),
            unreachable_after: Duration::from_secs(10),
            destroyed_retention: Duration::from_secs(7 * 24 * 3600),
            rate_limit: 0.0,
            traffic: TrafficSettings::default(),
            wireguard: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_the_port_where_it_is_not_the_usual_one() {
        let mut listeners = TrafficSettings::default().listeners.unwrap();
        let urls = listeners.urls("hello");
        assert_eq!(
            (urls.http.as_str(), urls.https.as_str()),
            ("http://hello.localhost:8080", "https://hello.localhost:8443")
        );
        listeners = SharedListeners {
            domain: "example.com".to_owned(),
            http: "192.0.2.1:80".parse().unwrap(),
            https: "192.0.2.1:443".parse().unwrap(),
        };
        let urls = listeners.urls("hello");
        assert_eq!(
            (urls.http.as_str(), urls.https.as_str(), urls.hostname.as_str()),
            ("http://hello.example.com", "https://hello.example.com", "hello.example.com")
        );
    }

    #[test]
    fn the_addresses_of_the_listeners_are_shared_and_not_given() {
        let mut traffic = TrafficSettings {
            public_addresses: vec![
                "192.0.2.0/24".parse().unwrap(),
                "2001:db8::/64".parse().unwrap(),
            ],
            ..TrafficSettings::default()
        };
        assert_eq!(traffic.shared_v4(), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(traffic.pool_v4().prefixes, traffic.public_addresses[..1]);
        assert_eq!(traffic.pool_v6().prefixes, traffic.public_addresses[1..]);
        let listeners = traffic.listeners.as_mut().unwrap();
        listeners.http = "192.0.2.1:80".parse().unwrap();
        assert!(!traffic.pool_v4().has("192.0.2.1".parse().unwrap()));
        assert!(traffic.pool_v4().has("192.0.2.2".parse().unwrap()));
        traffic.listeners.as_mut().unwrap().http = "0.0.0.0:80".parse().unwrap();
        assert_eq!(traffic.shared_v4(), None);
        traffic.listeners = None;
        assert_eq!(traffic.shared_v4(), None);
    }
}
