//! An HTTP request on its way to a machine and its response on the way back.
//!
//! ```text
//!  find the app and its port ─▶ take a place ─▶ connect ─▶ send ─▶ pass the response on
//!                                 ▲               │ refused   │ the connection had been used, and
//!                                 └───────────────┴───────────┘ nothing says the request arrived
//! ```

mod answer;
mod failures;
mod head;
mod upgrade;

use std::{convert::Infallible, future::ready, mem, pin::Pin, sync::Arc};

use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version, header, request,
    uri::{Authority, PathAndQuery},
};
use hyper::body::Incoming;
use tokio::time::Instant;

pub(crate) use self::answer::{Answer, StreamBody};
use self::{
    answer::{AnswerBody, Passing},
    failures::{broken, too_slow, unsent_to},
    head::NO_HOST,
};
use crate::{
    AccessRecord, ConcurrencyKind, ErrorCode,
    app::{App, Candidate, Endpoint},
    connection::{Connection, InProgress},
    core::Core,
    counters,
    error::Failure,
    headers,
    pool::{self, NoResponse, ResponseBody, Wanted},
    replay_body::Source,
    request_head::RequestHead,
    select::{Preference, Search, Taken},
    table, tcp,
};

/// The type of what errors say.
pub(crate) const PLAIN_TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Why there is no response of a machine.
enum Refusal {
    Failed(Failure),
    /// The client's fault.
    Bad(StatusCode, &'static str),
    /// The body is invalid or not whole. Most such clients have left, which is no business of the
    /// app's log.
    Incomplete,
    /// To this address.
    Redirect(HeaderValue),
    /// The machine takes long to start, and the client is a browser.
    Placeholder,
    /// The client does not wait any more.
    Left,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What is known of a request's way, for its end.
struct Exchange {
    core: Arc<Core>,
    connection: Arc<Connection>,
    request_id: HeaderValue,
    version: Version,
    /// Whether the guard looks at nothing that follows on an HTTP/1 connection.
    ends_guard: bool,
    /// Where requests are logged. Boxed, as few servers do so.
    logged: Option<Box<Logged>>,
    app: Option<Arc<App>>,
    endpoint: Option<Arc<Endpoint>>,
    machine: Option<caddis_api::MachineId>,
}

/// What the access log says of a request.
struct Logged {
    began: Instant,
    method: Method,
    path: String,
}

/// What a request asks of machines.
struct Asking {
    app: Arc<App>,
    head: RequestHead,
    source: Source,
    preference: Preference,
    /// What a connection to a machine begins with.
    preface: Vec<u8>,
    uses_h2: bool,
    upgrade: Option<Box<upgrade::Asked>>,
}

/// The answer to come. Boxed: hyper keeps room for it as long as the connection lives.
pub(crate) type Answering =
    Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

/// Answers a request of a client. All that needs no waiting is done at once, and what is waited
/// with is borrowed: each byte of a future is copied when it is boxed.
pub(crate) fn serve(
    core: Arc<Core>,
    connection: Arc<Connection>,
    in_progress: InProgress,
    request: Request<Incoming>,
) -> Answering {
    let mut exchange = Exchange::begin(core, connection, &request);
    let mut asking = match exchange.asking(request) {
        Ok(asking) => asking,
        Err(refusal) => {
            let response = exchange.end(Err(refusal), in_progress);
            return Box::pin(ready(Ok(response)));
        }
    };
    Box::pin(async move {
        let result = exchange.ask(&mut asking).await;
        Ok(exchange.end(result, in_progress))
    })
}

/// A new id for a request.
pub(crate) fn request_id(region: &str) -> HeaderValue {
    let mut ulid = [0; ulid::ULID_LEN];
    let ulid = ulid::Ulid::new().array_to_str(&mut ulid);
    let mut id = String::with_capacity(ulid.len() + 1 + region.len());
    id.push_str(ulid);
    id.push('-');
    id.push_str(region);
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("invalid"))
}

impl Exchange {
    fn begin(core: Arc<Core>, connection: Arc<Connection>, request: &Request<Incoming>) -> Self {
        let (version, method) = (request.version(), request.method());
        let upgrades = || request.headers().contains_key(header::UPGRADE);
        let logged = core.config.access_log.then(|| {
            let path = request.uri().path().to_owned();
            Box::new(Logged { began: Instant::now(), method: method.clone(), path })
        });
        Self {
            request_id: request_id(&core.config.region),
            core,
            connection,
            version,
            ends_guard: version != Version::HTTP_2 && (method == Method::CONNECT || upgrades()),
            logged,
            app: None,
            endpoint: None,
            machine: None,
        }
    }

