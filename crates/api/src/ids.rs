//! Ids and names of things. All are strings on the wire. Ids are opaque, and none is ever reused;
//! a name is free again when what had it is gone.

use std::{borrow::Borrow, fmt, ops::Deref, str::FromStr};

use rand::Rng;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ApiError, UnixMillis, names};

macro_rules! string_type {
    ($(#[$attribute:meta])* $name:ident) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text as it stands on the wire.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Takes a string as it is, for one that was checked or made elsewhere.
            pub fn from_trusted(text: impl Into<String>) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        string_type! {
            $(#[$doc])*
            #[derive(ToSchema)]
            $name
        }
    };
}

/// A name is compared with, and looked up by, the text that a client sends.
macro_rules! string_name {
    ($(#[$doc:meta])* $name:ident) => {
        string_type! {
            $(#[$doc])*
            $name
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }
    };
}

string_id! {
    /// A machine: 14 lowercase hex digits.
    MachineId
}
string_id! {
    /// A version of a machine's configuration, also called its instance id: a ULID.
    VersionId
}
string_id! {
    /// An event of a machine: a ULID; later events of a machine sort after earlier ones.
    EventId
}
string_id! {
    /// A worker, made at its first start: a ULID.
    WorkerId
}
string_id! {
    /// Proof of holding a lease: 12 hex digits.
    LeaseNonce
}

string_id! {
    /// A volume: `vol_` and 16 of a-z and 0-9.
    VolumeId
}

string_id! {
    /// A snapshot of a volume: `vs_` and 20 letters and digits.
    SnapshotId
}

string_id! {
    /// A network policy: `np_` and 16 of a-z and 0-9.
    PolicyId
}

string_name! {
    /// Name of an app: unique in the installation among apps that are not deleted.
    AppName
}
string_name! {
    /// Name of a private network: unique in its organization.
    NetworkName
}
string_name! {
    /// Code of a region, such as `lhr`.
    RegionCode
}

impl FromStr for AppName {
    type Err = ApiError;

    /// Accepts what [`names::check_app_name`] does.
    fn from_str(text: &str) -> Result<Self, ApiError> {
        names::check_app_name(text)?;
        Ok(Self(text.to_owned()))
    }
}

/// A string that can't be a machine id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid machine ID, '{0}'")]
pub struct InvalidMachineId(pub String);

impl MachineId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("{:014x}", rand::rng().random::<u64>() >> 8))
    }
}

impl FromStr for MachineId {
    type Err = InvalidMachineId;

    /// Accepts 8 to 32 lowercase hex digits: ours have 14, and longer ones are seen in the field.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && (8..=32).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidMachineId(text.to_owned()))
        }
    }
}

/// A string that can't be a volume id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid volume ID '{0}': it is 'vol_' and up to 40 of a-z and 0-9")]
pub struct InvalidVolumeId(pub String);

/// 16 of a-z and 0-9.
fn random_letters() -> String {
    const CHARACTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    let character = || char::from(CHARACTERS[rng.random_range(0..CHARACTERS.len())]);
    std::iter::repeat_with(character).take(16).collect()
}

impl VolumeId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("vol_{}", random_letters()))
    }
}

impl PolicyId {
    /// A new random id.
    pub fn random() -> Self {
        Self(format!("np_{}", random_letters()))
    }
}

impl FromStr for VolumeId {
    type Err = InvalidVolumeId;

    /// Accepts `vol_` and 1 to 40 of a-z and 0-9, which are also good names for directories.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_valid = text.strip_prefix("vol_").is_some_and(|rest| {
            (1..=40).contains(&rest.len())
                && rest.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        });
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidVolumeId(text.to_owned())) }
    }
}

/// A string that can't be the id of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid snapshot ID '{0}': it is 'vs_' and up to 40 letters and digits")]
pub struct InvalidSnapshotId(pub String);

impl SnapshotId {
    /// A new random id.
    pub fn random() -> Self {
        let characters = rand::rng().sample_iter(rand::distr::Alphanumeric);
        Self(format!("vs_{}", characters.take(20).map(char::from).collect::<String>()))
    }
}

