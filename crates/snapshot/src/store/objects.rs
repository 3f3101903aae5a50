//! The object store underneath, with errors that tell what was tried and show no credentials.

use std::{error::Error as _, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{
    BackoffConfig, ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload,
    RetryConfig,
    aws::AmazonS3Builder,
    client::{HttpError, HttpErrorKind},
    local::LocalFileSystem,
    path::Path,
};

use super::{Location, Options};
use crate::SnapshotError;

/// No put of an object into a directory takes longer.
const LONGEST_PUT: Duration = Duration::from_secs(10 * 60);

/// Why an object could not be used.
#[derive(Debug)]
pub(super) enum Fault {
    /// It is not there.
    Missing,
    /// It is larger than it can be.
    TooLarge,
    /// The store failed.
    Store(String),
}

impl From<Fault> for SnapshotError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Missing => Self::Store("an object is missing".to_owned()),
            Fault::TooLarge => Self::Store("an object is larger than it can be".to_owned()),
            Fault::Store(reason) => Self::Store(reason),
        }
    }
}

/// A place in an object store.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// What all keys begin with.
    base: Path,
    /// Where the objects are files.
    directory: Option<PathBuf>,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, base: Path::default(), directory: None }
    }

    pub(super) fn open(location: &Location, options: &Options) -> Result<Self, SnapshotError> {
        match location {
            Location::Directory(path) => {
                let refused = |error: &dyn std::fmt::Display| {
                    let path = path.display();
                    SnapshotError::InvalidStore(format!("can't use the directory {path}: {error}"))
                };
                make_private(path).map_err(|error| refused(&error))?;
                let store =
                    LocalFileSystem::new_with_prefix(path).map_err(|error| refused(&error))?;
                // Contents and names are on the disk before a put has succeeded.
                let store = Arc::new(store.with_fsync(true));
                Ok(Self { directory: Some(path.clone()), ..Self::new(store) })
            }
            Location::S3 { bucket, prefix, endpoint, region, credentials } => {
                let invalid = |reason: String| SnapshotError::InvalidStore(reason);
                if bucket.is_empty() || bucket.contains('/') {
                    return Err(invalid(format!("'{bucket}' can't be the name of a bucket")));
                }
                let base = Path::parse(prefix)
                    .map_err(|_| invalid(format!("'{prefix}' can't be the prefix of keys")))?;
                let mut builder = AmazonS3Builder::new()
                    .with_bucket_name(bucket)
                    .with_region(region.as_deref().unwrap_or("us-east-1"))
                    .with_access_key_id(&credentials.0)
                    .with_secret_access_key(credentials.1.as_str())
                    // Not every service has requests that remove several objects.
                    .with_disable_bulk_delete(true)
                    .with_client_options(client(options))
                    .with_retry(retry(options));
                if let Some(endpoint) = endpoint {
                    let http = allows_http(endpoint)?;
                    builder = builder.with_endpoint(endpoint).with_allow_http(http);
                }
                let store = builder.build().map_err(|error| invalid(describe(&error)))?;
                Ok(Self { store: Arc::new(store), base, directory: None })
            }
        }
    }

    fn path(&self, key: &str) -> Path {
        self.base.parts().chain(Path::from(key).parts()).collect()
    }

    fn failed(&self, what: &str, key: &str, error: &object_store::Error) -> Fault {
        match error {
            object_store::Error::NotFound { .. } => Fault::Missing,
            error => Fault::Store(format!("can't {what} {}: {}", self.path(key), describe(error))),
        }
    }

    pub(super) async fn put(&self, key: &str, object: Vec<u8>) -> Result<(), Fault> {
        let put = self.store.put(&self.path(key), PutPayload::from(object)).await;
        match put {
            Ok(_) => Ok(()),
            // The bucket, or the directory itself, is gone.
            Err(object_store::Error::NotFound { source, .. }) => {
                let reason = source_text(source.as_ref());
                Err(Fault::Store(format!("can't write {}: {reason}", self.path(key))))
            }
            Err(error) => Err(self.failed("write", key, &error)),
        }
    }

    /// An object of at most `limit` bytes.
    pub(super) async fn get(&self, key: &str, limit: usize) -> Result<Bytes, Fault> {
        let failed = |error| self.failed("read", key, &error);
        let result = self.store.get(&self.path(key)).await.map_err(failed)?;
        if result.meta.size > limit as u64 {
            return Err(Fault::TooLarge);
        }
        result.bytes().await.map_err(failed)
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectMeta>, Fault> {
        match self.store.head(&self.path(key)).await {
            Ok(meta) => Ok(Some(meta)),
            Err(error) => match self.failed("look for", key, &error) {
                Fault::Missing => Ok(None),
                fault => Err(fault),
            },
        }
    }

    /// Removes an object; one that is not there is no error.
    pub(super) async fn delete(&self, key: &str) -> Result<(), Fault> {
        match self.store.delete(&self.path(key)).await {
            Ok(()) => Ok(()),
            Err(error) => match self.failed("remove", key, &error) {
                Fault::Missing => Ok(()),
                fault => Err(fault),
            },
        }
    }

    /// Removes objects that were listed; those that are not there are no error.
    pub(super) async fn delete_all(&self, locations: Vec<Path>) -> Result<(), Fault> {
        let locations = futures::stream::iter(locations).map(Ok).boxed();
        let mut deleted = self.store.delete_stream(locations);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => {
                    return Err(Fault::Store(format!(
                        "can't remove objects: {}",
                        describe(&error)
                    )));
                }
            }
        }
        Ok(())
    }

    /// The objects below a prefix, in no order. An empty prefix is no error.
    pub(super) fn list(
        &self,
        prefix: &str,
    ) -> impl Stream<Item = Result<ObjectMeta, Fault>> + Send + 'static {
        let path = self.path(prefix);
        self.store
            .list(Some(&path))
            .filter(|result| {
                let gone = matches!(result, Err(object_store::Error::NotFound { .. }));
                futures::future::ready(!gone)
            })
            .map_err(move |error| Fault::Store(format!("can't list {path}: {}", describe(&error))))
    }

    /// Removes the files of puts that were killed, where they are older than `grace` and than any
    /// put that goes on.
    pub(super) async fn remove_unfinished(
        &self,
        prefix: &str,
        grace: Duration,
    ) -> Result<(), Fault> {
        let Some(directory) = self.directory.as_ref().map(|it| it.join(prefix)) else {
            return Ok(());
        };
        let shown = directory.display().to_string();
        let removing = tokio::task::spawn_blocking(move || {
            remove_unfinished(&directory, grace.max(LONGEST_PUT))
        });
        let failed = |error: &dyn std::fmt::Display| {
            Fault::Store(format!("can't remove unfinished files in {shown}: {error}"))
        };
        removing.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// Names of the parts below a prefix that have something below them.
    pub(super) async fn list_parts(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let path = self.path(prefix);
        match self.store.list_with_delimiter(Some(&path)).await {
            Ok(result) => Ok(result
                .common_prefixes
                .iter()
                .filter_map(|path| path.filename().map(str::to_owned))
                .collect()),
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(self.failed("list", prefix, &error)),
        }
    }
}

