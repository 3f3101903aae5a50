//! S3 over loopback: a service with the requests that a store needs, and with its faults.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use caddis_snapshot::{Location, Options, SnapshotError, SnapshotStore, StoreConfig, Swept};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::support::*;

const BUCKET: &str = "/bucket";
/// Small, so that listings have several pages.
const PAGE: usize = 7;

/// What befalls the next requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// 503 SlowDown.
    Busy,
    /// No answer, ever.
    Silent,
    /// The connection ends in the middle of the answer to a GET.
    CutShort,
}

#[derive(Default)]
struct Service {
    objects: Mutex<BTreeMap<String, Bytes>>,
    trouble: Mutex<Option<(Trouble, usize)>>,
    requests: AtomicUsize,
}

impl Service {
    /// Serves on a port of its own, until the test ends.
    async fn start() -> (Arc<Self>, String) {
        let service = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&service));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (service, endpoint)
    }

    fn next(&self, trouble: Trouble, count: usize) {
        *self.trouble.lock() = Some((trouble, count));
    }

    fn befalls(&self) -> Option<Trouble> {
        let mut trouble = self.trouble.lock();
        let (kind, count) = trouble.as_mut().filter(|(_, count)| *count > 0)?;
        *count -= 1;
        Some(*kind)
    }

    fn keys(&self) -> Vec<String> {
        self.objects.lock().keys().cloned().collect()
    }
}

fn failed(status: StatusCode, code: &str, more: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>no</Message>{more}</Error>");
    (status, body).into_response()
}

