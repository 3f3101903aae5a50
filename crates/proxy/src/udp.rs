//! UDP services (runtime-semantics §3.1): datagrams to an app's own address go to one machine for
//! each client, and its replies come from that address. Nothing is started for datagrams.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{net::UdpSocket, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    ErrorCode, MachineState,
    admission::Permit,
    app::{self, App, Candidate},
    choice,
    core::Core,
    counters::{self, Reported},
    error::Failure,
    machine::Connected,
};

/// Bytes that hold any datagram.
const LARGEST: usize = 1 << 16;
/// Datagrams that are passed on before other tasks get a turn.
const BATCH: usize = 64;
/// Bytes of datagrams that the kernel keeps for a socket, where the host's limit allows it.
const KERNEL_BUFFER: usize = 1 << 20;
/// Takes that may fail because others were quicker, before the machines count as full.
const MAX_RACES: u32 = 16;
/// Rest after a socket of ours failed.
const PAUSE: Duration = Duration::from_millis(50);

thread_local! {
    /// Holds a datagram between its receipt and its being sent on.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; LARGEST].into_boxed_slice());
}

/// A client of one address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    local: SocketAddr,
    client: SocketAddr,
}

/// A client's way to its machine.
#[derive(Debug)]
struct Flow {
    candidate: Candidate,
    /// Connected to the machine.
    upstream: UdpSocket,
    /// When a datagram last went over it, by the proxy's clock.
    last: AtomicU64,
    end: CancellationToken,
}

impl Flow {
    /// Whether its machine still runs, at the same address and with the same service.
    fn is_current(&self, app: &App) -> bool {
        app.current(&self.candidate).is_some_and(|now| {
            Arc::ptr_eq(&now.machine, &self.candidate.machine)
                && now.state() == MachineState::Started
                && now.address() == self.candidate.address()
        })
    }
}

/// What makes the machine of a flow count as busy.
struct Held {
    permit: Permit,
    connected: Connected,
    cut: CancellationToken,
}

/// What an app has of datagrams.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    flows: Mutex<HashMap<Key, Arc<Flow>>>,
    dropped: AtomicU64,
    reported: Reported,
}

impl Datagrams {
    /// Flows that are open.
    pub(crate) fn flows(&self) -> usize {
        self.flows.lock().len()
    }

    /// Datagrams that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        counters::read(&self.dropped)
    }

    /// Ends the flows of machines that do not run any more. Called after each change of the routes.
    pub(crate) fn sweep(&self, app: &App) {
        self.flows.lock().retain(|_, flow| {
            let is_kept = flow.is_current(app);
            if !is_kept {
                flow.end.cancel();
            }
            is_kept
        });
    }

    fn remove(&self, key: &Key, flow: &Arc<Flow>) {
        let mut flows = self.flows.lock();
        if flows.get(key).is_some_and(|other| Arc::ptr_eq(other, flow)) {
            flows.remove(key);
        }
    }
}

/// A socket for datagrams to an address.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        // As for TCP, see `listeners::bind`.
        socket.set_freebind_v6(true)?;
    }
    // The kernel gives what its limit allows.
    let _ = socket.set_recv_buffer_size(KERNEL_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A socket that exchanges datagrams with one machine only.
fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any = match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    UdpSocket::from_std(socket)
}

