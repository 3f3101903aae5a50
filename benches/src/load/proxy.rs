//! The real proxy with apps that all are one server: each has one machine that runs.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use caddis_api::{MachineId, WorkerId};
use caddis_proxy::{
    AppRoutes, Autostop, Concurrency, ConcurrencyKind, Config, Handlers, HttpOptions, Journal,
    MachineRoute, MachineState, Machines, PortRoute, Proxy, ProxyError, ServiceRoute, Sleep,
    TlsOptions, WakeError,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::announce;

const WORKER: &str = "01K00000000000000000000000";
const REGION: &str = "local";
const DOMAIN: &str = "localhost";

/// Where a proxy listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyListening {
    /// Port for HTTP on 127.0.0.1.
    pub http: u16,
    /// Port for HTTPS.
    pub https: u16,
}

/// Serves so many apps until standard input ends. For each line of it, a number, so many apps are
/// given changed routes, and how long that took is told as a list of microseconds.
///
/// # Errors
/// When it can't listen.
pub async fn serve(apps: usize, upstream: u16) -> Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .with_writer(std::io::stderr)
        .init();
    let any = Some(([127, 0, 0, 1], 0).into());
    let (domain, region) = (DOMAIN.to_owned(), REGION.to_owned());
    let config = Config { http: any, https: any, domain, region, ..Config::default() };
    let proxy = Proxy::start(config, Arc::new(Nothing), Arc::new(Nothing))?;
    for number in 0..apps {
        proxy.apply(app(number), Some(routes(number, upstream, 0)));
    }
    announce(&ProxyListening {
        http: proxy.http_address().context("a proxy without HTTP")?.port(),
        https: proxy.https_address().context("a proxy without HTTPS")?.port(),
    })?;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut revision = 0;
    while let Some(line) = lines.next_line().await? {
        revision += 1;
        announce(&change(&proxy, apps, upstream, line.trim().parse()?, revision))?;
    }
    Ok(())
}

/// Changes `changes` apps, spread over all, and gives what each took, microseconds.
fn change(proxy: &Proxy, apps: usize, upstream: u16, changes: usize, revision: u32) -> Vec<f64> {
    let changed = (0..changes).map(|change| {
        let number = change * apps / changes.max(1);
        let (app, routes) = (app(number), routes(number, upstream, revision));
        let began = Instant::now();
        proxy.apply(app, Some(routes));
        began.elapsed().as_secs_f64() * 1e6
    });
    changed.collect()
}

/// The host name of an app.
pub fn host(number: usize) -> String {
    format!("{}.{DOMAIN}", app(number))
}

fn app(number: usize) -> String {
    format!("app-{number}")
}

fn routes(number: usize, upstream: u16, revision: u32) -> AppRoutes {
    let port = |port, tls| PortRoute {
        start: port,
        end: port,
        handlers: Handlers { http: true, tls, ..Handlers::default() },
        force_https: false,
        http: HttpOptions::default(),
        tls: TlsOptions::default(),
    };
    let service = ServiceRoute {
        internal_port: upstream,
        ports: vec![port(80, false), port(443, true)],
        concurrency: Concurrency {
            kind: ConcurrencyKind::Requests,
            soft_limit: 1_000_000 + revision,
            hard_limit: None,
        },
        autostart: true,
        autostop: Autostop::Off,
        min_machines_running: 0,
        idle_timeout: None,
        max_drain: None,
        healthy: true,
        protocol: caddis_proxy::Protocol::Tcp,
        grace: std::time::Duration::ZERO,
    };
    let machine = MachineRoute {
        id: MachineId::from_trusted(format!("{number:014x}")),
        worker: WorkerId::from_trusted(WORKER),
        region: REGION.to_owned(),
        address: IpAddr::from([127, 0, 0, 1]),
        state: MachineState::Started,
        cordoned: false,
        hold: None,
        is_off: false,
        leased_until: None,
        booted_at: SystemTime::UNIX_EPOCH,
        started_at: SystemTime::UNIX_EPOCH,
        services: vec![service],
    };
    AppRoutes { machines: vec![machine], ..AppRoutes::default() }
}

/// No machine is to be started or stopped, and errors are what the generator sees.
struct Nothing;

#[async_trait]
impl Machines for Nothing {
    async fn wake(&self, _: &MachineId, _: &WorkerId) -> Result<(), WakeError> {
        Err(WakeError::Gone("nothing is to be started here".to_owned()))
    }

    async fn may_sleep(&self, _: &MachineId, _: &WorkerId, _: Sleep) -> Result<(), WakeError> {
        Err(WakeError::Gone("nothing is to be stopped here".to_owned()))
    }

    async fn sleep(&self, _: &MachineId, _: &WorkerId, _: Sleep, _: &str) -> Result<(), WakeError> {
        Err(WakeError::Gone("nothing is to be stopped here".to_owned()))
    }
}

impl Journal for Nothing {
    fn proxy_error(&self, error: ProxyError) {
        tracing::error!(?error, "an error of the proxy");
    }
}
