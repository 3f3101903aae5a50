//! Where snapshots of volumes are kept.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use caddis_snapshot::Location;
use zeroize::Zeroizing;

use super::ServeArguments;
use crate::instance;

/// Begins the name of a store in S3-compatible storage.
const S3: &str = "s3://";
/// As AWS calls its two parts, in files and, in capitals, in the environment.
const KEY_ID: &str = "aws_access_key_id";
const SECRET: &str = "aws_secret_access_key";

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotSettings {
    /// In a directory of this host.
    Directory(PathBuf),
    /// In S3-compatible storage.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// What all keys begin with.
        prefix: String,
        /// URL of the service.
        endpoint: Option<String>,
        /// Region.
        region: Option<String>,
        /// File with the credentials; they are in the environment where there is none.
        credentials: Option<PathBuf>,
    },
}

impl SnapshotSettings {
    pub(super) fn new(set: &ServeArguments, data_dir: &Path) -> Result<Self> {
        let of_s3 = [
            ("--snapshot-store-endpoint", set.snapshot_store_endpoint.is_some()),
            ("--snapshot-store-region", set.snapshot_store_region.is_some()),
            ("--snapshot-store-credentials", set.snapshot_store_credentials.is_some()),
        ];
        let store = set.snapshot_store.as_deref();
        if let Some(place) = store.and_then(|store| store.strip_prefix(S3)) {
            let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
            ensure!(
                !bucket.is_empty(),
                "invalid snapshot store '{S3}{place}': name a bucket, {S3}BUCKET/PREFIX"
            );
            return Ok(Self::S3 {
                bucket: bucket.to_owned(),
                prefix: prefix.trim_matches('/').to_owned(),
                endpoint: set.snapshot_store_endpoint.clone(),
                region: set.snapshot_store_region.clone(),
                credentials: set.snapshot_store_credentials.clone(),
            });
        }
        if let Some((flag, _)) = of_s3.iter().find(|(_, is_given)| *is_given) {
            bail!("{flag} is for a snapshot store in S3: name it with --snapshot-store {S3}BUCKET");
        }
        match store {
            None => Ok(Self::default_of(data_dir)),
            Some(store) if store.is_empty() || store.contains("://") => {
                bail!("invalid snapshot store '{store}': use a directory, or {S3}BUCKET/PREFIX")
            }
            Some(store) => Ok(Self::Directory(store.into())),
        }
    }

    fn default_of(data_dir: &Path) -> Self {
        Self::Directory(data_dir.join(instance::SNAPSHOTS))
    }

    /// Whether it is what it is unless something else is given.
    pub fn is_default(&self, data_dir: &Path) -> bool {
        *self == Self::default_of(data_dir)
    }

    /// The same with the credentials.
    ///
    /// # Errors
    /// When there are none where they are needed, or their file can't be used.
    pub fn location(&self) -> Result<Location> {
        self.location_with(|name| std::env::var(name).ok())
    }

    fn location_with(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Location> {
        match self {
            Self::Directory(path) => Ok(Location::Directory(path.clone())),
            Self::S3 { bucket, prefix, endpoint, region, credentials } => {
                let credentials = match credentials {
                    Some(path) => in_file(path)?,
                    None => in_environment(variable)?,
                };
                Ok(Location::S3 {
                    bucket: bucket.clone(),
                    prefix: prefix.clone(),
                    endpoint: endpoint.clone(),
                    region: region.clone(),
                    credentials,
                })
            }
        }
    }
}

impl fmt::Display for SnapshotSettings {
    /// The path, or the URL, without credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::S3 { bucket, prefix, .. } if prefix.is_empty() => write!(f, "{S3}{bucket}"),
            Self::S3 { bucket, prefix, .. } => write!(f, "{S3}{bucket}/{prefix}"),
        }
    }
}

type Credentials = (String, Zeroizing<String>);

