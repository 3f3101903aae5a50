//! The proxy of a server: its listeners, what it routes, and what the API tells of it.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use caddis_api::{
    UnixMillis, time,
    traffic::{AppTraffic, MachineTraffic, TrafficDecision},
};
use caddis_bus::WorkerClient;
use caddis_catalog::Catalog;
use caddis_gateway::TrafficInfo;
use caddis_proxy::{
    AppLog, AppLogWriter, Config, ErrorCode, ListenerStatus, MachineCounters, Placeholder,
    PrivateNetworks, Proxy, Workers, feed,
};
use caddis_view::View;
use tokio::task::JoinHandle;
use tracing::info;

use crate::settings::TrafficSettings;

/// How long requests and streams may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a start may take before browsers are shown the page for it.
const WAKING_PAGE_AFTER: Duration = Duration::from_millis(500);

/// The proxy of this server.
pub struct Traffic {
    proxy: Arc<Proxy>,
    workers: Arc<Workers>,
    client: WorkerClient,
    writer: Option<AppLogWriter>,
    background: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Listens. Nothing is routed yet.
    pub fn listen(
        settings: &TrafficSettings,
        region: &str,
        client: WorkerClient,
        private_networks: Arc<dyn PrivateNetworks>,
    ) -> Result<Self> {
        let shared = [settings.http_listen, settings.https_listen];
        let defaults = shared.into_iter().zip(settings.are_defaults).filter(|(_, is)| *is);
        let mut config = Config {
            http: Some(settings.http_listen),
            https: Some(settings.https_listen),
            may_be_taken: defaults.map(|(address, _)| address).collect(),
            private_networks: Some(private_networks),
            domain: settings.domain.clone(),
            region: region.to_owned(),
            version: crate::VERSION.to_owned(),
            access_log: settings.access_log,
            awaits_routes: true,
            ..Config::default()
        };
        if let Some(page) = &settings.waking_page {
            let html = std::fs::read(page)
                .with_context(|| format!("can't read the waking page {}", page.display()))?;
            config.placeholder = Some(Placeholder { html: html.into(), after: WAKING_PAGE_AFTER });
        }
        let workers = Arc::new(Workers::new(client.clone(), config.wake_timeout));
        let (journal, writer) = AppLog::new();
        let journal = Arc::new(journal);
        let proxy = Proxy::start(config, workers.clone(), journal)
            .context("choose another address with --http-listen or --https-listen")?;
        for listener in proxy.listeners().iter().filter(|one| one.error.is_none()) {
            info!(address = %listener.address, "services on {}", listener.address);
        }
        let proxy = Arc::new(proxy);
        Ok(Self { proxy, workers, client, writer: Some(writer), background: Vec::new() })
    }

    /// Addresses of the shared listeners for HTTP and HTTPS, where there are both.
    pub fn listeners(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.proxy.http_address()?, self.proxy.https_address()?))
    }

    /// What the API asks about machines.
    pub fn info(&self) -> Arc<dyn TrafficInfo> {
        Arc::new(ProxyInfo { proxy: self.proxy.clone() })
    }

    /// Routes what the view has, from now on.
    pub fn follow(&mut self, view: Arc<View>, catalog: Catalog) {
        self.workers.tell(view.clone());
        if let Some(writer) = self.writer.take() {
            self.background.push(tokio::spawn(writer.run(view.clone(), self.client.clone())));
        }
        self.background.push(tokio::spawn(feed::follow(self.proxy.clone(), view, catalog)));
    }

    /// Lets requests and streams end, and closes what is left.
    pub async fn shutdown(self) {
        self.proxy.shutdown(DRAIN).await;
        for task in self.background {
            task.abort();
            let _ = task.await;
        }
    }
}

fn shown(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    time::milliseconds(UnixMillis::new(milliseconds).into())
}

/// What stands between whose services a warning is about, "services" or "app NAME", and the
/// address. `caddis doctor` looks for it.
pub const CANNOT_ANSWER: &str = " can't answer on ";

struct ProxyInfo {
    proxy: Arc<Proxy>,
}

impl fmt::Debug for ProxyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyInfo")
    }
}

impl TrafficInfo for ProxyInfo {
    fn warnings(&self) -> Vec<String> {
        let warning = |listener: ListenerStatus| {
            let ListenerStatus { app, address, error, .. } = listener;
            let whose = app.map_or_else(|| "services".to_owned(), |app| format!("app {app}"));
            Some(format!("{whose}{CANNOT_ANSWER}{address}: {}; trying again", error?))
        };
        self.proxy.listeners().into_iter().filter_map(warning).collect()
    }

    fn traffic(&self, app: &str) -> Option<AppTraffic> {
        let counters = self.proxy.counters(app)?;
        let waiting = counters.waiting.into();
        let machine = |one: MachineCounters| {
            let traffic = MachineTraffic {
                in_progress: one.activity.open_streams.into(),
                connections: one.connections,
                requests: one.requests,
                bytes_in: one.bytes_in,
                bytes_out: one.bytes_out,
                waiting,
                decision: one.last_decision.map(|decision| TrafficDecision {
                    what: decision.action.to_owned(),
                    why: decision.reason,
                    at: shown(decision.at),
                }),
            };
            (one.machine, traffic)
        };
        let error = |(code, count): (ErrorCode, u64)| (code.to_string(), count);
        Some(AppTraffic {
            waiting,
            connections: counters.connections.open as u64,
            refused_connections: counters.connections.refused,
            udp_clients: counters.udp_flows as u64,
            dropped_datagrams: counters.dropped_datagrams,
            errors: counters.errors.into_iter().map(error).collect(),
            machines: counters.machines.into_iter().map(machine).collect(),
        })
    }
}
