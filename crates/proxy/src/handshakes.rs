//! How often TLS handshakes may begin, for a range of source addresses and for a name: they cost
//! more than what asks for them.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
};

use governor::{Quota, RateLimiter, clock::DefaultClock, state::keyed::HashMapStateStore};

use crate::{ErrorCode, config::HandshakeLimit, error::Failure};

/// Ranges or names that are counted at once. Beyond, further ones are not limited.
const MOST: usize = 1 << 16;

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// Handshakes of late.
#[derive(Debug)]
pub(crate) struct Handshakes {
    limits_loopback: bool,
    ranges: Limiter<IpAddr>,
    names: Limiter<String>,
}

impl Handshakes {
    pub(crate) fn new(limit: &HandshakeLimit) -> Self {
        let quota = Quota::per_second(limit.per_second).allow_burst(limit.burst);
        Self {
            limits_loopback: limit.limits_loopback,
            ranges: RateLimiter::hashmap(quota),
            names: RateLimiter::hashmap(quota),
        }
    }

    /// Counts a handshake from an address. The error is PT01.
    pub(crate) fn begin(&self, source: IpAddr) -> Result<(), Failure> {
        let range = range(source);
        if self.is_free(source) || take(&self.ranges, &range) {
            return Ok(());
        }
        let text = format!("too many TLS handshakes from the range of {source}");
        Err(Failure::new(ErrorCode::PT01, text))
    }

    /// Counts a handshake for a name. The error is PT02.
    pub(crate) fn name(&self, source: IpAddr, name: &str) -> Result<(), Failure> {
        let name = name.to_ascii_lowercase();
        if self.is_free(source) || take(&self.names, &name) {
            return Ok(());
        }
        Err(Failure::new(ErrorCode::PT02, format!("too many TLS handshakes for {name}")))
    }

    fn is_free(&self, source: IpAddr) -> bool {
        !self.limits_loopback && source.to_canonical().is_loopback()
    }
}

fn take<K: Hash + Eq + Clone>(limiter: &Limiter<K>, key: &K) -> bool {
    if limiter.len() >= MOST {
        limiter.retain_recent();
        if limiter.len() >= MOST {
            return true;
        }
    }
    limiter.check_key(key).is_ok()
}

/// The first address of a source's range: /24 of IPv4, /64 of IPv6.
fn range(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn handshakes(limits_loopback: bool) -> Handshakes {
        let (per_second, burst) = (NonZeroU32::MIN, NonZeroU32::new(2).unwrap());
        // So slow that none is given back while a test runs.
        let quota = Quota::per_hour(per_second).allow_burst(burst);
        let (ranges, names) = (RateLimiter::hashmap(quota), RateLimiter::hashmap(quota));
        Handshakes { limits_loopback, ranges, names }
    }

    fn code(result: Result<(), Failure>) -> Option<ErrorCode> {
        result.err().map(|failure| failure.code)
    }

    #[test]
    fn handshakes_of_a_range_are_limited_together() {
        let of = |one: &Handshakes, source: &str| code(one.begin(source.parse().unwrap()));
        for (first, second, third, other) in [
            ("192.0.2.1", "192.0.2.2", "::ffff:192.0.2.255", "192.0.3.1"),
            ("2001:db8::1", "2001:db8::2", "2001:db8::ffff:0:0:1", "2001:db8:0:1::1"),
        ] {
            let one = handshakes(false);
            assert_eq!((of(&one, first), of(&one, second)), (None, None));
            assert_eq!(of(&one, third), Some(ErrorCode::PT01));
            assert_eq!(of(&one, other), None);
        }
    }

    #[test]
    fn handshakes_for_a_name_are_limited_from_wherever_they_come() {
        let one = handshakes(false);
        let of = |source: [u8; 4], name| code(one.name(IpAddr::from(source), name));
        assert_eq!(of([192, 0, 2, 1], "a.example"), None);
        assert_eq!(of([192, 0, 3, 1], "A.example"), None);
        assert_eq!(of([192, 0, 4, 1], "a.example"), Some(ErrorCode::PT02));
        assert_eq!(of([192, 0, 4, 1], "b.example"), None);
    }

    #[test]
    fn loopback_is_limited_only_where_that_is_set() {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        for (is_limited, expected) in [(false, None), (true, Some(ErrorCode::PT01))] {
            let one = handshakes(is_limited);
            let last = (0..3).map(|_| code(one.begin(loopback))).last();
            assert_eq!(last, Some(expected));
        }
    }

    #[test]
    fn no_more_ranges_than_the_bound_are_kept() {
        let one = handshakes(false);
        for number in 0..MOST as u32 + 10 {
            assert_eq!(code(one.begin(IpAddr::from((number << 8).to_be_bytes()))), None);
        }
        assert_eq!(one.ranges.len(), MOST);
    }
}