fn in_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Credentials> {
    let part = |name: &str| variable(&name.to_ascii_uppercase()).filter(|value| !value.is_empty());
    match (part(KEY_ID), part(SECRET)) {
        (Some(id), Some(secret)) => Ok((id, secret.into())),
        _ => bail!(
            "the snapshot store in S3 needs credentials: name their file with \
             --snapshot-store-credentials, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ),
    }
}

/// Reads what AWS's own tools call a shared credentials file, with one profile.
fn in_file(path: &Path) -> Result<Credentials> {
    let name = path.display();
    let attempted = || format!("can't read the credentials of the snapshot store in {name}");
    let text = Zeroizing::new(fs::read_to_string(path).with_context(attempted)?);
    let mode = fs::metadata(path).with_context(attempted)?.mode() & 0o777;
    ensure!(mode & 0o077 == 0, "{name} can be read by others (mode {mode:o}): chmod 600 {name}");
    let value = |wanted: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        let mut values = lines.filter(|(key, _)| key.trim() == wanted);
        let value = values.next().map(|(_, value)| value.trim().to_owned());
        (value.filter(|value| !value.is_empty()), values.next().is_none())
    };
    match (value(KEY_ID), value(SECRET)) {
        ((Some(id), true), (Some(secret), true)) => Ok((id, secret.into())),
        // What is in it is not shown.
        _ => bail!(
            "{name} has no credentials of a snapshot store: write {KEY_ID} = … and {SECRET} = … \
             into it, each once"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn set(store: &str) -> ServeArguments {
        let store = Some(store.to_owned()).filter(|store| !store.is_empty());
        ServeArguments { snapshot_store: store, ..ServeArguments::default() }
    }

    fn read(set: &ServeArguments) -> Result<SnapshotSettings> {
        SnapshotSettings::new(set, Path::new("/data"))
    }

    #[test]
    fn a_store_is_a_directory_or_a_bucket() {
        let directory = |path: &str| SnapshotSettings::Directory(path.into());
        assert_eq!(read(&set("")).unwrap(), directory("/data/snapshots"));
        assert_eq!(read(&set("/mnt/backup")).unwrap(), directory("/mnt/backup"));
        for (store, expected) in [
            ("s3://b", ("b", "")),
            ("s3://b/", ("b", "")),
            ("s3://b/p", ("b", "p")),
            ("s3://b/p/q/", ("b", "p/q")),
        ] {
            let SnapshotSettings::S3 { bucket, prefix, .. } = read(&set(store)).unwrap() else {
                panic!("{store} is no bucket")
            };
            assert_eq!((bucket.as_str(), prefix.as_str()), expected, "{store}");
        }
        for wrong in ["s3://", "s3:///p", "gs://b", "file:///x"] {
            let error = read(&set(wrong)).unwrap_err().to_string();
            assert!(error.contains("invalid snapshot store"), "{wrong}: {error}");
        }
        let endpoint = Some("http://127.0.0.1:9000".to_owned());
        let lost = ServeArguments { snapshot_store_endpoint: endpoint.clone(), ..set("/mnt") };
        let error = read(&lost).unwrap_err().to_string();
        assert!(error.contains("--snapshot-store-endpoint is for"), "{error}");
        let kept = ServeArguments { snapshot_store_endpoint: endpoint.clone(), ..set("s3://b") };
        let SnapshotSettings::S3 { endpoint: found, .. } = read(&kept).unwrap() else { panic!() };
        assert_eq!(found, endpoint);
    }

    #[test]
    fn credentials_are_in_a_file_that_is_the_servers_alone_or_in_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        let none = |_: &str| None;
        let of_environment = read(&set("s3://b")).unwrap();
        let of_file = read(&ServeArguments {
            snapshot_store_credentials: Some(path.clone()),
            ..set("s3://b")
        });
        let of_file = of_file.unwrap();
        let found = |location: Result<Location>| match location.unwrap() {
            Location::S3 { credentials: (id, secret), .. } => (id, secret.to_string()),
            Location::Directory(_) => panic!("it is a bucket"),
        };
        let variable = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("one".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("two".to_owned()),
            _ => None,
        };
        let expected = ("one".to_owned(), "two".to_owned());
        assert_eq!(found(of_environment.location_with(variable)), expected);
        let error = of_environment.location_with(none).unwrap_err().to_string();
        assert!(error.contains("set AWS_ACCESS_KEY_ID"), "{error}");
        let error = format!("{:#}", of_file.location_with(variable).unwrap_err());
        assert!(error.contains("can't read the credentials"), "{error}");
        let text = "[default]\naws_access_key_id = one\naws_secret_access_key=two\n";
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = of_file.location_with(none).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(found(of_file.location_with(none)), expected);
        for wrong in ["", "aws_access_key_id = secret-id\n", &text.repeat(2)] {
            fs::write(&path, wrong).unwrap();
            let error = of_file.location_with(none).unwrap_err().to_string();
            assert!(error.contains("has no credentials") && !error.contains("secret-id"));
        }
    }
}
