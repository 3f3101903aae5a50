//! Which IPv4 addresses machines have.

use std::path::Path;

use ipnet::Ipv4Net;

use crate::{NetworkError, forwarding, links::Links, state, uplink};

/// Key of the pool in the state file.
const POOL: &str = "ipv4_pool";
/// Pools to choose from are 10.201.0.0/16 and those behind it, which few networks use.
const POOLS: std::ops::RangeInclusive<u8> = 201..=254;

/// The pool that was given, or that was chosen before, or one that is free.
pub(crate) async fn choose(
    host: &Links,
    given: Option<Ipv4Net>,
    own: Option<u32>,
    state_file: &Path,
) -> Result<Ipv4Net, NetworkError> {
    let first = Ipv4Net::new_assert([10, *POOLS.start(), 0, 0].into(), 16);
    let mut state = state::read(state_file);
    let noted = state.get(POOL).and_then(|pool| pool.parse().ok());
    let mut note = |pool: Ipv4Net| {
        state.insert(POOL.to_owned(), pool.to_string());
        state::write(state_file, &state)
    };
    // An earlier release had the first of them, and noted other things only. Its machines have
    // addresses of that.
    let earlier = forwarding::is_noted(state_file).then_some(first);
    if let Some(pool) = given.or(noted).or(earlier) {
        // With or without the address of a host in it.
        let pool = pool.trunc();
        return match uplink::conflict(host, pool, own).await? {
            None => {
                if given.is_none() && noted != Some(pool) {
                    note(pool)?;
                }
                Ok(pool)
            }
            Some(link) => Err(NetworkError::PoolInUse { pool, link }),
        };
    }
    for second in POOLS {
        let pool = Ipv4Net::new_assert([10, second, 0, 0].into(), 16);
        if uplink::conflict(host, pool, own).await?.is_none() {
            note(pool)?;
            return Ok(pool);
        }
    }
    Err(NetworkError::PoolInUse {
        pool: first,
        link: "other links, as all ranges behind it".to_owned(),
    })
}
