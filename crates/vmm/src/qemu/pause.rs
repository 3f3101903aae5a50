//! Hears from QEMU that a VM stands still because its disk can't be written (`werror=stop`), and
//! that it goes on.
//!
//! QEMU serves one connection at a time. The listener has it for as long as the VM lives, but gives
//! way to whoever wants to tell QEMU something ([`Orders::turn`]), connects anew afterwards, and
//! asks what came about meanwhile.
//!
//! Why a VM stands still is told by the event of the request that failed. So nobody but the
//! listener has such a VM go on, which hears why the request fails if it fails again. Where it has
//! missed the event it goes by the `io-status` of devices, until the VM is told to go on: that
//! stays at the first error of a device, since `cont` resets it only of devices whose block backend
//! has a name. It does not have the VM go on by itself to know better: on a full disk the VM would
//! take what others need to make room.

use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{Mutex, OwnedMutexGuard, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

use super::{launch::QMP_SOCKET, qmp};
use crate::{Pause, process::Process, socket};

/// Time after a start until it is listened to: what happens before is asked for then, and its start
/// is not held up.
pub(super) const AFTER_START: Duration = Duration::from_secs(2);
/// Wait before another try to connect, the least between two changes that are told, since a QEMU
/// that was taken over may say what it likes as often as it likes, and the time that a VM has to
/// stand still again before it is told that it goes on.
const BACKOFF: Duration = Duration::from_secs(1);
/// Patience with an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A line is never longer than this; the program at the other end has been taken over if it is.
const LONGEST_LINE: u64 = 1 << 20;

/// Who may tell QEMU anything: one at a time, and whoever wants to goes before the listener.
pub(super) struct Orders {
    turn: Arc<Mutex<()>>,
    wanted: watch::Sender<usize>,
    /// The listener is to have a VM go on that stands still because of its disk.
    retry: AtomicBool,
}

/// A turn; given back when it is dropped.
pub(super) struct Turn {
    orders: Arc<Orders>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.turn.take());
        self.orders.wanted.send_modify(|wanted| *wanted -= 1);
    }
}

impl Orders {
    pub(super) fn new() -> Arc<Self> {
        let (turn, wanted) = (Arc::default(), watch::Sender::new(0));
        Arc::new(Self { turn, wanted, retry: AtomicBool::new(false) })
    }

    /// Has the listener let a VM go on that stands still because of its disk, as soon as nobody has
    /// a turn.
    pub(super) fn retry(&self) {
        self.retry.store(true, Ordering::Relaxed);
    }

    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn {
        self.wanted.send_modify(|wanted| *wanted += 1);
        // From here on it is counted off again whenever this future is dropped.
        let mut turn = Turn { orders: self.clone(), turn: None };
        turn.turn = Some(self.turn.clone().lock_owned().await);
        turn
    }
}

/// Listens to the QEMU of the VM with this directory until it has ended. After that another one may
/// be there, which has one connection to give away as well.
pub(super) async fn listen(
    process: &Process,
    directory: PathBuf,
    orders: Arc<Orders>,
    pause: watch::Sender<Option<Pause>>,
) {
    let mut wanted = orders.wanted.subscribe();
    while process.check().is_ok() {
        if wanted.wait_for(|wanted| *wanted == 0).await.is_err() {
            return;
        }
        let turn = orders.turn.lock().await;
        let heard = tokio::select! {
            heard = hear(process, &directory, &orders.retry, &pause) => heard,
            _ = wanted.wait_for(|wanted| *wanted > 0) => Ok(()),
        };
        drop(turn);
        if let Err(error) = heard {
            // Its end is told elsewhere.
            debug!(directory = %directory.display(), %error, "can't listen for events of QEMU");
            sleep(BACKOFF).await;
        }
    }
}

/// Connects, asks how it is, and takes in what it says. Ends with an error only.
async fn hear(
    process: &Process,
    directory: &Path,
    retry: &AtomicBool,
    pause: &watch::Sender<Option<Pause>>,
) -> io::Result<()> {
    let stream = socket::connect(directory, QMP_SOCKET).await.map_err(io::Error::other)?;
    process.check()?;
    let mut lines = Lines { reader: BufReader::new(stream) };
    let mut heard = Heard { pause, resumed: None };
    // What it still has to say to an earlier client may come first.
    while timeout(ANSWER_TIMEOUT, lines.next()).await??.get("QMP").is_none() {}
    match lines.ask("qmp_capabilities", &mut heard).await {
        // An earlier client is gone that had sent the same, which was carried out only now.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
        negotiated => drop(negotiated?),
    }
    let status = lines.ask("query-status", &mut heard).await?;
    if status.get("status").and_then(Value::as_str) != Some(IO_ERROR) {
        heard.tell(None).await;
    } else if retry.load(Ordering::Relaxed) {
        lines.ask("cont", &mut heard).await?;
    } else if pause.borrow().is_none() {
        let disks = lines.ask("query-block", &mut heard).await?;
        let disks = disks.as_array().into_iter().flatten();
        let full = disks
            .filter_map(|disk| disk.get("io-status")?.as_str())
            .any(|status| status == "nospace");
        heard.tell(Some(if full { Pause::DiskFull } else { Pause::DiskError })).await;
    }
    // Only now: all of this may be given up for a turn, and begins anew then.
    retry.store(false, Ordering::Relaxed);
    loop {
        let mut next = pin!(lines.next());
        let line = loop {
            let resumed = heard.resumed;
            let goes_on = async {
                match resumed {
                    Some(resumed) => sleep_until(resumed + BACKOFF).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                line = &mut next => break line?,
                () = goes_on => heard.tell(None).await,
            }
        };
        heard.note(&line).await;
    }
}

/// QEMU's word for a VM that stands still because of its disk.
pub(super) const IO_ERROR: &str = "io-error";

/// What is known of a VM over one connection.
struct Heard<'a> {
    pause: &'a watch::Sender<Option<Pause>>,
    /// When it went on, if that is not told yet: it may stand still again at once.
    resumed: Option<Instant>,
}

