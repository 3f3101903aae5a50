//! Choosing addresses.

use std::net::Ipv4Addr;

use rand::Rng as _;

use crate::NetworkError;

/// A free address of the pool, `None` when all are taken. The first and last of the pool are never
/// given.
///
/// The search begins anywhere, so that an address is not soon used again by another machine.
pub fn allocate_ipv4(pool: ipnet::Ipv4Net, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    let first = u32::from(pool.network()) + 1;
    let count = u32::from(pool.broadcast()).checked_sub(first).filter(|count| *count > 0)?;
    let start = rand::rng().random_range(0..count);
    (0..count)
        .map(|step| Ipv4Addr::from(first + (start + step) % count))
        .find(|address| !taken(*address))
}

/// A random MAC address that belongs to no vendor and no group.
pub fn random_mac() -> String {
    let bytes: [u8; 5] = rand::rng().random();
    bytes.iter().fold("02".to_owned(), |text, byte| format!("{text}:{byte:02x}"))
}

/// The bytes of a MAC address.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let parse = || -> Option<[u8; 6]> {
        let parts = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2));
        parts.collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    parse().ok_or_else(|| NetworkError::Mac { address: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_pool_gives_each_of_its_addresses_once_and_then_none() {
        let pool = "10.0.0.0/29".parse().unwrap();
        let mut taken = HashSet::new();
        while let Some(address) = allocate_ipv4(pool, |address| taken.contains(&address)) {
            assert!(taken.insert(address) && pool.contains(&address));
        }
        assert_eq!(taken.len(), 6);
        assert!(
            !taken.contains(&Ipv4Addr::new(10, 0, 0, 0))
                && !taken.contains(&Ipv4Addr::new(10, 0, 0, 7))
        );
        for tiny in ["10.0.0.0/32", "10.0.0.0/31"] {
            assert_eq!(allocate_ipv4(tiny.parse().unwrap(), |_| false), None);
        }
    }

    #[test]
    fn mac_addresses_are_local_unicast_and_read_back() {
        let mac = random_mac();
        assert_eq!(parse_mac(&mac).unwrap()[0], 2);
        assert_ne!(mac, random_mac());
        for bad in ["", "02:00", "02:00:00:00:00:0g", "02:00:00:00:00:00:00", "2:0:0:0:0:0"] {
            assert!(parse_mac(bad).is_err());
        }
    }
}
