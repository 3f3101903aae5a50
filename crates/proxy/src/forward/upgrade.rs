//! Upgrades: asked for by HTTP/1.1, or by the extended CONNECT of HTTP/2 (RFC 8441), which machines
//! get as HTTP/1.1. Bytes are passed on only once the machine has answered 101.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;

use super::{
    Refusal,
    answer::{AnswerBody, Passing},
};
use crate::{ErrorCode, error::Failure, headers, pool::ResponseBody, websocket};

/// An upgrade that a client asks for.
pub(super) struct Asked {
    protocol: HeaderValue,
    client: OnUpgrade,
    /// The key that stands in for what HTTP/2 does not have.
    key: Option<HeaderValue>,
}

/// The upgrade that a request asks for, if it does. Its method becomes that of HTTP/1.1.
pub(super) fn asked(parts: &mut request::Parts) -> Result<Option<Asked>, Refusal> {
    let is_connect = parts.version == Version::HTTP_2 && parts.method == Method::CONNECT;
    let protocol = if is_connect {
        let Some(protocol) = parts.extensions.remove::<Protocol>() else { return Ok(None) };
        parts.method = Method::GET;
        headers::text(protocol.as_str())
    } else if parts.version == Version::HTTP_11 {
        let Some(protocol) = headers::upgrade(&parts.headers) else { return Ok(None) };
        // Asks for HTTP/2, which a client that knows it speaks at once.
        if protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            return Ok(None);
        }
        protocol
    } else {
        return Ok(None);
    };
    let Some(client) = parts.extensions.remove::<OnUpgrade>() else {
        let text = "the connection can't be upgraded";
        return Err(Refusal::Bad(StatusCode::BAD_REQUEST, text));
    };
    let key = is_connect.then(|| headers::text(&STANDARD.encode(rand::random::<[u8; 16]>())));
    Ok(Some(Asked { protocol, client, key }))
}

impl Asked {
    /// Has a machine asked for the upgrade.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, self.protocol.clone());
        if let Some(key) = &self.key {
            headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
        }
    }

    /// The answer to the client. What was upgraded is passed on in a task of its own.
    pub(super) fn answer(
        self,
        version: Version,
        mut response: Response<ResponseBody>,
        passing: Passing,
    ) -> Result<Response<AnswerBody>, Refusal> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return super::plain(version, response, passing);
        }
        let switched = response.headers().get(header::UPGRADE);
        let is_the_one = switched.is_some_and(|protocol| {
            protocol.as_bytes().eq_ignore_ascii_case(self.protocol.as_bytes())
        });
        if !is_the_one {
            let id = &passing.permit.machine.id;
            let text = format!("machine {id} switched to a protocol that was not asked for");
            return Err(Failure::of(id, ErrorCode::PU02, text).into());
        }
        let machine = hyper::upgrade::on(&mut response);
        let (mut parts, _) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        if version == Version::HTTP_2 {
            parts.status = StatusCode::OK;
            parts.headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        } else {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            parts.headers.insert(header::UPGRADE, self.protocol.clone());
        }
        let mut answer = Response::new(AnswerBody::Empty);
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = parts.headers;
        let is_websocket = self.protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
        let core = passing.core.clone();
        core.tasks.clone().spawn(run(self.client, machine, is_websocket, passing));
        Ok(answer)
    }
}

async fn run(client: OnUpgrade, machine: OnUpgrade, is_websocket: bool, passing: Passing) {
    let state = passing.permit.machine.clone();
    let _connected = state.connected();
    let (drain, cut) = (state.drain_token(), state.cut_token());
    let core = passing.core.clone();
    // Either reason has a WebSocket closed.
    let draining = drain.child_token();
    let ending = draining.clone();
    let tunnel = async {
        let upgraded = tokio::try_join!(client, machine);
        let (client, machine) = upgraded.map_err(std::io::Error::other)?;
        let (client, machine) = (TokioIo::new(client), TokioIo::new(machine));
        let closing = is_websocket.then_some(&draining);
        websocket::tunnel(client, machine, closing, &state.tally).await
    };
    let mut tunnel = std::pin::pin!(tunnel);
    let result = tokio::select! {
        result = tunnel.as_mut() => result,
        () = core.stopping.cancelled() => {
            ending.cancel();
            tokio::select! {
                result = tunnel => result,
                () = cut.cancelled() => return,
                () = core.cut.cancelled() => return,
            }
        }
        () = cut.cancelled() => return,
    };
    if let Err(error) = result {
        tracing::debug!(%error, machine = %state.id, "a tunnel broke");
    }
}
