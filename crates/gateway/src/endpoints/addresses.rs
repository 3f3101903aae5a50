//! `/v1/apps/{app}/ip_assignments`: the addresses that an app's services are reached at, and those
//! that connections of its machines come from.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use caddis_api::{
    ApiError, AppName, ErrorCode, MachineConfig, NetworkName,
    addresses::{
        AssignIpReply, AssignIpRequest, IpAssignment, IpAssignmentNetwork, IpAssignmentType,
        IpAssignments, ReleasedIp,
    },
    config::{Protocol, ServicePort},
    error::ErrorBody,
    names, time, validate,
};
use caddis_catalog::{Address, AddressKind, CatalogError, NewAddress, WantedAddress};
use serde::Deserialize;

use super::{egress, filter::is_gone};
use crate::{
    egress::tell_all,
    http::{
        authorization::AppPath,
        caller::Caller,
        context::Context,
        errors::HttpError,
        extract::LenientJson,
        responses::{BadBody, NoApp},
    },
};

/// What the region of an address is called that answers in all.
pub(super) const GLOBAL: &str = "global";
/// What the reference leaves out where a network is named.
const DEFAULT_NETWORK: &str = "default";
/// Ports that a warning names; of more it says how many.
const MAX_NAMED: usize = 10;

fn show(address: Address) -> IpAssignment {
    let all_regions = address.region.is_empty();
    IpAssignment {
        ip: address.ip.to_string(),
        region: if all_regions { GLOBAL.to_owned() } else { address.region },
        service_name: address.service_name,
        shared: address.kind == AddressKind::SharedV4,
        egress: false,
        machines: None,
        created_at: time::seconds(address.created_at.into()),
        network: address.network.map(|network| IpAssignmentNetwork {
            name: if network.name == DEFAULT_NETWORK {
                String::new()
            } else {
                network.name.to_string()
            },
            org_slug: network.organization,
        }),
    }
}

/// List the addresses of an app.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/ip_assignments",
    operation_id = "App_IPAssignments_list",
    tag = "Apps",
    params(AppPath),
    responses((status = 200, description = "The addresses", body = IpAssignments), NoApp),
)]
pub(crate) async fn list(
    State(context): State<Context>,
    app: AppPath,
) -> Result<Json<IpAssignments>, HttpError> {
    let app = app.name()?;
    let addresses = context.catalog.addresses_of(app).await?.into_iter().map(show);
    let egress = context.catalog.egress_addresses(app).await?.into_iter();
    let of_app = egress.filter(|address| address.machine.is_none()).map(egress::show);
    Ok(Json(IpAssignments { ips: addresses.chain(of_app).collect() }))
}

/// Assign an address to an app.
///
/// A `v4` or `v6` is the lowest that is free among the server's `--public-addresses`, and of the
/// app alone: its services answer there on any port. A `shared_v4` is the address that all apps
/// share; an app has it once. At a `private_v6` the machines of one network reach the TCP services
/// of the app, but for those with `tls`; in their DNS it is `APP.flycast`.
///
/// From an `egress_v4`, `egress_v6` or `egress_pair`, the lowest that are free among the server's
/// `--egress-addresses`, come the connections to the outside of the app's machines in a region: at
/// once, of new connections. Up to 64 machines share one, each with 1024 ports of it. An
/// `egress_pair` has one of each family of which the server has addresses, and completes a pair of
/// the app of which one was released. `warnings` say of which family the app has none in the
/// region: such connections come from an address of the host.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/ip_assignments",
    operation_id = "App_IPAssignments_create",
    tag = "Apps",
    params(AppPath),
    request_body = AssignIpRequest,
    responses(
        (status = 200, description = "The address", body = AssignIpReply),
        NoApp,
        BadBody,
        (status = 409, description = "The wanted address is in use", body = ErrorBody),
        (status = 412, description = "The app is being deleted, or the server has no addresses of \
                                      this type", body = ErrorBody),
        (status = 422, description = "No address is free", body = ErrorBody),
    ),
)]
pub(crate) async fn assign(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    app: AppPath,
    LenientJson(request): LenientJson<AssignIpRequest>,
) -> Result<Json<AssignIpReply>, HttpError> {
    if let Some(
        kind @ (IpAssignmentType::EgressV4
        | IpAssignmentType::EgressV6
        | IpAssignmentType::EgressPair),
    ) = request.kind
    {
        if request.ip.is_some() {
            return Err(ApiError::invalid("invalid ip, only a v4 or v6 can be chosen").into());
        }
        return Ok(Json(egress::assign(&context, app.name()?, kind, &request).await?));
    }
    let wanted = wanted(&context, &caller, &request).await?;
    let region = request.region.filter(|region| region != GLOBAL).unwrap_or_default();
    if !region.is_empty() && !context.regions.knows(&region) {
        let shown: String = region.escape_debug().take(100).collect();
        return Err(ApiError::invalid(format!("invalid region, unknown region '{shown}'")).into());
    }
    let service_name = request.service_name.unwrap_or_default();
    if !service_name.is_empty() && names::check_machine_name(&service_name).is_err() {
        return Err(ApiError::invalid(
            "invalid service_name, use 1 to 63 letters, digits, dashes, dots and underscores",
        )
        .into());
    }
    let app = AppName::from_trusted(app.name()?);
    let new = NewAddress { app, wanted, region, service_name };
    let assignment = show(context.catalog.allocate_address(new).await?).into();
    Ok(Json(AssignIpReply { assignment, ip_pair: None, warnings: Vec::new() }))
}

