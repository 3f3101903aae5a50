//! Connections that the kernel tracks on the host.

use std::{collections::HashSet, fs, io, net::IpAddr, str::FromStr as _};

use crate::{
    Network, NetworkError,
    netlink::{NESTED, Socket, attribute, find_attribute},
    network::blocking,
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// `IPCTNL_MSG_CT_GET_STATS_CPU`.
const STATISTICS: u16 = SUBSYSTEM | 4;
/// `CTA_STATS_DROP`.
const DROPPED: u16 = 10;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;

const ADDRESSES: u16 = 1;
/// Source and destination of each family.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];

/// Forgets the connections that machines have under egress addresses that are theirs no longer:
/// what is sent on them later is not translated to these any more. Blocks.
pub(crate) fn forget(pairs: &HashSet<(IpAddr, IpAddr)>) -> Result<(), NetworkError> {
    if pairs.is_empty() {
        return Ok(());
    }
    let failed = || NetworkError::io("cut the connections of an egress address");
    let mut socket = Socket::open().map_err(failed())?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut take = |body: &[u8]| {
            let address = |tuple, kinds| address(find_attribute(body.get(4..)?, tuple)?, kinds);
            let pair = (address(ORIGINAL, SOURCES), address(REPLY, DESTINATIONS));
            if let (Some(machine), Some(egress)) = pair
                && pairs.contains(&(machine, egress))
            {
                found.push((family as u8, selector(body)));
            }
        };
        socket.dump(GET, family as u8, &mut take).map_err(failed())?;
    }
    for (family, selector) in found {
        match socket.request(DELETE, family, &selector).map_err(failed())? {
            // It has ended meanwhile.
            0 | libc::ENOENT => {}
            code => return Err(failed()(io::Error::from_raw_os_error(code))),
        }
    }
    Ok(())
}

/// What names a connection.
fn selector(body: &[u8]) -> Vec<u8> {
    let attributes = body.get(4..).unwrap_or_default();
    [(ORIGINAL, NESTED), (ID, 0), (ZONE, 0)]
        .into_iter()
        .filter_map(|(kind, flag)| Some(attribute(kind | flag, find_attribute(attributes, kind)?)))
        .flatten()
        .collect()
}

fn address(tuple: &[u8], kinds: [u16; 2]) -> Option<IpAddr> {
    let addresses = find_attribute(tuple, ADDRESSES)?;
    let [v4, v6] = kinds.map(|kind| find_attribute(addresses, kind));
    match (v4, v6) {
        (Some(octets), _) => Some(IpAddr::from(*octets.first_chunk::<4>()?)),
        (_, Some(octets)) => Some(IpAddr::from(*octets.first_chunk::<16>()?)),
        _ => None,
    }
}

/// How full the tables are in which the kernel keeps the connections of machines, and what it has
/// dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tracked {
    /// Connections in the fuller table: that of the host, or of its machines.
    pub count: u64,
    /// Connections that a table may have: `net.netfilter.nf_conntrack_max`; 0 is any number.
    pub most: u64,
    /// Packets that the kernel has dropped since it could not track their connection, also for
    /// other reasons than a full table.
    pub dropped: u64,
}

impl Tracked {
    /// Whether new connections are dropped. The kernel makes room now and then, so that it is not
    /// quite full all the time.
    pub fn is_full(&self) -> bool {
        self.most > 0 && self.count >= self.most - self.most / 64
    }

    /// That of the namespace of the calling thread. Blocks.
    fn here() -> io::Result<Self> {
        let mut dropped = 0;
        let mut each = |body: &[u8]| {
            let attributes = body.get(4..).unwrap_or_default();
            if let Some(value) = find_attribute(attributes, DROPPED).and_then(<[u8]>::first_chunk) {
                dropped += u64::from(u32::from_be_bytes(*value));
            }
        };
        Socket::open()?.dump(STATISTICS, 0, &mut each)?;
        Ok(Self { count: setting("count")?, most: setting("max")?, dropped })
    }
}

/// A number that the kernel tells the calling thread.
fn setting(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))?;
    u64::from_str(text.trim()).map_err(io::Error::other)
}

impl Network {
    /// How full the tables are in which the kernel keeps the connections of machines. It tells of a
    /// full one by dropping packets only, so this is to be asked for.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub async fn tracked(&self) -> Result<Tracked, NetworkError> {
        let namespace = self.namespace.clone();
        blocking(move || {
            let failed = || NetworkError::io("ask for the connections that the kernel tracks");
            let host = Tracked::here().map_err(failed())?;
            let inner = namespace.run(Tracked::here).and_then(|told| told).map_err(failed())?;
            Ok(Tracked {
                count: host.count.max(inner.count),
                most: host.most,
                dropped: host.dropped + inner.dropped,
            })
        })
        .await
    }
}