async fn answer(
    State(service): State<Arc<Service>>,
    Query(query): Query<BTreeMap<String, String>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    service.requests.fetch_add(1, Ordering::Relaxed);
    let signed = headers.get(header::AUTHORIZATION).unwrap().to_str().unwrap();
    if !signed.starts_with("AWS4-HMAC-SHA256 Credential=AKID/")
        || !signed.contains("/eu-test-1/s3/aws4_request")
    {
        let more = format!("<AWSAccessKeyId>AKWRONG</AWSAccessKeyId><StringToSign>{signed}");
        return failed(StatusCode::FORBIDDEN, "InvalidAccessKeyId", &more);
    }
    let trouble = service.befalls();
    match trouble {
        Some(Trouble::Busy) => {
            return failed(StatusCode::SERVICE_UNAVAILABLE, "SlowDown", "");
        }
        Some(Trouble::Silent) => std::future::pending().await,
        Some(Trouble::CutShort) | None => {}
    }
    let Some(key) = uri.path().strip_prefix(BUCKET) else {
        return failed(StatusCode::NOT_FOUND, "NoSuchBucket", "");
    };
    let key = key.trim_start_matches('/').to_owned();
    let mut objects = service.objects.lock();
    if method == Method::GET && key.is_empty() {
        return list(&objects, &query);
    }
    match method {
        Method::PUT => {
            objects.insert(key, body);
            ([(header::ETAG, "\"1\"")], "").into_response()
        }
        Method::GET | Method::HEAD => {
            let Some(object) = objects.get(&key).cloned() else {
                return failed(StatusCode::NOT_FOUND, "NoSuchKey", "");
            };
            let head = [
                (header::ETAG, "\"1\"".to_owned()),
                (header::LAST_MODIFIED, "Wed, 21 Oct 2015 07:28:00 GMT".to_owned()),
                (header::CONTENT_LENGTH, object.len().to_string()),
            ];
            if trouble == Some(Trouble::CutShort) {
                let half = object.slice(..object.len() / 2);
                let broken = Err(std::io::Error::other("cut"));
                let parts = futures::stream::iter([Ok(half), broken]);
                return (head, Body::from_stream(parts)).into_response();
            }
            // axum leaves the body of a HEAD away.
            (head, object).into_response()
        }
        Method::DELETE => {
            objects.remove(&key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => failed(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", ""),
    }
}

/// ListObjectsV2.
fn list(objects: &BTreeMap<String, Bytes>, query: &BTreeMap<String, String>) -> Response {
    assert_eq!(query["list-type"], "2");
    let prefix = query.get("prefix").map_or("", String::as_str);
    let after = query.get("continuation-token").or(query.get("start-after"));
    let (mut body, mut last, mut count) = (String::new(), String::new(), 0);
    let mut next = String::new();
    for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        if after.is_some_and(|after| {
            key <= after || (after.ends_with('/') && key.starts_with(after.as_str()))
        }) {
            continue;
        }
        let rest = &key[prefix.len()..];
        let part = query.get("delimiter").and_then(|_| rest.split_once('/')).map(|it| it.0);
        let entry = match part {
            Some(part) => format!("{prefix}{part}/"),
            None => key.clone(),
        };
        if entry == last {
            continue;
        }
        if count == PAGE {
            next = format!("<NextContinuationToken>{last}</NextContinuationToken>");
            break;
        }
        count += 1;
        match part {
            Some(_) => {
                body += &format!("<CommonPrefixes><Prefix>{entry}</Prefix></CommonPrefixes>")
            }
            None => {
                body += &format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"1\"</ETag>\
                     <LastModified>2015-10-21T07:28:00.000Z</LastModified></Contents>",
                    object.len()
                );
            }
        }
        last = entry;
    }
    format!("<?xml version=\"1.0\"?><ListBucketResult>{body}{next}</ListBucketResult>")
        .into_response()
}

fn config_at(endpoint: &str, access_key: &str) -> StoreConfig {
    let location = Location::S3 {
        bucket: "bucket".to_owned(),
        prefix: "some/where".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        region: Some("eu-test-1".to_owned()),
        credentials: (access_key.to_owned(), Zeroizing::new("SECRETKEY".to_owned())),
    };
    StoreConfig { location, key: key() }
}

fn open(endpoint: &str) -> SnapshotStore {
    SnapshotStore::open_with(config_at(endpoint, "AKID"), options()).unwrap()
}

#[tokio::test]
async fn snapshots_are_taken_into_s3_read_listed_and_swept() {
    let (service, endpoint) = Service::start().await;
    let store = open(&endpoint);
    store.check().await.unwrap();
    assert_eq!(service.keys(), Vec::<String>::new());
    let (one, two) = (name("acme", "a", "1"), name("acme", "a", "2"));
    assert!(matches!(store.get(&one).await, Err(SnapshotError::NotFound(_))));
    assert_eq!(store.list("acme").await.unwrap(), []);
    let mut volume = Volume::random(1, 40 * CHUNK + 5);
    take(&store, new(&one, None), &mut volume).await.unwrap();
    let before = volume.contents.clone();
    volume.changed = Some(Vec::new());
    volume.write(9 * CHUNK, &random(2, 2 * CHUNK));
    let after = take(&store, new(&two, Some(&one)), &mut volume).await.unwrap();
    assert_eq!(after.read_size, 2 * CHUNK as u64);
    take(&store, new(&name("other", "a", "1"), None), &mut volume).await.unwrap();
    assert!(service.keys().iter().all(|key| key.starts_with("some/where/organizations/")));
    assert!(contents(&store, &one).await.unwrap() == before);
    assert!(contents(&store, &two).await.unwrap() == volume.contents);
    assert_eq!(store.list("acme").await.unwrap().len(), 2);

    store.delete(&one).await.unwrap();
    store.delete(&one).await.unwrap();
    let swept = store.sweep().await.unwrap();
    assert_eq!((swept.chunks, swept.busy), (3, 0));
    assert!(contents(&store, &two).await.unwrap() == volume.contents);
    store.delete(&two).await.unwrap();
    store.delete(&name("other", "a", "1")).await.unwrap();
    assert_eq!(store.sweep().await.unwrap().chunks, 2 * 42);
    assert_eq!(service.keys(), Vec::<String>::new());
    assert_eq!(store.sweep().await.unwrap(), Swept::default());
}

#[tokio::test]
async fn a_service_that_is_busy_or_cuts_answers_short_is_asked_again() {
    let (service, endpoint) = Service::start().await;
    let store = open(&endpoint);
    let one = name("acme", "a", "1");
    let mut volume = Volume::random(1, 10 * CHUNK);
    service.next(Trouble::Busy, 2);
    take(&store, new(&one, None), &mut volume).await.unwrap();
    let reader = store.reader(&one).await.unwrap();
    for trouble in [Trouble::Busy, Trouble::CutShort] {
        service.next(trouble, 2);
        let mut buffer = vec![0; 3 * CHUNK];
        let result = reader.read(0, &mut buffer).await;
        // Whether a cut answer is asked for again is the client's; it is never taken for whole.
        match result {
            Ok(()) => assert!(buffer == volume.contents[..3 * CHUNK]),
            Err(error) => assert!(matches!(error, SnapshotError::Store(_)), "{error}"),
        }
    }
    assert!(contents(&store, &one).await.unwrap() == volume.contents);
}

#[tokio::test]
async fn a_service_that_stays_busy_is_an_error_that_says_so() {
    let (service, endpoint) = Service::start().await;
    let store = open(&endpoint);
    service.next(Trouble::Busy, usize::MAX);
    let error = store.get(&name("acme", "a", "1")).await.unwrap_err();
    let message = error.to_string();
    assert!(matches!(error, SnapshotError::Store(_)));
    assert!(message.contains("can't read some/where/organizations/acme/snapshots/"), "{message}");
    assert!(message.contains("503 Service Unavailable (SlowDown)"), "{message}");
    // The first attempt and the repetitions.
    assert_eq!(service.requests.load(Ordering::Relaxed), 1 + options().retries);
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_asked_again_and_then_an_error() {
    let (service, endpoint) = Service::start().await;
    let options = Options { timeout: Duration::from_millis(500), ..options() };
    let store = SnapshotStore::open_with(config_at(&endpoint, "AKID"), options).unwrap();
    let one = name("acme", "a", "1");
    let mut volume = Volume::random(1, 2 * CHUNK);
    service.next(Trouble::Silent, 1);
    take(&store, new(&one, None), &mut volume).await.unwrap();
    service.next(Trouble::Silent, usize::MAX);
    let error = store.get(&one).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Store(_)));
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[tokio::test]
async fn a_service_that_is_away_is_no_reason_not_to_open_and_an_error_later() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let store = open(&endpoint);
    let one = name("acme", "a", "1");
    let mut volume = Volume::random(1, 2 * CHUNK);
    for error in [
        take(&store, new(&one, None), &mut volume).await.unwrap_err(),
        store.get(&one).await.unwrap_err(),
        store.list("acme").await.unwrap_err(),
        store.delete(&one).await.unwrap_err(),
        store.sweep().await.unwrap_err(),
        store.check().await.unwrap_err(),
    ] {
        assert!(matches!(error, SnapshotError::Store(_)));
        assert!(error.to_string().contains("can't connect: "), "{error}");
        assert!(error.to_string().contains("some/where/"), "{error}");
    }
    assert_eq!(volume.reads, []);
}