async fn wanted(
    context: &Context,
    caller: &Caller,
    request: &AssignIpRequest,
) -> Result<WantedAddress, ApiError> {
    let traffic = &context.settings.traffic;
    let kind = request.kind.ok_or_else(|| {
        ApiError::invalid(
            "invalid type, it is required: use v4, v6, shared_v4, private_v6, egress_v4, egress_v6 \
             or egress_pair",
        )
    })?;
    let is_own = matches!(kind, IpAssignmentType::V4 | IpAssignmentType::V6);
    if request.ip.is_some() && !is_own {
        return Err(ApiError::invalid("invalid ip, only a v4 or v6 can be chosen"));
    }
    match kind {
        IpAssignmentType::V4 | IpAssignmentType::V6 => {
            let pool = match kind {
                IpAssignmentType::V4 => traffic.pool_v4(),
                _ => traffic.pool_v6(),
            };
            if pool.prefixes.is_empty() {
                let family = if kind == IpAssignmentType::V4 { "IPv4" } else { "IPv6" };
                return Err(ApiError::precondition(format!(
                    "this server has no {family} addresses for apps: give it some with \
                     --public-addresses"
                )));
            }
            match &request.ip {
                None => Ok(WantedAddress::Own(pool)),
                Some(ip) => Ok(WantedAddress::This(address("ip", ip)?, pool)),
            }
        }
        IpAssignmentType::SharedV4 => {
            traffic.shared_v4().map(WantedAddress::Shared).ok_or_else(|| {
                ApiError::precondition(
                    "this server has no shared IPv4 address: its shared listeners have none of \
                     their own (--http-listen)",
                )
            })
        }
        IpAssignmentType::PrivateV6 => {
            let organization = match &request.org_slug {
                Some(slug) => Some(caller.organization(context, slug).await?.slug),
                None => None,
            };
            Ok(WantedAddress::Private {
                organization,
                network: request.network.clone().map(NetworkName::from_trusted),
            })
        }
        IpAssignmentType::EgressV4 | IpAssignmentType::EgressV6 | IpAssignmentType::EgressPair => {
            Err(ApiError::internal("an egress address is not one of services"))
        }
    }
}

/// The address in the path.
#[derive(Deserialize)]
pub(crate) struct AddressWord {
    ip: String,
}

