//! When to try again: after growing pauses, or as long after as the registry asks for in
//! `Retry-After`.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::failure::Failure;
use crate::{ImageError, Transfer};

/// Longest that anything is believed to ask for.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The pauses between the tries of one request.
pub(super) struct Patience<'a> {
    transfer: &'a Transfer,
    pause: Duration,
    /// Waited because the registry asked for it.
    waited: Duration,
    tries: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(transfer: &'a Transfer) -> Self {
        Self { transfer, pause: transfer.first_pause, waited: Duration::ZERO, tries: 0 }
    }

    /// Begins with short pauses again, after something came of it.
    pub(super) fn renew(&mut self) {
        self.pause = self.transfer.first_pause;
    }

    /// Waits before the next of `attempts` tries, or gives the error back.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), ImageError> {
        self.tries += 1;
        let pause = self.after(&failure).filter(|_| self.tries < self.transfer.attempts);
        let Some(pause) = pause else { return Err(failure.error) };
        tracing::debug!(error = %failure.error, tries = self.tries, ?pause, "registry request \
            failed, retrying");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// How long to wait before the next try; `None` when none would help, or the registry asks for
    /// more than is waited.
    pub(super) fn after(&mut self, failure: &Failure) -> Option<Duration> {
        if !failure.again {
            return None;
        }
        let pause = self.pause;
        self.pause = pause.saturating_mul(2);
        let Some(asked) = failure.asked else { return Some(pause) };
        self.waited = self.waited.saturating_add(asked);
        (self.waited <= self.transfer.longest_wait).then(|| asked.max(pause))
    }
}

/// How long an answer asks to be left alone: seconds, or a date.
pub(super) fn asked(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite()) {
        return Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST).min(LONGEST));
    }
    let until = rfc2822::parse(text).ok()?.timestamp();
    let left = until.duration_since(now).max(SignedDuration::ZERO);
    Duration::try_from(left).ok().map(|asked| asked.min(LONGEST))
}

/// When that is over, in words.
pub(super) fn until(asked: Duration, now: Timestamp) -> String {
    let seconds = asked.as_secs() + u64::from(asked.subsec_nanos() > 0);
    let at = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok());
    let at =
        at.map(|at| format!(", at {}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))).unwrap_or_default();
    format!("retry in {seconds} s{at}")
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn failure(asked: Option<u64>) -> Failure {
        let error = ImageError::Interrupted { what: "a test".to_owned() };
        Failure { error, again: true, asked: asked.map(Duration::from_secs) }
    }

    #[test]
    fn seconds_and_dates_are_understood() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        for (text, expected) in [
            ("120", Some(120)),
            (" 5 ", Some(5)),
            ("0", Some(0)),
            ("-3", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 09:49:37 +0100", Some(37)),
            ("99999999999999", Some(LONGEST.as_secs())),
            ("Tue, 31 Dec 2199 23:59:59 GMT", Some(LONGEST.as_secs())),
            ("soon", None),
            ("NaN", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            assert_eq!(asked(&headers, now), expected.map(Duration::from_secs), "{text}");
        }
        assert_eq!(
            until(Duration::from_millis(36_500), now),
            "retry in 37 s, at 1994-11-06 08:49:37 UTC"
        );
    }

    #[test]
    fn short_waits_are_kept_and_long_ones_or_many_are_not() {
        let transfer = Transfer { longest_wait: Duration::from_secs(30), ..Transfer::default() };
        let mut patience = Patience::new(&transfer);
        assert_eq!(patience.after(&failure(None)), Some(transfer.first_pause));
        assert_eq!(patience.after(&failure(None)), Some(transfer.first_pause * 2));
        assert_eq!(patience.after(&failure(Some(20))), Some(Duration::from_secs(20)));
        assert_eq!(
            patience.after(&failure(Some(0))),
            Some(transfer.first_pause * 8),
            "it is not asked at once"
        );
        assert_eq!(patience.after(&failure(Some(11))), None, "31 s in all");
        assert_eq!(Patience::new(&transfer).after(&failure(Some(31))), None);
        assert_eq!(
            Patience::new(&transfer).after(&Failure { again: false, ..failure(None) }),
            None
        );
        patience.renew();
        assert_eq!(patience.after(&failure(None)), Some(transfer.first_pause));
    }
}
