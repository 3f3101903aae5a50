//! Asks one question again and again over connections that stay open, as fast as answers come. It
//! reads no more of an answer than its status and length, so that it is not itself what is
//! measured.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use futures::future::try_join_all;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::MissedTickBehavior,
};
use tokio_rustls::rustls::pki_types::ServerName;

use super::{proxy::host, tls};
use crate::{cpu::milliseconds, statistics::percentile};

/// What to ask, and how.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// On 127.0.0.1.
    #[arg(long)]
    pub port: u16,
    /// What to get.
    #[arg(long)]
    pub path: String,
    /// Token to be shown.
    #[arg(long, default_value = "")]
    pub token: String,
    /// Asks apps of a proxy that has so many, each connection one; they are spread over all.
    #[arg(long)]
    pub apps: Option<usize>,
    /// Over TLS.
    #[arg(long)]
    pub tls: bool,
    /// Connections.
    #[arg(long)]
    pub connections: usize,
    /// For how long, milliseconds.
    #[arg(long)]
    pub milliseconds: u64,
    /// So many requests per second over all connections, instead of as fast as answers come.
    #[arg(long)]
    pub per_second: Option<u32>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Answers per second.
    pub per_second: f64,
    /// Half of the answers took at most this, milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 answers took at most this, milliseconds.
    pub p99_ms: f64,
    /// Part of the time for which the generator itself had its processor. Near 1 it asked no faster
    /// because it could not, and not because the server did not answer.
    pub busy: f64,
}

/// Asks until time is up, over connections that were made and asked once before.
///
/// # Errors
/// When an answer is an error.
pub async fn generate(target: &Target) -> Result<Measured> {
    let hosts = (0..target.connections).map(|number| match target.apps {
        Some(apps) => host(number * apps / target.connections),
        None => "127.0.0.1".to_owned(),
    });
    let open = |host: String| async move {
        let mut connection = Connection::open(target.port, &host, target.tls).await?;
        connection.prepare(&target.path, &target.token);
        connection.ask().await?;
        anyhow::Ok(connection)
    };
    let connections = try_join_all(hosts.map(open)).await?;
    let (began, used_before) = (Instant::now(), used()?);
    let asking = connections.into_iter().enumerate();
    let asking = asking.map(|(number, connection)| ask(target, began, number, connection));
    let times = try_join_all(asking).await?.concat();
    let seconds = began.elapsed().as_secs_f64();
    let time = |percent| percentile(&times, percent).context("no answer came");
    Ok(Measured {
        per_second: times.len() as f64 / seconds,
        p50_ms: time(50.0)?,
        p99_ms: time(99.0)?,
        busy: (used()? - used_before) / seconds,
    })
}

/// Processor time of this process so far, seconds.
fn used() -> Result<f64> {
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok((used.user_time() + used.system_time()).num_microseconds() as f64 / 1e6)
}

/// At a given rate the requests of all connections are spread evenly over time, as far as a timer
/// of milliseconds does that. A connection that was late keeps its turn: otherwise all that once
/// waited together would ask at the same moment ever after, and wait for one another.
async fn ask(
    target: &Target,
    began: Instant,
    number: usize,
    mut connection: Connection,
) -> Result<Vec<f64>> {
    let end = began + Duration::from_millis(target.milliseconds);
    let mut turns = target.per_second.map(|rate| {
        let between = 1.0 / f64::from(rate.max(1));
        let first = began + Duration::from_secs_f64(between * number as f64);
        let period = Duration::from_secs_f64(between * target.connections as f64);
        let mut turns = tokio::time::interval_at(first.into(), period);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        turns
    });
    let mut times = Vec::new();
    loop {
        if let Some(turns) = &mut turns {
            turns.tick().await;
        }
        if Instant::now() >= end {
            return Ok(times);
        }
        let sent = Instant::now();
        connection.ask().await?;
        times.push(milliseconds(sent));
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A connection that stays open, and the request that is sent over it.
pub struct Connection {
    stream: Box<dyn Stream>,
    host: String,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to 127.0.0.1.
    ///
    /// # Errors
    /// When nothing listens there, or the handshake fails.
    pub async fn open(port: u16, host: &str, over_tls: bool) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if over_tls {
            let name = ServerName::try_from(host.to_owned())?;
            Box::new(tls::connector()?.connect(name, stream).await.context("a TLS handshake")?)
        } else {
            Box::new(stream)
        };
        Ok(Self { stream, host: host.to_owned(), request: Vec::new(), buffer: Vec::new() })
    }

    /// Sets what is asked; without a token none is shown.
    pub fn prepare(&mut self, path: &str, token: &str) {
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        if !token.is_empty() {
            request += &format!("authorization: Bearer {token}\r\n");
        }
        self.request = (request + "\r\n").into_bytes();
        self.buffer = vec![0; 64 << 10];
    }

    /// Asks once and reads the answer to its end.
    ///
    /// # Errors
    /// When it is an error or none comes.
    pub async fn ask(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await?;
        // What TLS has not sent yet.
        self.stream.flush().await?;
        let mut length = 0;
        loop {
            let free = self.buffer.get_mut(length..).unwrap_or_default();
            ensure!(!free.is_empty(), "an answer is larger than expected");
            let read = self.stream.read(free).await?;
            ensure!(read > 0, "the server closed a connection");
            length += read;
            if is_whole(self.buffer.get(..length).unwrap_or_default())? {
                return Ok(());
            }
        }
    }
}

/// Whether a good answer is there to its last byte.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return Ok(false);
    };
    let text = std::str::from_utf8(answer.get(..head).unwrap_or_default())
        .context("a head that is no text")?;
    if !text.starts_with("HTTP/1.1 200 ") {
        bail!("{}", String::from_utf8_lossy(answer));
    }
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length: usize = length.context("an answer without content-length")?.1.trim().parse()?;
    Ok(answer.len() >= head + 4 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_at_its_last_byte() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for length in 0..answer.len() {
            assert!(!is_whole(&answer[..length]).unwrap(), "{length}");
        }
        assert!(is_whole(answer).unwrap());
        assert!(is_whole(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n").is_err());
    }
}
