//! Keys: one of the installation, in a file, and one per volume, in the volume's record, encrypted
//! with the former.
//!
//! ```text
//!  installation key, 32 random bytes ──AES-256-GCM──▶ volume key, 32 random bytes ──LUKS──▶ data
//!    file, mode 0600          (volume's id is bound in)      record of the volume
//! ```

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    digest, rand,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{VolumeError, VolumeId, files};

const LENGTH: usize = 32;

/// Of the format of [`WrappedKey`], and part of what is authenticated.
const VERSION: u32 = 1;

/// Bytes of a fingerprint: enough to tell keys apart.
const FINGERPRINT: usize = 8;

/// Key of a volume. Neither shown nor logged; its memory is wiped.
#[derive(Clone)]
pub struct VolumeKey(Zeroizing<[u8; LENGTH]>);

/// Key of a volume, encrypted with the installation key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrappedKey {
    version: u32,
    /// Fingerprint of the installation key.
    installation_key: String,
    /// Base64.
    nonce: String,
    /// Base64, with the tag.
    ciphertext: String,
}

/// The installation key.
pub(crate) struct InstallationKey {
    bytes: Zeroizing<[u8; LENGTH]>,
    path: PathBuf,
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

impl InstallationKey {
    /// Reads the key; `None` when there is no file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, VolumeError> {
        let failed = |error| VolumeError::io("read", path, error);
        let unusable = |reason: String| VolumeError::KeyUnusable { path: path.to_owned(), reason };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() || metadata.len() != LENGTH as u64 {
            let reason = format!("it is no file of {LENGTH} bytes: restore it from a backup");
            return Err(unusable(reason));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            let reason = format!("others may read it: chmod 600 {}", path.display());
            return Err(unusable(reason));
        }
        let mut bytes = Zeroizing::new([0; LENGTH]);
        file.read_exact(bytes.as_mut()).map_err(failed)?;
        Ok(Some(Self { bytes, path: path.to_owned() }))
    }

    /// Reads the key, or makes it.
    pub(crate) fn read_or_make(path: &Path) -> Result<Self, VolumeError> {
        loop {
            if let Some(key) = Self::read(path)? {
                return Ok(key);
            }
            let bytes = random()?;
            let directory = path.parent().unwrap_or(Path::new("."));
            if files::write_new(path, bytes.as_ref(), directory)? {
                tracing::info!(path = %path.display(), "made the installation key: back it up");
                return Ok(Self { bytes, path: path.to_owned() });
            }
        }
    }

    fn fingerprint(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"caddis installation key");
        context.update(self.bytes.as_ref());
        let digest = context.finish();
        digest.as_ref().iter().take(FINGERPRINT).map(|byte| format!("{byte:02x}")).collect()
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
            installation_key: self.fingerprint(),
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
        let found = self.fingerprint();
        if wrapped.installation_key != found {
            return Err(VolumeError::OtherKey {
                id: id.clone(),
                expected: wrapped.installation_key.clone(),
                found,
                path: self.path.clone(),
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
    use std::{fs, os::unix::fs::OpenOptionsExt as _};

    use super::*;

    fn id(text: &str) -> VolumeId {
        text.parse().unwrap()
    }

    #[test]
    fn the_installation_key_is_made_once_and_is_its_owner_s_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        assert!(InstallationKey::read(&path).unwrap().is_none());
        let made = InstallationKey::read_or_make(&path).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.permissions().mode() & 0o777), (32, 0o600));
        let read = InstallationKey::read_or_make(&path).unwrap();
        assert_eq!(made.bytes, read.bytes);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_that_are_no_installation_key_are_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, [1; 31]).unwrap();
        let error = InstallationKey::read_or_make(&path).err().unwrap().to_string();
        assert!(error.contains("no file of 32 bytes"), "{error}");
        fs::remove_file(&path).unwrap();
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create(true).mode(0o640).open(&path).unwrap();
        file.set_len(32).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        let error = InstallationKey::read_or_make(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_wrapped_key_is_bound_to_its_volume_and_installation() {
        let directory = tempfile::tempdir().unwrap();
        let installation = InstallationKey::read_or_make(&directory.path().join("key")).unwrap();
        let key = VolumeKey::random().unwrap();
        let wrapped = installation.wrap(&key, &id("vol_a")).unwrap();
        let unwrapped = installation.unwrap(&wrapped, &id("vol_a")).unwrap();
        assert_eq!(key.passphrase(), unwrapped.passphrase());
        assert_eq!(key.passphrase().len(), 64);

        let swapped = installation.unwrap(&wrapped, &id("vol_b"));
        assert!(matches!(swapped, Err(VolumeError::KeyDamaged(_))));
        let other = InstallationKey::read_or_make(&directory.path().join("other")).unwrap();
        let error = other.unwrap(&wrapped, &id("vol_a")).unwrap_err();
        assert!(matches!(&error, VolumeError::OtherKey { .. }));
        assert!(error.to_string().contains(&wrapped.installation_key), "{error}");
    }

    #[test]
    fn each_bit_of_a_wrapped_key_counts() {
        let directory = tempfile::tempdir().unwrap();
        let installation = InstallationKey::read_or_make(&directory.path().join("key")).unwrap();
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
        let directory = tempfile::tempdir().unwrap();
        let installation = InstallationKey::read_or_make(&directory.path().join("key")).unwrap();
        let key = VolumeKey::random().unwrap();
        let wrap = || installation.wrap(&key, &id("vol_a")).unwrap();
        assert_ne!(wrap(), wrap());
        assert_eq!(format!("{key:?}"), "VolumeKey(..)");
        let written = serde_json::to_string(&wrap()).unwrap();
        assert!(!written.contains(key.passphrase().as_str()));
    }
}
