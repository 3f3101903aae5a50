//! A machine under measurement, by way of the API.

use anyhow::{Context as _, Result, ensure};
use hyper::Method;
use serde_json::{Value, json};

use crate::http::Http;

/// App of all machines.
pub const APP: &str = "bench";
/// What [`PROGRAM`] says first.
pub const READY: &str = "ready";
/// Program of most machines and of the containers beside them: says [`READY`], waits, and ends at
/// once on SIGINT.
pub const PROGRAM: &str = "echo ready; trap \"exit 0\" INT; while :; do sleep 1000 & wait; done";

/// Configuration of a machine of 256 MB that runs a line of shell.
pub fn config(image: &str, program: &str) -> Value {
    json!({
        "image": image, "restart": { "policy": "no" },
        "init": { "exec": ["/bin/sh", "-c", program] },
    })
}

/// One machine.
#[derive(Debug, Clone)]
pub struct Machine {
    http: Http,
    path: String,
    id: String,
}

impl Machine {
    /// Makes one and boots it.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn create(http: &Http, config: &Value) -> Result<Self> {
        Self::make(http, &json!({ "config": config })).await
    }

    /// Makes one that has not been booted.
    ///
    /// # Errors
    /// When the server refuses or its image can't be had.
    pub async fn prepare(http: &Http, config: &Value) -> Result<Self> {
        let machine = Self::make(http, &json!({ "config": config, "skip_launch": true })).await?;
        machine.wait("created").await?;
        Ok(machine)
    }

    async fn make(http: &Http, body: &Value) -> Result<Self> {
        let machines = format!("/v1/apps/{APP}/machines");
        let machine = json(&http.send(Method::POST, &machines, &body.to_string()).await?)?;
        let id = machine["id"].as_str().context("a machine without an id")?.to_owned();
        Ok(Self::known(http, &id))
    }

    /// One that is there already.
    pub fn known(http: &Http, id: &str) -> Self {
        Self {
            http: http.clone(),
            path: format!("/v1/apps/{APP}/machines/{id}"),
            id: id.to_owned(),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As the API shows it.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn get(&self) -> Result<Value> {
        json(&self.http.send(Method::GET, &self.path, "").await?)
    }

    /// `POST` of an action; returns once it is accepted.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn post(&self, action: &str, body: &str) -> Result<()> {
        self.http.send(Method::POST, &format!("{}/{action}", self.path), body).await.map(drop)
    }

    /// Runs a line of shell in it, and gives its output.
    ///
    /// # Errors
    /// When it can't be run, or fails.
    pub async fn shell(&self, line: &str) -> Result<String> {
        let body = json!({ "command": ["/bin/sh", "-c", line], "timeout": 60 }).to_string();
        let answer = self.http.send(Method::POST, &format!("{}/exec", self.path), &body).await?;
        let answer = json(&answer)?;
        ensure!(answer["exit_code"] == 0, "'{line}' in machine {}: {answer}", self.id);
        Ok(answer["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// When it is not reached within a minute, or the machine fails.
    pub async fn wait(&self, state: &str) -> Result<()> {
        let path = format!("{}/wait?state={state},failed", self.path);
        let reached = json(&self.http.send(Method::GET, &path, "").await?)?;
        ensure!(
            reached["state"] == state,
            "machine {} is {} instead of {state}",
            self.id,
            reached["state"]
        );
        Ok(())
    }

    /// Stops it and waits until it is stopped.
    ///
    /// # Errors
    /// See [`Self::post`], [`Self::wait`].
    pub async fn stop(&self) -> Result<()> {
        self.post("stop", "{}").await?;
        self.wait("stopped").await
    }

    /// Removes it, running or not, and waits until it is gone.
    ///
    /// # Errors
    /// See [`Self::post`], [`Self::wait`].
    pub async fn destroy(&self) -> Result<()> {
        self.http.send(Method::DELETE, &format!("{}?force=true", self.path), "").await?;
        self.wait("destroyed").await
    }

    /// A mark at the end of its log as it is now.
    ///
    /// # Errors
    /// When the log can't be read.
    pub async fn log_end(&self) -> Result<String> {
        let mut mark = String::new();
        loop {
            let page = self.log(&mark, 0).await?;
            mark = page.1;
            if page.0.is_empty() {
                return Ok(mark);
            }
        }
    }

    /// Waits for the first line of its program after a mark; an empty mark is the log's begin.
    ///
    /// # Errors
    /// When the program says nothing for a minute, or not what it should.
    pub async fn first_output(&self, mut mark: String) -> Result<()> {
        loop {
            let (entries, next) = self.log(&mark, 60).await?;
            ensure!(!entries.is_empty(), "no output from machine {}", self.id);
            mark = next;
            let of_program =
                |entry: &&Value| entry["attributes"]["meta"]["event"]["provider"] == "app";
            if let Some(line) = entries.iter().find(of_program) {
                let message = line["attributes"]["message"].as_str().unwrap_or_default();
                ensure!(message == READY, "machine {} says: {message}", self.id);
                return Ok(());
            }
        }
    }

    async fn log(&self, mark: &str, wait: u32) -> Result<(Vec<Value>, String)> {
        let path = format!(
            "/api/v1/apps/{APP}/logs?instance={}&next_token={mark}&wait_seconds={wait}",
            self.id
        );
        let mut page = json(&self.http.send(Method::GET, &path, "").await?)?;
        let next = page["meta"]["next_token"]
            .as_str()
            .context("a page of log without next_token")?
            .to_owned();
        match page["data"].take() {
            Value::Array(entries) => Ok((entries, next)),
            other => anyhow::bail!("a page of log that is {other}"),
        }
    }

    /// Details of its latest `start` event, once it is started.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start_event(&self) -> Result<Value> {
        self.wait("started").await?;
        let machine = self.get().await?;
        let events = machine["events"].as_array().context("a machine without events")?;
        let started =
            events.iter().find(|event| event["type"] == "start" && event["status"] == "started");
        Ok(started.context("no start event")?["details"].clone())
    }
}

/// Reads a JSON body.
///
/// # Errors
/// When it is none.
pub fn json(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body)
        .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(body)))
}
