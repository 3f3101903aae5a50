//! What the proxy knows of a machine beyond its routes, kept over changes of them.
//!
//! ```text
//!            begin_drain                     begin_sleep
//!   Open ───────────────────▶ Draining ───────────────▶ Sleeping
//!    ▲ ◀── cancel_drain (a request wants it) ──┘            │ sleep_ended: asleep, or refused
//!    ├──────────────────────────────────────────────────────┤
//!    └─ reopen, end_startup ── Waking ◀── a start is under way
//! ```

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use caddis_api::MachineId;
use parking_lot::Mutex;
use slab::Slab;
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    MachineState,
    admission::Slot,
    connection::Connection,
    counters::{Activity, Decision, Tally},
    error::Failure,
    pool::Pool,
    routes::ServiceKey,
    startup::{Progress, Startup},
};

const OPEN: u8 = 0;
const DRAINING: u8 = 1;
const SLEEPING: u8 = 2;
const WAKING: u8 = 3;

/// How long the connection that found a port to be open is kept for the first request.
const PROBE_LIFETIME: Duration = Duration::from_secs(1);

/// Milliseconds since the proxy started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Never 0.
    pub(crate) fn now(&self) -> u64 {
        self.0.elapsed().as_millis() as u64 + 1
    }

    pub(crate) fn instant(&self, millis: u64) -> Instant {
        self.0 + Duration::from_millis(millis.saturating_sub(1))
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Machine {
    pub id: MachineId,
    clock: Clock,
    slots: Mutex<HashMap<ServiceKey, Arc<Slot>>>,
    phase: AtomicU8,
    streams: AtomicU32,
    last_active: AtomicU64,
    /// Whether somebody waits for the last stream to end.
    awaits_quiet: AtomicBool,
    quiet: Notify,
    drain_cancelled: Notify,
    /// What we did ourselves and the routes may not show yet: until when, doubled, plus one if it
    /// was started.
    assumption: AtomicU64,
    wakes: AtomicU64,
    woken_at: AtomicU64,
    /// Starts that failed, and until when that counts: for one service, or for all.
    failures: Mutex<HashMap<Option<ServiceKey>, (u64, Failure)>>,
    startups: Mutex<HashMap<ServiceKey, watch::Receiver<Progress>>>,
    probe: Mutex<Option<(u16, Instant, TcpStream)>>,
    pub pool: Pool,
    /// Client connections with a request at this machine, for each request.
    clients: Mutex<Slab<Arc<Connection>>>,
    drain: Mutex<CancellationToken>,
    cut: Mutex<CancellationToken>,
    connections: AtomicU32,
    disconnected: Notify,
    pub tally: Tally,
    /// It is in no routes any more.
    pub gone: CancellationToken,
    /// Whether a task looks after its idle time.
    pub is_watched: AtomicBool,
    /// Tells that task that its route or state is another.
    pub rerouted: Notify,
}

impl Machine {
    pub(crate) fn new(id: MachineId, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            id,
            clock,
            slots: Mutex::default(),
            phase: AtomicU8::new(OPEN),
            streams: AtomicU32::new(0),
            last_active: AtomicU64::new(clock.now()),
            awaits_quiet: AtomicBool::new(false),
            quiet: Notify::new(),
            drain_cancelled: Notify::new(),
            assumption: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
            woken_at: AtomicU64::new(0),
            failures: Mutex::default(),
            startups: Mutex::default(),
            probe: Mutex::default(),
            pool: Pool::default(),
            clients: Mutex::default(),
            drain: Mutex::default(),
            cut: Mutex::default(),
            connections: AtomicU32::new(0),
            disconnected: Notify::new(),
            tally: Tally::default(),
            gone: CancellationToken::new(),
            is_watched: AtomicBool::new(false),
            rerouted: Notify::new(),
        })
    }

    /// The counter of one of its services.
    pub(crate) fn slot(&self, service: ServiceKey) -> Arc<Slot> {
        self.slots.lock().entry(service).or_default().clone()
    }

    // Streams.

    pub(crate) fn begin_stream(&self) {
        self.streams.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn end_stream(&self) {
        self.touch();
        if self.streams.fetch_sub(1, Ordering::SeqCst) == 1
            && self.awaits_quiet.load(Ordering::SeqCst)
        {
            self.quiet.notify_waiters();
        }
    }

    pub(crate) fn open_streams(&self) -> u32 {
        self.streams.load(Ordering::SeqCst)
    }

    /// Counts as if a stream had ended now.
    pub(crate) fn touch(&self) {
        self.last_active.store(self.clock.now(), Ordering::Relaxed);
    }

    /// When a stream last ended.
    pub(crate) fn last_active(&self) -> Instant {
        self.clock.instant(self.last_active.load(Ordering::Relaxed))
    }

    pub(crate) fn activity(&self) -> Activity {
        Activity { open_streams: self.open_streams(), quiet_for: self.last_active().elapsed() }
    }

    /// Ends when no stream is open.
    pub(crate) async fn quiet(&self) {
        loop {
            let mut ended = std::pin::pin!(self.quiet.notified());
            ended.as_mut().enable();
            self.awaits_quiet.store(true, Ordering::SeqCst);
            if self.open_streams() == 0 {
                break;
            }
            ended.await;
        }
    }

    // Phases.

    pub(crate) fn is_open(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == OPEN
    }

    pub(crate) fn is_sleeping(&self) -> bool {
        matches!(self.phase.load(Ordering::SeqCst), SLEEPING | WAKING)
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.phase.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// No new traffic from here on.
    pub(crate) fn begin_drain(&self) -> bool {
        self.step(OPEN, DRAINING)
    }

    /// No way back but a start.
    pub(crate) fn begin_sleep(&self) -> bool {
        self.step(DRAINING, SLEEPING)
    }

    /// Calls a drain off: traffic wants the machine.
    pub(crate) fn cancel_drain(&self) -> bool {
        let is_cancelled = self.step(DRAINING, OPEN);
        if is_cancelled {
            self.drain_cancelled.notify_waiters();
            self.rerouted.notify_one();
        }
        is_cancelled
    }

    /// Ends when a drain is called off.
    pub(crate) async fn drain_cancelled(&self) {
        loop {
            let mut drain_cancelled = std::pin::pin!(self.drain_cancelled.notified());
            drain_cancelled.as_mut().enable();
            if self.is_open() {
                return;
            }
            drain_cancelled.await;
        }
    }

    /// Open for traffic, whatever it was.
    pub(crate) fn reopen(&self) {
        self.phase.store(OPEN, Ordering::SeqCst);
        self.rerouted.notify_one();
    }

    /// The attempt to put it to sleep is over. It opens, or is left to the start that is under way.
    /// Called with the app's lock held.
    pub(crate) fn sleep_ended(&self) {
        if self.has_startups() {
            self.step(SLEEPING, WAKING);
        } else {
            self.reopen();
        }
    }

    /// Tells streams to end: close frames, GOAWAY.
    pub(crate) fn tell_drain(&self) {
        self.drain.lock().cancel();
        for (_, connection) in self.clients.lock().iter() {
            connection.drain.notify_one();
        }
    }

    /// Cancelled when streams should end.
    pub(crate) fn drain_token(&self) -> CancellationToken {
        self.drain.lock().clone()
    }

    /// Cancelled when connections must end.
    pub(crate) fn cut_token(&self) -> CancellationToken {
        self.cut.lock().clone()
    }

    /// Has all connections to the machine closed, and does not wait for that.
    pub(crate) fn cut_connections(&self) {
        self.pool.clear();
        drop(self.probe.lock().take());
        // Connections of its next life are cut by another token.
        std::mem::take(&mut *self.cut.lock()).cancel();
    }

    /// Closes all connections to the machine: unused ones at once, used ones too. Ends when they
    /// are closed.
    pub(crate) async fn disconnect(&self) {
        self.cut_connections();
        loop {
            let mut closed = std::pin::pin!(self.disconnected.notified());
            closed.as_mut().enable();
            if self.connections.load(Ordering::SeqCst) == 0 {
                break;
            }
            closed.await;
        }
    }

    /// Streams that begin from here on are not told of the drain.
    pub(crate) fn end_drain(&self) {
        *self.drain.lock() = CancellationToken::new();
    }

    /// Counts a connection to the machine, until dropped.
    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::SeqCst);
        crate::counters::add(&self.tally.connections, 1);
        Connected(self.clone())
    }

    /// A client has a request here, until dropped.
    pub(crate) fn serves(self: &Arc<Self>, connection: &Arc<Connection>) -> Serves {
        let number = self.clients.lock().insert(connection.clone());
        Serves { machine: self.clone(), number }
    }

    // What we did ourselves.

    /// What it does, by the routes and by what we know better.
    pub(crate) fn state(&self, routed: MachineState) -> MachineState {
        let assumption = self.assumption.load(Ordering::Relaxed);
        if assumption == 0 || assumption / 2 < self.clock.now() {
            return routed;
        }
        match (assumption % 2 == 1, routed) {
            (true, MachineState::Stopped | MachineState::Suspended | MachineState::Starting) => {
                MachineState::Started
            }
            (false, MachineState::Started | MachineState::Starting) => MachineState::Stopped,
            _ => routed,
        }
    }

    /// The machine was started or put to sleep, and routes may not show it for a while.
    pub(crate) fn assume(&self, is_started: bool, for_so_long: Duration) {
        let until = self.clock.now() + for_so_long.as_millis() as u64;
        self.assumption.store(until * 2 + u64::from(is_started), Ordering::Relaxed);
    }

    /// New routes: an assumption that they share is not needed any more.
    pub(crate) fn routed(&self, state: MachineState) {
        let assumption = self.assumption.load(Ordering::Relaxed);
        let is_shared = match state {
            MachineState::Started => assumption % 2 == 1,
            MachineState::Starting => false,
            _ => assumption % 2 != 1,
        };
        if assumption != 0 && is_shared {
            let _ = self.assumption.compare_exchange(
                assumption,
                0,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }

    /// Counts starts by this proxy.
    pub(crate) fn wakes(&self) -> u64 {
        self.wakes.load(Ordering::SeqCst)
    }

    pub(crate) fn count_wake(&self) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        self.woken_at.store(self.clock.now(), Ordering::Relaxed);
    }

    /// Whether this proxy started it less than so long ago.
    pub(crate) fn was_woken_within(&self, window: Duration) -> bool {
        let at = self.woken_at.load(Ordering::Relaxed);
        at != 0 && self.clock.now() < at + window.as_millis() as u64
    }

    /// It could not be started, or one service of it did not get ready: it is left alone for a
    /// while, or by requests for that service.
    pub(crate) fn failed(
        &self,
        service: Option<ServiceKey>,
        failure: Failure,
        for_so_long: Duration,
    ) {
        if service.is_none() {
            self.woken_at.store(0, Ordering::Relaxed);
        }
        let until = self.clock.now() + for_so_long.as_millis() as u64;
        self.failures.lock().insert(service, (until, failure));
    }

    /// Why a service of it could not be had a moment ago, and when it is tried again.
    pub(crate) fn recent_failure(&self, service: ServiceKey) -> Option<Failure> {
        let now = self.clock.now();
        let failures = self.failures.lock();
        let of = |service| failures.get(&service).filter(|(until, _)| *until > now);
        let (until, failure) = of(None).or_else(|| of(Some(service)))?;
        let text = format!(
            "the last start failed: {}; the next one is possible in {} ms",
            failure.text,
            until - now
        );
        Some(Failure { text, ..failure.clone() })
    }

    // Startups.

    /// What a request for a service can wait for: its startup, or the start by that of another.
    pub(crate) fn startup(&self, service: ServiceKey) -> Option<Startup> {
        let startups = self.startups.lock();
        if let Some(progress) = startups.get(&service) {
            return Some(Startup::new(progress.clone()));
        }
        let waking = startups.values().find(|one| matches!(*one.borrow(), Progress::Waking))?;
        Some(Startup::of_another(waking.clone()))
    }

    pub(crate) fn has_startups(&self) -> bool {
        !self.startups.lock().is_empty()
    }

    /// A startup of a service begins.
    pub(crate) fn begin_startup(&self, service: ServiceKey, progress: watch::Receiver<Progress>) {
        self.startups.lock().insert(service, progress);
    }

    /// A startup of a service is over, from which on the machine may be idle: those who waited for
    /// it come now. Called with the app's lock held.
    pub(crate) fn end_startup(&self, service: ServiceKey) {
        self.touch();
        self.startups.lock().remove(&service);
        if !self.has_startups() && self.step(WAKING, OPEN) {
            self.rerouted.notify_one();
        }
    }

    pub(crate) fn decided(&self, action: &'static str, reason: impl Into<String>) {
        let decision = Decision::now(action, reason);
        tracing::debug!(machine = %self.id, action, reason = decision.reason, "decided");
        *self.tally.decision.lock() = Some(decision);
    }

    /// Keeps the connection that found the port to be open.
    pub(crate) fn keep_probe(self: &Arc<Self>, port: u16, stream: TcpStream) {
        *self.probe.lock() = Some((port, Instant::now(), stream));
        let machine = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(PROBE_LIFETIME).await;
            let mut probe = machine.probe.lock();
            if probe.as_ref().is_some_and(|(_, since, _)| since.elapsed() >= PROBE_LIFETIME) {
                *probe = None;
            }
        });
    }

    /// The connection that found the port to be open, if nobody had it yet.
    pub(crate) fn take_probe(&self, port: u16) -> Option<TcpStream> {
        let mut probe = self.probe.lock();
        let is_fit = probe
            .as_ref()
            .is_some_and(|(of, since, _)| *of == port && since.elapsed() < PROBE_LIFETIME);
        if is_fit { probe.take().map(|(_, _, stream)| stream) } else { None }
    }
}

/// See [`Machine::connected`].
#[derive(Debug)]
pub(crate) struct Connected(Arc<Machine>);

impl Drop for Connected {
    fn drop(&mut self) {
        if self.0.connections.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.disconnected.notify_waiters();
        }
    }
}

/// See [`Machine::serves`].
#[derive(Debug)]
pub(crate) struct Serves {
    machine: Arc<Machine>,
    number: usize,
}

impl Drop for Serves {
    fn drop(&mut self) {
        let connection = self.machine.clients.lock().try_remove(self.number);
        drop(connection);
    }
}
