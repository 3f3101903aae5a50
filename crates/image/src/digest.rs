//! Digests: what names content, and proves it.

use std::{borrow::Borrow, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

const ALGORITHM: &str = "sha256:";

/// `sha256:` and 64 lower-case hex digits: the only digests that registries use in practice, and
/// safe in file names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

/// The text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is `sha256:` and 64 lower-case hex digits")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_hashed(Sha256::new_with_prefix(bytes))
    }

    /// The digest of all that went into a hash.
    pub(crate) fn of_hashed(hash: Sha256) -> Self {
        Self(format!("{ALGORITHM}{:x}", hash.finalize()))
    }

    /// As manifests and references write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its 64 hex digits, which name its file.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0[ALGORITHM.len()..]
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;

    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let hex = text.strip_prefix(ALGORITHM).ok_or(InvalidDigest)?;
        if hex.len() == 64 && hex.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err(InvalidDigest)
        }
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        text.to_owned().try_into()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Tables by digest are searched with what clients send.
impl Borrow<str> for Digest {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// For records in which an image without a digest has the empty text. Whatever else is no digest
/// is read as none, so that the rest of the record can be.
pub(crate) mod or_empty {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        digest: &Option<Digest>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digest.as_ref().map_or("", Digest::as_str))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Digest>, D::Error> {
        Ok(String::deserialize(deserializer)?.try_into().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageReference;

    /// Of no bytes at all (FIPS 180-4's example values).
    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_is_written_as_it_is_read() {
        let digest: Digest = EMPTY.parse().unwrap();
        assert_eq!(digest, Digest::of(b""));
        assert_eq!((digest.as_str(), digest.to_string()), (EMPTY, EMPTY.to_owned()));
        assert_eq!(format!("sha256:{}", digest.hex()), EMPTY);
        let json = serde_json::to_string(&digest).unwrap();
        assert_eq!(json, format!("\"{EMPTY}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    }

    #[test]
    fn what_is_no_sha256_digest_is_refused() {
        let hex = &EMPTY["sha256:".len()..];
        for text in [
            String::new(),
            "sha256:".to_owned(),
            hex.to_owned(),
            format!("sha512:{hex}{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("{EMPTY}0"),
            EMPTY.to_uppercase(),
            EMPTY.replace('e', "E"),
            EMPTY.replace('e', "/"),
            format!(" {EMPTY}"),
            format!("sha256:sha256:{}", &hex["sha256:".len()..]),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text}");
            let json = serde_json::to_string(&text).unwrap();
            assert!(serde_json::from_str::<Digest>(&json).is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_without_a_sound_digest_is_read_all_the_same() {
        let record = |digest: &str| {
            format!(r#"{{"registry":"r","repository":"a","digest":"{digest}","labels":null}}"#)
        };
        for (written, read) in [(EMPTY, Some(Digest::of(b""))), ("", None), ("sha256:0", None)] {
            let reference: ImageReference = serde_json::from_str(&record(written)).unwrap();
            assert_eq!(reference.digest, read);
            let again = if read.is_some() { written } else { "" };
            assert_eq!(serde_json::to_string(&reference).unwrap(), record(again));
        }
    }
}
