//! The key of an installation: what is secret on its disks is encrypted with keys that are
//! encrypted with this one. It is made at the first start and never changes.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use caddis_snapshot::StoreKey;
use rand::RngCore as _;
use sha2::{Digest as _, Sha256};

use crate::instance::write_secret;

/// What the file begins with, so that a later form can be told from this one.
const PREFIX: &str = "caddis-key-1:";
/// Bytes of a key.
const SIZE: usize = 32;

/// See the module's text.
pub struct InstallationKey([u8; SIZE]);

impl InstallationKey {
    /// The key in this file. Where there is no file one is made, unless volumes in this directory
    /// are encrypted with the one that was there.
    ///
    /// # Errors
    /// Those of [`Self::open`]; when a key was lost that is needed, or a new one can't be written.
    pub fn open_or_create(path: &Path, volumes: &Path) -> Result<Self> {
        if let Some(key) = Self::open(path)? {
            return Ok(key);
        }
        let encrypted = caddis_volume::encrypted_volumes(volumes)?;
        if let Some(volume) = encrypted.first() {
            bail!(
                "the installation key {} is missing, and it is needed for {} encrypted volumes, \
                 {volume} for instance: restore it from a backup, or move those volumes out of {} \
                 if they are to be given up",
                path.display(),
                encrypted.len(),
                volumes.display()
            );
        }
        Self::create(path).context("can't create the installation key")
    }

    /// Makes a key and writes it to this file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(path: &Path) -> Result<Self> {
        let mut bytes = [0; SIZE];
        rand::rng().fill_bytes(&mut bytes);
        let key = Self(bytes);
        key.write(path)?;
        tracing::info!(path = %path.display(), id = key.id(), "created the installation key");
        Ok(key)
    }

    /// The key in this file; `None` where there is no file.
    ///
    /// # Errors
    /// When it can't be read, is no key, or can be read by others.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let name = path.display();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("can't read the installation key {name}"))?,
        };
        let key = Self::parse(&text).with_context(|| {
            format!(
                "{name} is not an installation key: restore it from a backup, or move it away \
                     if nothing was encrypted with it"
            )
        })?;
        let mode = fs::metadata(path)?.mode() & 0o777;
        ensure!(
            mode & 0o077 == 0,
            "{name} can be read by others (mode {mode:o}): chmod 600 {name}"
        );
        Ok(Some(key))
    }

    /// Writes it, readable by its owner only.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_secret(path, &self.text())
    }

    /// The key in a file's text, if it is one.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = STANDARD.decode(text.strip_prefix(PREFIX)?.trim_end()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }

    fn text(&self) -> String {
        format!("{PREFIX}{}\n", STANDARD.encode(self.0))
    }

    /// The key, as volumes take it.
    pub fn of_volumes(&self) -> caddis_volume::InstallationKey {
        caddis_volume::InstallationKey::new(self.0, self.id())
    }

    /// What snapshots are encrypted with.
    ///
    /// # Errors
    /// When it can't be derived.
    pub fn of_snapshots(&self) -> Result<StoreKey> {
        Ok(StoreKey { bytes: self.of_volumes().derive("snapshots")?, id: self.id() })
    }

    /// The private key of the server's end of WireGuard.
    ///
    /// # Errors
    /// When it can't be derived.
    pub fn of_wireguard(&self) -> Result<caddis_wireguard::PrivateKey> {
        Ok(caddis_wireguard::PrivateKey::from_bytes(self.of_volumes().derive("wireguard")?))
    }

    /// By what one key is told from another, without giving anything of it away: 16 hexadecimal
    /// digits.
    pub fn id(&self) -> String {
        let digest = Sha256::new()
            .chain_update(b"caddis installation key id")
            .chain_update(self.0)
            .finalize();
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_refused_where_it_is_damaged_or_open_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("installation.key");
        assert!(InstallationKey::open(&path).unwrap().is_none());
        let made = InstallationKey::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let opened = InstallationKey::open(&path).unwrap().unwrap();
        assert_eq!((opened.0, opened.id().len()), (made.0, 16));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(InstallationKey::open(&path).err().unwrap().to_string().contains("chmod 600"));
        made.write(&path).unwrap();
        assert_eq!(InstallationKey::open(&path).unwrap().unwrap().0, made.0);
        for damaged in
            ["", "caddis-key-1:", "caddis-key-1:AAAA\n", "caddis-key-2:AAAA", &made.text()[..40]]
        {
            fs::write(&path, damaged).unwrap();
            let error = InstallationKey::open(&path).err().unwrap().to_string();
            assert!(error.contains("is not an installation key"), "{damaged:?}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "nothing is lost");
        }
    }

    #[test]
    fn no_key_is_made_where_volumes_need_the_one_that_was_lost() {
        let directory = tempfile::tempdir().unwrap();
        let (path, volumes) = (directory.path().join("key"), directory.path().join("volumes"));
        let made = InstallationKey::open_or_create(&path, &volumes).unwrap();
        assert_eq!(InstallationKey::open_or_create(&path, &volumes).unwrap().0, made.0);
        let record = |encrypted: bool| {
            let key = encrypted.then(|| {
                json!({ "version": 1, "installation_key": "one", "nonce": "", "ciphertext": "" })
            });
            json!({
                "version": 1, "id": "vol_1", "size_gib": 1, "filesystem": "ext4", "key": key,
                "generation": 1, "last_writer": null, "created_at": "2026-01-01T00:00:00Z",
                "deleted_at": null, "copied_from": null,
            })
        };
        fs::remove_file(&path).unwrap();
        let place = volumes.join("trash/vol_1");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("volume.json"), record(true).to_string()).unwrap();
        let refused = InstallationKey::open_or_create(&path, &volumes).err().unwrap().to_string();
        assert!(refused.contains("vol_1") && refused.contains("is missing"), "{refused}");
        assert!(!path.exists());
        fs::write(place.join("volume.json"), record(false).to_string()).unwrap();
        InstallationKey::open_or_create(&path, &volumes).unwrap();
    }
}
