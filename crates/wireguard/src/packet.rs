//! What the server reads and writes of packets within the tunnel, which are IPv6.

use std::net::Ipv6Addr;

const HEADER: usize = 40;
/// Next header of ICMPv6.
const ICMP: u8 = 58;
/// Messages of ICMPv6 below are errors (RFC 4443, section 2.1).
const FIRST_INFORMATIONAL: u8 = 128;
/// Errors quote as much of a packet as fits into this (RFC 4443, section 2.4).
const SMALLEST_MTU: usize = 1280;
const HOP_LIMIT: u8 = 64;

/// Who sends a packet, and to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    /// Bytes of the packet; what comes behind pads it.
    pub(crate) length: usize,
}

/// Why a packet can't be delivered: codes of "destination unreachable" (RFC 4443, section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// No peer has the address.
    NoRoute = 0,
    /// The peer has not connected yet, or does not answer any more.
    Address = 3,
}

/// None for what is not a whole IPv6 packet.
pub(crate) fn read(packet: &[u8]) -> Option<Header> {
    let header = packet.first_chunk::<HEADER>()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let length = HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let address = |at: usize| {
        header.get(at..)?.first_chunk::<16>().map(|bytes| Ipv6Addr::from_octets(*bytes))
    };
    let found = Header { source: address(8)?, destination: address(24)?, length };
    (length <= packet.len()).then_some(found)
}

/// The name server of a network as its peers see it: `::3` of the /48 that an address is in, as
/// with the reference. Errors about packets come from there, too.
pub fn name_server(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> 80 << 80 | 3)
}

/// Whether an address of a network is a machine's or the name server's. Machines have no address
/// in the first 2^33 subnets, where peers and services are.
pub(crate) fn is_reached_by_peers(address: Ipv6Addr) -> bool {
    let subnet = (address.to_bits() >> 16) as u64;
    subnet >= 1 << 33 || address == name_server(address)
}

/// The error that tells the sender of a packet that it can't be delivered; none where none may be
/// sent.
pub(crate) fn unreachable(packet: &[u8], reason: Unreachable) -> Option<Vec<u8>> {
    let header = read(packet)?;
    let is_error = packet.get(6) == Some(&ICMP)
        && packet.get(HEADER).is_none_or(|kind| *kind < FIRST_INFORMATIONAL);
    let source = header.source;
    if is_error || source.is_unspecified() || source.is_multicast() {
        return None;
    }
    let quoted = packet.get(..header.length.min(SMALLEST_MTU - HEADER - 8))?;
    let length = u16::try_from(8 + quoted.len()).ok()?;
    let from = name_server(header.destination);
    let mut message = vec![1, reason as u8, 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(quoted);
    let checksum = checksum(from, source, &message);
    message.get_mut(2..4)?.copy_from_slice(&checksum.to_be_bytes());

    let mut answer = vec![0x60, 0, 0, 0];
    answer.extend(length.to_be_bytes());
    answer.extend([ICMP, HOP_LIMIT]);
    answer.extend(from.octets());
    answer.extend(source.octets());
    answer.append(&mut message);
    Some(answer)
}

/// That of ICMPv6: over the addresses, the length and the message (RFC 8200, section 8.1).
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let pseudo = [&source.octets()[..], &destination.octets(), &length, &[0, 0, 0, ICMP]].concat();
    let pairs = pseudo.chunks(2).chain(message.chunks(2));
    let mut sum: u32 =
        pairs.map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// UDP from one to another, without a right checksum.
    pub(crate) fn packet(source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([17, 64]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(payload);
        packet
    }

    #[test]
    fn an_undeliverable_packet_is_answered_with_an_error_that_quotes_it() {
        let (from, to) = ("fdaa:1:2:3::2".parse().unwrap(), "fdaa:1:2::9:2".parse().unwrap());
        let sent = packet(from, to, &[7; 2000]);
        let error = unreachable(&sent, Unreachable::Address).unwrap();
        assert_eq!(error.len(), SMALLEST_MTU);
        let header = read(&error).unwrap();
        assert_eq!((header.source, header.destination), ("fdaa:1:2::3".parse().unwrap(), from));
        assert_eq!((error[HEADER], error[HEADER + 1]), (1, 3));
        assert_eq!(error[HEADER + 8..], sent[..SMALLEST_MTU - HEADER - 8]);
        // Over a message with its checksum the sum is nothing.
        assert_eq!(checksum(header.source, from, &error[HEADER..]), 0);
        assert_eq!(unreachable(&error, Unreachable::NoRoute), None, "no error about an error");
        let nobody = packet(Ipv6Addr::UNSPECIFIED, to, &[]);
        assert_eq!(unreachable(&nobody, Unreachable::NoRoute), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..99)) {
            if let Some(header) = read(&bytes) {
                prop_assert!(header.length <= bytes.len() && bytes[0] >> 4 == 6);
            }
            for reason in [Unreachable::NoRoute, Unreachable::Address] {
                let error = unreachable(&bytes, reason);
                prop_assert!(error.is_none_or(|error| read(&error).is_some()));
            }
        }
    }
}
