//! A machine, as tests handle it.

use std::{future::Future, time::Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::{Api, DEADLINE, Reply};

/// A handle on one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    api: Api,
    app: String,
    id: String,
}

/// What a program run by `exec` left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Exit status.
    pub code: i64,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Machine {
    pub(crate) fn new(api: Api, app: &str, id: &str) -> Self {
        Self { api, app: app.to_owned(), id: id.to_owned() }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Path below its URL.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/apps/{}/machines/{}{rest}", self.app, self.id)
    }

    /// As the API shows it.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn get(&self) -> Result<Value> {
        self.api.get(&self.path("")).await?.ok()
    }

    /// POST to one of its actions.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, action: &str, body: Value) -> Result<Reply> {
        self.api.post(&self.path(action), body).await
    }

    /// Asks for a start.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn start(&self) -> Result<Value> {
        self.post("/start", Value::Null).await?.ok()
    }

    /// Asks for a stop with the machine's own signal and timeout.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn stop(&self) -> Result<Value> {
        self.post("/stop", Value::Null).await?.ok()
    }

    /// Destroys it, running or not, and waits until it is gone.
    ///
    /// # Errors
    /// When it is refused or not gone in time.
    pub async fn destroy(&self) -> Result<()> {
        self.api.delete(&self.path("?force=true")).await?.ok()?;
        self.wait("destroyed").await
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// When it isn't reached in time; the error shows the machine.
    pub async fn wait(&self, state: &str) -> Result<()> {
        self.wait_with(&format!("state={state}")).await
    }

    /// Waits for a state that is reached after an event.
    ///
    /// # Errors
    /// When it isn't reached in time; the error shows the machine.
    pub async fn wait_after(&self, event: &str, state: &str) -> Result<()> {
        self.wait_with(&format!("state={state}&from_event_id={event}")).await
    }

    async fn wait_with(&self, query: &str) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let reply = self.api.get(&self.path(&format!("/wait?timeout=60&{query}"))).await?;
            match reply.status {
                200 => return Ok(()),
                // The server's own limit is a minute.
                408 if Instant::now() < deadline => {}
                _ => bail!(
                    "waiting with {query}: {} {}\n{}",
                    reply.status,
                    reply.text,
                    self.get().await?
                ),
            }
        }
    }

    /// Its events, newest first.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn events(&self) -> Result<Vec<Value>> {
        let events = self.api.get(&self.path("/events?limit=50")).await?.ok()?;
        Ok(events.as_array().context("events are no list")?.clone())
    }

    /// Id of its newest event.
    ///
    /// # Errors
    /// When there is none.
    pub async fn newest_event(&self) -> Result<String> {
        let events = self.events().await?;
        Ok(events.first().and_then(|event| event["id"].as_str()).context("no events")?.to_owned())
    }

    /// `request.exit_event` of its newest exit.
    ///
    /// # Errors
    /// When it never exited.
    pub async fn exit_event(&self) -> Result<Value> {
        let exit = self.events().await?.into_iter().find(|event| event["type"] == "exit");
        exit.map(|mut event| event["request"]["exit_event"].take()).context("no exit event")
    }

    /// Runs a program in it.
    ///
    /// # Errors
    /// When it can't be run.
    pub async fn exec(&self, command: &[&str]) -> Result<Exec> {
        let reply = self.post("/exec", json!({ "command": command, "timeout": 60 })).await?.ok()?;
        let text = |key: &str| reply[key].as_str().unwrap_or_default().to_owned();
        Ok(Exec {
            code: reply["exit_code"].as_i64().unwrap_or(0),
            stdout: text("stdout"),
            stderr: text("stderr"),
        })
    }

    /// Runs a shell line in it and returns its standard output.
    ///
    /// # Errors
    /// When it fails.
    pub async fn shell(&self, line: &str) -> Result<String> {
        let exec = self.exec(&["/bin/sh", "-c", line]).await?;
        if exec.code != 0 {
            bail!("`{line}` in the VM: exit code {}: {}{}", exec.code, exec.stdout, exec.stderr);
        }
        Ok(exec.stdout)
    }

    /// Lines the program wrote up to now.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn logs(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        self.read_logs(0, |line| {
            lines.push(line.to_owned());
            false
        })
        .await?;
        Ok(lines)
    }

    /// Waits until the program has written a line, from the first one kept on.
    ///
    /// # Errors
    /// When it didn't in time; the error shows what it wrote.
    pub async fn logged(&self, line: &str) -> Result<()> {
        let mut seen = Vec::new();
        let read = self.read_logs(60, |found| {
            seen.push(found.to_owned());
            found == line
        });
        let outcome = tokio::time::timeout(DEADLINE, read).await;
        match outcome {
            Ok(Ok(true)) => Ok(()),
            Ok(Err(error)) => Err(error),
            _ => Err(anyhow!("{line:?} is not among the lines of the program: {seen:#?}")),
        }
    }

    /// The first line the program writes, waited for.
    ///
    /// # Errors
    /// When it wrote none in time.
    pub async fn first_line(&self) -> Result<String> {
        let mut first = None;
        let read = self.read_logs(60, |line| first.replace(line.to_owned()).is_none());
        tokio::time::timeout(DEADLINE, read).await.context("the program writes nothing")??;
        first.context("the program wrote nothing")
    }

    /// Reads on until `done` (true) or until the server has nothing more to say for `wait` seconds
    /// (false).
    async fn read_logs(&self, wait: u64, mut done: impl FnMut(&str) -> bool) -> Result<bool> {
        let mut token = String::new();
        loop {
            let path = format!(
                "/api/v1/apps/{}/logs?instance={}&next_token={token}&wait_seconds={wait}",
                self.app, self.id
            );
            let page = self.api.get(&path).await?.ok()?;
            let entries = page["data"].as_array().context("logs without data")?;
            for attributes in entries.iter().map(|entry| &entry["attributes"]) {
                let is_app = attributes["meta"]["event"]["provider"] == "app";
                if is_app && done(attributes["message"].as_str().unwrap_or_default()) {
                    return Ok(true);
                }
            }
            if entries.is_empty() {
                return Ok(false);
            }
            token = page["meta"]["next_token"].as_str().unwrap_or_default().to_owned();
        }
    }

    /// Its address as its host reaches it.
    ///
    /// # Errors
    /// When the API shows none.
    pub async fn address(&self) -> Result<String> {
        let machine = self.get().await?;
        Ok(machine["private_ip"].as_str().context("no private_ip")?.to_owned())
    }

    /// Body of an HTTP answer of the program in it. Nothing tells from outside when a program
    /// begins to listen, so refused connections are tried again until the deadline.
    ///
    /// # Errors
    /// When none came.
    pub async fn http_get(&self, port: u16, path: &str) -> Result<String> {
        let url = format!("http://[{}]:{port}{path}", self.address().await?);
        let client = Api::new(url.clone(), None)?;
        retried(|| async { client.get("").await?.ok().map(|_| ()) })
            .await
            .with_context(|| format!("GET {url}"))?;
        Ok(client.get("").await?.text)
    }
}

async fn retried<F: Future<Output = Result<()>>>(mut attempt: impl FnMut() -> F) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await
            }
            outcome => return outcome,
        }
    }
}
