//! The proxy as others see it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use caddis_api::MachineId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Activity, AppCounters, AppName, AppRoutes, Config, ConnectionCounters, Journal, ListenerStatus,
    MachineCounters, Machines, Table, autostop,
    certificates::Certificates,
    connection::Entry,
    core::Core,
    counters,
    handshakes::Handshakes,
    headers,
    listeners::{Listeners, Shared},
    machine::Clock,
};

/// Time for clients to read the last of what they were sent, once all requests are over.
const FLUSH_TIME: Duration = Duration::from_millis(200);

/// Why a proxy can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A shared listener can't be had.
    #[error("can't listen to {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A running proxy. Dropped, it ends at once.
pub struct Proxy {
    core: Arc<Core>,
    listeners: Listeners,
    http: Option<Shared>,
    https: Option<Shared>,
    handle: Handle,
    /// Listeners follow routes in the order in which these are applied.
    applying: Mutex<()>,
}

impl Proxy {
    /// Listens to the shared addresses and begins to serve. No app is routed yet.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn start(
        config: Config,
        machines: Arc<dyn Machines>,
        journal: Arc<dyn Journal>,
    ) -> Result<Self, StartError> {
        let mut http = shared(config.http, &config)?;
        let mut https = shared(config.https, &config)?;
        let clock = Clock::start();
        let core = Arc::new(Core {
            region: headers::text(&config.region),
            server: headers::text(&format!("Caddis/{}", config.version)),
            https_port: https.as_ref().map(|shared| shared.address.port()),
            certificates: Certificates::new(config.domain.clone()),
            handshakes: Handshakes::new(&config.handshake_limit),
            connections: Arc::default(),
            table: Table::new(clock),
            clock,
            machines,
            journal,
            tasks: TaskTracker::new(),
            routed: CancellationToken::new(),
            stopping: CancellationToken::new(),
            cut: CancellationToken::new(),
            config,
        });
        if !core.config.awaits_routes {
            core.routed.cancel();
        }
        for (shared, entry) in [(&mut http, Entry::Http), (&mut https, Entry::Https)] {
            if let Some(shared) = shared {
                shared.serve(&core, entry);
            }
        }
        core.tasks.spawn(autostop::run(core.clone()));
        Ok(Self {
            core,
            listeners: Listeners::default(),
            http,
            https,
            handle: Handle::current(),
            applying: Mutex::new(()),
        })
    }

    /// Replaces all routes of one app; None forgets the app. Acts at once, for requests in progress
    /// too where they wait for a machine. Costs nothing to other apps.
    pub fn apply(&self, app: impl Into<AppName>, routes: Option<AppRoutes>) {
        let _runtime = self.handle.enter();
        let _in_order = self.applying.lock();
        let Some(app) = self.core.table.apply(&app.into(), routes) else { return };
        app.datagrams.sweep(&app);
        self.listeners.sync(&self.core, &app);
        autostop::watch_idle(&self.core, &app);
    }

    /// Begins to accept connections, where that was to wait for the routes of all apps.
    pub fn routes_are_known(&self) {
        self.core.routed.cancel();
    }

    /// Stops accepting, lets requests and streams end, and cuts what is left at the deadline.
    /// Clients are told: GOAWAY, `connection: close`, close frames of WebSockets.
    pub async fn shutdown(&self, deadline: Duration) {
        self.core.stopping.cancel();
        self.core.tasks.close();
        let drained = tokio::time::timeout(deadline, self.core.tasks.wait()).await.is_ok();
        if !drained {
            tracing::warn!("requests were still in progress at the end of the drain");
        }
        self.core.cut.cancel();
        let _ = tokio::time::timeout(FLUSH_TIME, self.core.tasks.wait()).await;
    }

    /// Numbers of one app. None if it is not routed.
    pub fn counters(&self, app: &str) -> Option<AppCounters> {
        let app = self.core.table.get(app)?;
        let mut machines: Vec<_> = app
            .machines()
            .iter()
            .map(|machine| MachineCounters {
                machine: machine.id.clone(),
                connections: counters::read(&machine.tally.connections),
                requests: counters::read(&machine.tally.requests),
                bytes_in: counters::read(&machine.tally.bytes_in),
                bytes_out: counters::read(&machine.tally.bytes_out),
                activity: machine.activity(),
                last_decision: machine.tally.decision.lock().clone(),
            })
            .collect();
        machines.sort_by(|one, other| one.machine.cmp(&other.machine));
        let errors = app.errors.lock().clone();
        Some(AppCounters {
            app: app.name.clone(),
            waiting: app.waiting(),
            connections: app.connections.counters(),
            udp_flows: app.datagrams.flows(),
            dropped_datagrams: app.datagrams.dropped(),
            errors,
            machines,
        })
    }

    /// The connections of all clients.
    pub fn connections(&self) -> ConnectionCounters {
        self.core.connections.counters()
    }

    /// What a machine has to do. None if it is not routed.
    pub fn activity(&self, app: &str, machine: &MachineId) -> Option<Activity> {
        Some(self.core.table.get(app)?.machine(machine)?.activity())
    }

    /// What is listened to, and what could not be.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        let mut all: Vec<_> = self.http.iter().chain(&self.https).map(Shared::status).collect();
        all.extend(self.listeners.status());
        all
    }

    /// Where the shared listener for HTTP is.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(|shared| shared.address)
    }

    /// Where the shared listener for TLS is.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.https.as_ref().map(|shared| shared.address)
    }

    /// The apps that are routed.
    pub fn table(&self) -> &Table {
        &self.core.table
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.core.stopping.cancel();
        self.core.cut.cancel();
    }
}

