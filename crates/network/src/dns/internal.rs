//! Answers for the names that only this server knows: those of machines, below `internal.`, and of
//! services in private networks, below `flycast.`.
//!
//! A query of one of them is never asked of others. Names that don't exist, and types that a name
//! does not have, are answered with the SOA record of the zone (RFC 2308).

use std::net::{IpAddr, Ipv6Addr};

use hickory_proto::{
    ProtoError,
    op::{Edns, Message, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{AAAA, SOA, TXT},
    },
};

use super::{Transport, response};
use crate::{Found, Names};

/// Seconds for which what a name has may be kept, as in the reference.
const TTL: u32 = 5;
/// Seconds for which it may be kept that a name has nothing: short, so that a client that asked
/// before a machine was started soon learns of it.
const NEGATIVE_TTL: u32 = 1;
/// The zone of machines.
const INTERNAL: &str = "internal";
/// The zone of services in private networks.
const FLYCAST: &str = "flycast";
/// Largest answer over UDP, bytes: fits into one packet on each link that IPv6 allows.
const LARGEST_UDP: u16 = 1232;
/// Bytes of a message beside its records and the labels of the name that was asked for: header, end
/// of the name, type and class, and the record of EDNS.
const FRAME: usize = 12 + 1 + 4 + 11;
/// Bytes of an AAAA record beside its name.
const AAAA_RECORD: usize = 26;
/// Bytes of a name that refers to that in the query.
const REFERENCE: usize = 2;
/// Longest string of a TXT record, bytes.
const LONGEST_STRING: usize = 255;

/// Whether a name is of a zone that is answered here.
pub(super) fn is_internal(name: &Name) -> bool {
    let last = name.iter().next_back().unwrap_or_default();
    [INTERNAL, FLYCAST].iter().any(|zone| last.eq_ignore_ascii_case(zone.as_bytes()))
}

/// The answer to a query of a name for which [`is_internal`] holds; `None` when it can't be
/// written.
pub(super) fn answer(
    names: Option<&dyn Names>,
    source: IpAddr,
    message: &Message,
    query: &Query,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut reply = response(message, ResponseCode::NoError);
    let edns = message.edns.as_ref();
    if edns.is_some() {
        let mut own = Edns::new();
        own.set_max_payload(LARGEST_UDP);
        reply.set_edns(own);
    }
    if edns.is_some_and(|edns| edns.version() > 0) {
        reply.metadata.response_code = ResponseCode::BADVERS;
    } else if query.query_class() == DNSClass::IN {
        let room = match transport {
            Transport::Udp => message.max_payload().min(LARGEST_UDP),
            Transport::Tcp => u16::MAX,
        };
        fill(&mut reply, names, source, query, (room.into(), transport)).ok()?;
    } else {
        reply.metadata.response_code = ResponseCode::Refused;
    }
    reply.to_vec().ok()
}

/// Puts in what there is, within the room that the client has for it, bytes.
fn fill(
    reply: &mut Message,
    names: Option<&dyn Names>,
    source: IpAddr,
    query: &Query,
    (room, transport): (usize, Transport),
) -> Result<(), ProtoError> {
    reply.metadata.authoritative = true;
    let (name, kind) = (query.name(), query.query_type());
    let asks_for = |of: RecordType| kind == of || kind == RecordType::ANY;
    let room = room.saturating_sub(FRAME + name.len());
    match find(names, source, name) {
        Found::NotReady => {
            reply.metadata.authoritative = false;
            reply.metadata.response_code = ResponseCode::ServFail;
        }
        Found::Addresses(addresses) if asks_for(RecordType::AAAA) && !addresses.is_empty() => {
            let owner = match transport {
                Transport::Udp => REFERENCE,
                // The encoder spells the names of all but the first out.
                Transport::Tcp => name.len() + 1,
            };
            let fitting = room / (AAAA_RECORD + owner);
            // Over TCP there is no more to ask for: any of so many will do.
            reply.metadata.truncation = transport == Transport::Udp && addresses.len() > fitting;
            let record =
                |address| Record::from_rdata(name.clone(), TTL, RData::AAAA(AAAA(address)));
            reply.answers.extend(addresses.into_iter().take(fitting).map(record));
        }
        Found::Text(text) if asks_for(RecordType::TXT) && !text.is_empty() => {
            let strings: Vec<_> = text.as_bytes().chunks(LONGEST_STRING).collect();
            if text.len() + strings.len() + 12 > room {
                reply.metadata.truncation = true;
            } else {
                let data = RData::TXT(TXT::from_bytes(strings));
                reply.answers.push(Record::from_rdata(name.clone(), TTL, data));
            }
        }
        found => {
            let zone = name.trim_to(1);
            let soa = soa(&zone)?;
            if found == Found::Nothing {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            if name.iter().count() == 1 && asks_for(RecordType::SOA) {
                reply.answers.push(soa);
            } else {
                reply.authorities.push(soa);
            }
        }
    }
    Ok(())
}

fn find(names: Option<&dyn Names>, source: IpAddr, name: &Name) -> Found {
    let source = match source {
        IpAddr::V6(source) => source,
        IpAddr::V4(source) => source.to_ipv6_mapped(),
    };
    look_up(names, source, name).unwrap_or(Found::Nothing)
}

/// `None` for a name that nothing can have: one that isn't text.
fn look_up(names: Option<&dyn Names>, source: Ipv6Addr, name: &Name) -> Option<Found> {
    let labels = name.iter().map(|label| std::str::from_utf8(label).ok());
    let labels: Vec<_> =
        labels.map(|label| Some(label?.to_ascii_lowercase())).collect::<Option<_>>()?;
    let (zone, labels) = labels.split_last()?;
    if labels.is_empty() {
        return Some(Found::Empty);
    }
    let labels: Vec<_> = labels.iter().map(String::as_str).collect();
    Some(match zone.as_str() {
        INTERNAL => names?.look_up(source, &labels),
        _ => names?.look_up_services(source, &labels),
    })
}

/// What says how long it may be kept that something is not there.
fn soa(zone: &Name) -> Result<Record, ProtoError> {
    let server = Name::from_labels(["ns"])?.append_domain(zone)?;
    let contact = Name::from_labels(["hostmaster"])?.append_domain(zone)?;
    // No other server copies the zone: its number and intervals mean nothing.
    let (serial, interval) = (1, 3600);
    let data = SOA::new(server, contact, serial, interval, interval, interval, NEGATIVE_TTL);
    Ok(Record::from_rdata(zone.clone(), NEGATIVE_TTL, RData::SOA(data)))
}
