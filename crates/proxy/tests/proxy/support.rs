//! A proxy with fake machines, whose services are fake upstreams on loopback addresses of their
//! own.

use std::{
    collections::HashMap,
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use caddis_api::{MachineId, WorkerId};
use caddis_proxy::*;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Every wait in a test ends by then.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The port of services in machines.
pub const PORT: u16 = 8080;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A loopback address that no other test has.
pub fn address() -> IpAddr {
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = std::process::id().to_be_bytes();
    IpAddr::from([127, 100 + (process[3] & 63), number[2].wrapping_add(process[2]), number[3]])
}

/// Ends the test when something does not come about.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come about in time"),
    }
}

/// Waits for something that nothing tells of.
pub async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    in_time(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

type WakeFuture = Pin<Box<dyn Future<Output = Result<(), WakeError>> + Send>>;
type OnWake = Box<dyn Fn() -> WakeFuture + Send + Sync>;

/// Machines that start and stop by what tests say.
#[derive(Default)]
pub struct FakeMachines {
    on_wake: Mutex<HashMap<MachineId, OnWake>>,
    wakes: Mutex<Vec<MachineId>>,
    sleeps: watch::Sender<Vec<(MachineId, Sleep)>>,
    /// What a machine's connections were when it was put to sleep.
    pub before_sleep: Mutex<Option<Box<dyn Fn() + Send + Sync>>>,
    /// Going to sleep takes until this is so.
    pub until_slept: Mutex<Option<watch::Receiver<bool>>>,
    /// The answer to whether one may sleep takes until this is so.
    pub until_answered: Mutex<Option<watch::Receiver<bool>>>,
    /// How often it was asked whether one may sleep.
    pub asked: AtomicU32,
    /// Whether their hosts keep them awake.
    pub stay_awake: AtomicBool,
}

impl FakeMachines {
    pub fn on_wake<F>(&self, machine: &str, wake: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<(), WakeError>> + Send + 'static,
    {
        self.on_wake.lock().insert(id(machine), Box::new(move || Box::pin(wake())));
    }

    pub fn wakes(&self) -> Vec<String> {
        self.wakes.lock().iter().map(ToString::to_string).collect()
    }

    pub fn sleeps(&self) -> Vec<(String, Sleep)> {
        self.sleeps.borrow().iter().map(|(id, how)| (id.to_string(), *how)).collect()
    }

    pub async fn until_asleep(&self, count: usize) {
        let mut sleeps = self.sleeps.subscribe();
        in_time("a machine's going to sleep", sleeps.wait_for(|all| all.len() >= count))
            .await
            .unwrap();
    }
}

#[async_trait]
impl Machines for FakeMachines {
    async fn wake(&self, machine: &MachineId, _: &WorkerId) -> Result<(), WakeError> {
        self.wakes.lock().push(machine.clone());
        let wake = self.on_wake.lock().get(machine).map(|wake| wake());
        match wake {
            Some(wake) => wake.await,
            None => Err(WakeError::Gone("unknown to the test".to_owned())),
        }
    }

    async fn may_sleep(&self, _: &MachineId, _: &WorkerId, _: Sleep) -> Result<(), WakeError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = self.until_answered.lock().clone();
        if let Some(mut answer) = answer {
            answer.wait_for(|is_so| *is_so).await.unwrap();
        }
        match self.stay_awake.load(Ordering::SeqCst) {
            true => Err(WakeError::Conflict("a session is open in it".to_owned())),
            false => Ok(()),
        }
    }

    async fn sleep(
        &self,
        machine: &MachineId,
        _: &WorkerId,
        how: Sleep,
        _: &str,
    ) -> Result<(), WakeError> {
        if let Some(check) = &*self.before_sleep.lock() {
            check();
        }
        let slept = self.until_slept.lock().clone();
        if let Some(mut slept) = slept {
            slept.wait_for(|is_so| *is_so).await.unwrap();
        }
        self.sleeps.send_modify(|all| all.push((machine.clone(), how)));
        if self.stay_awake.load(Ordering::SeqCst) {
            return Err(WakeError::Conflict("a session is open in it".to_owned()));
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct FakeJournal {
    pub errors: Mutex<Vec<ProxyError>>,
    pub accesses: Mutex<Vec<AccessRecord>>,
}

impl Journal for FakeJournal {
    fn proxy_error(&self, error: ProxyError) {
        self.errors.lock().push(error);
    }

    fn access(&self, record: AccessRecord) {
        self.accesses.lock().push(record);
    }
}

impl FakeJournal {
    pub fn codes(&self) -> Vec<ErrorCode> {
        self.errors.lock().iter().filter_map(|error| error.code).collect()
    }
}

pub struct World {
    pub proxy: Proxy,
    pub machines: Arc<FakeMachines>,
    pub journal: Arc<FakeJournal>,
    pub http: SocketAddr,
    pub https: SocketAddr,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Config { http: Some(any), https: Some(any), ..Config::default() };
        change(&mut config);
        let machines = Arc::new(FakeMachines::default());
        let journal = Arc::new(FakeJournal::default());
        let proxy = Proxy::start(config, machines.clone(), journal.clone()).unwrap();
        let http = proxy.http_address().unwrap();
        let https = proxy.https_address().unwrap();
        Self { proxy, machines, journal, http, https }
    }

    pub fn apply(&self, machines: Vec<MachineRoute>) {
        self.proxy.apply("app", Some(AppRoutes { machines, ..AppRoutes::default() }));
    }

    /// A GET of the app with a connection of its own.
    pub async fn get(&self, path: &str) -> Answer {
        send(self.http, &get(path)).await
    }

    pub fn waiting(&self) -> u32 {
        self.proxy.counters("app").unwrap().waiting
    }

    pub fn open_streams(&self, machine: &str) -> u32 {
        self.proxy.activity("app", &id(machine)).unwrap().open_streams
    }
}

pub fn id(machine: &str) -> MachineId {
    MachineId::from_trusted(machine)
}

/// A machine with one service for HTTP, TLS not ended, at the external ports 80 and 443.
pub fn machine(name: &str, address: IpAddr, state: MachineState) -> MachineRoute {
    MachineRoute {
        id: id(name),
        worker: WorkerId::from_trusted("worker"),
        region: "local".to_owned(),
        address,
        state,
        cordoned: false,
        hold: None,
        is_off: false,
        leased_until: None,
        booted_at: SystemTime::UNIX_EPOCH,
        started_at: SystemTime::UNIX_EPOCH,
        services: vec![service(vec![
            port(80, Handlers { http: true, ..Handlers::default() }),
            port(443, Handlers { http: true, tls: true, ..Handlers::default() }),
        ])],
    }
}

pub fn service(ports: Vec<PortRoute>) -> ServiceRoute {
    ServiceRoute {
        protocol: Protocol::Tcp,
        internal_port: PORT,
        ports,
        concurrency: Concurrency { kind: ConcurrencyKind::Requests, ..Concurrency::default() },
        autostart: true,
        autostop: Autostop::Off,
        min_machines_running: 0,
        idle_timeout: None,
        max_drain: None,
        healthy: true,
        grace: Duration::ZERO,
    }
}

pub fn port(number: u16, handlers: Handlers) -> PortRoute {
    PortRoute {
        start: number,
        end: number,
        handlers,
        force_https: false,
        http: HttpOptions::default(),
        tls: TlsOptions::default(),
    }
}

pub fn started(name: &str, address: IpAddr) -> MachineRoute {
    machine(name, address, MachineState::Started)
}

pub fn stopped(name: &str, address: IpAddr) -> MachineRoute {
    machine(name, address, MachineState::Stopped)
}

/// A fake service of a machine: each connection is handled by `serve`, which is told its number.
pub struct Upstream {
    pub address: IpAddr,
    connections: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Upstream {
    pub async fn serve<F>(serve: impl Fn(TcpStream, u32) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve_at(address(), serve).await
    }

    pub async fn serve_at<F>(
        address: IpAddr,
        serve: impl Fn(TcpStream, u32) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::serve_on(SocketAddr::new(address, PORT), serve).await
    }

    pub async fn serve_on<F>(
        place: SocketAddr,
        serve: impl Fn(TcpStream, u32) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(place).await.unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut handlers = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                handlers.spawn(serve(stream, number));
            }
        });
        Self { address: place.ip(), connections, task }
    }

    /// Answers each request with 200 and its name, and tells what it got.
    pub async fn http(name: &'static str) -> Self {
        Self::http_at(address(), name).await
    }

    pub async fn http_at(address: IpAddr, name: &'static str) -> Self {
        Self::serve_at(address, move |mut stream, _| async move {
            while let Some(request) = read_request(&mut stream).await {
                let body = format!("{name} got:\n{}", request.text());
                if respond(&mut stream, &body).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn respond(stream: &mut TcpStream, body: &str) -> std::io::Result<()> {
    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await
}

/// A request as an upstream got it.
pub struct Request {
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn text(&self) -> String {
        format!("{}{}", self.head, String::from_utf8_lossy(&self.body))
    }
}

/// The head of a message, and what came after it.
pub async fn read_head(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut piece = [0; 16 << 10];
    loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Some((String::from_utf8_lossy(&bytes).to_ascii_lowercase(), rest));
        }
        match stream.read(&mut piece).await {
            Ok(length @ 1..) => bytes.extend_from_slice(&piece[..length]),
            _ => return None,
        }
    }
}

/// A whole request.
pub async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let (head, mut body) = read_head(stream).await?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let is_chunked = head.contains("transfer-encoding: chunked");
    let is_whole = |body: &[u8]| match length {
        Some(length) => body.len() >= length.parse::<usize>().unwrap(),
        None => !is_chunked || body.ends_with(b"0\r\n\r\n"),
    };
    let mut piece = vec![0; 64 << 10];
    while !is_whole(&body) {
        match stream.read(&mut piece).await {
            Ok(length @ 1..) => body.extend_from_slice(&piece[..length]),
            _ => return None,
        }
    }
    Some(Request { head, body })
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n")
}

/// A response as a client got it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
    }
}

/// Sends bytes on a connection of their own, and reads until its end.
pub async fn send(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    read_answer(&mut stream).await
}

/// What comes until the end of a connection.
pub async fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // A reset after the answer does not matter.
    let _ = in_time("the answer's end", stream.read_to_end(&mut bytes)).await;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

/// Whether a body over HTTP/2 ends, with nothing more than an empty frame.
pub async fn ends(body: &mut h2::RecvStream) -> bool {
    loop {
        match in_time("the end", body.data()).await {
            None => return true,
            Some(Ok(data)) if data.is_empty() => {}
            Some(_) => return false,
        }
    }
}

/// An upstream that answers when told to.
pub async fn gated() -> (Upstream, watch::Sender<bool>) {
    let (open, gate) = watch::channel(false);
    let upstream = Upstream::serve(move |mut stream, _| {
        let mut gate = gate.clone();
        async move {
            read_request(&mut stream).await;
            gate.wait_for(|is_open| *is_open).await.unwrap();
            let _ = respond(&mut stream, "done").await;
        }
    })
    .await;
    (upstream, open)
}