    /// The answer, as the client gets it.
    fn end(
        &mut self,
        result: Result<Response<AnswerBody>, Refusal>,
        in_progress: InProgress,
    ) -> Response<Answer> {
        let mut response = result.unwrap_or_else(|refusal| self.refuse(refusal));
        headers::finish_response(
            response.headers_mut(),
            self.endpoint.as_ref().map(|endpoint| &endpoint.port.http),
            self.version,
            &self.core.server,
            &self.request_id,
        );
        if self.ends_guard && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let (Some(logged), Some(app)) = (self.logged.take(), &self.app) {
            let Logged { began, method, path } = *logged;
            self.core.journal.access(AccessRecord {
                app: app.name.clone(),
                machine: self.machine.clone(),
                request_id: self.request_id.to_str().unwrap_or_default().into(),
                client: self.connection.peer,
                method,
                path,
                status: response.status().as_u16(),
                duration: began.elapsed(),
            });
        }
        response.map(|body| Answer::new(body, in_progress))
    }

    /// Finds the app that a request is for, and what machines are to be asked.
    fn asking(&mut self, request: Request<Incoming>) -> Result<Asking, Refusal> {
        let (mut parts, body) = request.into_parts();
        let host = head::host(&parts)?;
        let app = self.find(host.as_ref())?;
        self.app = Some(app.clone());
        let Some(endpoint) = app.endpoint(self.connection.port) else {
            let text = format!("the app has no service at port {}", self.connection.port);
            return Err(Failure::new(ErrorCode::PR01, text).into());
        };
        let port = &self.endpoint.insert(endpoint).port;
        if !port.handlers.http {
            let text = "the service at this port has no handler 'http'";
            return Err(Failure::new(ErrorCode::PR01, text).into());
        }
        // There is no HTTPS on a private address to be sent to.
        if port.force_https && !self.connection.is_tls && !self.connection.is_private {
            return Err(self.redirect(host.as_ref(), &parts));
        }
        let upgrade = upgrade::asked(&mut parts)?.map(Box::new);
        headers::strip_hop_by_hop(&mut parts.headers);
        // We answer it ourselves, once a machine takes the body.
        parts.headers.remove(header::EXPECT);
        let preference = headers::preference(&mut parts.headers);
        headers::add_origin(
            &mut parts.headers,
            &self.connection.origin,
            self.connection.is_tls,
            self.version,
            &self.core.region,
            &self.request_id,
        );
        if let Some(upgrade) = &upgrade {
            upgrade.add_to(&mut parts.headers);
        }
        let uses_h2 = port.http.h2_backend && upgrade.is_none();
        let config = &self.core.config;
        let source = Source::new(body, config.replay_memory, config.replay_disk);
        self.connection.watch_upload(&source);
        let preface = tcp::proxy_header(
            port.handlers.proxy_protocol,
            self.connection.peer,
            self.connection.local,
        );
        let head = head::outgoing(parts, host, uses_h2)?;
        Ok(Asking { app, head, source, preference, preface, uses_h2, upgrade })
    }

