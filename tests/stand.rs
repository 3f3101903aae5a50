//! What most tests begin with: a registry and a server with one app.

use anyhow::Result;
use caddis_testkit::{Host, Machine, Options, Registry, RegistryOptions, Server, images};
use serde_json::{Value, json};

/// Name of the app that is there from the start.
pub const APP: &str = "test";

/// A registry, and a server that uses it.
pub struct Stand<'a> {
    pub server: Server<'a>,
    pub registry: Registry,
}

impl<'a> Stand<'a> {
    pub async fn new(host: &'a Host) -> Result<Self> {
        Self::with(host, Options::default()).await
    }

    pub async fn with(host: &'a Host, mut options: Options) -> Result<Self> {
        let registry = Registry::start(host, RegistryOptions::default())?;
        options.insecure_registries.push(registry.address().to_owned());
        let server = Server::start(host, options).await?;
        server.api().create_app(APP, None).await?;
        Ok(Self { server, registry })
    }

    /// Reference of the busybox image.
    pub fn busybox(&self) -> Result<String> {
        self.registry.push(&images::busybox()?, "busybox:1")
    }

    /// Reference of the web server's image.
    pub fn web(&self) -> Result<String> {
        self.registry.push(&images::web()?, "web:1")
    }

    /// A machine in [`APP`].
    pub async fn machine(&self, config: Value) -> Result<Machine> {
        self.server.api().create_machine(APP, config).await
    }

    /// A machine that runs a shell script and is not started again by itself; `more` is merged into
    /// its config.
    pub async fn script(&self, script: &str, more: Value) -> Result<Machine> {
        let mut config = json!({
            "image": self.busybox()?,
            "init": { "cmd": ["/bin/sh", "-c", script] },
            "restart": { "policy": "no" },
        });
        if let (Some(config), Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        self.machine(config).await
    }
}

/// Whether the long forms of tests are left out, as `make test` does.
pub fn is_short() -> bool {
    std::env::var_os("CADDIS_SOAK").is_none()
}

/// How often something is repeated: `soak` times in `make soak`, else `usual`.
pub fn rounds(usual: u32, soak: u32) -> u32 {
    if is_short() { usual } else { soak }
}