/// Release an address of an app.
///
/// Connections of machines under an egress address are cut. Where services of the app were reached
/// at the address and now are not, the reply has warnings, which is a Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/ip_assignments/{ip}",
    operation_id = "App_IPAssignments_delete",
    tag = "Apps",
    params(AppPath, ("ip" = String, Path, description = "The address")),
    responses(
        (status = 204, description = "Released"),
        (status = 200, description = "Released, and services can't be reached any more",
            body = ReleasedIp),
        (status = 400, description = "It is not an address", body = ErrorBody),
        (status = 404, description = "No such app, or it does not have the address",
            body = ErrorBody),
    ),
)]
pub(crate) async fn release(
    State(context): State<Context>,
    app: AppPath,
    Path(AddressWord { ip }): Path<AddressWord>,
) -> Result<Response, HttpError> {
    let ip = address("address", &ip)?;
    let app = app.name()?;
    match context.catalog.release_address(app, ip).await {
        Err(CatalogError::AddressNotFound(_)) => {
            context.catalog.release_egress(app, ip).await?;
            tell_all(&context).await;
        }
        released => {
            released?;
            if let Some(warning) = unreachable(&context, app).await? {
                return Ok(Json(ReleasedIp { warnings: vec![warning] }).into_response());
            }
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What is to be said where services of an app need an address of its own, and it has none.
async fn unreachable(context: &Context, app: &str) -> Result<Option<String>, HttpError> {
    let addresses = context.catalog.addresses_of(app).await?;
    let is_own = |address: &Address| matches!(address.kind, AddressKind::V4 | AddressKind::V6);
    if addresses.iter().any(is_own) {
        return Ok(None);
    }
    let mut ports = BTreeSet::new();
    for shown in context.view.of_app(app).iter().filter(|shown| !is_gone(shown.state())) {
        let raw = shown.record.machine.config.as_ref();
        let Some(config) = raw.and_then(|raw| validate::read(raw).ok()) else { continue };
        for service in config.services.iter().flatten() {
            let ranges = service.own_ports().filter_map(ServicePort::range);
            let is_udp = service.protocol() == Protocol::Udp;
            ports.extend(ranges.map(|(first, last)| (first, last, is_udp)));
        }
    }
    if ports.is_empty() {
        return Ok(None);
    }
    let named = ports.iter().take(MAX_NAMED).map(|(first, last, is_udp)| {
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        let protocol = if *is_udp { "/udp" } else { "" };
        format!("{range}{protocol}")
    });
    let mut named: Vec<_> = named.collect();
    if ports.len() > MAX_NAMED {
        named.push(format!("{} more", ports.len() - MAX_NAMED));
    }
    Ok(Some(format!(
        "services on ports {} can't be reached any more: the app has no address of its own left, \
         'caddis ips allocate-v4' allocates one",
        named.join(", ")
    )))
}

fn address(what: &str, text: &str) -> Result<IpAddr, ApiError> {
    text.parse().map_err(|_| {
        let shown: String = text.escape_debug().take(100).collect();
        ApiError::new(
            ErrorCode::InvalidArgument,
            format!("invalid {what}, '{shown}' is not an IP address"),
        )
    })
}

/// Sees to it that the services of a machine can be reached: an app with one that the shared
/// listeners can't serve gets an address of its own, if it has none. To be called once the machine
/// is accepted, so that one that is refused leaves nothing. Gives a warning when there is none to
/// give.
pub(crate) async fn publish(
    context: &Context,
    app: &str,
    config: &MachineConfig,
) -> Option<String> {
    if !config.needs_own_address() {
        return None;
    }
    let traffic = &context.settings.traffic;
    let pools = [traffic.pool_v4(), traffic.pool_v6()];
    let Some(pool) = pools.into_iter().find(|pool| !pool.prefixes.is_empty()) else {
        return Some(
            "services of the machine can't be reached: the server has no addresses for apps, give \
             it some with --public-addresses"
                .to_owned(),
        );
    };
    let error = match context.catalog.ensure_address(app, pool).await {
        // Where the app is going its machines are too.
        Ok(_) | Err(CatalogError::AppInDeletion(_) | CatalogError::AppNotFound(_)) => return None,
        Err(error @ CatalogError::AddressesExhausted { .. }) => error.to_string(),
        Err(error) => ApiError::from(error).message,
    };
    Some(format!("services of the machine can't be reached: {error}"))
}

/// Does the same for the machines that there are already: those of an earlier release, and those of
/// a server that had other addresses for apps.
pub(crate) async fn publish_known(context: Context) {
    context.view.synced().await;
    let mut seen = HashSet::new();
    for (worker, _) in context.view.hosts().all() {
        for shown in context.view.of_worker(&worker) {
            let (app, machine) = (&shown.record.app, &shown.record.machine);
            let Some(raw) = machine.config.as_ref().filter(|_| !is_gone(shown.state())) else {
                continue;
            };
            let needs = validate::read(raw).ok().filter(MachineConfig::needs_own_address);
            if let Some(config) = needs
                && seen.insert(app.clone())
                && let Some(warning) = publish(&context, app, &config).await
            {
                tracing::warn!(%app, machine = %machine.id, warning, "an app has no address");
            }
        }
    }
}
