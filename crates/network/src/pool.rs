//! Which IPv4 addresses machines have.

use std::path::Path;

use ipnet::Ipv4Net;

use crate::{NetworkError, forwarding, links::Links, state, uplink};

/// Key of the pool in the state file.
const POOL: &str = "ipv4_pool";
/// Pools to choose from are 10.201.0.0/16 and those behind it, which few networks use.
const POOLS: std::ops::RangeInclusive<u8> = 201..=254;

/// The pool that was given, or that was chosen before, or one that is free, which is noted.
pub(crate) async fn choose(
    host: &Links,
    given: Option<Ipv4Net>,
    own: Option<u32>,
    state_file: &Path,
) -> Result<Ipv4Net, NetworkError> {
    let pool = find(host, given, own, state_file).await?;
    let mut state = state::read(state_file);
    let text = pool.to_string();
    if given.is_none() && state.get(POOL) != Some(&text) {
        state.insert(POOL.to_owned(), text);
        state::write(state_file, &state)?;
    }
    Ok(pool)
}

/// The same, but nothing is noted.
pub(crate) async fn find(
    host: &Links,
    given: Option<Ipv4Net>,
    own: Option<u32>,
    state_file: &Path,
) -> Result<Ipv4Net, NetworkError> {
    let first = Ipv4Net::new_assert([10, *POOLS.start(), 0, 0].into(), 16);
    let noted = state::read(state_file).get(POOL).and_then(|pool| pool.parse().ok());
    // An earlier release had the first of them, and noted other things only. Its machines have
    // addresses of that.
    let earlier = forwarding::is_noted(state_file).then_some(first);
    if let Some(pool) = given.or(noted).or(earlier) {
        // With or without the address of a host in it.
        let pool = pool.trunc();
        return match uplink::conflict(host, pool, own).await? {
            None => Ok(pool),
            Some(link) => Err(NetworkError::PoolInUse { pool, link }),
        };
    }
    for second in POOLS {
        let pool = Ipv4Net::new_assert([10, second, 0, 0].into(), 16);
        if uplink::conflict(host, pool, own).await?.is_none() {
            return Ok(pool);
        }
    }
    Err(NetworkError::PoolInUse {
        pool: first,
        link: "other links, as all ranges behind it".to_owned(),
    })
}
