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

/// Names by x86-64 Linux number, from 1 on; the C library keeps two without a name for itself.
const NAMES: [&str; 64] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
    "32",
    "33",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMAX-14",
    "SIGRTMAX-13",
    "SIGRTMAX-12",
    "SIGRTMAX-11",
    "SIGRTMAX-10",
    "SIGRTMAX-9",
    "SIGRTMAX-8",
    "SIGRTMAX-7",
    "SIGRTMAX-6",
    "SIGRTMAX-5",
    "SIGRTMAX-4",
    "SIGRTMAX-3",
    "SIGRTMAX-2",
    "SIGRTMAX-1",
    "SIGRTMAX",
];

/// Further names of some (signal(7)).
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A word or number that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid signal '{0}', use a name such as SIGTERM, SIGWINCH or SIGRTMIN+3, or a number from 1 \
     to {RTMAX}"
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
    ///
    /// # Errors
    /// When there is no such signal.
    pub fn from_number(number: i32) -> Result<Self, UnknownSignal> {
        if (1..=RTMAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(UnknownSignal(number.to_string()))
        }
    }

    /// Name with `SIG`.
    pub fn name(self) -> &'static str {
        usize::try_from(self.0 - 1).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or_default()
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownSignal(text.to_owned());
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse() {
            return Self::from_number(number);
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
            (Some(rest), _) => distance(rest, '+').map(|distance| RTMIN + distance),
            (_, Some(rest)) => distance(rest, '-').map(|distance| RTMAX - distance),
            _ => {
                let alias =
                    ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, number)| *number);
                let known = || {
                    NAMES.iter().zip(1..).find(|(known, _)| known.strip_prefix("SIG") == Some(name))
                };
                alias.or_else(|| known().map(|(_, number)| number))
            }
        };
        number.map(Self).ok_or_else(unknown)
    }
}

/// How far a real-time signal is from the end it is named by.
fn distance(rest: &str, sign: char) -> Option<i32> {
    match rest.strip_prefix(sign) {
        None => rest.is_empty().then_some(0),
        Some(digits) => {
            digits.parse::<i32>().ok().filter(|distance| (0..=RTMAX - RTMIN).contains(distance))
        }
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
            .item(one_of(Type::String).enum_values(Some(NAMES)))
            .item(one_of(Type::Integer).minimum(Some(1)).maximum(Some(RTMAX)))
            .item(
                one_of(Type::String).description(Some(
                    "The same in lower case, without SIG, or the number as text.",
                )),
            )
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
        for json in ["0", "65", "-1", "\"SIGFOO\"", "\"\"", "\"SIG\"", "true", "9.5", "4294967305"]
        {
            assert!(serde_json::from_str::<Signal>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn every_signal_is_known_by_its_number_and_all_its_names() {
        for number in 1..=64 {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(signal.name().parse(), Ok(signal), "{number}");
            assert_eq!(
                serde_json::from_value::<Signal>(serde_json::to_value(signal).unwrap()).unwrap(),
                signal
            );
        }
        for (name, number) in [
            ("SIGWINCH", 28),
            ("winch", 28),
            ("SIGIOT", 6),
            ("SIGCLD", 17),
            ("SIGPOLL", 29),
            ("SIGRTMIN", 34),
            ("RTMIN+0", 34),
            ("SIGRTMIN+3", 37),
            ("SIGRTMIN+30", 64),
            ("RTMAX-30", 34),
            ("sigrtmax-1", 63),
            ("SIGRTMAX", 64),
        ] {
            assert_eq!(name.parse::<Signal>().map(Signal::number), Ok(number), "{name}");
        }
        for name in
            ["SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX+1", "RTMIN+", "RTMIN3", "SIGSIGTERM", "SIG32"]
        {
            assert!(name.parse::<Signal>().is_err(), "{name}");
        }
    }
}