impl Heard<'_> {
    /// Takes in an event.
    async fn note(&mut self, line: &Value) {
        match line.get("event").and_then(Value::as_str) {
            Some("BLOCK_IO_ERROR")
                if line.pointer("/data/action").and_then(Value::as_str) == Some("stop") =>
            {
                let full = line.pointer("/data/nospace").and_then(Value::as_bool) == Some(true);
                self.tell(Some(if full { Pause::DiskFull } else { Pause::DiskError })).await;
            }
            Some("RESUME") => self.resumed = Some(Instant::now()),
            _ => {}
        }
    }

    async fn tell(&mut self, now: Option<Pause>) {
        self.resumed = None;
        let changed = self.pause.send_if_modified(|pause| std::mem::replace(pause, now) != now);
        if changed {
            sleep(BACKOFF).await;
        }
    }
}

struct Lines {
    reader: BufReader<UnixStream>,
}

impl Lines {
    /// The answer to a command; events that come before are taken in.
    async fn ask(&mut self, command: &str, heard: &mut Heard<'_>) -> io::Result<Value> {
        let (text, id) = qmp::command(command, &json!({}));
        self.reader.get_mut().write_all(text.as_bytes()).await?;
        let answer = async {
            loop {
                let mut line = self.next().await?;
                if !qmp::answers(&line, &id) {
                    heard.note(&line).await;
                    continue;
                }
                if let Some(error) = line.get("error") {
                    let text = format!("{command}: {error}");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
                }
                if let Some(answer) = line.get_mut("return") {
                    return Ok(answer.take());
                }
            }
        };
        timeout(ANSWER_TIMEOUT, answer).await?
    }

    /// Not to be dropped halfway, unless the connection is.
    async fn next(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.reader).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(io::Error::other("QEMU ended"));
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}

/// Ends a task when it is dropped.
pub(super) struct Listener(tokio::task::JoinHandle<()>);

