//! A server, and the binary in a terminal that talks to it.

use anyhow::Result;
use caddis_testkit::{Terminal, fake::FakeServer};
use serde_json::json;

/// A server with an app `shop`, and a user's home.
pub struct Stand {
    pub server: FakeServer,
    home: tempfile::TempDir,
}

impl Stand {
    pub async fn new() -> Result<Self> {
        let server = FakeServer::start().await?;
        server.api()?.create_app("shop", None).await?;
        Ok(Self { server, home: tempfile::tempdir()? })
    }

    /// Makes a machine in the app `shop` that runs until it is stopped, waits until it does and
    /// returns its id.
    pub async fn machine(&self, name: &str) -> Result<String> {
        let config = json!({ "image": "web", "restart": { "policy": "no" } });
        let body = json!({ "name": name, "config": config });
        let machine = self.server.api()?.create_machine_from("shop", body).await?;
        machine.wait("started").await?;
        Ok(machine.id().to_owned())
    }

    /// The binary with these arguments.
    pub fn terminal(&self, arguments: &[&str]) -> Result<Terminal> {
        self.terminal_of(arguments, 200)
    }

    /// The same on a terminal with so many columns.
    pub fn terminal_of(&self, arguments: &[&str], columns: u16) -> Result<Terminal> {
        let prepare = |command: &mut tokio::process::Command| {
            command
                .args(arguments)
                .env("HOME", self.home.path())
                .env("CADDIS_DATA_DIR", self.home.path());
            command
                .env("CADDIS_API_URL", self.server.url())
                .env("CADDIS_API_TOKEN", self.server.token());
            command.current_dir(self.home.path());
        };
        Terminal::start(prepare, env!("CARGO_BIN_EXE_caddis").as_ref(), columns, 40)
    }
}