impl FromStr for SnapshotId {
    type Err = InvalidSnapshotId;

    /// Accepts `vs_` and 1 to 40 letters and digits, which are also good names for files.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_valid = text.strip_prefix("vs_").is_some_and(|rest| {
            (1..=40).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidSnapshotId(text.to_owned())) }
    }
}

impl LeaseNonce {
    /// A new random nonce.
    pub fn random() -> Self {
        Self(format!("{:012x}", rand::rng().random::<u64>() >> 16))
    }
}

impl VersionId {
    /// A new id.
    pub fn generate() -> Self {
        Self(ulid::Ulid::new().to_string())
    }

    /// The id of the version that replaces this one at `now`: it sorts after it even when the
    /// clock went back.
    pub fn following(&self, now: UnixMillis) -> Self {
        Self(following(Some(&self.0), now))
    }
}

impl WorkerId {
    /// A new id.
    pub fn generate() -> Self {
        Self(ulid::Ulid::new().to_string())
    }
}

impl EventId {
    /// The id of an event at `now` that follows `previous`, and sorts after it even when the
    /// clock went back.
    pub fn following(previous: Option<&Self>, now: UnixMillis) -> Self {
        Self(following(previous.map(Self::as_str), now))
    }
}

/// A ULID of this time, or the next one after `previous` where that is not before it.
fn following(previous: Option<&str>, now: UnixMillis) -> String {
    let fresh = ulid::Ulid::from_parts(now.as_u64(), rand::rng().random());
    let next = previous
        .and_then(|previous| ulid::Ulid::from_string(previous).ok())
        .filter(|previous| *previous >= fresh)
        .and_then(|previous| previous.increment())
        .unwrap_or(fresh);
    next.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_ids_are_14_hex_digits() {
        let id = MachineId::random();
        assert_eq!(id.as_str().len(), 14);
        assert_eq!(id.as_str().parse::<MachineId>().unwrap(), id);
        for bad in ["", "xyz", "3D8D413B29D089", "../../etc/passwd", "3d8d413b29d08g"] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn volume_ids_are_names_of_directories_and_nothing_else() {
        let id = VolumeId::random();
        assert_eq!(id.as_str().len(), 20);
        for text in [id.as_str(), "vol_1", "vol_abc09", &format!("vol_{}", "z".repeat(40))] {
            assert_eq!(text.parse::<VolumeId>().unwrap().as_str(), text);
        }
        for bad in ["", "vol_", "vol_A", "vol_a/b", "vol_..", "vs_1", "vol_a b", "vol_é", "../x"] {
            assert_eq!(bad.parse::<VolumeId>(), Err(InvalidVolumeId(bad.to_owned())));
        }
        assert!(format!("vol_{}", "z".repeat(41)).parse::<VolumeId>().is_err());
    }

    #[test]
    fn names_are_plain_strings_on_the_wire_and_found_by_their_text() {
        let app: AppName = "hello".parse().unwrap();
        assert_eq!(serde_json::to_string(&app).unwrap(), "\"hello\"");
        assert_eq!(serde_json::from_str::<AppName>("\"hello\"").unwrap(), app);
        assert!("Hello".parse::<AppName>().is_err());
        let of_apps = std::collections::HashMap::from([(app.clone(), 1)]);
        assert_eq!(of_apps.get("hello"), Some(&1));
        assert!(app == "hello" && app == *"hello" && app != "other");
        assert_eq!(RegionCode::from_trusted("lhr").to_string(), "lhr");
    }

    #[test]
    fn ids_of_events_and_versions_rise_even_when_the_clock_goes_back() {
        let first = EventId::following(None, UnixMillis::new(2_000));
        let second = EventId::following(Some(&first), UnixMillis::new(1_000));
        assert!(second > first);
        let version = VersionId::generate();
        assert!(version.following(UnixMillis::new(1_000)) > version);
    }
}
