use std::{collections::HashMap, net::Ipv6Addr};

use hickory_proto::{
    op::{Edns, Query},
    rr::{DNSClass, Name, RData, RecordType},
};

use super::*;
use crate::{DnsQueries, Found, LONGEST_TEXT};

/// Names as a test gives them, for machines of `::1`.
#[derive(Debug)]
struct Given(HashMap<&'static str, Found>);

impl Names for Given {
    fn look_up(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        assert_eq!(source, Ipv6Addr::LOCALHOST);
        // The long labels that a test puts before a name do not count.
        let labels: Vec<_> = labels.iter().copied().filter(|label| label.len() < 63).collect();
        self.0.get(labels.join(".").as_str()).cloned().unwrap_or(Found::Nothing)
    }

    fn look_up_services(&self, source: Ipv6Addr, labels: &[&str]) -> Found {
        assert_eq!(source, Ipv6Addr::LOCALHOST);
        match labels {
            ["web"] => Found::Addresses(services()),
            _ => Found::Nothing,
        }
    }
}

fn services() -> Vec<Ipv6Addr> {
    vec!["fdaa:1:2:0:1::1".parse().unwrap()]
}

fn addresses(count: u16) -> Vec<Ipv6Addr> {
    (1..=count).map(|number| Ipv6Addr::new(0xfdaa, 1, 2, 0, 0, 0, number, 2)).collect()
}

pub(super) fn server() -> Arc<Server> {
    let names = HashMap::from([
        ("web", Found::Addresses(addresses(2))),
        ("many", Found::Addresses(addresses(3000))),
        ("idle", Found::Addresses(Vec::new())),
        ("vm.web", Found::Empty),
        ("vms.web", Found::Text("a ams,b ams".to_owned())),
        ("vms.many", Found::Text("x".repeat(LONGEST_TEXT))),
        ("early", Found::NotReady),
    ]);
    // Port 53 of a loopback address where nobody listens.
    let upstreams = vec!["127.250.250.250".parse().unwrap()];
    Arc::new(Server::new(Some(Arc::new(Given(names))), upstreams, Arc::default()))
}

pub(super) fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// A query with EDNS.
pub(super) fn extended(name: &str, kind: RecordType, payload: u16, version: u8) -> Message {
    let (mut message, mut edns) = (query(name, kind), Edns::new());
    edns.set_max_payload(payload).set_version(version);
    message.set_edns(edns);
    message
}

async fn answer_of(server: &Server, message: &Message, transport: Transport) -> Message {
    let question = message.to_vec().unwrap();
    let answer = match server.take(&question, Ipv6Addr::LOCALHOST.into(), transport) {
        Outcome::Ignored => panic!("no answer"),
        Outcome::Answered(answer) => answer,
        Outcome::Forwarded(message) => {
            server.forward(&question, &message, transport).await.unwrap()
        }
    };
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, 77);
    assert_eq!(answer.queries, message.queries[..1], "the query is repeated as it was");
    assert_eq!(answer.edns.is_some(), message.edns.is_some());
    assert!(answer.metadata.recursion_desired && answer.metadata.recursion_available);
    answer
}

async fn udp(message: &Message) -> Message {
    answer_of(&server(), message, Transport::Udp).await
}

pub(super) fn aaaa(answer: &Message) -> Vec<Ipv6Addr> {
    let address = |data: &RData| match data {
        RData::AAAA(address) => address.0,
        other => panic!("{other:?}"),
    };
    answer.answers.iter().map(|record| address(&record.data)).collect()
}