/// Makes a directory that only its owner can use.
fn make_private(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => std::path::Path::new("."),
    };
    std::fs::create_dir_all(parent)?;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => std::fs::File::open(parent)?.sync_all(),
    }
}

/// `LocalFileSystem` writes `NAME#NUMBER`, which it lists nowhere, and renames it.
fn remove_unfinished(directory: &std::path::Path, grace: Duration) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_unfinished(&entry.path(), grace)?;
        } else if entry.file_name().as_encoded_bytes().contains(&b'#') {
            let age = match entry.metadata().and_then(|meta| meta.modified()) {
                Ok(modified) => modified.elapsed().unwrap_or_default(),
                // Renamed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if age >= grace {
                match std::fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn client(options: &Options) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(options.timeout)
        .with_connect_timeout(options.timeout.min(Duration::from_secs(5)))
}

fn retry(options: &Options) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: options.backoff,
            max_backoff: options.backoff * 32,
            base: 2.0,
        },
        max_retries: options.retries,
        retry_timeout: options.retry_for,
    }
}

/// Whether the endpoint is one of this host, over plain HTTP.
fn allows_http(endpoint: &str) -> Result<bool, SnapshotError> {
    let invalid = |reason: &str| {
        let reason = format!("the endpoint must be an https:// URL of a host; {reason}");
        Err(SnapshotError::InvalidStore(reason))
    };
    let (is_http, rest) = match endpoint.split_once("://") {
        Some(("https", rest)) => (false, rest),
        Some(("http", rest)) => (true, rest),
        _ => return invalid("this one begins otherwise"),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.is_empty() {
        return invalid("this one names no host");
    }
    if authority.contains('@') {
        return invalid("credentials are given separately");
    }
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let is_loopback = host == "localhost"
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if is_http && !is_loopback {
        return invalid("http:// is only for loopback addresses");
    }
    Ok(is_http)
}

/// What an error says, without the bodies of answers: those repeat what was signed, and with which
/// access key.
fn describe(error: &object_store::Error) -> String {
    let mut source = error.source();
    while let Some(found) = source {
        if let Some(transport) = found.downcast_ref::<HttpError>() {
            let kind = match transport.kind() {
                HttpErrorKind::Connect => "can't connect",
                HttpErrorKind::Timeout => "timed out",
                _ => "the connection failed",
            };
            return format!("{kind}: {}", innermost(transport));
        }
        source = found.source();
    }
    source_text(error)
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

/// The status and S3's code of an answer, or the text up to where an answer's body could begin.
fn source_text(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    if let Some((_, answer)) = text.split_once("status code: ") {
        let (status, body) = answer.split_once(": ").unwrap_or((answer, ""));
        let code = body
            .split_once("<Code>")
            .and_then(|(_, rest)| rest.split_once("</Code>"))
            .map(|(code, _)| code)
            .filter(|code| code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        return match code {
            Some(code) => format!("the service answered {status} ({code})"),
            None => format!("the service answered {status}"),
        };
    }
    text.split('<').next().unwrap_or_default().trim_end().to_owned()
}
