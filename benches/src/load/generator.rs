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
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

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
    #[arg(long)]
    pub token: String,
    /// Connections.
    #[arg(long)]
    pub connections: usize,
    /// For how long, milliseconds.
    #[arg(long)]
    pub milliseconds: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Answers per second.
    pub per_second: f64,
    /// 99 of 100 answers took at most this, milliseconds.
    pub p99_ms: f64,
    /// Part of the time for which the generator itself had its processor. Near 1 it asked no faster
    /// because it could not, and not because the server did not answer.
    pub busy: f64,
}

/// Asks until time is up.
///
/// # Errors
/// When an answer is an error.
pub async fn generate(target: &Target) -> Result<Measured> {
    let began = Instant::now();
    let end = began + Duration::from_millis(target.milliseconds);
    let times = try_join_all((0..target.connections).map(|_| ask(target, end))).await?;
    let seconds = began.elapsed().as_secs_f64();
    let used = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = (used.user_time() + used.system_time()).num_microseconds() as f64 / 1e6;
    let times = times.concat();
    let p99_ms = percentile(&times, 99.0).context("no answer came")?;
    Ok(Measured { per_second: times.len() as f64 / seconds, p99_ms, busy: used / seconds })
}

async fn ask(target: &Target, end: Instant) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", target.port)).await?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {}\r\n\r\n",
        target.path, target.token
    );
    let (mut times, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    while Instant::now() < end {
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).await?;
        let mut length = 0;
        loop {
            let free = buffer.get_mut(length..).unwrap_or_default();
            ensure!(!free.is_empty(), "an answer is larger than expected");
            let read = stream.read(free).await?;
            ensure!(read > 0, "the server closed a connection");
            length += read;
            if is_whole(buffer.get(..length).unwrap_or_default())? {
                break;
            }
        }
        times.push(milliseconds(sent));
    }
    Ok(times)
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
