//! The errors that endpoints of a kind have in common, for the document.

use std::collections::BTreeMap;

use caddis_api::{
    error::ErrorBody,
    terminal::{ClientMessage, ServerMessage},
};
use utoipa::{
    IntoResponses, PartialSchema as _, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder},
};

type Responses = BTreeMap<String, RefOr<Response>>;

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident { $($status:literal => $text:literal),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;

            impl IntoResponses for $name {
                fn responses() -> Responses {
                    let answers = [$(($status, $text)),+].into_iter();
                    answers.map(|(status, text)| (status.to_owned(), error(text))).collect()
                }
            }
        )+
    };
}

errors! {
    /// Of what reads a body.
    BadBody {
        "400" => "Invalid request; the message says what",
        "408" => "The body did not arrive in time",
        "413" => "The body is too large",
    }
    /// Of what reads parameters.
    BadParameter { "400" => "Invalid parameter; the message says which" }
    /// Of what is about an app.
    NoApp {
        "400" => "Invalid request; the message says what",
        "404" => "No such app",
    }
    /// Of what is about a machine.
    NoMachine {
        "400" => "Invalid request; the message says what",
        "404" => "No such app, machine or subresource",
    }
    /// Of what is about a volume.
    NoVolume {
        "400" => "Invalid request; the message says what",
        "404" => "No such app or volume",
    }
    /// Of what is about a snapshot.
    NoSnapshot {
        "400" => "Invalid request; the message says what",
        "404" => "No such app, volume or snapshot",
    }
    /// Of what a worker may refuse.
    Refused {
        "409" => "Someone else holds the lease or changed the machine at the same time, or the \
                  host has no capacity",
        "412" => "The state of the machine or its host does not allow this",
    }
    /// Of what may come with an `Idempotency-Key`.
    Keyed {
        "400" => "Invalid request; the message says what",
        "408" => "The body did not arrive in time",
        "409" => "A request with this Idempotency-Key was interrupted, is still in progress \
                  (`retry-after` says when to retry), or its response was too large to keep",
        "413" => "The body is too large",
        "422" => "This Idempotency-Key was used for a different request",
    }
    /// Of every endpoint.
    Anywhere {
        "431" => "The header fields are too large",
        "500" => "Server error; please report it with the request ID",
        "503" => "Too many connections with requests in progress; nothing was done",
    }
    /// Of every endpoint that is not for every token.
    Forbidden {
        "403" => "The token does not allow this: it is for one app, or for reading only",
    }
    /// Of every endpoint that asks for a token.
    Protected {
        "401" => "Missing or unknown token",
        "429" => "Rate limit exceeded; `retry-after` says when to retry",
        "507" => "The host's disk is full; nothing was changed. Requests that free space still \
                  work",
        "504" => "Something the server depends on does not answer; the request may still be \
                  carried out",
    }
}

/// Status and text of the errors of every endpoint, and of those that ask for a token.
pub(crate) fn common() -> Vec<(String, String)> {
    let all = [Anywhere::responses(), Protected::responses(), Forbidden::responses()];
    let text = |response| match response {
        RefOr::T(Response { description, .. }) => description,
        RefOr::Ref(_) => String::new(),
    };
    let mut all: Vec<_> =
        all.into_iter().flatten().map(|(status, response)| (status, text(response))).collect();
    all.sort();
    all
}

fn error(text: &str) -> RefOr<Response> {
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build();
    RefOr::T(ResponseBuilder::new().description(text).content("application/json", content).build())
}

/// The schemas that the errors refer to.
pub(crate) fn schemas() -> Vec<(String, RefOr<utoipa::openapi::Schema>)> {
    let mut schemas = vec![(ErrorBody::name().into_owned(), ErrorBody::schema())];
    ErrorBody::schemas(&mut schemas);
    // Messages of WebSockets, which no body of a request or answer refers to.
    for (name, schema) in [
        (ClientMessage::name(), ClientMessage::schema()),
        (ServerMessage::name(), ServerMessage::schema()),
    ] {
        schemas.push((name.into_owned(), schema));
    }
    ClientMessage::schemas(&mut schemas);
    ServerMessage::schemas(&mut schemas);
    schemas
}
