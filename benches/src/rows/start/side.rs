//! What is started: one of the sides that a start has.

use std::rc::Rc;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use hyper::Method;
use serde_json::json;

use crate::{
    cpu::{Cost, cost, rest},
    machine::{APP, Machine, PROGRAM, config},
    rival::Rival,
    server::{IMAGE, Pool, Server},
};

/// Name of the container.
const CONTAINER: &str = "start";

/// See the module's text.
pub enum Side {
    /// A machine, and what its `start` event must say.
    Machine {
        /// Its server.
        server: Rc<Server>,
        /// The machine, stopped.
        machine: Machine,
        /// `start_kind`.
        kind: &'static str,
        /// `pool`, where it matters.
        pool: Option<&'static str>,
        /// Machines that are started right before, to empty the pool.
        others: Vec<Machine>,
    },
    /// A container.
    Podman(Rc<Rival>),
}

impl Side {
    /// A machine that finds a VM in the pool.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn hit(server: &Rc<Server>) -> Result<Self> {
        Self::machine(server, "template", Some("hit"), false, 0).await
    }

    /// A machine that finds the pool empty.
    ///
    /// # Errors
    /// See [`Self::hit`].
    pub async fn empty(server: &Rc<Server>) -> Result<Self> {
        Self::machine(server, "template", Some("empty"), false, Pool::SIZE).await
    }

    /// A machine on a server without a pool.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn off(server: &Rc<Server>) -> Result<Self> {
        Self::machine(server, "template", Some("off"), false, 0).await
    }

    /// A machine with a kernel argument of its own, for which there is no template.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn cold(server: &Rc<Server>) -> Result<Self> {
        Self::machine(server, "cold", None, true, 0).await
    }

    /// A container.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn podman(rival: &Rc<Rival>) -> Result<Self> {
        rival.create(CONTAINER).await?;
        Ok(Self::Podman(rival.clone()))
    }

    /// A machine with an encrypted volume, that finds a VM in the pool.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn with_volume(server: &Rc<Server>) -> Result<Self> {
        let volumes = format!("/v1/apps/{APP}/volumes");
        let (http, volume) = (server.http(), json!({ "name": "bench", "size_gb": 1 }));
        let volume = http.send(Method::POST, &volumes, &volume.to_string()).await?;
        let volume = crate::machine::json(&volume)?["id"].clone();
        let mut config = config(IMAGE, PROGRAM);
        config["mounts"] = json!([{ "volume": volume, "path": "/data" }]);
        // Its start waits for the volume.
        let machine = Machine::create(http, &config).await?;
        machine.first_output(String::new()).await?;
        machine.stop().await?;
        let (server, others) = (server.clone(), Vec::new());
        Ok(Self::Machine { server, machine, kind: "template", pool: Some("hit"), others })
    }

    async fn machine(
        server: &Rc<Server>,
        kind: &'static str,
        pool: Option<&'static str>,
        cold: bool,
        others: usize,
    ) -> Result<Self> {
        let mut config = config(IMAGE, PROGRAM);
        if cold {
            config["guest"] = json!({ "kernel_args": ["caddis.cold=1"] });
        }
        let make = || Machine::prepare(server.http(), &config);
        let (machine, others) = (make().await?, try_join_all((0..others).map(|_| make())).await?);
        Ok(Self::Machine { server: server.clone(), machine, kind, pool, others })
    }

    /// Starts it once at rest, and stops it.
    ///
    /// # Errors
    /// When it does not start, or not in the way that is to be measured.
    pub async fn sample(&self) -> Result<Cost> {
        let Self::Machine { server, machine, kind, pool, others } = self else {
            return self.container().await;
        };
        server.pool_full().await?;
        let (at_rest, mark) = (rest().await?, machine.log_end().await?);
        server.before_start();
        try_join_all(others.iter().map(|other| async {
            other.post("start", "").await?;
            other.wait("started").await
        }))
        .await?;
        let cost = cost(at_rest, async {
            machine.post("start", "").await?;
            machine.first_output(mark).await
        });
        let (cost, event) = (cost.await?, machine.start_event().await?);
        ensure!(event["start_kind"] == *kind, "not a {kind} start: {}", event["start_kind"]);
        ensure!(
            pool.is_none_or(|pool| event["pool"] == pool),
            "the pool was not as wanted: {}",
            event["pool"]
        );
        self.end().await?;
        Ok(cost)
    }

    async fn container(&self) -> Result<Cost> {
        let Self::Podman(rival) = self else { anyhow::bail!("not a container") };
        let at_rest = rest().await?;
        let mut attached = None;
        let cost = cost(at_rest, async {
            attached = Some(rival.podman().first_output(&["start", "--attach", CONTAINER]).await?);
            Ok(())
        });
        let cost = cost.await?;
        if let Some(attached) = attached {
            rival.end(CONTAINER, attached).await?;
        }
        Ok(cost)
    }

    /// Stops what runs.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn end(&self) -> Result<()> {
        match self {
            Self::Machine { machine, others, .. } => {
                try_join_all(others.iter().chain([machine]).map(Machine::stop)).await.map(drop)
            }
            Self::Podman(rival) => {
                rival.podman().run(&["stop", "--time", "0", CONTAINER]).await.map(drop)
            }
        }
    }
}