/// Passes on what comes to an address and port of an app, until dropped. Its flows end with `end`.
pub(crate) async fn serve(
    core: &Arc<Core>,
    app: &Arc<App>,
    socket: UdpSocket,
    local: SocketAddr,
    end: &CancellationToken,
) {
    core.routed.cancelled().await;
    let entry = Entry { core, app, socket: Arc::new(socket), local, end };
    loop {
        let received = match entry.socket.readable().await {
            Ok(()) => entry.receive(),
            Err(error) => Err(error),
        };
        match received {
            // A socket that is readable all the time does not give other tasks a turn.
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(address = %local, %error, "can't receive datagrams");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Where datagrams of clients come in.
struct Entry<'a> {
    core: &'a Arc<Core>,
    app: &'a Arc<App>,
    socket: Arc<UdpSocket>,
    local: SocketAddr,
    end: &'a CancellationToken,
}

impl Entry<'_> {
    /// Passes on a batch. Whether there may be more.
    fn receive(&self) -> io::Result<bool> {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                match self.socket.try_recv_from(buffer) {
                    Ok((length, client)) => self.forward(client, &buffer[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        })
    }

    fn forward(&self, client: SocketAddr, datagram: &[u8]) {
        let datagrams = &self.app.datagrams;
        let sent = self.flow(client).and_then(|flow| {
            send(&flow.upstream, datagram).map_err(|error| {
                tracing::debug!(%error, %client, "a datagram was dropped");
                None
            })?;
            counters::add(&flow.candidate.machine.tally.bytes_in, datagram.len() as u64);
            Ok(())
        });
        if let Err(failure) = sent {
            counters::add(&datagrams.dropped, 1);
            if let Some(failure) = failure
                && datagrams.reported.may_report(self.core.clock.now())
            {
                self.core.report(self.app, &failure, None);
            }
        }
    }

    /// The client's flow: the one it has, or a new one. The error is what to report.
    fn flow(&self, client: SocketAddr) -> Result<Arc<Flow>, Option<Failure>> {
        let key = Key { local: self.local, client };
        let now = self.core.clock.now();
        // Held until a new flow is in: routes that change meanwhile are followed by a sweep.
        let mut flows = self.app.datagrams.flows.lock();
        if let Some(flow) = flows.get(&key).filter(|flow| !flow.end.is_cancelled()) {
            flow.last.store(now, Ordering::Relaxed);
            return Ok(flow.clone());
        }
        if flows.len() >= self.core.config.max_udp_flows {
            return Err(None);
        }
        let (candidate, permit, cut) = pick(self.core, self.app, self.local.port())?;
        let upstream = connect(candidate.address()).map_err(|error| {
            let text = format!("can't open a socket for datagrams: {error}");
            Some(Failure::of(&candidate.machine.id, ErrorCode::PC06, text))
        })?;
        let held = Held { permit, connected: candidate.machine.connected(), cut };
        let end = self.end.child_token();
        let flow = Arc::new(Flow { candidate, upstream, last: AtomicU64::new(now), end });
        flows.insert(key, flow.clone());
        drop(flows);
        let run = Run {
            core: self.core.clone(),
            app: self.app.clone(),
            socket: self.socket.clone(),
            client: client.into(),
            key,
            flow: flow.clone(),
        };
        self.core.tasks.spawn(run.until_over(held));
        Ok(flow)
    }
}

/// A machine for a new flow: of those that run, the one with the fewest.
fn pick(
    core: &Core,
    app: &App,
    port: u16,
) -> Result<(Candidate, Permit, CancellationToken), Option<Failure>> {
    let compiled = app.compiled();
    let candidates = compiled.udp.get(&port).map(Vec::as_slice).unwrap_or_default();
    let mut is_any_eligible = false;
    for _ in 0..MAX_RACES {
        let eligible = candidates.iter().filter(|candidate| candidate.is_eligible());
        let loads = eligible.map(|candidate| {
            is_any_eligible = true;
            (candidate, candidate.load(&core.config.region))
        });
        let Some((candidate, _)) = choice::best(loads, |n| rand::random_range(0..n)) else { break };
        // Before the place is taken: a machine that is cut after that cuts this flow too.
        let cut = candidate.machine.cut_token();
        if let Some(permit) = candidate.take() {
            return Ok((candidate.clone(), permit, cut));
        }
    }
    Err(Some(if is_any_eligible {
        let text = "datagrams are dropped: all machines are at their hard limit";
        Failure::new(ErrorCode::PR04, text)
    } else {
        let why = app::why_nobody(candidates.iter());
        let text = format!("datagrams to port {port} are dropped: {why}");
        Failure::new(ErrorCode::PR01, text)
    }))
}

/// Sends, also where an earlier datagram left an error: that one is told once, and nothing sent.
fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<usize> {
    // Not by the runtime: it has not heard yet that a new socket is writable.
    let socket = SockRef::from(socket);
    match socket.send(datagram) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => socket.send(datagram),
        result => result,
    }
}

/// The part of a flow that lives as its task.
struct Run {
    core: Arc<Core>,
    app: Arc<App>,
    /// Where replies are sent from.
    socket: Arc<UdpSocket>,
    client: SockAddr,
    key: Key,
    flow: Arc<Flow>,
}

impl Run {
    async fn until_over(self, held: Held) {
        tokio::select! {
            error = self.replies() => {
                tracing::debug!(%error, machine = %held.permit.machine.id, "a flow broke");
            }
            () = self.idle() => {}
            () = held.cut.cancelled() => {}
            () = self.flow.end.cancelled() => {}
        }
        self.app.datagrams.remove(&self.key, &self.flow);
        // The socket is closed before the machine counts as left.
        drop(self);
        let Held { permit, connected, .. } = held;
        drop(connected);
        drop(permit);
    }

    /// Passes on what the machine sends, until its socket fails.
    async fn replies(&self) -> io::Error {
        loop {
            let received = match self.flow.upstream.readable().await {
                Ok(()) => self.receive(),
                Err(error) => Err(error),
            };
            match received {
                Ok(true) => tokio::task::yield_now().await,
                Ok(false) => {}
                Err(error) => return error,
            }
        }
    }

    /// Passes on a batch. Whether there may be more.
    fn receive(&self) -> io::Result<bool> {
        let (flow, datagrams) = (&self.flow, &self.app.datagrams);
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                match flow.upstream.try_recv(buffer) {
                    Ok(length) => {
                        flow.last.store(self.core.clock.now(), Ordering::Relaxed);
                        let client = SockRef::from(&*self.socket);
                        match client.send_to(&buffer[..length], &self.client) {
                            Ok(_) => {
                                let tally = &flow.candidate.machine.tally;
                                counters::add(&tally.bytes_out, length as u64);
                            }
                            Err(_) => counters::add(&datagrams.dropped, 1),
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    // Nothing listens in the machine, for now.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        })
    }

    /// Ends when nothing went over it for the idle time, and takes the flow out at that moment.
    async fn idle(&self) {
        let timeout = self.core.config.udp_idle;
        loop {
            let last = self.flow.last.load(Ordering::Relaxed);
            let deadline = self.core.clock.instant(last) + timeout;
            if deadline > Instant::now() {
                tokio::time::sleep_until(deadline).await;
                continue;
            }
            // A datagram finds its flow under the same lock, and notes the time there.
            let mut flows = self.app.datagrams.flows.lock();
            if self.flow.last.load(Ordering::Relaxed) != last {
                continue;
            }
            if flows.get(&self.key).is_some_and(|other| Arc::ptr_eq(other, &self.flow)) {
                flows.remove(&self.key);
            }
            return;
        }
    }
}
