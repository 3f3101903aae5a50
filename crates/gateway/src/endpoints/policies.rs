//! `/v1/apps/{app}/network_policies`: which connections an app's machines may have.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use caddis_api::{
    ApiError, ErrorCode, PolicyId,
    error::ErrorBody,
    policies::{NetworkPolicy, PolicyPeer, PolicySelector, PutPolicyRequest},
    time,
    validate::check_policy_id,
};
use caddis_catalog::{AppRecord, CatalogError, PolicyRecord};
use serde::Deserialize;

use crate::{
    http::{
        authorization::AppPath,
        caller::Caller,
        context::Context,
        errors::HttpError,
        extract::LenientJson,
        responses::{BadBody, NoApp},
    },
    policies::{Document, tell_all},
};

/// Most bytes of what a policy says: hosts are told all policies at once.
const MAX_POLICY_BYTES: usize = 16 << 10;

fn show(record: PolicyRecord) -> Result<NetworkPolicy, ApiError> {
    let Document { selector, rules, dns } = Document::read(&record)?;
    Ok(NetworkPolicy {
        id: record.id,
        name: record.name,
        selector,
        rules,
        dns,
        created_at: time::seconds(record.created_at.into()),
        updated_at: time::seconds(record.updated_at.into()),
    })
}

/// List the network policies of an app.
///
/// Oldest first. Also served with a slash at the end of the path.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/network_policies",
    operation_id = "App_NetworkPolicies_list",
    tag = "Network policies",
    params(AppPath),
    responses((status = 200, description = "The policies", body = Vec<NetworkPolicy>), NoApp),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    app: AppPath,
) -> Result<Json<Vec<NetworkPolicy>>, HttpError> {
    let policies = context.catalog.policies_of(app.name()?).await?;
    Ok(Json(policies.into_iter().map(show).collect::<Result<_, _>>()?))
}

/// Create a network policy, or replace one.
///
/// With the `id` of a policy it takes that one's place. A policy only ever allows; once one that
/// selects a machine has a rule of a direction, all else of that direction is refused to the
/// machine. It is in force when the reply comes, for running machines too, and connections that it
/// forbids end. Traffic through the proxy and health checks always pass.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/network_policies",
    operation_id = "App_NetworkPolicies_put",
    tag = "Network policies",
    params(AppPath),
    request_body = PutPolicyRequest,
    responses(
        (status = 200, description = "The policy", body = NetworkPolicy),
        (status = 404, description = "No such app, or it has no policy of that id",
            body = ErrorBody),
        BadBody,
        (status = 409, description = "Another policy of the app has the name", body = ErrorBody),
        (status = 412, description = "The app is being deleted", body = ErrorBody),
        (status = 422, description = "The app has 100 policies already", body = ErrorBody),
    ),
)]
pub(crate) async fn put(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    app: AppPath,
    LenientJson(request): LenientJson<PutPolicyRequest>,
) -> Result<Json<NetworkPolicy>, HttpError> {
    request.check()?;
    let found = app.look_up(&context).await?;
    let id = request.id.as_deref().map(check_policy_id).transpose()?;
    let former = match &id {
        Some(id) => Some(one(&context, &found.name, id).await?),
        None => None,
    };
    check_machines(&context, &app, &request, former.as_ref()).await?;
    for (index, rule) in request.rules.iter().enumerate() {
        for peer in rule.peers().unwrap_or_default() {
            check_peer(&context, &caller, &found, (index, peer)).await?;
        }
    }
    let document = serde_json::to_string(&Document::of(&request)).map_err(ApiError::internal)?;
    if document.len() > MAX_POLICY_BYTES {
        return Err(ApiError::invalid(format!(
            "invalid policy, selector and rules cannot exceed {MAX_POLICY_BYTES} bytes of JSON"
        ))
        .into());
    }
    let what = (&*request.name, &*document);
    let record = context.catalog.put_policy(&found.name, id.as_ref(), what).await?;
    tell_all(&context).await?;
    Ok(Json(show(record)?))
}

