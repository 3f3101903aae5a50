//! An app: its routes made ready for lookups, and what is kept over changes of them.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use caddis_api::MachineId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    AppName, AppRoutes, ErrorCode, MachineRoute, MachineState, PortRoute, Protocol, ServiceRoute,
    admission::{Permit, Queue, Slot},
    choice::Load,
    connections::Connections,
    error::Failure,
    machine::{Clock, Machine},
    startup::Startup,
    udp::Datagrams,
};

/// One service of one machine, as a target of traffic.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub machine: Arc<Machine>,
    pub route: Arc<MachineRoute>,
    service: usize,
    slot: Arc<Slot>,
}

impl Candidate {
    pub(crate) fn service(&self) -> &ServiceRoute {
        &self.route.services[self.service]
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::new(self.route.address, self.service().internal_port)
    }

    pub(crate) fn state(&self) -> MachineState {
        self.machine.state(self.route.state)
    }

    /// Whether it may get new traffic.
    pub(crate) fn is_eligible(&self) -> bool {
        self.state() == MachineState::Started
            && !self.route.cordoned
            && self.service().healthy
            && self.machine.is_open()
    }

    /// Whether a request may start it.
    pub(crate) fn may_wake(&self) -> bool {
        !self.route.cordoned
            && self.is_started_by_traffic()
            && (self.state().is_asleep() || self.machine.is_sleeping())
    }

    fn is_started_by_traffic(&self) -> bool {
        self.service().autostart && self.service().protocol != Protocol::Udp
    }

    /// Whether it started less than so long ago, by whomever.
    pub(crate) fn was_started_within(&self, window: Duration) -> bool {
        self.machine.was_woken_within(window)
            || SystemTime::now().duration_since(self.route.started_at).is_ok_and(|age| age < window)
    }

    /// Why it could not be had a moment ago.
    pub(crate) fn recent_failure(&self) -> Option<Failure> {
        self.machine.recent_failure(self.service().key())
    }

    /// What a request for it can wait for.
    pub(crate) fn startup(&self) -> Option<Startup> {
        self.machine.startup(self.service().key())
    }

    pub(crate) fn load(&self, region: &str) -> Load {
        let concurrency = &self.service().concurrency;
        Load {
            in_use: self.slot.in_use(),
            soft: concurrency.soft_limit,
            hard: concurrency.hard_limit,
            tier: u8::from(self.route.region != region),
        }
    }

    pub(crate) fn take(&self) -> Option<Permit> {
        let hard = self.service().concurrency.hard_limit;
        Permit::take(&self.machine, &self.slot, hard)
    }
}

/// Whether a machine that runs by its old route is about to end.
fn is_to_end(old: &MachineRoute, new: &MachineRoute) -> bool {
    old.state == MachineState::Started && new.state.is_asleep() && !new.is_off
}

/// Whether the VM that a machine had by its old route has gone.
fn has_lost_its_vm(old: &MachineRoute, new: &MachineRoute) -> bool {
    !old.is_off && (new.is_off || new.booted_at != old.booted_at)
}

/// Why none of these candidates can be had.
pub(crate) fn why_nobody<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> &'static str {
    let candidates: Vec<_> = candidates.collect();
    let are_all = |is_so: fn(&Candidate) -> bool| {
        !candidates.is_empty() && candidates.iter().all(|candidate| is_so(candidate))
    };
    if are_all(|one| one.route.cordoned) {
        "all machines that take traffic at this port are cordoned"
    } else if are_all(|one| one.state().is_asleep() && !one.is_started_by_traffic()) {
        "all machines that take traffic at this port are stopped, and not to be started by traffic"
    } else {
        "no healthy machine takes traffic at this port"
    }
}

/// A port, or a range, and what its traffic goes to.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub port: PortRoute,
    pub candidates: Vec<Candidate>,
    /// Who waits for a place at any of them. Another one after each change of the routes, which all
    /// who wait are told of.
    pub queue: Arc<Queue>,
}

