//! Keys: one of the installation, which the server has, and one per volume, in the volume's record,
//! encrypted with the former.
//!
//! ```text
//!  installation key, 32 random bytes ──AES-256-GCM──▶ volume key, 32 random bytes ──LUKS──▶ data
//!    given by the server      (volume's id is bound in)      record of the volume
//! ```

use std::{fmt, io};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Salt},
    rand,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{VolumeError, VolumeId};

const LENGTH: usize = 32;

/// Of the format of [`WrappedKey`], and part of what is authenticated.
const VERSION: u32 = 1;

/// Key of a volume. Neither shown nor logged; its memory is wiped.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; LENGTH]>);

/// Key of a volume, encrypted with the installation key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrappedKey {
    version: u32,
    /// Id of the installation key.
    installation_key: String,
    /// Base64.
    nonce: String,
    /// Base64, with the tag.
    ciphertext: String,
}

/// The installation key. Neither shown nor logged; its memory is wiped.
#[derive(Clone)]
pub struct InstallationKey {
    bytes: Zeroizing<[u8; LENGTH]>,
    id: String,
}

impl VolumeKey {
    /// A new one, 256 random bits.
    pub(crate) fn random() -> Result<Self, VolumeError> {
        Ok(Self(random()?))
    }

    /// What QEMU is given as its LUKS passphrase: the key in hexadecimal, since it takes text only.
    #[must_use]
    pub fn passphrase(&self) -> Zeroizing<String> {
        // As large as needed at once, so that no copy stays behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * LENGTH));
        for byte in self.0.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        text
    }
}

impl fmt::Debug for VolumeKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("VolumeKey(..)")
    }
}

impl fmt::Debug for InstallationKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "InstallationKey({})", self.id)
    }
}

impl InstallationKey {
    /// The key, and the id by which the server tells it from another one without giving anything of
    /// it away.
    #[must_use]
    pub fn new(bytes: [u8; LENGTH], id: impl Into<String>) -> Self {
        Self { bytes: Zeroizing::new(bytes), id: id.into() }
    }

    /// Tells it from another one without giving anything of it away.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A key for one purpose, from which neither this one nor that of another purpose follows
    /// (HKDF with SHA-256).
    ///
    /// # Errors
    /// When the cryptographic library refuses.
    pub fn derive(&self, purpose: &str) -> Result<Zeroizing<[u8; LENGTH]>, VolumeError> {
        let extracted = Salt::new(HKDF_SHA256, b"caddis installation key").extract(&*self.bytes);
        let mut key = Zeroizing::new([0; LENGTH]);
        extracted
            .expand(&[purpose.as_bytes()], HKDF_SHA256)
            .and_then(|expanded| expanded.fill(key.as_mut()))
            .map_err(|_| refused("derive a key"))?;
        Ok(key)
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, VolumeError> {
        RandomizedNonceKey::new(&AES_256_GCM, self.bytes.as_ref()).map_err(|_| refused("use a key"))
    }

    /// Encrypts a volume's key.
    pub(crate) fn wrap(&self, key: &VolumeKey, id: &VolumeId) -> Result<WrappedKey, VolumeError> {
        let mut bytes = key.0.to_vec();
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(bound(id), &mut bytes)
            .map_err(|_| refused("encrypt a key"))?;
        Ok(WrappedKey {
            version: VERSION,
            installation_key: self.id.clone(),
            nonce: BASE64_STANDARD.encode(nonce.as_ref()),
            ciphertext: BASE64_STANDARD.encode(bytes),
        })
    }

    /// Decrypts the key of a volume.
    pub(crate) fn unwrap(
        &self,
        wrapped: &WrappedKey,
        id: &VolumeId,
    ) -> Result<VolumeKey, VolumeError> {
        if wrapped.installation_key != self.id {
            return Err(VolumeError::OtherKey {
                id: id.clone(),
                expected: wrapped.installation_key.clone(),
                found: self.id.clone(),
            });
        }
        let damaged = || VolumeError::KeyDamaged(id.clone());
        if wrapped.version != VERSION {
            return Err(damaged());
        }
        let decode = |text| BASE64_STANDARD.decode(text).map_err(|_| damaged());
        let nonce = Nonce::try_assume_unique_for_key(&decode(&wrapped.nonce)?);
        let mut bytes = Zeroizing::new(decode(&wrapped.ciphertext)?);
        let plain = self
            .cipher()?
            .open_in_place(nonce.map_err(|_| damaged())?, bound(id), &mut bytes)
            .map_err(|_| damaged())?;
        let mut key = Zeroizing::new([0; LENGTH]);
        if plain.len() != LENGTH {
            return Err(damaged());
        }
        key.copy_from_slice(plain);
        Ok(VolumeKey(key))
    }
}

/// What is authenticated beside a volume's key.
fn bound(id: &VolumeId) -> Aad<Vec<u8>> {
    Aad::from(format!("caddis volume key {VERSION} {id}").into_bytes())
}

fn random() -> Result<Zeroizing<[u8; LENGTH]>, VolumeError> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    rand::fill(bytes.as_mut()).map_err(|_| refused("draw random bytes"))?;
    Ok(bytes)
}

