//! The OpenAPI document, made from the endpoints and their types, and a page for people made from
//! it.

mod curl;
mod examples;
mod page;

use serde_json::Value;
use utoipa::{
    IntoResponses,
    openapi::{
        Info, License, OpenApi, PathItem,
        path::{Operation, Parameter, ParameterBuilder, ParameterIn},
        schema::{ObjectBuilder, Type},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
        tag::Tag,
    },
};

pub(crate) use self::page::{policy as page_policy, render as page};
use crate::http::{
    description::{Description, Replay, Scope},
    endpoint::Endpoint,
    idempotency,
    responses::{self, Anywhere, Forbidden, Keyed, Protected},
};

/// Name of the security scheme.
const BEARER: &str = "bearer";

const TAGS: &[(&str, &str)] = &[
    ("Apps", "Apps group machines under a name."),
    ("Machines", "VMs."),
    ("Volumes", "Disks of apps that machines are given, and that outlive them."),
    ("Network policies", "Which connections machines may have."),
    ("WireGuard", "Computers that reach private networks over WireGuard."),
    ("Platform", "Regions, placement and status."),
    ("Images", "Images on the hosts."),
    ("Host", "Maintenance of hosts."),
    ("Server", "The server itself."),
];

/// The document of these endpoints.
pub(crate) fn document(endpoints: Vec<Endpoint>) -> Value {
    let mut document = OpenApi::new(info(), utoipa::openapi::Paths::new());
    let components = document.components.get_or_insert_default();
    for Endpoint { path, mut item, schemas, description, .. } in endpoints {
        complete(&mut item, description);
        components.schemas.extend(schemas);
        document.paths.paths.entry(path).or_default().merge_operations(item);
    }
    document.tags = Some(TAGS.iter().map(|(name, text)| tag(name, text)).collect());
    components.schemas.extend(responses::schemas());
    let mut scheme = Http::new(HttpAuthScheme::Bearer);
    scheme.description =
        Some("A token of this server. The scheme `FlyV1` is accepted too.".to_owned());
    components.add_security_scheme(BEARER, SecurityScheme::Http(scheme));
    // All of it is plain data with string keys, for which serialisation has no way to fail.
    let mut document = serde_json::to_value(document).unwrap_or_default();
    tidy(&mut document);
    examples::add(&mut document);
    document
}

/// Takes out `"default": null`, which says nothing that `required` does not say.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, value| name != "default" || !value.is_null());
            fields.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn info() -> Info {
    let mut info = Info::new("Caddis", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Launches VMs from OCI images. The API is that of Fly Machines; additions are marked as \
         Caddis extensions.\n\n\
         Every response carries the header `fly-request-id`. Unknown parameters and fields are \
         ignored."
            .to_owned(),
    );
    let mut license = License::new(env!("CARGO_PKG_LICENSE"));
    license.identifier = Some(env!("CARGO_PKG_LICENSE").to_owned());
    info.license = Some(license);
    info
}

fn tag(name: &str, text: &str) -> Tag {
    let mut tag = Tag::new(name);
    tag.description = Some(text.to_owned());
    tag
}

/// Adds what the layers around an endpoint do.
fn complete(item: &mut PathItem, Description { scope, replay, .. }: Description) {
    // An endpoint that takes PUT as well does so for clients of old.
    if let (Some(put), true) = (&mut item.put, item.post.is_some() || item.patch.is_some()) {
        put.operation_id = put.operation_id.take().map(|id| format!("{id}_deprecated"));
        put.deprecated = Some(utoipa::openapi::Deprecated::True);
    }
    let operations =
        [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
    for operation in operations.into_iter().flatten() {
        add::<Anywhere>(operation);
        if scope != Scope::Open {
            add::<Protected>(operation);
            operation.security = Some(vec![SecurityRequirement::new(BEARER, [""; 0])]);
        }
        if scope.may_be_refused() {
            add::<Forbidden>(operation);
        }
    }
    if let Some(post) =
        item.post.as_mut().filter(|_| scope != Scope::Open && replay != Replay::Exempt)
    {
        add::<Keyed>(post);
        post.parameters.get_or_insert_default().push(idempotency_key().into());
    }
}

fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name(idempotency::IDEMPOTENCY_KEY)
        .parameter_in(ParameterIn::Header)
        .description(Some(
            "Chosen by the client: a request repeated with the same key within a day is carried \
             out once and gets the same response. Caddis extension.",
        ))
        .schema(Some(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .min_length(Some(1))
                .max_length(Some(255)),
        ))
        .build()
}

fn add<R: IntoResponses>(operation: &mut Operation) {
    for (status, response) in R::responses() {
        operation.responses.responses.entry(status).or_insert(response);
    }
}
