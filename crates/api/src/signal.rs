//! Signals by name, with or without `SIG`, or by number.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{AnyOfBuilder, ObjectBuilder, Type},
    },
};

/// A Linux signal that a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// The signals of `POST …/signal`, by name and x86-64 Linux number.
const SIGNALS: &[(&str, i32)] = &[
    ("SIGHUP", 1),
    ("SIGINT", 2),
    ("SIGQUIT", 3),
    ("SIGILL", 4),
    ("SIGTRAP", 5),
    ("SIGABRT", 6),
    ("SIGFPE", 8),
    ("SIGKILL", 9),
    ("SIGUSR1", 10),
    ("SIGSEGV", 11),
    ("SIGUSR2", 12),
    ("SIGPIPE", 13),
    ("SIGALRM", 14),
    ("SIGTERM", 15),
    // By which systemd halts.
    ("SIGRTMIN+3", 37),
];

/// Those that may be asked for as a stop signal.
const STOP_SIGNALS: &[i32] = &[1, 2, 3, 9, 10, 12, 15, 37];

/// A word or number that names no signal we send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid signal '{0}', use one of SIGABRT, SIGALRM, SIGFPE, SIGHUP, SIGILL, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGRTMIN+3, SIGSEGV, SIGTERM, SIGTRAP, SIGUSR1, SIGUSR2"
)]
pub struct UnknownSignal(pub String);

impl Signal {
    /// The default stop signal.
    pub const INT: Self = Self(2);
    /// Can't be caught.
    pub const KILL: Self = Self(9);
    /// Asks politely.
    pub const TERM: Self = Self(15);

    /// Linux number.
    pub fn number(self) -> i32 {
        self.0
    }

    /// From its Linux number.
    pub fn from_number(number: i32) -> Result<Self, UnknownSignal> {
        SIGNALS
            .iter()
            .find(|(_, n)| *n == number)
            .map(|(_, n)| Self(*n))
            .ok_or_else(|| UnknownSignal(number.to_string()))
    }

    /// Name with `SIG`.
    pub fn name(self) -> &'static str {
        SIGNALS.iter().find(|(_, number)| *number == self.0).map_or("SIGNAL", |(name, _)| name)
    }

    /// Whether `stop` takes it.
    pub fn is_stop_signal(self) -> bool {
        STOP_SIGNALS.contains(&self.0)
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(number) = text.parse() {
            return Self::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        SIGNALS
            .iter()
            .find(|(name, _)| *name == upper || name.strip_prefix("SIG") == Some(&upper))
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| UnknownSignal(text.to_owned()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialSchema for Signal {
    fn schema() -> RefOr<Schema> {
        let one_of = |kind| ObjectBuilder::new().schema_type(kind);
        AnyOfBuilder::new()
            .description(Some("A Linux signal."))
            .item(one_of(Type::String).enum_values(Some(SIGNALS.iter().map(|(name, _)| *name))))
            .item(one_of(Type::Integer).enum_values(Some(SIGNALS.iter().map(|(_, number)| *number))))
            .item(one_of(Type::String).description(Some("The same in lower case, without SIG, or the number as text.")))
            .into()
    }
}

impl ToSchema for Signal {}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum NumberOrName {
            Number(i32),
            Name(String),
        }
        match NumberOrName::deserialize(deserializer)? {
            NumberOrName::Number(number) => Self::from_number(number),
            NumberOrName::Name(name) => name.parse(),
        }
        .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_numbers_and_numbers_in_strings() {
        for json in ["9", "\"SIGKILL\"", "\"kill\"", "\"9\""] {
            assert_eq!(serde_json::from_str::<Signal>(json).unwrap(), Signal::KILL, "{json}");
        }
        for json in ["0", "64", "\"SIGFOO\"", "\"\"", "true"] {
            assert!(serde_json::from_str::<Signal>(json).is_err(), "{json}");
        }
    }
}
