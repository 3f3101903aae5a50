//! Over real sockets; the host is the test.

use std::{os::unix::fs::FileTypeExt as _, path::PathBuf};

use super::*;

struct Stand {
    _directory: tempfile::TempDir,
    path: PathBuf,
    api: Api,
    now: Instant,
}

impl Stand {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = bind(&directory.path().join(".fly")).unwrap();
        let path = directory.path().join(".fly/api");
        Self { _directory: directory, path, api: Api::new(listener), now: Instant::now() }
    }

    fn client(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn pump(&mut self) -> Vec<Ask> {
        self.api.wake();
        self.api.pump(self.now, |_| Ok(()))
    }
}

/// Status line and body, once the other end has closed.
fn answer(mut stream: UnixStream) -> (String, Value) {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    assert_eq!(length.parse::<usize>().unwrap(), body.len());
    (head.lines().next().unwrap().to_owned(), serde_json::from_str(body).unwrap())
}

const PUT: &str = "PUT /hold?ttl=300 HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_hold_is_asked_of_the_host_and_its_answer_passed_on() {
    let mut stand = Stand::new();
    let (put, refused) = (stand.client(PUT), stand.client(PUT));
    let release = stand.client("DELETE /hold HTTP/1.1\r\n\r\n");
    let asks = stand.pump();
    assert_eq!(
        asks.iter().map(|ask| ask.ttl_seconds).collect::<Vec<_>>(),
        [Some(300), Some(300), None]
    );
    stand.api.answer(asks[0].id, Ok(Some("then".to_owned())));
    stand.api.answer(asks[1].id, Err((412, "no".to_owned())));
    stand.api.answer(asks[2].id, Ok(None));
    // Nobody waits for this one.
    stand.api.answer(77, Ok(None));
    assert_eq!(stand.pump(), []);
    assert_eq!(answer(put), ("HTTP/1.1 200 OK".to_owned(), json!({ "until": "then" })));
    let (status, body) = answer(refused);
    assert_eq!(
        (status.as_str(), body),
        ("HTTP/1.1 412 Precondition Failed", json!({ "error": "no" }))
    );
    assert_eq!(answer(release).1, json!({ "ok": true }));
    assert_eq!(stand.api.deadline(), None, "all are gone");
}

#[test]
fn a_request_may_come_in_pieces_and_a_wrong_one_never_reaches_the_host() {
    let mut stand = Stand::new();
    let mut slow = stand.client("PUT /hold?t");
    assert_eq!(stand.pump(), []);
    slow.write_all(b"tl=5 HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stand.pump()[0].ttl_seconds, Some(5));
    let wrong = stand.client("GET /v1/apps HTTP/1.1\r\n\r\n");
    let with_body = stand.client("PUT /hold?ttl=1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert_eq!(stand.pump(), []);
    assert!(answer(wrong).0.contains("404"));
    assert!(answer(with_body).0.contains("413"), "what it sent beyond is read");
}

#[test]
fn who_says_nothing_or_too_much_is_cut_off_and_others_are_served() {
    let mut stand = Stand::new();
    let silent: Vec<_> = (0..MOST_CLIENTS).map(|_| stand.client("")).collect();
    let next = stand.client(PUT);
    assert_eq!(stand.pump(), [], "all places are taken");
    stand.now = stand.api.deadline().unwrap();
    let asks = stand.api.pump(stand.now, |_| Ok(()));
    assert_eq!(asks.len(), 1, "their time is over");
    stand.api.answer(asks[0].id, Ok(None));
    stand.pump();
    assert!(answer(next).0.contains("200"));
    drop(silent);
    let large = stand.client(&format!("PUT /{} HTTP/1.1\r\n", "x".repeat(MAX_HEAD)));
    assert_eq!(stand.pump(), []);
    assert!(answer(large).0.contains("431"));
    drop(stand.client("PUT /ho"));
    assert_eq!(stand.pump(), []);
    assert_eq!(stand.api.deadline(), None, "who hung up is forgotten");
}

#[test]
fn of_a_crowd_so_many_are_taken_within_a_time_and_the_others_later() {
    let (most, _) = MOST_TAKEN;
    let mut stand = Stand::new();
    let crowd: Vec<_> = (0..most + 5).map(|_| stand.client("GET / HTTP/1.1\r\n\r\n")).collect();
    let answered = || {
        let is_answered = |stream: &&UnixStream| {
            stream.set_nonblocking(true).unwrap();
            let mut stream = *stream;
            stream.read(&mut [0; 1]).is_ok()
        };
        crowd.iter().filter(is_answered).count()
    };
    for _ in 0..3 {
        assert_eq!(stand.pump(), []);
    }
    assert_eq!(answered(), most);
    stand.now = stand.api.deadline().unwrap();
    // Nothing else tells of those who wait.
    assert_eq!(stand.api.pump(stand.now, |_| Ok(())), []);
    assert_eq!(answered(), most + 5);
    assert_eq!(stand.api.deadline(), None);
}

#[test]
fn the_socket_takes_the_place_of_what_the_image_has_and_is_for_every_user() {
    let directory = tempfile::tempdir().unwrap();
    let fly = directory.path().join(".fly");
    fs::create_dir(&fly).unwrap();
    fs::write(fly.join("api"), "a file of the image").unwrap();
    drop(bind(&fly).unwrap());
    let _again = bind(&fly).unwrap();
    let made = fs::metadata(fly.join("api")).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(made.permissions().mode() & 0o777, 0o666);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(bind(&file).unwrap_err().contains("no directory"));
}
