//! The log of a server, line by line as it comes.

use std::{
    io::{BufRead as _, BufReader, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;

/// Generous, for a busy host.
const DEADLINE: Duration = Duration::from_secs(60);

/// The lines so far.
#[derive(Debug)]
pub struct ServerLog {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many there are; ends with the server.
    count: watch::Receiver<usize>,
}

impl ServerLog {
    /// Reads a log until its end, in a thread of its own: a server must never wait for its reader.
    pub fn new(source: impl Read + Send + 'static) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (counted, count) = watch::channel(0);
        let all = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                let mut all = locked(&all);
                all.push(line);
                counted.send_replace(all.len());
            }
        });
        Self { lines, count }
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        locked(&self.lines).len()
    }

    /// Waits for a line that fits, from number `since` on, and gives its number.
    ///
    /// # Errors
    /// When the log ends or none comes in time; the error has the last lines.
    pub async fn wait(&self, since: usize, fits: impl Fn(&str) -> bool) -> Result<usize> {
        let found = async {
            let (mut next, mut count) = (since, self.count.clone());
            loop {
                let seen = *count.borrow_and_update();
                let found = locked(&self.lines).iter().skip(next).position(|line| fits(line));
                if let Some(found) = found {
                    return anyhow::Ok(next + found);
                }
                next = next.max(seen);
                count.changed().await.context("the server has ended")?;
            }
        };
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => bail!("{error}; it said:\n{}", self.tail()),
            Err(_) => bail!("the server does not say so; it said:\n{}", self.tail()),
        }
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let lines = locked(&self.lines);
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }
}

fn locked(lines: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_found_from_the_mark_on_and_the_end_is_told() {
        let log = ServerLog::new(&b"pool ready waiting=2\nother\npool ready waiting=2\n"[..]);
        let ready = |line: &str| line.starts_with("pool ready");
        assert_eq!(log.wait(0, ready).await.unwrap(), 0);
        assert_eq!(log.wait(1, ready).await.unwrap(), 2);
        let error = log.wait(3, ready).await.unwrap_err().to_string();
        assert!(error.contains("has ended") && error.contains("other"), "{error}");
    }
}