#[tokio::test]
async fn wrong_credentials_are_told_and_not_shown() {
    let (service, endpoint) = Service::start().await;
    let store = SnapshotStore::open_with(config_at(&endpoint, "AKWRONG"), options()).unwrap();
    let one = name("acme", "a", "1");
    for error in [
        store.check().await.unwrap_err(),
        store.get(&one).await.unwrap_err(),
        store.list("acme").await.unwrap_err(),
        store.delete(&one).await.unwrap_err(),
        store.sweep().await.unwrap_err(),
        take(&store, new(&one, None), &mut Volume::random(1, 9)).await.unwrap_err(),
    ] {
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("the service answered 403 Forbidden (InvalidAccessKeyId)"),
            "{shown}"
        );
        for secret in ["AKWRONG", "SECRETKEY", "Signature", "AWS4"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
    // It is not asked again.
    assert!(service.requests.load(Ordering::Relaxed) <= 8);
    let error = SnapshotStore::open_with(
        StoreConfig {
            location: Location::S3 {
                bucket: "another".to_owned(),
                prefix: String::new(),
                endpoint: Some(endpoint.clone()),
                region: Some("eu-test-1".to_owned()),
                credentials: ("AKID".to_owned(), Zeroizing::new("SECRETKEY".to_owned())),
            },
            key: key(),
        },
        options(),
    )
    .unwrap()
    .check()
    .await
    .unwrap_err();
    assert!(error.to_string().contains("404 Not Found (NoSuchBucket)"), "{error}");
}