impl Listener {
    /// Has the QEMU of a VM listened to, from `after` on.
    pub(super) fn begin(
        process: Arc<Process>,
        directory: PathBuf,
        orders: Arc<Orders>,
        after: Duration,
    ) -> (Self, watch::Receiver<Option<Pause>>) {
        let (sender, pause) = watch::channel(None);
        let task = tokio::spawn(async move {
            sleep(after).await;
            listen(&process, directory, orders, sender.clone()).await;
            pending::<()>().await;
        });
        (Self(task), pause)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The other end of a connection.
    struct Played {
        stream: BufReader<UnixStream>,
    }

    impl Played {
        async fn accept(listener: &tokio::net::UnixListener) -> Self {
            let (stream, _) = listener.accept().await.unwrap();
            let mut played = Self { stream: BufReader::new(stream) };
            played.say("{\"QMP\": {}}").await;
            played.answer("qmp_capabilities", "{}").await;
            played
        }

        async fn say(&mut self, line: &str) {
            self.stream.get_mut().write_all(format!("{line}\n").as_bytes()).await.unwrap();
        }

        async fn answer(&mut self, command: &str, answer: &str) {
            let mut line = String::new();
            self.stream.read_line(&mut line).await.unwrap();
            assert!(line.contains(command), "{line}");
            let command: Value = serde_json::from_str(&line).unwrap();
            self.say(&format!("{{\"return\": {answer}, \"id\": {}}}", command["id"])).await;
        }

        async fn until_closed(&mut self) {
            let mut line = String::new();
            assert_eq!(self.stream.read_line(&mut line).await.unwrap_or(0), 0, "{line}");
        }
    }

    const FULL: &str = concat!(
        r#"{"event": "BLOCK_IO_ERROR", "data": "#,
        r#"{"action": "stop", "nospace": true, "operation": "write"}}"#
    );

    const ERROR: &str = concat!(
        r#"{"event": "BLOCK_IO_ERROR", "data": "#,
        r#"{"action": "stop", "nospace": false, "operation": "write"}}"#
    );

    #[tokio::test]
    async fn what_qemu_says_of_the_disk_is_heard_and_orders_go_first() {
        let directory = tempfile::tempdir().unwrap();
        let socket = socket::listen(directory.path(), QMP_SOCKET).unwrap();
        let socket = std::os::unix::net::UnixListener::from(socket);
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixListener::from_std(socket).unwrap();
        let orders = Orders::new();
        let (ours, path) = (Arc::new(qmp::ours()), directory.path().to_owned());
        let (_listener, mut pause) = Listener::begin(ours, path, orders.clone(), Duration::ZERO);

        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "running"}"#).await;
        qemu.say(r#"{"event": "BLOCK_IO_ERROR", "data": {"action": "report", "nospace": true}}"#)
            .await;
        qemu.say(FULL).await;
        qemu.say(r#"{"event": "STOP"}"#).await;
        pause.wait_for(|pause| *pause == Some(Pause::DiskFull)).await.unwrap();
        qemu.say(r#"{"event": "RESUME"}"#).await;
        pause.wait_for(Option::is_none).await.unwrap();

        // Somebody has something to tell it: QEMU has no other connection then.
        let turn = orders.turn().await;
        qemu.until_closed().await;
        drop(turn);
        // What came about meanwhile is asked for.
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "io-error"}"#).await;
        qemu.answer("query-block", r#"[{"io-status": "ok"}, {"io-status": "failed"}]"#).await;
        pause.wait_for(|pause| *pause == Some(Pause::DiskError)).await.unwrap();
        drop(qemu);
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "running"}"#).await;
        pause.wait_for(Option::is_none).await.unwrap();
        drop(qemu);
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "io-error"}"#).await;
        qemu.answer("query-block", r#"[{"io-status": "nospace"}]"#).await;
        pause.wait_for(|pause| *pause == Some(Pause::DiskFull)).await.unwrap();
        pause.borrow_and_update();

        // Another connection changes nothing of what is known, until somebody has it go on.
        drop(qemu);
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "io-error"}"#).await;
        let turn = orders.turn().await;
        orders.retry();
        qemu.until_closed().await;
        drop(turn);
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "io-error"}"#).await;
        qemu.answer("cont", "{}").await;
        // It fails again, so that it went on is no news.
        qemu.say(r#"{"event": "RESUME"}"#).await;
        qemu.say(ERROR).await;
        pause.changed().await.unwrap();
        assert_eq!(*pause.borrow_and_update(), Some(Pause::DiskError));
        drop(qemu);
        let mut qemu = Played::accept(&socket).await;
        qemu.answer("query-status", r#"{"status": "running"}"#).await;
        pause.wait_for(Option::is_none).await.unwrap();
    }

    /// The directory is the next VM's, whose one connection is not taken from those who start it.
    #[tokio::test]
    async fn a_vm_that_has_ended_is_listened_to_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let listen_there = || {
            let socket = socket::listen(directory.path(), QMP_SOCKET).unwrap();
            let socket = std::os::unix::net::UnixListener::from(socket);
            socket.set_nonblocking(true).unwrap();
            tokio::net::UnixListener::from_std(socket).unwrap()
        };
        let first = listen_there();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        let (sender, _pause) = watch::channel(None);
        let listening = listen(&process, directory.path().to_owned(), Orders::new(), sender);
        let ending = async {
            let mut qemu = Played::accept(&first).await;
            qemu.answer("query-status", r#"{"status": "running"}"#).await;
            child.kill().unwrap();
            child.wait().unwrap();
            let next = listen_there();
            drop((qemu, first));
            next
        };
        let both = async { tokio::join!(listening, ending).1 };
        let next = timeout(Duration::from_secs(60), both).await.expect("it ends");
        let (retry, (pause, _heard)) = (AtomicBool::new(false), watch::channel(None));
        let error = hear(&process, directory.path(), &retry, &pause).await.unwrap_err();
        assert!(error.to_string().contains("has ended"), "{error}");
        let connect = || qmp::Qmp::connect(&process, directory.path(), QMP_SOCKET);
        assert!(connect().err().unwrap().to_string().contains("has ended"));
        // These two have closed their connections.
        for _ in 0..2 {
            let (stream, _) = next.accept().await.unwrap();
            let mut said = String::new();
            assert_eq!(BufReader::new(stream).read_line(&mut said).await.unwrap(), 0, "{said}");
        }
    }

    #[tokio::test]
    async fn a_vm_that_was_stopped_on_purpose_is_not_held() {
        let (sender, pause) = watch::channel(None);
        let mut heard = Heard { pause: &sender, resumed: None };
        for line in
            [r#"{"event": "STOP"}"#, r#"{"event": "MIGRATION", "data": {"status": "setup"}}"#]
        {
            heard.note(&serde_json::from_str(line).unwrap()).await;
        }
        assert_eq!(*pause.borrow(), None);
    }
}
