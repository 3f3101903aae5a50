//! The log files as a whole.

use caddis_api::{EventId, UnixMillis};

use super::*;

fn machine() -> MachineId {
    MachineId::from_trusted("11112222333344")
}

fn write(logs: &Logs, boot: u64, sequence: u64, text: &str) {
    let (sender, receiver) = mpsc::channel();
    let record = (sequence, LogSource::Stdout, 5, 0, false);
    let text = Bytes::copy_from_slice(text.as_bytes());
    logs.append_record(&machine(), boot, record, &text, move || sender.send(()).unwrap());
    receiver.recv().unwrap();
}

fn messages(logs: &Logs, after: u64, limit: usize, newest: bool) -> Vec<String> {
    let until = *logs.position().borrow();
    let lines = logs
        .read(&machine(), &Selection { after, until, limit, newest, ..Selection::ALL })
        .unwrap();
    lines.into_iter().map(|line| line.message).collect()
}

#[test]
fn lines_come_back_in_order_and_a_position_splits_them() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    write(&logs, 7, 1, "one\ntwo\r\n");
    let position = *logs.position().borrow();
    write(&logs, 7, 2, "three");
    assert_eq!(messages(&logs, 0, 100, true), ["one", "two", "three"]);
    assert_eq!(messages(&logs, 0, 2, false), ["one", "two"]);
    assert_eq!(messages(&logs, 0, 2, true), ["two", "three"]);
    assert_eq!(messages(&logs, position, 100, false), ["three"]);
}

#[test]
fn a_long_line_is_cut_between_characters_and_each_piece_but_the_last_says_so() {
    let long = format!("a\nx{}\n", "日".repeat(MAX_LINE_BYTES));
    let pieces = split(long.as_bytes(), false);
    assert_eq!(pieces[0], ("a".to_owned(), false));
    let joined: String = pieces[1..].iter().map(|(piece, _)| piece.as_str()).collect();
    assert_eq!(joined, long[2..].trim_end());
    let partial: Vec<_> = pieces.iter().map(|(_, partial)| *partial).collect();
    assert_eq!(partial, [false, true, true, true, false]);
    assert_eq!(split(b"begun", true), [("begun".to_owned(), true)]);
    assert_eq!(split(b"\xff\n", false), [("\u{fffd}".to_owned(), false)]);
}

#[test]
fn a_new_process_knows_what_was_acknowledged_and_survives_half_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    write(&logs, 7, 3, "kept");
    let file = directory.path().join(machine().as_str()).join("000001.log");
    OpenOptions::new().append(true).open(file).unwrap().write_all(b"{\"n\":1,\"t").unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    assert_eq!(logs.acknowledged(&machine(), 7), 3);
    assert_eq!(logs.acknowledged(&machine(), 8), 0);
    write(&logs, 8, 1, "after");
    assert_eq!(messages(&logs, 0, 100, true), ["kept", "after"]);
}

#[test]
fn a_flood_is_bounded_and_the_newest_lines_stay() {
    let directory = tempfile::tempdir().unwrap();
    let limit = 512 * 1024;
    let logs = Logs::open(directory.path().to_owned(), limit).unwrap();
    for sequence in 1..=200 {
        write(&logs, 1, sequence, &"x".repeat(8000));
    }
    write(&logs, 1, 201, "last");
    let machine = directory.path().join(machine().as_str());
    let size: u64 =
        fs::read_dir(machine).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= limit + 64 * 1024, "{size}");
    assert_eq!(messages(&logs, 0, 1, true), ["last"]);
}

#[test]
fn going_on_from_any_line_gives_all_that_follow() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 2 << 20).unwrap();
    for sequence in 1..=300 {
        write(&logs, 1, sequence, &format!("{sequence} {}", "x".repeat(5000)));
    }
    let all = logs.read(&machine(), &Selection::ALL).unwrap();
    assert!(all.len() > 200, "{}", all.len());
    for (index, line) in all.iter().enumerate() {
        let rest =
            logs.read(&machine(), &Selection { after: line.number, ..Selection::ALL }).unwrap();
        assert_eq!(rest, all[index + 1..], "after line {index}");
    }
}

fn event(previous: Option<&MachineEvent>, timestamp: u64, message: &str) -> MachineEvent {
    let timestamp = UnixMillis::new(timestamp);
    MachineEvent {
        id: EventId::following(previous.map(|event| &event.id), timestamp),
        kind: "host_status".to_owned(),
        status: "started".to_owned(),
        source: "flyd".to_owned(),
        timestamp,
        request: None,
        details: Some(serde_json::json!({ "message": message })),
    }
}