    /// Asks machines, one after the other, until one answers.
    async fn ask(&mut self, asking: &mut Asking) -> Result<Response<AnswerBody>, Refusal> {
        let Asking { app, head, source, preference, preface, uses_h2, upgrade } = asking;
        let core = self.core.clone();
        let mut search = Search::new(&core, app, self.connection.port, preference);
        loop {
            // What is rare is boxed, so that requests take no room for it.
            let taken = match search.try_take() {
                Some(taken) => taken,
                None => Box::pin(self.wait_for_place(&mut search, head)).await?,
            };
            self.machine = Some(taken.candidate.machine.id.clone());
            let wanted = Wanted {
                sends_more: upgrade.is_some() || !source.is_nothing(),
                ..self.wanted(&taken.candidate, &head.method, *uses_h2, !preface.is_empty())
            };
            let mut upstream = match pool::upstream(&core, &taken.candidate, wanted, preface).await
            {
                Ok(upstream) => upstream,
                Err(failure) => {
                    Box::pin(self.not_connected(app, &mut search, taken, failure)).await?;
                    continue;
                }
            };
            if let Some(id) = &preference.machine {
                let is_another = *id != taken.candidate.machine.id.as_str();
                headers::set_unavailable(&mut head.headers, is_another.then_some(id));
            }
            let may_repeat = upstream.is_reused && upgrade.is_none();
            let serves = taken.permit.machine.serves(&self.connection);
            counters::add(&taken.permit.machine.tally.requests, 1);
            let response = match upstream.send(head, may_repeat, source).await {
                Ok(response) => response,
                Err(NoResponse::Unsent) => {
                    search.again(unsent_to(&taken.candidate))?;
                    continue;
                }
                Err(NoResponse::Broken(error)) => {
                    if source.is_too_slow() {
                        return Err(too_slow(&taken.candidate.machine.id).into());
                    }
                    if source.is_broken() {
                        return Err(Refusal::Incomplete);
                    }
                    // Nothing of a response came, and it would not be done twice.
                    let is_harmless = (head.method.is_idempotent() && source.can_repeat())
                        || (!source.is_empty() && source.is_untouched());
                    if may_repeat && is_harmless && !error.is_invalid() {
                        tracing::debug!(%error, machine = %taken.candidate.machine.id, "again");
                        taken.permit.machine.pool.forget(&upstream);
                        search.again(broken(&taken.candidate, &error))?;
                        continue;
                    }
                    return Err(broken(&taken.candidate, &error).into());
                }
            };
            source.settle();
            let passing = Passing {
                core: core.clone(),
                app: app.clone(),
                connection: self.connection.clone(),
                request_id: self.request_id.clone(),
                permit: taken.permit,
                upstream: Some(upstream),
                source: mem::take(source),
                _serves: serves,
            };
            return match upgrade.take() {
                Some(upgrade) => upgrade.answer(self.version, response, passing),
                None => plain(self.version, response, passing),
            };
        }
    }

    /// The app that is meant.
    fn find(&self, host: Option<&Authority>) -> Result<Arc<App>, Refusal> {
        let table = &self.core.table;
        let app = match (&self.connection.app, host) {
            (Some(name), _) => table.get(name),
            (None, Some(host)) => table.by_host(host.as_str(), &self.core.config.domain),
            (None, None) => return Err(Refusal::Bad(StatusCode::BAD_REQUEST, NO_HOST)),
        };
        app.ok_or(Refusal::Bad(StatusCode::NOT_FOUND, "PR02: there is no app of this name"))
    }

    fn redirect(&self, host: Option<&Authority>, parts: &request::Parts) -> Refusal {
        let Some(host) = host else {
            return Refusal::Bad(StatusCode::BAD_REQUEST, NO_HOST);
        };
        let name = table::host_name(host.as_str());
        // On the shared listener another port may stand for 443.
        let port = match (self.connection.app.is_none(), self.core.https_port) {
            (true, Some(port)) if port != 443 => format!(":{port}"),
            _ => String::new(),
        };
        let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        match HeaderValue::from_str(&format!("https://{name}{port}{path}")) {
            Ok(target) => Refusal::Redirect(target),
            Err(_) => Refusal::Bad(StatusCode::BAD_REQUEST, "the request's path is invalid"),
        }
    }