fn shared(address: Option<SocketAddr>, config: &Config) -> Result<Option<Shared>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let shared = Shared::new(address, config.may_be_taken.contains(&address));
    shared.map(Some).map_err(|source| StartError::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use async_trait::async_trait;
    use caddis_api::WorkerId;

    use super::*;
    use crate::{
        AccessRecord, Autostop, Concurrency, ErrorCode, Handlers, HttpOptions, MachineRoute,
        MachineState, PortRoute, ProxyError, ServiceRoute, Sleep, TlsOptions, WakeError,
        error::Failure,
        select::{Preference, Search},
    };

    struct Nothing;

    #[async_trait]
    impl Machines for Nothing {
        async fn wake(&self, _: &MachineId, _: &WorkerId) -> Result<(), WakeError> {
            Err(WakeError::Gone(String::new()))
        }

        async fn may_sleep(&self, _: &MachineId, _: &WorkerId, _: Sleep) -> Result<(), WakeError> {
            Err(WakeError::Gone(String::new()))
        }

        async fn sleep(
            &self,
            _: &MachineId,
            _: &WorkerId,
            _: Sleep,
            _: &str,
        ) -> Result<(), WakeError> {
            Err(WakeError::Gone(String::new()))
        }
    }

    impl Journal for Nothing {
        fn proxy_error(&self, _: ProxyError) {}

        fn access(&self, _: AccessRecord) {}
    }

    fn route(address: SocketAddr) -> MachineRoute {
        let port = PortRoute {
            start: 80,
            end: 80,
            handlers: Handlers::default(),
            force_https: false,
            http: HttpOptions::default(),
            tls: TlsOptions::default(),
        };
        let service = ServiceRoute {
            protocol: crate::Protocol::Tcp,
            internal_port: address.port(),
            ports: vec![port],
            concurrency: Concurrency::default(),
            autostart: true,
            autostop: Autostop::Off,
            min_machines_running: 0,
            idle_timeout: None,
            max_drain: None,
            healthy: true,
            grace: Duration::ZERO,
        };
        MachineRoute {
            id: MachineId::from_trusted("a1"),
            worker: WorkerId::from_trusted("worker"),
            region: "local".to_owned(),
            address: address.ip(),
            state: MachineState::Started,
            is_off: false,
            cordoned: false,
            hold: None,
            leased_until: None,
            booted_at: std::time::SystemTime::UNIX_EPOCH,
            started_at: std::time::SystemTime::UNIX_EPOCH,
            services: vec![service],
        }
    }

    fn start(config: Config, routes: AppRoutes) -> (Proxy, Arc<crate::app::App>) {
        let config = Config { http: None, https: None, ..config };
        let proxy = Proxy::start(config, Arc::new(Nothing), Arc::new(Nothing)).unwrap();
        proxy.apply("app", Some(routes));
        let app = proxy.core.table.get("app").unwrap();
        (proxy, app)
    }

    #[tokio::test]
    async fn a_port_that_opens_and_refuses_in_turn_is_tried_so_many_times() {
        let any = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0);
        let listener = crate::listeners::bind(any, false).unwrap();
        let machines = vec![route(listener.local_addr().unwrap())];
        let routes = AppRoutes { machines, ..AppRoutes::default() };
        let (proxy, app) = start(Config::default(), routes);
        let preference = Preference::default();
        let mut search = Search::new(&proxy.core, &app, 80, &preference);
        let candidate = search.try_take().unwrap().candidate;
        let refused = || Failure::new(ErrorCode::PC01, "refused");
        for _ in 0..90 {
            search.wait_until_ready(&candidate, refused()).await.unwrap();
        }
        let failure = search.wait_until_ready(&candidate, refused()).await.unwrap_err();
        assert_eq!((failure.code, failure.text.as_str()), (ErrorCode::PR03, "refused"));
    }

    #[tokio::test]
    async fn nothing_is_tried_again_after_the_time_that_a_request_may_wait() {
        let config = Config { hold_timeout: Duration::ZERO, ..Config::default() };
        let (proxy, app) = start(config, AppRoutes::default());
        let preference = Preference::default();
        let mut search = Search::new(&proxy.core, &app, 80, &preference);
        let failure = search.again(Failure::new(ErrorCode::PU02, "closed")).unwrap_err();
        assert_eq!((failure.code, failure.text.as_str()), (ErrorCode::PR03, "closed"));
    }
}
