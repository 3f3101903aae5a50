//! Keys of Curve25519, in the text form of `wg`.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gotatun::x25519;
use zeroize::Zeroizing;

/// What is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a WireGuard key: 44 characters of base64 are expected, as `wg genkey` prints")]
pub struct InvalidKey;

/// A public key, which says who a peer is. Shown in base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

/// A private key. Never shown, and cleared from memory when dropped.
#[derive(Clone)]
pub struct PrivateKey(Zeroizing<[u8; 32]>);

impl PrivateKey {
    /// A new one.
    pub fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// The one with these bytes.
    pub fn from_bytes(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.secret()).to_bytes())
    }

    /// Its text, as `wg genkey` prints it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(*self.0))
    }

    pub(crate) fn secret(&self) -> x25519::StaticSecret {
        x25519::StaticSecret::from(*self.0)
    }
}

impl FromStr for PrivateKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|bytes| Self(Zeroizing::new(bytes)))
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self)
    }
}

fn parse(text: &str) -> Result<[u8; 32], InvalidKey> {
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| InvalidKey)?);
    bytes.as_slice().try_into().map_err(|_| InvalidKey)
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, section 6.1.
    #[test]
    fn a_public_key_is_that_of_its_private_key() {
        let private: PrivateKey = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse().unwrap();
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(private.public().to_string(), public);
        assert_eq!(public.parse::<PublicKey>().unwrap(), private.public());
        assert_eq!(*private.to_text(), "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=");
        assert_eq!(format!("{private:?}"), "PrivateKey(…)");
        assert_ne!(PrivateKey::random().public(), PrivateKey::random().public());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let short = STANDARD.encode([7; 31]);
        let long = STANDARD.encode([7; 33]);
        for text in ["", "a", "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo", &short, &long] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
            assert!(text.parse::<PrivateKey>().is_err(), "{text}");
        }
    }
}
