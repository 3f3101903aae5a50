//! Egress addresses: those that connections of machines to the outside come from.

use axum::{Json, extract::State};
use caddis_api::{
    ApiError, AppName, MachineId,
    addresses::{
        AssignIpReply, AssignIpRequest, AssignedIp, EgressIp, EgressIps, EgressPorts, EgressScope,
        IpAssignment, IpAssignmentType, IpPair,
    },
    error::ErrorBody,
    time,
};
use caddis_catalog::{AddressPool, EgressAddress, NewEgress};

use super::addresses::GLOBAL;
use crate::{
    egress::tell_all,
    http::{
        authorization::{AppPath, MachinePath},
        context::Context,
        errors::HttpError,
        responses::{NoApp, NoMachine},
    },
};

/// One of an app, as its addresses are listed.
pub(super) fn show(address: EgressAddress) -> IpAssignment {
    let machines = address.blocks.into_iter().map(|block| EgressPorts {
        machine_id: block.machine,
        first_port: block.first_port,
        last_port: block.last_port,
    });
    IpAssignment {
        ip: address.ip.to_string(),
        region: address.region,
        service_name: String::new(),
        shared: false,
        egress: true,
        created_at: time::seconds(address.created_at.into()),
        network: None,
        machines: Some(machines.collect()),
    }
}

/// What each machine has of these, by machine, IPv4 first; then what no machine has ports of.
fn of_machines(addresses: &[EgressAddress]) -> Vec<EgressIp> {
    let shown = |address: &EgressAddress, machine: Option<&MachineId>| EgressIp {
        machine_id: machine.cloned(),
        ip: address.ip.to_string(),
        version: if address.ip.is_ipv4() { "v4" } else { "v6" }.to_owned(),
        region: address.region.clone(),
        scope: if address.machine.is_some() { EgressScope::Machine } else { EgressScope::App },
        first_port: None,
        last_port: None,
        created_at: time::seconds(address.created_at.into()),
    };
    let mut all = Vec::new();
    for address in addresses {
        if address.blocks.is_empty() {
            all.push(shown(address, address.machine.as_ref()));
        }
        all.extend(address.blocks.iter().map(|block| EgressIp {
            first_port: Some(block.first_port),
            last_port: Some(block.last_port),
            ..shown(address, Some(&block.machine))
        }));
    }
    let order = |address: &EgressIp| {
        let machine = address.machine_id.clone();
        (machine.is_none(), machine, address.version.clone())
    };
    all.sort_by_key(order);
    all
}

/// The pools of the families of which the server has addresses; of an `egress_v4` or `egress_v6`
/// that one.
fn pools(context: &Context, kind: Option<IpAssignmentType>) -> Result<Vec<AddressPool>, ApiError> {
    let (v4, v6) = context.settings.traffic.egress_pools();
    let (family, wanted) = match kind {
        Some(IpAssignmentType::EgressV4) => ("IPv4 ", vec![v4]),
        Some(IpAssignmentType::EgressV6) => ("IPv6 ", vec![v6]),
        _ => ("", vec![v4, v6]),
    };
    let found: Vec<_> = wanted.into_iter().filter(|pool| !pool.prefixes.is_empty()).collect();
    if found.is_empty() {
        return Err(ApiError::precondition(format!(
            "this server has no {family}egress addresses: give it some with --egress-addresses"
        )));
    }
    Ok(found)
}

/// Gives an app egress addresses of a region.
pub(super) async fn assign(
    context: &Context,
    app: &str,
    kind: IpAssignmentType,
    request: &AssignIpRequest,
) -> Result<AssignIpReply, HttpError> {
    let own = context.regions.own();
    let region = request.region.as_deref().filter(|region| *region != GLOBAL);
    if let Some(region) = region.filter(|region| *region != own.as_str()) {
        let shown: String = region.escape_debug().take(100).collect();
        return Err(ApiError::invalid(format!(
            "invalid region, there are no egress addresses in '{shown}': this server's are in {own}"
        ))
        .into());
    }
    let is_pair = kind == IpAssignmentType::EgressPair;
    let new = NewEgress {
        app: AppName::from_trusted(app),
        machine: None,
        region: own.to_string(),
        pools: pools(context, Some(kind))?,
        completes: is_pair,
    };
    let given = context.catalog.allocate_egress(new).await?;
    tell_all(context).await;
    let ip = |is_v4: bool| {
        given.iter().find(|address| address.ip.is_ipv4() == is_v4).map(|it| it.ip.to_string())
    };
    let ip_pair = is_pair.then(|| IpPair { v4: ip(true), v6: ip(false) });
    let first = given.into_iter().next().map(show);
    let first = first.ok_or_else(|| ApiError::internal("no egress address was given"))?;
    let mut assignment = AssignedIp::from(first);
    assignment.ip = assignment.ip.filter(|_| !is_pair);
    let warnings = one_sided(context, app).await?.into_iter().collect();
    Ok(AssignIpReply { assignment, ip_pair, warnings })
}

/// What is to be said of an app that has egress addresses of one family only in the region.
async fn one_sided(context: &Context, app: &str) -> Result<Option<String>, HttpError> {
    let region = context.regions.own().as_str();
    let addresses = context.catalog.egress_addresses(app).await?;
    let has = |is_v4: bool| {
        addresses.iter().any(|address| {
            address.machine.is_none() && address.region == region && address.ip.is_ipv4() == is_v4
        })
    };
    let (missing, pool) = match (has(true), has(false)) {
        (true, false) => ("IPv6", context.settings.traffic.egress_pools().1),
        (false, true) => ("IPv4", context.settings.traffic.egress_pools().0),
        _ => return Ok(None),
    };
    let why = match pool.prefixes.is_empty() {
        true => format!("this server has no {missing} egress addresses"),
        false => format!("the app has no {missing} egress address in {region}"),
    };
    Ok(Some(format!("{why}: connections over {missing} come from an address of the host")))
}

