use proptest::prelude::*;

use super::*;

fn line(host: &str, place: u64, time: u64) -> LogEntry {
    serde_json::from_value(serde_json::json!({
        "id": format!("{host}-{place}"),
        "attributes": {
            "timestamp": format!("2026-01-01T00:00:00.{time:09}Z"),
            "message": format!("{host} {place}"),
            "level": "info",
            "instance": host,
            "region": "local",
            "meta": { "instance": host, "region": "local", "event": { "provider": "app" } },
        },
    }))
    .unwrap()
}

/// A page of a host as its worker gives it: what follows a place, or the newest.
fn part(lines: &[LogEntry], place: Option<&Part>, limit: usize) -> LogsReply {
    let number = |line: &LogEntry| position(line).unwrap().parse::<u64>().unwrap();
    let end = lines.last().map_or(0, number);
    let (data, next) = match place {
        Some(Part::After(after)) => {
            let after: u64 = after.parse().unwrap();
            let data: Vec<_> =
                lines.iter().filter(|line| number(line) > after).take(limit).cloned().collect();
            let next = data.last().filter(|_| data.len() == limit).map_or(end, number);
            (data, next)
        }
        _ => (lines[lines.len().saturating_sub(limit)..].to_vec(), end),
    };
    LogsReply { data, meta: LogsMeta { next_token: next.to_string() } }
}

fn worker(host: usize) -> WorkerId {
    WorkerId::from_trusted(format!("w{host}"))
}

proptest! {
    /// Whatever the hosts have written, in pages of any size, with a host away for some of them.
    #[test]
    fn every_line_comes_once_and_those_of_a_host_in_its_order(
        times in proptest::collection::vec(proptest::collection::vec(0_u64..50, 0..30), 1..4),
        limit in 1_usize..12,
        away in proptest::collection::vec(proptest::option::of(0_usize..4), 0..20),
    ) {
        let hosts: Vec<Vec<LogEntry>> = times
            .iter()
            .enumerate()
            .map(|(host, times)| {
                let place = |index: usize| index as u64 * 3 + 2;
                let line = |(index, time): (usize, &u64)| {
                    line(&format!("h{host}"), place(index), *time)
                };
                times.iter().enumerate().map(line).collect()
            })
            .collect();
        let mut parts: BTreeMap<_, _> =
            (0..hosts.len()).map(|host| (worker(host), Part::After("0".to_owned()))).collect();
        let mut given = Vec::new();
        let mut away = away.into_iter();
        loop {
            let missing = away.next().flatten();
            let pages: Vec<_> = (0..hosts.len())
                .filter(|host| Some(*host) != missing)
                .map(|host| (worker(host), part(&hosts[host], parts.get(&worker(host)), limit)))
                .collect();
            // What a client gives back.
            let token = Place::write(&parts);
            let read = Place::read("next_token", &token).unwrap();
            prop_assert_eq!(read, Place::Several(parts.clone()));
            let page = merge(&mut parts, pages, limit, false);
            prop_assert!(page.len() <= limit);
            if page.is_empty() && missing.is_none() {
                break;
            }
            given.extend(page);
        }
        for (host, lines) in hosts.iter().enumerate() {
            let name = format!("h{host}");
            let of_host = given.iter().filter(|line| line.attributes.instance == name);
            let of_host: Vec<_> = of_host.cloned().collect();
            prop_assert_eq!(&of_host, lines);
        }
    }
}

#[test]
fn a_first_page_has_the_newest_of_all_hosts_in_the_order_of_time() {
    let one: Vec<_> = (1..=5).map(|place| line("a", place, place * 10)).collect();
    let two: Vec<_> = (1..=5).map(|place| line("b", place, place * 10 + 5)).collect();
    let mut parts = BTreeMap::from([(worker(0), Part::Newest), (worker(1), Part::Newest)]);
    let pages = vec![(worker(0), part(&one, None, 4)), (worker(1), part(&two, None, 4))];
    let given = merge(&mut parts, pages, 4, true);
    let ids: Vec<_> = given.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(ids, ["a-4", "b-4", "a-5", "b-5"]);
    assert!(
        parts.values().all(|part| *part == Part::After("5".to_owned())),
        "nothing older comes later: {parts:?}"
    );
}

#[test]
fn a_place_of_one_log_is_of_the_first_host_and_one_that_is_none_is_refused() {
    let one = Place::read("next_token", "17").unwrap();
    assert_eq!(one.of(&worker(0), true), Part::After("17".to_owned()));
    assert_eq!(one.of(&worker(1), false), Part::After("0".to_owned()), "all of what it has is new");
    for text in ["hosts.", "hosts.%%", "hosts.bnVsbA"] {
        assert!(Place::read("next_token", text).is_err(), "{text}");
    }
}
