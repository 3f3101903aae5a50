//! Names of apps and machines: which are legal, and made-up ones.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use crate::{ApiError, ErrorCode};

const ADJECTIVES: &[&str] = &[
    "aged",
    "autumn",
    "billowing",
    "bitter",
    "bold",
    "broken",
    "calm",
    "cold",
    "cool",
    "damp",
    "dark",
    "dry",
    "empty",
    "falling",
    "fragrant",
    "frosty",
    "green",
    "hidden",
    "icy",
    "late",
    "little",
    "long",
    "lively",
    "misty",
    "morning",
    "muddy",
    "nameless",
    "old",
    "patient",
    "polished",
    "proud",
    "quiet",
    "rough",
    "shy",
    "silent",
    "small",
    "snowy",
    "solitary",
    "sparkling",
    "spring",
    "still",
    "summer",
    "twilight",
    "wandering",
    "wild",
    "winter",
    "young",
];
const NOUNS: &[&str] = &[
    "bird",
    "breeze",
    "brook",
    "butterfly",
    "caddis",
    "cloud",
    "dawn",
    "dew",
    "dream",
    "dust",
    "feather",
    "field",
    "fire",
    "firefly",
    "flower",
    "fog",
    "forest",
    "frog",
    "frost",
    "glade",
    "grass",
    "haze",
    "hill",
    "lake",
    "leaf",
    "meadow",
    "moon",
    "morning",
    "mountain",
    "night",
    "paper",
    "pebble",
    "pine",
    "pond",
    "rain",
    "resonance",
    "river",
    "sea",
    "shadow",
    "shape",
    "silence",
    "sky",
    "smoke",
    "snow",
    "sound",
    "star",
    "stream",
    "sun",
    "surf",
    "thunder",
    "tree",
    "violet",
    "voice",
    "water",
    "wave",
    "wildflower",
    "wind",
    "wood",
];

/// A made-up name: `aged-wind-2649`.
pub fn generate() -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES.choose(&mut rng).copied().unwrap_or("plain");
    let noun = NOUNS.choose(&mut rng).copied().unwrap_or("stone");
    format!("{adjective}-{noun}-{}", rng.random_range(1000..10_000))
}

/// Checks the name of an app.
///
/// # Errors
/// 422 with the field's text.
pub fn check_app_name(name: &str) -> Result<(), ApiError> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty()
        && name.len() < 63
        && name.bytes().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-')
    {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::Unprocessable,
        "Validation failed: Name under 63 chars using numbers, lowercase letters and dashes",
    ))
}

/// Checks the name of a machine.
///
/// # Errors
/// 400.
pub fn check_machine_name(name: &str) -> Result<(), ApiError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if (1..=63).contains(&name.len()) && name.bytes().all(legal) {
        return Ok(());
    }
    Err(ApiError::invalid(
        "invalid machine name, use 1 to 63 letters, digits, dashes, dots and underscores",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_names_are_legal() {
        for _ in 0..100 {
            check_app_name(&generate()).unwrap();
        }
        for bad in ["", "A", "a_b", "-a", "a-", "ä", &"a".repeat(63)] {
            assert!(check_app_name(bad).is_err(), "{bad}");
        }
    }
}
