//! This program in one of its other roles, as a process inside a [`Place`].

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{Listening, generator::Measured};
use crate::place::Place;

/// For a hundred thousand machines to be listed.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A process that goes on until this is dropped.
#[derive(Debug)]
pub struct Ourselves {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Ourselves {
    /// Starts it; what it logs goes to `log`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(place: &Place, words: &[&str], log: Stdio) -> Result<Self> {
        let mut child = spawn(place, words, log)?;
        let input = child.stdin.take().context("standard input of ourselves")?;
        let output = child.stdout.take().context("standard output of ourselves")?;
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    /// A server that returns `body`, which has no line end in it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn bare(place: &Place, body: &[u8], behind: bool) -> Result<(Self, Listening)> {
        let words: &[&str] = if behind { &["bare", "--behind"] } else { &["bare"] };
        let mut server = Self::start(place, words, Stdio::null())?;
        server.tell(body).await?;
        let mut listening: Listening = server.announced().await?;
        listening.path = "/v1/apps/bench/machines/00000000000000".to_owned();
        Ok((server, listening))
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn tell(&mut self, line: &[u8]) -> Result<()> {
        self.input.write_all(&[line, b"\n"].concat()).await.context("telling ourselves something")
    }

    /// Reads the next line of its output: where it listens, what it has measured.
    ///
    /// # Errors
    /// When it ends or says nothing in time.
    pub async fn announced<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = tokio::time::timeout(TIMEOUT, self.output.next_line())
            .await
            .context("a server does not answer")??;
        serde_json::from_str(&line.context("a server has ended")?).context("reading its answer")
    }

    /// Its process id.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<i32> {
        Ok(self.child.id().context("a server has ended")?.cast_signed())
    }

    /// Ends it and waits until it is gone.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub async fn end(mut self) -> Result<()> {
        drop(self.input);
        self.child.wait().await.map(drop).context("waiting for a process to end")
    }
}

/// Has the generator ask; `what` says whom, for the error.
///
/// # Errors
/// When an answer is an error.
pub async fn generate(place: &Place, what: &str, words: &[&str]) -> Result<Measured> {
    let words = [&["generator"], words].concat();
    let output = spawn(place, &words, Stdio::piped())?.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {}", said.trim());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn spawn(place: &Place, words: &[&str], log: Stdio) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("finding our own file")?);
    command.args(words).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
    let runtime = tokio::runtime::Handle::current();
    let spawned = place.run(move || {
        let _entered = runtime.enter();
        command.spawn()
    })?;
    spawned.context("starting ourselves")
}