fn refused(what: &str) -> VolumeError {
    let source = io::Error::other("the cryptographic library refused");
    VolumeError::Io { what: what.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> VolumeId {
        text.parse().unwrap()
    }

    fn installation() -> InstallationKey {
        InstallationKey::new([7; LENGTH], "one")
    }

    #[test]
    fn a_wrapped_key_is_bound_to_its_volume_and_installation() {
        let installation = installation();
        let key = VolumeKey::random().unwrap();
        let wrapped = installation.wrap(&key, &id("vol_a")).unwrap();
        let unwrapped = installation.unwrap(&wrapped, &id("vol_a")).unwrap();
        assert_eq!(key.passphrase(), unwrapped.passphrase());
        assert_eq!(key.passphrase().len(), 64);

        let swapped = installation.unwrap(&wrapped, &id("vol_b"));
        assert!(matches!(swapped, Err(VolumeError::KeyDamaged(_))));
        let other = InstallationKey::new([8; LENGTH], "two");
        let error = other.unwrap(&wrapped, &id("vol_a")).unwrap_err();
        assert!(matches!(&error, VolumeError::OtherKey { .. }));
        assert!(error.to_string().contains("another installation key (one)"), "{error}");
        // Its id alone does not make it the same.
        let forged = InstallationKey::new([8; LENGTH], "one").unwrap(&wrapped, &id("vol_a"));
        assert!(matches!(forged, Err(VolumeError::KeyDamaged(_))));
    }

    #[test]
    fn derived_keys_depend_on_the_key_and_on_the_purpose() {
        let (one, two) = (installation(), InstallationKey::new([8; LENGTH], "two"));
        assert_eq!((one.id(), two.id()), ("one", "two"));
        let derived = |key: &InstallationKey, purpose| *key.derive(purpose).unwrap();
        assert_eq!(derived(&one, "snapshots"), derived(&installation(), "snapshots"));
        let all = [derived(&one, "snapshots"), derived(&one, "other"), derived(&two, "snapshots")];
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2]);
        assert!(!all.contains(&[7; LENGTH]));
    }

    #[test]
    fn each_bit_of_a_wrapped_key_counts() {
        let installation = installation();
        let volume = id("vol_a");
        let wrapped = installation.wrap(&VolumeKey::random().unwrap(), &volume).unwrap();
        let is_damaged = |wrapped: &WrappedKey| {
            matches!(installation.unwrap(wrapped, &volume), Err(VolumeError::KeyDamaged(_)))
        };
        let flips = |text: &str, bit: usize| {
            let mut bytes = BASE64_STANDARD.decode(text).unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            BASE64_STANDARD.encode(bytes)
        };
        for bit in 0..48 * 8 {
            let ciphertext = flips(&wrapped.ciphertext, bit);
            assert!(is_damaged(&WrappedKey { ciphertext, ..wrapped.clone() }), "{bit}");
        }
        for bit in 0..12 * 8 {
            let nonce = flips(&wrapped.nonce, bit);
            assert!(is_damaged(&WrappedKey { nonce, ..wrapped.clone() }), "{bit}");
        }
        for ciphertext in ["", "AAAA", "?"] {
            let ciphertext = ciphertext.to_owned();
            assert!(is_damaged(&WrappedKey { ciphertext, ..wrapped.clone() }));
        }
        assert!(is_damaged(&WrappedKey { nonce: "AAAA".to_owned(), ..wrapped.clone() }));
        assert!(is_damaged(&WrappedKey { version: 2, ..wrapped.clone() }));
    }

    #[test]
    fn no_two_wrappings_are_the_same_and_keys_are_not_shown() {
        let installation = installation();
        let key = VolumeKey::random().unwrap();
        let wrap = || installation.wrap(&key, &id("vol_a")).unwrap();
        assert_ne!(wrap(), wrap());
        assert_eq!(format!("{key:?} {installation:?}"), "VolumeKey(..) InstallationKey(one)");
        let written = serde_json::to_string(&wrap()).unwrap();
        assert!(!written.contains(key.passphrase().as_str()));
    }
}