/// Routes made ready.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub addresses: Vec<IpAddr>,
    pub private_addresses: Vec<Ipv6Addr>,
    pub primary_region: Option<String>,
    /// By first port.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// UDP services by their port.
    pub udp: BTreeMap<u16, Vec<Candidate>>,
    /// Each service of each machine once, those of a machine beside each other.
    pub services: Vec<Candidate>,
    /// Where the services of a machine are.
    machines: HashMap<MachineId, (Arc<MachineRoute>, Range<usize>)>,
}

impl Compiled {
    /// The services of a machine.
    pub(crate) fn of_machine(&self, id: &MachineId) -> &[Candidate] {
        let place = self.machines.get(id).map(|(_, place)| place.clone());
        self.services.get(place.unwrap_or_default()).unwrap_or_default()
    }
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct App {
    pub name: AppName,
    clock: Clock,
    compiled: ArcSwap<Compiled>,
    machines: Mutex<HashMap<MachineId, Arc<Machine>>>,
    /// Changes whenever something may have become possible.
    pub version: watch::Sender<u64>,
    /// Held while a machine to start or to put to sleep is picked.
    pub decide: Mutex<()>,
    pub waiting: AtomicU32,
    pub errors: Mutex<BTreeMap<ErrorCode, u64>>,
    pub datagrams: Datagrams,
    /// Those to its own addresses.
    pub connections: Arc<Connections>,
}

impl App {
    pub(crate) fn new(name: AppName, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            name,
            clock,
            compiled: ArcSwap::default(),
            machines: Mutex::default(),
            version: watch::Sender::new(0),
            decide: Mutex::new(()),
            waiting: AtomicU32::new(0),
            errors: Mutex::default(),
            datagrams: Datagrams::default(),
            connections: Arc::default(),
        })
    }

    /// The routes of now. Not to be kept while waiting.
    pub(crate) fn compiled(&self) -> arc_swap::Guard<Arc<Compiled>> {
        self.compiled.load()
    }

    /// What serves an external port.
    pub(crate) fn endpoint(&self, port: u16) -> Option<Arc<Endpoint>> {
        let compiled = self.compiled();
        // Ranges do not overlap, but for mistakes: the one that begins last wins.
        let after = compiled.endpoints.partition_point(|endpoint| endpoint.port.start <= port);
        compiled.endpoints[..after]
            .iter()
            .rev()
            .find(|endpoint| endpoint.port.contains(port))
            .cloned()
    }

    /// The same machine's service in the routes of now.
    pub(crate) fn current(&self, candidate: &Candidate) -> Option<Candidate> {
        let key = candidate.service().key();
        let compiled = self.compiled();
        let services = compiled.of_machine(&candidate.machine.id);
        services.iter().find(|now| now.service().key() == key).cloned()
    }

    /// Whether the machine of a place that was taken still runs, by the routes of now.
    pub(crate) fn runs(&self, candidate: &Candidate) -> bool {
        self.current(candidate).is_some_and(|now| now.state() == MachineState::Started)
    }

    /// Notes what was done to a machine, unless the routes of now show it already.
    pub(crate) fn assume(&self, candidate: &Candidate, is_started: bool, for_so_long: Duration) {
        candidate.machine.assume(is_started, for_so_long);
        if let Some(now) = self.current(candidate) {
            candidate.machine.routed(now.route.state);
        }
    }

    /// Something may have become possible.
    pub(crate) fn changed(&self) {
        self.version.send_modify(|version| *version = version.wrapping_add(1));
    }

    pub(crate) fn machines(&self) -> Vec<Arc<Machine>> {
        self.machines.lock().values().cloned().collect()
    }

    pub(crate) fn machine(&self, id: &MachineId) -> Option<Arc<Machine>> {
        self.machines.lock().get(id).cloned()
    }

    pub(crate) fn count_error(&self, code: ErrorCode) {
        *self.errors.lock().entry(code).or_default() += 1;
    }

    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Replaces the routes. Machines that are not in them any more are told so.
    pub(crate) fn replace(&self, routes: AppRoutes) {
        let before = self.compiled.load_full();
        let compiled = Arc::new(self.compile(routes));
        self.compiled.store(compiled.clone());
        self.machines.lock().retain(|id, machine| {
            let is_routed = compiled.machines.contains_key(id);
            if !is_routed {
                machine.gone.cancel();
                machine.cut_connections();
            }
            is_routed
        });
        for (id, (route, _)) in &compiled.machines {
            let Some(Candidate { machine, .. }) = compiled.of_machine(id).first() else { continue };
            let old = before.machines.get(id).map(|(old, _)| old);
            // Only now: who assumes something looks at the routes afterwards, so that one of us
            // sees the other.
            machine.routed(route.state);
            // Somebody stops it: its clients are told as its program is.
            if old.is_some_and(|old| is_to_end(old, route)) {
                machine.tell_drain();
                machine.end_drain();
            }
            // Its VM may have gone without closing anything: nobody would ever hear of that.
            if old.is_some_and(|old| has_lost_its_vm(old, route)) {
                machine.cut_connections();
            }
            if old.is_none_or(|old| !Arc::ptr_eq(old, route)) {
                machine.rerouted.notify_one();
            }
        }
        self.changed();
    }

    fn compile(&self, routes: AppRoutes) -> Compiled {
        let before = self.compiled();
        let AppRoutes { addresses, private_addresses, primary_region, machines } = routes;
        let mut compiled =
            Compiled { addresses, private_addresses, primary_region, ..Compiled::default() };
        for route in machines {
            let machine = self.entry(&route.id);
            let old = before.machines.get(&route.id).map(|(old, _)| old);
            if route.state == MachineState::Started
                && old.is_none_or(|old| machine.state(old.state) != MachineState::Started)
            {
                // It counts as used from its start on.
                machine.touch();
            }
            let route = match old {
                Some(old) if **old == route => old.clone(),
                _ => Arc::new(route),
            };
            let first = compiled.services.len();
            for (index, service) in route.services.iter().enumerate() {
                compiled.services.push(Candidate {
                    machine: machine.clone(),
                    route: route.clone(),
                    service: index,
                    slot: machine.slot(service.key()),
                });
            }
            let place = first..compiled.services.len();
            compiled.machines.insert(route.id.clone(), (route, place));
        }
        let mut endpoints: BTreeMap<(u16, u16), Endpoint> = BTreeMap::new();
        // Services of a machine may have one port inside, and so one slot.
        let mut queues: HashMap<_, (&Slot, Vec<_>)> = HashMap::new();
        for candidate in &compiled.services {
            let slot = (&candidate.machine.id, candidate.service().key());
            let (_, queues) = queues.entry(slot).or_insert((&candidate.slot, Vec::new()));
            for port in &candidate.service().ports {
                if candidate.service().protocol == Protocol::Udp {
                    for port in port.start..=port.end {
                        compiled.udp.entry(port).or_default().push(candidate.clone());
                    }
                    continue;
                }
                let endpoint = endpoints.entry((port.start, port.end)).or_insert_with(|| {
                    Endpoint { port: port.clone(), candidates: Vec::new(), queue: Arc::default() }
                });
                endpoint.candidates.push(candidate.clone());
                queues.push(endpoint.queue.clone());
            }
        }
        for (slot, queues) in queues.into_values() {
            slot.queues.store(Arc::new(queues));
        }
        compiled.endpoints = endpoints.into_values().map(Arc::new).collect();
        compiled
    }

    fn entry(&self, id: &MachineId) -> Arc<Machine> {
        let mut machines = self.machines.lock();
        machines.entry(id.clone()).or_insert_with(|| Machine::new(id.clone(), self.clock)).clone()
    }

    /// Whether any of its machines is ever put to sleep by the periodic rule.
    pub(crate) fn has_periodic_rule(&self) -> bool {
        self.compiled().services.iter().any(|candidate| candidate.service().has_periodic_rule())
    }
}
