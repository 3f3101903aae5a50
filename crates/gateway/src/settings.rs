//! What a gateway is made of, and its limits and deadlines.

use std::{sync::Arc, time::Duration};

use caddis_api::{RegionCode, WorkerId, platform::Region};
use caddis_bus::{Bus, stream::Streams};
use caddis_catalog::Catalog;

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
        }
    }
}
