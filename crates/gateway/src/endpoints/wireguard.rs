//! `/v1/orgs/{org}/wireguard_peers`: computers that reach private networks over WireGuard.

use std::{net::Ipv6Addr, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
};
use caddis_api::{
    ApiError, NetworkName,
    error::ErrorBody,
    time,
    wireguard::{
        CreateWireGuardPeer, ResetWireGuardPeer, WireGuardPeer, WireGuardPeerReply, WireGuardPeers,
        WireGuardServer, check_peer_name, check_public_key,
    },
};
use caddis_catalog::{NewPeer, PeerRecord};
use serde::Deserialize;

use crate::{
    http::{
        authorization::OrganizationPath, caller::Caller, context::Context, errors::HttpError,
        extract::LenientJson, query::Params, responses::BadBody,
    },
    settings::WireGuardInfo,
};

fn show(context: &Context, peer: PeerRecord) -> WireGuardPeer {
    let info = context.settings.wireguard.as_ref();
    let status = info.and_then(|info| info.status(&peer.key)).unwrap_or_default();
    WireGuardPeer {
        name: peer.name,
        network: peer.network.to_string(),
        peer_ip: peer.address.to_string(),
        public_key: peer.key,
        created_at: time::seconds(peer.created_ms.into()),
        endpoint: status.endpoint.map(|endpoint| endpoint.to_string()),
        last_handshake_at: status.last_handshake_at.map(|at| time::seconds(at.into())),
        received_bytes: status.received_bytes,
        sent_bytes: status.sent_bytes,
        refused_packets: status.refused_packets,
    }
}

fn reply(context: &Context, info: &Arc<dyn WireGuardInfo>, peer: PeerRecord) -> WireGuardPeerReply {
    let network = peer.address.to_bits() >> 80 << 80;
    let server = WireGuardServer {
        public_key: info.public_key(),
        endpoint: info.endpoint(),
        allowed_ips: peer.network_prefix.clone(),
        dns: Ipv6Addr::from_bits(network | 3).to_string(),
    };
    WireGuardPeerReply { peer: show(context, peer), server }
}

fn served(context: &Context) -> Result<&Arc<dyn WireGuardInfo>, ApiError> {
    context.settings.wireguard.as_ref().ok_or_else(|| {
        ApiError::precondition(
            "this server does not listen for WireGuard: start it with --wireguard-listen",
        )
    })
}

fn network(name: Option<&str>) -> Option<NetworkName> {
    name.filter(|name| !name.is_empty()).map(NetworkName::from_trusted)
}

/// The name in the path.
#[derive(Deserialize)]
pub(crate) struct PeerWord {
    name: String,
}

/// List the WireGuard peers of an organization.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/orgs/{org_slug}/wireguard_peers",
    operation_id = "WireGuardPeers_list",
    tag = "WireGuard",
    params(("org_slug" = String, Path, description = "The organization; `personal` is the \
        caller's own")),
    responses(
        (status = 200, description = "The peers", body = WireGuardPeers),
        (status = 404, description = "No such organization", body = ErrorBody),
    ),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
) -> Result<Json<WireGuardPeers>, HttpError> {
    let organization = organization.look_up(&context, &caller).await?;
    let peers = context.catalog.peers().await?.into_iter();
    let own = peers.filter(|peer| peer.organization == organization.slug);
    Ok(Json(WireGuardPeers { peers: own.map(|peer| show(&context, peer)).collect() }))
}

