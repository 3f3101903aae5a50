//! The least a name server can do: one name, one address (RFC 1035 §4).

use std::net::Ipv4Addr;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;

/// The answer to a query: `address` for the A record of `name`, nothing for its other types,
/// NXDOMAIN for other names. `None` when it is no query.
pub(crate) fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let (asked, end) = read_name(query)?;
    let kind = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
    let question = query.get(HEADER..end + 4)?;
    let known = asked.eq_ignore_ascii_case(name);
    let has_answer = known && kind == TYPE_A;

    let mut reply = query.get(..2)?.to_vec();
    // Response, recursion desired and available; response code 3 is "no such name".
    reply.extend([0x81, if known { 0x80 } else { 0x83 }]);
    for count in [1u16, u16::from(has_answer), 0, 0] {
        reply.extend(count.to_be_bytes());
    }
    reply.extend(question);
    if has_answer {
        // Pointer to the question's name, type A, class IN, one minute, four bytes.
        reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

/// The first question's name and where it ends.
fn read_name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).into_owned());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        query
    }

    #[test]
    fn knows_its_name_and_denies_others() {
        let address = Ipv4Addr::new(198, 51, 100, 1);
        let reply = answer(&query("peer.test"), "peer.test", address).unwrap();
        assert_eq!(reply[..4], [0xab, 0xcd, 0x81, 0x80]);
        assert_eq!(reply[reply.len() - 4..], address.octets());
        let reply = answer(&query("other.test"), "peer.test", address).unwrap();
        assert_eq!(reply[2..8], [0x81, 0x83, 0, 1, 0, 0]);
        assert_eq!(answer(b"nonsense", "peer.test", address), None);
    }
}
