//! Finds clients that take their responses, or send their requests' bodies, so slowly that they
//! keep machines awake.
//!
//! Now and then one looks whether it is the client who is waited for: whether its socket takes no
//! more, or, over HTTP/2, whether a part of a response is there that the client gives no room for,
//! or whether a machine has taken all that came of a body. Where that is so at every look, the
//! client must have taken or sent a least number of bytes meanwhile.

use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::time::Instant;

use crate::{Config, MinimumRate, connection::Connection};

/// Looks in a window.
const LOOKS: u32 = 8;

/// How much of something was taken, for as long as more of it was there, or sent, for as long as it
/// was waited for.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Since when it is the client who is waited for, and what it had taken then.
    since: Option<(Instant, u64)>,
}

impl Pace {
    /// Whether the client takes too little. `taken` is how many bytes it has taken in all; none
    /// when it is not waited for.
    pub(crate) fn is_too_slow(&mut self, limit: &MinimumRate, taken: Option<u64>) -> bool {
        let Some(taken) = taken else {
            self.since = None;
            return false;
        };
        let now = Instant::now();
        let (since, before) = *self.since.get_or_insert((now, taken));
        if now - since < limit.window {
            return false;
        }
        self.since = Some((now, taken));
        taken - before < limit.bytes
    }
}

/// Ends when the client takes too little of what is sent over the connection. Responses of which
/// it takes too little, where others are none of their business, are cut, and so are requests of
/// which it sends too little.
///
/// To be polled whenever something happens on the connection: nothing but bodies of requests over
/// HTTP/2 wakes it while nobody waits for the client.
pub(crate) async fn found(connection: &Connection, config: &Config) {
    let (download, upload) = (&config.download_limit, &config.upload_limit);
    let pause = (download.window.min(upload.window) / LOOKS).max(Duration::from_millis(1));
    loop {
        let mut is_known = false;
        poll_fn(|context| {
            if !is_known {
                connection.watcher.register(context.waker());
                is_known = true;
            }
            if connection.may_be_slow() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut pace = Pace::default();
        while connection.may_be_slow() {
            if pace.is_too_slow(download, connection.blocked()) {
                return;
            }
            connection.cut_slow_streams(download);
            connection.cut_slow_uploads(upload);
            tokio::time::sleep(pause).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_takes_too_little_of_what_is_there_is_too_slow() {
        let limit = MinimumRate { window: Duration::from_secs(10), bytes: 100 };
        let mut pace = Pace::default();
        let mut after = async |seconds, taken| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            pace.is_too_slow(&limit, taken)
        };
        assert!(!after(0, Some(5)).await);
        assert!(!after(9, Some(5)).await, "its time is not over");
        assert!(!after(1, Some(105)).await, "it took enough");
        assert!(!after(9, Some(106)).await);
        assert!(!after(1, None).await, "the machine is waited for");
        assert!(!after(9, Some(106)).await);
        assert!(!after(9, Some(106)).await, "it is waited for since a moment ago only");
        assert!(after(1, Some(205)).await);
    }
}