/// Create a WireGuard peer of a private network.
///
/// The private key stays with the client, which sends the public one. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/orgs/{org_slug}/wireguard_peers",
    operation_id = "WireGuardPeers_create",
    tag = "WireGuard",
    params(("org_slug" = String, Path, description = "The organization; `personal` is the \
        caller's own")),
    request_body = CreateWireGuardPeer,
    responses(
        (status = 200, description = "The peer, and what it has to know of the server",
            body = WireGuardPeerReply),
        BadBody,
        (status = 404, description = "No such organization", body = ErrorBody),
        (status = 409, description = "The name or the key is in use", body = ErrorBody),
        (status = 412, description = "The server does not listen for WireGuard", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    LenientJson(request): LenientJson<CreateWireGuardPeer>,
) -> Result<Json<WireGuardPeerReply>, HttpError> {
    let organization = organization.look_up(&context, &caller).await?;
    check_peer_name(&request.name)?;
    let key = check_public_key(&request.public_key)?;
    let info = served(&context)?;
    if key == info.public_key() {
        return Err(ApiError::invalid("invalid public_key, it is the server's own").into());
    }
    let new = NewPeer {
        organization: organization.slug,
        network: network(request.network.as_deref()),
        name: request.name,
        key,
    };
    let peer = context.catalog.create_peer(new).await?;
    Ok(Json(reply(&context, info, peer)))
}

/// Show a WireGuard peer.
///
/// Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/orgs/{org_slug}/wireguard_peers/{name}",
    operation_id = "WireGuardPeers_show",
    tag = "WireGuard",
    params(
        ("org_slug" = String, Path, description = "The organization; `personal` is the caller's \
            own"),
        ("name" = String, Path, description = "The peer"),
        ("network" = Option<String>, Query, description = "Its network; the organization's \
            default unless given"),
    ),
    responses(
        (status = 200, description = "The peer", body = WireGuardPeer),
        (status = 400, description = "No such network", body = ErrorBody),
        (status = 404, description = "No such organization or peer", body = ErrorBody),
    ),
)]
pub(crate) async fn show_one(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    Path(PeerWord { name }): Path<PeerWord>,
    params: Params,
) -> Result<Json<WireGuardPeer>, HttpError> {
    let slug = organization.look_up(&context, &caller).await?.slug;
    let network = network(params.get("network"));
    let peer = context.catalog.peer(&slug, network.as_ref(), &name).await?;
    Ok(Json(show(&context, peer)))
}

/// Give a WireGuard peer another key.
///
/// Its name and address stay; the former key opens nothing from then on. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/orgs/{org_slug}/wireguard_peers/{name}/reset",
    operation_id = "WireGuardPeers_reset",
    tag = "WireGuard",
    params(
        ("org_slug" = String, Path, description = "The organization; `personal` is the caller's \
            own"),
        ("name" = String, Path, description = "The peer"),
    ),
    request_body = ResetWireGuardPeer,
    responses(
        (status = 200, description = "The peer, and what it has to know of the server",
            body = WireGuardPeerReply),
        BadBody,
        (status = 404, description = "No such organization or peer", body = ErrorBody),
        (status = 409, description = "The key is in use", body = ErrorBody),
        (status = 412, description = "The server does not listen for WireGuard", body = ErrorBody),
    ),
)]
pub(crate) async fn reset(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    Path(PeerWord { name }): Path<PeerWord>,
    LenientJson(request): LenientJson<ResetWireGuardPeer>,
) -> Result<Json<WireGuardPeerReply>, HttpError> {
    let slug = organization.look_up(&context, &caller).await?.slug;
    let key = check_public_key(&request.public_key)?;
    let info = served(&context)?;
    if key == info.public_key() {
        return Err(ApiError::invalid("invalid public_key, it is the server's own").into());
    }
    let network = network(request.network.as_deref());
    let peer = context.catalog.change_peer_key(&slug, network.as_ref(), &name, &key).await?;
    Ok(Json(reply(&context, info, peer)))
}

/// Remove a WireGuard peer.
///
/// Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/orgs/{org_slug}/wireguard_peers/{name}",
    operation_id = "WireGuardPeers_delete",
    tag = "WireGuard",
    params(
        ("org_slug" = String, Path, description = "The organization; `personal` is the caller's \
            own"),
        ("name" = String, Path, description = "The peer"),
        ("network" = Option<String>, Query, description = "Its network; the organization's \
            default unless given"),
    ),
    responses(
        (status = 204, description = "Removed"),
        (status = 400, description = "No such network", body = ErrorBody),
        (status = 404, description = "No such organization or peer", body = ErrorBody),
    ),
)]
pub(crate) async fn remove(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    organization: OrganizationPath,
    Path(PeerWord { name }): Path<PeerWord>,
    params: Params,
) -> Result<StatusCode, HttpError> {
    let slug = organization.look_up(&context, &caller).await?.slug;
    let network = network(params.get("network"));
    context.catalog.remove_peer(&slug, network.as_ref(), &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
