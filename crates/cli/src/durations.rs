//! Durations as flags take them.

use std::time::Duration;

use caddis_api::ApiDuration;

use crate::CliError;

/// A duration; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, CliError> {
    parse(text).ok_or_else(|| {
        CliError::new(format!("invalid duration '{text}': use for example 90s or 5m"))
    })
}

/// The same in seconds, as the value of a flag that is a number for the reference.
pub fn whole_seconds(text: &str) -> Result<u64, String> {
    let found = parse(text).map(|duration| duration.as_secs());
    found.ok_or_else(|| "use seconds, or for example 90s or 5m".to_owned())
}

fn parse(text: &str) -> Option<Duration> {
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => text.parse::<ApiDuration>().ok().map(|duration| duration.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_seconds_and_units_are_told() {
        assert_eq!(whole_seconds("3"), Ok(3));
        assert_eq!(whole_seconds("1m30s"), Ok(90));
        assert_eq!(duration("3").unwrap(), Duration::from_secs(3));
        assert!(whole_seconds("soon").unwrap_err().contains("90s or 5m"));
        assert!(duration("soon").unwrap_err().to_string().contains("90s or 5m"));
    }
}