/// Those that are new in a selector must be there: a wrong id would select nothing for ever.
async fn check_machines(
    context: &Context,
    app: &AppPath,
    request: &PutPolicyRequest,
    former: Option<&NetworkPolicy>,
) -> Result<(), ApiError> {
    let Some(PolicySelector { machines: Some(named), .. }) = &request.selector else {
        return Ok(());
    };
    let known = former.and_then(|former| former.selector.machines.as_deref()).unwrap_or_default();
    for machine in named {
        if known.contains(machine) {
            continue;
        }
        match app.machine(context, &machine.id).await {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::NotFound => {
                return Err(ApiError::invalid(format!(
                    "invalid selector.machines, the app has no machine '{}'",
                    machine.id
                )));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What a rule names must be there, as far as the caller may know.
async fn check_peer(
    context: &Context,
    caller: &Caller,
    app: &AppRecord,
    (rule, peer): (usize, &PolicyPeer),
) -> Result<(), ApiError> {
    if let Some(name) = &peer.app
        && !caller.is_of_organization(context, app, name).await?
    {
        return Err(ApiError::invalid(format!(
            "invalid rules[{rule}], the organization has no app '{name}'"
        )));
    }
    let Some(name) = &peer.network else { return Ok(()) };
    let number = app.organization.internal_numeric_id;
    if context.catalog.network_prefix(number, name).await?.is_none() {
        let shown: String = name.escape_debug().take(100).collect();
        return Err(ApiError::invalid(format!(
            "invalid rules[{rule}], the organization has no network '{shown}'"
        )));
    }
    Ok(())
}

/// The id in the path.
#[derive(Deserialize)]
pub(crate) struct PolicyWord {
    policy_id: String,
}

impl PolicyWord {
    /// One of another form is of no policy.
    fn id(&self) -> PolicyId {
        PolicyId::from_trusted(self.policy_id.escape_debug().take(100).collect::<String>())
    }
}

async fn one(context: &Context, app: &str, id: &PolicyId) -> Result<NetworkPolicy, ApiError> {
    let policies = context.catalog.policies_of(app).await?;
    let found = policies.into_iter().find(|record| record.id == *id);
    show(found.ok_or_else(|| CatalogError::PolicyNotFound(id.clone()))?)
}

/// Show a network policy.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/network_policies/{policy_id}",
    operation_id = "App_NetworkPolicies_show",
    tag = "Network policies",
    params(AppPath, ("policy_id" = String, Path, description = "Id of the policy")),
    responses(
        (status = 200, description = "The policy", body = NetworkPolicy),
        (status = 400, description = "Invalid request; the message says what", body = ErrorBody),
        (status = 404, description = "No such app or policy", body = ErrorBody),
    ),
)]
pub(crate) async fn get(
    State(context): State<Context>,
    app: AppPath,
    Path(word): Path<PolicyWord>,
) -> Result<Json<NetworkPolicy>, HttpError> {
    Ok(Json(one(&context, app.name()?, &word.id()).await?))
}

/// Delete a network policy.
///
/// What it allowed is refused from now on where other policies of the direction select a machine;
/// without any a machine may have all connections again.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/network_policies/{policy_id}",
    operation_id = "App_NetworkPolicies_delete",
    tag = "Network policies",
    params(AppPath, ("policy_id" = String, Path, description = "Id of the policy")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 400, description = "Invalid request; the message says what", body = ErrorBody),
        (status = 404, description = "No such app or policy", body = ErrorBody),
    ),
)]
pub(crate) async fn delete(
    State(context): State<Context>,
    app: AppPath,
    Path(word): Path<PolicyWord>,
) -> Result<StatusCode, HttpError> {
    context.catalog.delete_policy(app.name()?, &word.id()).await?;
    tell_all(&context).await?;
    Ok(StatusCode::NO_CONTENT)
}