    /// A place at a machine that is waited for.
    async fn wait_for_place(
        &self,
        search: &mut Search<'_>,
        head: &RequestHead,
    ) -> Result<Taken, Refusal> {
        let core = search.core.clone();
        let placeholder = core.config.placeholder.as_ref().filter(|_| {
            let accept = head.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
            head.method == Method::GET && accept.is_some_and(|types| types.contains("text/html"))
        });
        let shown = async {
            match placeholder {
                Some(placeholder) => tokio::time::sleep(placeholder.after).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            taken = search.take() => Ok(taken?),
            () = self.left() => Err(Refusal::Left),
            () = shown => Err(Refusal::Placeholder),
        }
    }

    /// Over HTTP/2 a stream that is reset drops its request without our doing.
    async fn left(&self) {
        if self.version == Version::HTTP_2 {
            std::future::pending().await
        } else {
            self.connection.left(&self.core).await;
        }
    }

    fn wanted(
        &self,
        candidate: &Candidate,
        method: &Method,
        is_h2: bool,
        has_preface: bool,
    ) -> Wanted {
        let kind = candidate.service().concurrency.kind;
        let is_own = has_preface || (kind == ConcurrencyKind::Connections && !is_h2);
        let pool_idle = self.core.config.pool_idle;
        Wanted {
            is_h2,
            sends_more: false,
            owner: if is_own { self.connection.id } else { 0 },
            max_idle: if method.is_idempotent() { pool_idle } else { pool_idle.min(pool::CERTAIN) },
        }
    }

    /// Nothing was sent. A machine that started a moment ago may open its port yet; else another
    /// one is to be found.
    async fn not_connected(
        &self,
        app: &App,
        search: &mut Search<'_>,
        taken: Taken,
        failure: Failure,
    ) -> Result<(), Refusal> {
        let Taken { permit, candidate } = taken;
        drop(permit);
        if !app.runs(&candidate) {
            // Another one is found, or this one started, as for a request that comes now.
            search.again(failure)?;
            return Ok(());
        }
        if candidate.was_started_within(self.core.config.recently_started) {
            return tokio::select! {
                ready = search.wait_until_ready(&candidate, failure) => Ok(ready?),
                () = self.left() => Err(Refusal::Left),
            };
        }
        self.core.report(app, &failure, self.request_id.to_str().ok());
        search.exclude(&candidate, failure);
        Ok(())
    }

    fn refuse(&self, refusal: Refusal) -> Response<AnswerBody> {
        let mut response = Response::new(AnswerBody::Empty);
        let (status, text) = match refusal {
            Refusal::Failed(failure) => {
                let id = self.request_id.to_str().ok();
                if let Some(app) = &self.app {
                    self.core.report(app, &failure, id);
                }
                let code = failure.code;
                let status = code.status();
                if status == StatusCode::SERVICE_UNAVAILABLE {
                    let later = HeaderValue::from_static("1");
                    response.headers_mut().insert(header::RETRY_AFTER, later);
                }
                let reason = status.canonical_reason().unwrap_or_default();
                (status, format!("{code}: {reason}\nrequest {}\n", id.unwrap_or_default()))
            }
            Refusal::Bad(status, text) => {
                let id = self.request_id.to_str().ok();
                if let Some(app) = &self.app {
                    self.core.refused(&app.name, text, id);
                }
                (status, format!("{text}\nrequest {}\n", id.unwrap_or_default()))
            }
            Refusal::Incomplete => {
                let id = self.request_id.to_str().unwrap_or_default();
                let text = format!("the request's body is invalid or incomplete\nrequest {id}\n");
                (StatusCode::BAD_REQUEST, text)
            }
            Refusal::Redirect(target) => {
                response.headers_mut().insert(header::LOCATION, target);
                (StatusCode::MOVED_PERMANENTLY, String::new())
            }
            Refusal::Placeholder => {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                let html = self.core.config.placeholder.as_ref().map(|page| page.html.clone());
                let headers = response.headers_mut();
                headers.insert("refresh", HeaderValue::from_static("1"));
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
                let html_type = HeaderValue::from_static("text/html; charset=utf-8");
                headers.insert(header::CONTENT_TYPE, html_type);
                *response.body_mut() = AnswerBody::Text(html.unwrap_or_default().into());
                return response;
            }
            Refusal::Left => {
                // Nobody will read it.
                (StatusCode::REQUEST_TIMEOUT, String::new())
            }
        };
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, PLAIN_TEXT);
        *response.body_mut() = AnswerBody::Text(bytes::Bytes::from(text).into());
        response
    }
}

/// An answer that is passed on to a client of this version.
fn plain(
    version: Version,
    response: Response<ResponseBody>,
    passing: Passing,
) -> Result<Response<AnswerBody>, Refusal> {
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        let id = &passing.permit.machine.id;
        let text = format!("machine {id} switched protocols, which the request did not ask for");
        return Err(Failure::of(id, ErrorCode::PU02, text).into());
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.extensions.clear();
    // The client's version is its own.
    parts.version = Version::default();
    Ok(Response::from_parts(parts, AnswerBody::machine(version, body, passing)))
}