fn text(answer: &Message) -> String {
    match answer.answers.iter().map(|record| &record.data).collect::<Vec<_>>()[..] {
        [RData::TXT(text)] => String::from_utf8(text.txt_data.concat()).unwrap(),
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn queries_of_machines_are_counted_from_their_tap_to_its_end() {
    let server = server();
    let machine = Ipv6Addr::LOCALHOST;
    let ask = async |name| {
        answer_of(&server, &query(name, RecordType::AAAA), Transport::Udp).await;
        server.asked.of(machine)
    };
    assert_eq!(ask("web.internal.").await, DnsQueries::default(), "of no machine");
    server.asked.begin(machine);
    assert_eq!(ask("web.internal.").await, DnsQueries { asked: 1, forwarded: 0 });
    assert_eq!(ask("c2VjcmV0.example.").await, DnsQueries { asked: 2, forwarded: 1 });
    // A server that adopts it again goes on.
    server.asked.begin(machine);
    assert_eq!(ask("c2VjcmV0.example.").await, DnsQueries { asked: 3, forwarded: 2 });
    server.take(b"nonsense", machine.into(), Transport::Udp);
    assert_eq!(server.asked.of(machine).asked, 3);
    server.asked.end(machine);
    assert_eq!(server.asked.of(machine), DnsQueries::default());
}

#[tokio::test]
async fn records_are_answered_with_their_ttl_whatever_the_case_of_the_name() {
    for name in ["web.internal.", "WEB.Internal.", "wEb.INTERNAL."] {
        for kind in [RecordType::AAAA, RecordType::ANY] {
            let answer = udp(&query(name, kind)).await;
            assert_eq!(aaaa(&answer), addresses(2));
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.metadata.authoritative && !answer.metadata.truncation);
            assert!(answer.answers.iter().all(|record| record.ttl == 5), "{answer:?}");
            assert_eq!(answer.answers[0].name, Name::from_ascii(name).unwrap());
            assert!(answer.authorities.is_empty());
        }
    }
    for name in ["web.flycast.", "Web.FLYCAST."] {
        let answer = udp(&query(name, RecordType::AAAA)).await;
        assert_eq!((aaaa(&answer), answer.answers[0].ttl), (services(), 5));
        assert!(answer.metadata.authoritative);
    }
    let answer = udp(&query("vms.web.internal.", RecordType::TXT)).await;
    assert_eq!((text(&answer), answer.answers[0].ttl), ("a ams,b ams".to_owned(), 5));
}

#[tokio::test]
async fn what_is_not_there_is_denied_with_the_zone_for_one_second() {
    let (no_error, no_name) = (ResponseCode::NoError, ResponseCode::NXDomain);
    for (name, kind, code) in [
        ("web.internal.", RecordType::A, no_error),
        ("web.internal.", RecordType::TXT, no_error),
        ("idle.internal.", RecordType::AAAA, no_error),
        ("vm.web.internal.", RecordType::AAAA, no_error),
        ("vms.web.internal.", RecordType::AAAA, no_error),
        ("internal.", RecordType::AAAA, no_error),
        ("other.internal.", RecordType::AAAA, no_name),
        ("*.internal.", RecordType::SOA, no_name),
        ("web.flycast.", RecordType::A, no_error),
        ("flycast.", RecordType::AAAA, no_error),
        ("many.flycast.", RecordType::AAAA, no_name),
        ("vms.web.FLYCAST.", RecordType::TXT, no_name),
    ] {
        let answer = udp(&query(name, kind)).await;
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert!(answer.answers.is_empty() && answer.metadata.authoritative, "{name} {kind}");
        let [soa] = &answer.authorities[..] else { panic!("{name}: {answer:?}") };
        let RData::SOA(data) = &soa.data else { panic!("{name}: {answer:?}") };
        assert_eq!((soa.ttl, data.minimum), (1, 1));
        assert_eq!(
            soa.name.to_lowercase(),
            Name::from_ascii(name).unwrap().trim_to(1).to_lowercase()
        );
    }
    let mut binary = query("internal.", RecordType::AAAA);
    binary.queries[0].set_name(Name::from_labels([&[0xff][..], b"internal"]).unwrap());
    assert_eq!(udp(&binary).await.metadata.response_code, no_name);
    let answer = udp(&query("internal.", RecordType::SOA)).await;
    assert!(matches!(answer.answers[0].data, RData::SOA(_)) && answer.authorities.is_empty());
}

#[tokio::test]
async fn names_that_are_not_known_yet_and_dead_upstreams_are_a_failure() {
    for name in ["early.internal.", "example.com.", "notinternal.", "internal.example."] {
        let answer = udp(&query(name, RecordType::AAAA)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{name}");
        assert!(!answer.metadata.authoritative);
    }
}

#[tokio::test]
async fn without_names_none_exists_and_none_is_asked_of_others() {
    let server = Server::new(None, vec!["127.250.250.250".parse().unwrap()], Arc::default());
    for name in ["web.internal.", "web.flycast."] {
        let answer = answer_of(&server, &query(name, RecordType::AAAA), Transport::Udp).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
}

#[tokio::test]
async fn an_answer_over_udp_has_as_many_addresses_as_fit_and_says_that_there_are_more() {
    let (name, kind) = ("many.internal.", RecordType::AAAA);
    for (message, largest) in [
        (query(name, kind), 512),
        (extended(name, kind, 100, 0), 512),
        (extended(name, kind, 900, 0), 900),
        (extended(name, kind, 65_535, 0), 1232),
    ] {
        let answer = udp(&message).await;
        assert!(answer.metadata.truncation);
        let size = answer.to_vec().unwrap().len();
        // Another one would not fit, with or without EDNS.
        assert!(size <= largest && size + 28 + 11 > largest, "{size} of {largest}");
        assert_eq!(aaaa(&answer), addresses(3000)[..aaaa(&answer).len()]);
    }
    let answer = answer_of(&server(), &query(name, kind), Transport::Tcp).await;
    assert!(!answer.metadata.truncation, "there is nothing more to ask");
    assert!((1500..3000).contains(&answer.answers.len()), "{}", answer.answers.len());
    let long = format!("{}.many.internal.", vec!["a".repeat(63); 3].join("."));
    let answer = answer_of(&server(), &query(&long, kind), Transport::Tcp).await;
    assert!((200..300).contains(&answer.answers.len()), "{}", answer.answers.len());
}

#[tokio::test]
async fn a_text_is_answered_as_a_whole_or_not_at_all() {
    let message = extended("vms.many.internal.", RecordType::TXT, 65_535, 0);
    let answer = udp(&message).await;
    assert!(answer.metadata.truncation && answer.answers.is_empty());
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    let answer = answer_of(&server(), &message, Transport::Tcp).await;
    assert!(!answer.metadata.truncation);
    assert_eq!(text(&answer).len(), LONGEST_TEXT);
}

#[tokio::test]
async fn other_classes_other_operations_and_later_versions_of_edns_are_refused() {
    let mut other = query("web.internal.", RecordType::AAAA);
    other.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(udp(&other).await.metadata.response_code, ResponseCode::Refused);
    let later = extended("web.internal.", RecordType::AAAA, 1232, 1);
    let answer = udp(&later).await;
    // BADVERS, which is read as BADSIG: both are 16.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty());
    let mut notify = query("web.internal.", RecordType::AAAA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(udp(&notify).await.metadata.response_code, ResponseCode::NotImp);
    let mut two = query("web.internal.", RecordType::AAAA);
    two.add_query(two.queries[0].clone());
    assert_eq!(udp(&two).await.metadata.response_code, ResponseCode::NotImp);
}

#[tokio::test]
async fn what_is_no_query_gets_no_answer() {
    let client = IpAddr::from(Ipv6Addr::LOCALHOST);
    for junk in [&b""[..], b"x", &[0xff; 40]] {
        assert!(matches!(server().take(junk, client, Transport::Udp), Outcome::Ignored));
    }
    let answer = udp(&query("web.internal.", RecordType::AAAA)).await.to_vec().unwrap();
    assert!(matches!(server().take(&answer, client, Transport::Udp), Outcome::Ignored));
}

#[tokio::test]
async fn names_are_answered_over_udp_and_tcp_sockets() {
    let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let (udp, tcp) =
        (UdpSocket::bind(loopback).await.unwrap(), TcpListener::bind(loopback).await.unwrap());
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let (over_udp, over_tcp) = (server(), server());
    let serving = [
        tokio::spawn(async move { over_udp.serve_udp(Arc::new(udp)).await }),
        tokio::spawn(async move { over_tcp.serve_tcp(tcp).await }),
    ];

    let client = UdpSocket::bind(loopback).await.unwrap();
    client.connect(udp_address).await.unwrap();
    // Also behind one that gets no answer.
    client.send(b"junk").await.unwrap();
    client.send(&query("web.internal.", RecordType::AAAA).to_vec().unwrap()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(aaaa(&Message::from_vec(&buffer[..length]).unwrap()), addresses(2));

    // Several on one connection.
    let mut client = TcpStream::connect(tcp_address).await.unwrap();
    for (name, kind, count) in [
        ("many.internal.", RecordType::AAAA, 1500..3000),
        ("vms.many.internal.", RecordType::TXT, 1..2),
    ] {
        write_framed(&mut client, &query(name, kind).to_vec().unwrap()).await.unwrap();
        let answer = Message::from_vec(&read_framed(&mut client).await.unwrap()).unwrap();
        assert!(count.contains(&answer.answers.len()), "{name}: {}", answer.answers.len());
    }
    serving.iter().for_each(|task| task.abort());
}