/// List the egress addresses of an app's machines.
///
/// Each machine with the addresses that its connections to the outside come from, where it has
/// some: its own, or a block of ports of one of the app's. Then the app's addresses of which no
/// machine has ports, without `machine_id`. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/egress_ips",
    operation_id = "App_EgressIPs_list",
    tag = "Apps",
    params(AppPath),
    responses((status = 200, description = "The addresses, by machine", body = EgressIps), NoApp),
)]
pub(crate) async fn of_app(
    State(context): State<Context>,
    app: AppPath,
) -> Result<Json<EgressIps>, HttpError> {
    let addresses = context.catalog.egress_addresses(app.name()?).await?;
    Ok(Json(EgressIps { egress_ips: of_machines(&addresses) }))
}

/// List the egress addresses of a machine.
///
/// What its connections to the outside come from: its own addresses, or a block of ports of one of
/// the app's. Without any they come from an address of its host. Caddis extension.
#[utoipa::path(
    get,
    path = "/v1/apps/{app_name}/machines/{machine_id}/egress_ips",
    operation_id = "Machines_list_egress_ips",
    tag = "Machines",
    params(MachinePath),
    responses((status = 200, description = "The addresses", body = EgressIps), NoMachine),
)]
pub(crate) async fn of_machine(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<EgressIps>, HttpError> {
    let shown = path.look_up(&context).await?;
    let (app, machine) = (&shown.record.app, &shown.record.machine.id);
    let addresses = context.catalog.egress_addresses(app).await?;
    let mut egress_ips = of_machines(&addresses);
    egress_ips.retain(|address| address.machine_id.as_ref() == Some(machine));
    Ok(Json(EgressIps { egress_ips }))
}

/// Allocate egress addresses to a machine.
///
/// One of each family that the server has in `--egress-addresses`. New connections of the machine
/// come from them at once, also where its app has egress addresses. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/egress_ips",
    operation_id = "Machines_allocate_egress_ips",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "The addresses", body = EgressIps),
        NoMachine,
        (status = 409, description = "The machine has some", body = ErrorBody),
        (status = 412, description = "The server has no egress addresses", body = ErrorBody),
        (status = 422, description = "No address is free", body = ErrorBody),
    ),
)]
pub(crate) async fn allocate(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<EgressIps>, HttpError> {
    let shown = path.look_up(&context).await?;
    let new = NewEgress {
        app: shown.record.app.clone(),
        machine: Some(shown.record.machine.id.clone()),
        region: shown.record.machine.region.to_string(),
        pools: pools(&context, None)?,
        completes: false,
    };
    let given = context.catalog.allocate_egress(new).await?;
    tell_all(&context).await;
    Ok(Json(EgressIps { egress_ips: of_machines(&given) }))
}

/// Release a machine's own egress addresses.
///
/// Its connections under them are cut. New ones come from its app's egress addresses, if it has
/// some in the region, else from an address of the host. Caddis extension.
#[utoipa::path(
    delete,
    path = "/v1/apps/{app_name}/machines/{machine_id}/egress_ips",
    operation_id = "Machines_release_egress_ips",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "What it had", body = EgressIps),
        (status = 404, description = "No such machine, or it has none of its own",
            body = ErrorBody),
    ),
)]
pub(crate) async fn release(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<EgressIps>, HttpError> {
    let shown = path.look_up(&context).await?;
    let (app, machine) = (&shown.record.app, &shown.record.machine.id);
    let released = context.catalog.release_egress_of(app, machine).await?;
    tell_all(&context).await;
    Ok(Json(EgressIps { egress_ips: of_machines(&released) }))
}

/// Make a machine's own egress addresses those of its app.
///
/// The machine keeps them, with a block of ports; up to 63 other machines of the app in the region
/// may come to share them. Caddis extension.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines/{machine_id}/egress_ips/promote",
    operation_id = "Machines_promote_egress_ips",
    tag = "Machines",
    params(MachinePath),
    responses(
        (status = 200, description = "What was its own", body = EgressIps),
        (status = 404, description = "No such machine, or it has none of its own",
            body = ErrorBody),
    ),
)]
pub(crate) async fn promote(
    State(context): State<Context>,
    path: MachinePath,
) -> Result<Json<EgressIps>, HttpError> {
    let shown = path.look_up(&context).await?;
    let (app, machine) = (&shown.record.app, &shown.record.machine.id);
    let promoted = context.catalog.promote_egress(app, machine).await?;
    tell_all(&context).await;
    Ok(Json(EgressIps { egress_ips: of_machines(&promoted) }))
}

/// What is to be said of a new machine: its app has egress addresses, and none is left for it.
pub(crate) async fn warning(context: &Context, app: &str, machine: &MachineId) -> Option<String> {
    let addresses = context.catalog.egress_addresses(app).await.ok()?;
    let region = context.regions.own().as_str();
    let without = [true, false].into_iter().any(|is_v4| {
        let mut of_app = addresses.iter().filter(|address| {
            address.ip.is_ipv4() == is_v4 && address.region == region && address.machine.is_none()
        });
        let has =
            |address: &EgressAddress| address.blocks.iter().any(|block| block.machine == *machine);
        of_app.clone().next().is_some() && !of_app.any(has)
    });
    without.then(|| {
        "the app's egress addresses are shared by 64 machines each already: connections of this \
         machine come from an address of its host; allocate more with 'caddis ips allocate-egress'"
            .to_owned()
    })
}