#[test]
fn each_event_has_its_lines_once_whatever_was_written_before_a_kill() {
    let mut events: Vec<MachineEvent> = Vec::new();
    for number in 1..=5 {
        events.push(event(events.last(), host_now_ns() / 1_000_000, &number.to_string()));
    }
    for (written, flood) in [(0, 0), (1, 0), (2, 3), (4, 200), (5, 0)] {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::open(directory.path().to_owned(), 8 << 20).unwrap();
        logs.append_events(&machine(), &events[..written]);
        for sequence in 1..=flood {
            write(&logs, 1, sequence, &"x".repeat(8000));
        }
        drop(logs);
        for _ in 0..2 {
            let logs = Logs::open(directory.path().to_owned(), 8 << 20).unwrap();
            logs.catch_up(&machine(), events.clone());
            // Behind it in the queue.
            write(&logs, 2, 1, "x");
            let lines = messages(&logs, 0, usize::MAX, false);
            let ours: Vec<_> = lines.into_iter().filter(|line| !line.starts_with('x')).collect();
            assert_eq!(ours, ["1", "2", "3", "4", "5"], "{written} written, then {flood} records");
        }
    }
}

#[test]
fn what_was_rotated_away_or_written_by_an_older_release_is_not_told_again() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    let old = event(None, host_now_ns() / 1_000_000 - 60_000, "old");
    write(&logs, 1, 1, "line");
    drop(logs);
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    logs.catch_up(&machine(), vec![old]);
    write(&logs, 1, 2, "further");
    assert_eq!(messages(&logs, 0, 9, false), ["line", "further"]);
}

#[test]
fn lines_about_quiet_machines_hold_no_file_open() {
    let directory = tempfile::tempdir().unwrap();
    let (directory, segment_bytes) = (directory.path().to_owned(), 1 << 20);
    let mut writer =
        Writer { directory, segment_bytes, files: HashMap::new(), lost: HashMap::new(), last: 1 };
    let first = event(None, 5, "first");
    writer.tell(&machine(), std::slice::from_ref(&first), true).unwrap();
    assert!(writer.files.is_empty());
    let line = NewLine::of_record("stdout", 5, (1, 1), "x".to_owned());
    writer.append(&machine(), vec![line]).unwrap();
    let mut last = event(Some(&first), 6, "runs");
    writer.tell(&machine(), std::slice::from_ref(&last), true).unwrap();
    assert_eq!(writer.files.len(), 1, "its program writes");
    last = MachineEvent { status: "stopped".to_owned(), ..event(Some(&last), 7, "rests") };
    writer.tell(&machine(), &[last], true).unwrap();
    assert!(writer.files.is_empty());
}

#[test]
fn lines_are_selected_by_their_time() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    let before = host_now_ns();
    logs.append_events(&machine(), &[event(None, before / 1_000_000 + 1, "ours")]);
    write(&logs, 7, 1, "long ago");
    let messages = |selection: Selection| -> Vec<String> {
        logs.read(&machine(), &selection).unwrap().into_iter().map(|line| line.message).collect()
    };
    assert_eq!(messages(Selection { since_ns: before, ..Selection::ALL }), ["ours"]);
    assert_eq!(messages(Selection { until_ns: before - 1, ..Selection::ALL }), ["long ago"]);
}

#[test]
fn numbers_rise_although_the_clock_was_set_back() {
    let directory = tempfile::tempdir().unwrap();
    let of_machine = directory.path().join(machine().as_str());
    fs::create_dir_all(&of_machine).unwrap();
    let late = host_now_ns() + 3_600_000_000_000;
    let line = format!("{{\"n\":{late},\"t\":1,\"s\":\"stdout\",\"m\":\"before\"}}\n");
    fs::write(of_machine.join("000001.log"), line).unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    write(&logs, 7, 1, "after");
    let lines = logs.read(&machine(), &Selection { after: late, ..Selection::ALL }).unwrap();
    assert_eq!((lines[0].message.as_str(), lines[0].number), ("after", late + 1));
}

#[test]
fn lines_that_can_not_be_written_are_counted_and_their_number_is_told_when_it_works_again() {
    let directory = tempfile::tempdir().unwrap();
    let logs = Logs::open(directory.path().to_owned(), 1 << 20).unwrap();
    write(&logs, 7, 1, "one");
    logs.close(&machine());
    // Nothing can be written where a file is in the place of the machine's directory.
    let (here, away) = (directory.path().join(machine().as_str()), directory.path().join("away"));
    let (passed, closed) = mpsc::channel();
    let machine_of_none = MachineId::from_trusted("55556666777788");
    logs.append_record(
        &machine_of_none,
        1,
        (1, LogSource::Stdout, 5, 0, false),
        &Bytes::from_static(b"x"),
        move || {
            passed.send(()).unwrap();
        },
    );
    closed.recv().unwrap();
    fs::rename(&here, &away).unwrap();
    fs::write(&here, "").unwrap();
    write(&logs, 7, 2, "two\nthree");
    write(&logs, 7, 3, "four");
    fs::remove_file(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    write(&logs, 7, 4, "five");
    write(&logs, 7, 5, "six");
    let told = messages(&logs, 0, 100, true);
    assert_eq!(
        (told[0].as_str(), told[2..].join(" ").as_str(), told.len()),
        ("one", "five six", 4)
    );
    assert!(told[1].starts_with("3 lines were lost"), "{}", told[1]);
}
