//! How often requests of one kind may come for one machine or app: the reference's limits, times a
//! factor.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::{RawPathParams, Request, State, rejection::RawPathParamsRejection},
    http::{HeaderValue, Method, header::RETRY_AFTER},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use caddis_api::{ApiError, ErrorCode};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};

use crate::http::{
    caller::Caller,
    description::{Description, Rate},
    errors::HttpError,
};

type Limiter = RateLimiter<String, HashMapStateStore<String>, DefaultClock>;

/// Those that have been quiet are forgotten after so many requests.
const TIDY: u32 = 1024;

/// The reference's: requests per second, and how many at once.
const DEFAULT: (f64, f64) = (1.0, 3.0);
/// Of GET of a machine.
const READS: (f64, f64) = (5.0, 10.0);
/// Of deletions of apps: 100 per minute in all.
const DELETIONS: (f64, f64) = (100.0 / 60.0, 100.0);

/// What a request counts as, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Counted {
    Usual(String),
    Read(String),
    Deletion,
}

/// Requests of late.
pub(crate) struct Limits {
    usual: Limiter,
    reads: Limiter,
    deletions: Limiter,
    checks: AtomicU32,
}

impl Limits {
    /// None with a factor of 0.
    pub fn new(factor: f64) -> Option<Self> {
        let limiter = |(rate, burst): (f64, f64)| {
            let burst = NonZeroU32::new((burst * factor).ceil().clamp(1.0, 1e6) as u32)?;
            let period = Duration::try_from_secs_f64(1.0 / (rate * factor)).ok()?;
            Some(RateLimiter::hashmap(Quota::with_period(period)?.allow_burst(burst)))
        };
        let [usual, reads, deletions] = [DEFAULT, READS, DELETIONS].map(limiter);
        Some(Self {
            usual: usual?,
            reads: reads?,
            deletions: deletions?,
            checks: AtomicU32::new(0),
        })
    }

    /// How long to wait, if this request comes too early. `apart` is who it is counted for, unless
    /// for all.
    fn check(&self, counted: &Counted, apart: Option<&str>) -> Result<(), Duration> {
        let (limiter, key) = match counted {
            Counted::Usual(key) => (&self.usual, key.as_str()),
            Counted::Read(key) => (&self.reads, key.as_str()),
            Counted::Deletion => (&self.deletions, ""),
        };
        let key = match apart {
            Some(caller) => format!("{caller}: {key}"),
            None => key.to_owned(),
        };
        if self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY) {
            self.usual.retain_recent();
            self.reads.retain_recent();
        }
        limiter.check_key(&key).map_err(|until| until.wait_time_from(DefaultClock::default().now()))
    }
}

/// What a request counts as. `machine` is the one in its path.
fn counted(rate: Rate, method: &Method, path: &str, machine: &str) -> Option<Counted> {
    Some(match rate {
        Rate::Unlimited => return None,
        Rate::Path => Counted::Usual(format!("{method} {path}")),
        Rate::Machine(name) => Counted::Usual(format!("{method} {name} {machine}")),
        Rate::MachineRead => Counted::Read(machine.to_owned()),
        Rate::AppDeletion => Counted::Deletion,
    })
}

/// Refuses what comes too often, with the time after which it may come.
pub(crate) async fn limit(
    State((limits, endpoint)): State<(Arc<Limits>, Description)>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    let machine =
        params.iter().flatten().find(|(name, _)| *name == "machine_id").map_or(path, |(_, id)| id);
    let checked = match counted(endpoint.rate, request.method(), path, machine) {
        Some(counted) => {
            limits.check(&counted, request.extensions().get().and_then(Caller::counted_apart))
        }
        None => Ok(()),
    };
    let Err(wait) = checked else { return next.run(request).await };
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let text =
        format!("resource_exhausted: too many requests of this kind, try again in {seconds} s");
    let mut response = HttpError(ApiError::new(ErrorCode::RateLimited, text)).into_response();
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::{Body, to_bytes},
        http::Uri,
        routing::on,
    };
    use tower::ServiceExt as _;

    use super::*;
    use crate::endpoints;

    /// What a request counts as at the endpoint that it is routed to.
    async fn counted_at_its_endpoint(method: &Method, path: &str) -> String {
        let mut router = Router::new();
        for endpoint in endpoints::all() {
            let rate = endpoint.description.rate;
            let answer = async move |method: Method, uri: Uri, params: RawPathParams| {
                let machine =
                    params.iter().find(|(name, _)| *name == "machine_id").map_or("", |(_, id)| id);
                format!("{:?}", counted(rate, &method, uri.path(), machine))
            };
            for (method, _) in endpoint.operations() {
                let method: Method = method.parse().unwrap();
                router = router.route(&endpoint.path, on(method.try_into().unwrap(), answer));
            }
        }
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let body = router.oneshot(request).await.unwrap().into_body();
        String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn requests_are_counted_by_kind_and_by_what_they_are_for() {
        let usual = |text: &str| Some(Counted::Usual(text.to_owned()));
        for (method, path, expected) in [
            (Method::GET, "/v1/apps/a/machines/1", Some(Counted::Read("1".to_owned()))),
            (Method::GET, "/v1/apps/a/machines/watch", usual("GET /v1/apps/a/machines/watch")),
            (Method::GET, "/v1/apps/a/machines/usage", usual("GET /v1/apps/a/machines/usage")),
            (Method::POST, "/v1/apps/a/machines/1", usual("POST /v1/apps/a/machines/1")),
            (Method::POST, "/v1/apps/a/machines/1/stop", usual("POST stop 1")),
            (Method::DELETE, "/v1/apps/a/machines/1/metadata/k", usual("DELETE metadata 1")),
            (Method::DELETE, "/v1/apps/a", Some(Counted::Deletion)),
            (Method::DELETE, "/v1/apps/a/machines/1/lease", None),
            (Method::POST, "/v1/apps/a/machines/1/lease", usual("POST lease 1")),
            (Method::GET, "/v1/apps/a/machines", usual("GET /v1/apps/a/machines")),
            (Method::GET, "/healthz", None),
            (Method::POST, "/v1/images", None),
        ] {
            let counted = counted_at_its_endpoint(&method, path).await;
            assert_eq!(counted, format!("{expected:?}"), "{method} {path}");
        }
    }

    #[test]
    fn a_burst_is_let_through_and_then_no_more() {
        assert!(Limits::new(0.0).is_none(), "off");
        let limits = Limits::new(1.0).unwrap();
        let (one, other) = (Counted::Usual("one".to_owned()), Counted::Usual("other".to_owned()));
        for _ in 0..3 {
            assert!(limits.check(&one, None).is_ok());
        }
        let wait = limits.check(&one, None).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(1), "{wait:?}");
        assert!(limits.check(&other, None).is_ok(), "each for itself");
        assert!(
            limits.check(&one, Some("scoped")).is_ok(),
            "and a caller that may not see all apart from all others"
        );
        let read = Counted::Read("one".to_owned());
        assert_eq!((0..20).filter(|_| limits.check(&read, None).is_ok()).count(), 10);
    }
}
