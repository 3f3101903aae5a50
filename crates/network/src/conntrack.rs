//! Connections that the kernel tracks on the host.

use std::{collections::HashSet, io, net::IpAddr};

use crate::{
    NetworkError,
    netlink::{NESTED, Socket, attribute, find_attribute},
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;

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
