//! Times for people.

use caddis_api::UnixMillis;
use jiff::{Span, SpanRelativeTo, Timestamp, civil::DateTime, tz::TimeZone};

/// `5s ago`, `3m2s ago`, `1h2m ago`; what is older than a day, and what can't be read, in full.
pub fn relative(text: &str, now: Timestamp) -> String {
    let Ok(time) = text.parse::<Timestamp>() else {
        return text.to_owned();
    };
    let seconds = now.as_second() - time.as_second();
    match seconds {
        ..=0 => "0s ago".to_owned(),
        1..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m{}s ago", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m ago", seconds / 3600, seconds / 60 % 60),
        _ => time.to_zoned(TimeZone::UTC).strftime("%b %-d %Y %H:%M").to_string(),
    }
}

/// RFC 3339 in the local zone, with as many digits of the second as there are.
pub fn local(time: UnixMillis) -> String {
    let zoned = Timestamp::from(time).to_zoned(TimeZone::system());
    let offset =
        if zoned.offset().is_zero() { "Z".to_owned() } else { zoned.strftime("%:z").to_string() };
    format!("{}{offset}", zoned.datetime())
}

/// A time as a user gives it: RFC 3339, without offset in the local zone, or how long before `now`.
pub fn moment(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(time) = text.parse::<DateTime>() {
        return time.to_zoned(TimeZone::system()).ok().map(|zoned| zoned.timestamp());
    }
    let ago = text.parse::<Span>().ok()?.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    now.checked_sub(ago).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_how_long_ago() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-03-02T11:59:55Z", Some("2026-03-02T11:59:55Z")),
            ("2026-03-02T11:59:55.5+02:00", Some("2026-03-02T09:59:55.5Z")),
            ("10m", Some("2026-03-02T11:50:00Z")),
            ("1h30m", Some("2026-03-02T10:30:00Z")),
            ("2d", Some("2026-02-28T12:00:00Z")),
            ("soon", None),
            ("10", None),
            ("", None),
        ] {
            assert_eq!(moment(text, now), expected.map(|time| time.parse().unwrap()), "{text}");
        }
        assert!(moment("2026-03-02T12:00", now).is_some() && moment("2026-03-02", now).is_some());
    }

    #[test]
    fn old_times_are_given_in_full() {
        let now: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("2026-03-02T11:59:55Z", "5s ago"),
            ("2026-03-02T11:56:58Z", "3m2s ago"),
            ("2026-03-02T10:58:00Z", "1h2m ago"),
            ("2026-02-02T15:04:00Z", "Feb 2 2026 15:04"),
            ("2026-03-02T12:00:09Z", "0s ago"),
            ("soon", "soon"),
        ] {
            assert_eq!(relative(text, now), expected);
        }
    }
}
