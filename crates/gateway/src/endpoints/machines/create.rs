//! A new machine: checked, placed, reserved, and accepted by its worker. Runs to its end even when
//! the client hangs up, so that nothing stays half made.

use axum::{Extension, Json, extract::State};
use caddis_api::{
    ApiError, ErrorCode, Machine, MachineConfig, RawConfig, RegionCode, config::Mount,
    error::ErrorBody, fields::unknown_of_request, lease::MAX_TTL_SECONDS, names,
    requests::CreateMachineRequest, validate, warnings::warnings,
};
use caddis_bus::{
    BusError,
    message::{CreateMachine, WorkerReply, WorkerRequest},
};
use caddis_catalog::{AppRecord, AppState, CatalogError, NewPlacement, Placement};

use super::mounts::{self, Chooser, Wish};
use crate::{
    deletion, egress,
    endpoints::{addresses::publish, egress::warning as egress_warning, filter::is_gone},
    http::{
        authorization::AppPath,
        caller::Caller,
        context::{AskError, Context},
        errors::{HttpError, unexpected},
        extract::Named,
        idempotency::RequestId,
        responses::{BadBody, NoApp},
    },
    policies, scheduler,
};

/// Hosts tried when one after the other turns out to be full after all.
const MAX_HOSTS: usize = 3;

/// What is asked for, checked.
struct Wanted {
    app: AppRecord,
    name: Option<String>,
    regions: Vec<RegionCode>,
    raw: RawConfig,
    config: MachineConfig,
    skip_launch: bool,
    cordoned: bool,
    lease: Option<(u64, String)>,
    /// Where the client gave the request a key.
    request_id: Option<String>,
}

/// Create a machine.
///
/// Responds once the machine is accepted; the image is pulled and the machine booted afterwards.
#[utoipa::path(
    post,
    path = "/v1/apps/{app_name}/machines",
    operation_id = "Machines_create",
    tag = "Machines",
    params(AppPath),
    request_body = CreateMachineRequest,
    responses(
        (status = 200, description = "The machine", body = Machine),
        NoApp,
        BadBody,
        (status = 409, description = "The name is in use", body = ErrorBody),
        (status = 412, description = "The app is being deleted, the host drained, a volume is in \
                                      use, or its host is full",
            body = ErrorBody),
        (status = 422, description = "No host has enough free capacity, or the image can't be \
                                      pulled", body = ErrorBody),
    ),
)]
pub(crate) async fn create(
    State(context): State<Context>,
    Extension(caller): Extension<Caller>,
    id: Option<Extension<RequestId>>,
    app: AppPath,
    Named(request, names): Named<CreateMachineRequest>,
) -> Result<Json<Machine>, HttpError> {
    let request_id = id.map(|Extension(RequestId(id))| id);
    let wanted = Wanted { request_id, ..check(&context, &caller, &app, request).await? };
    let told =
        [unknown_of_request(names.iter().map(String::as_str)), warnings(&wanted.raw)].concat();
    let work = tokio::spawn(async move {
        let (app, config) = (wanted.app.name.clone(), wanted.config.clone());
        let sent = wanted.raw.clone();
        let made = make(&context, wanted).await?;
        let real = made.config.as_ref();
        let of_mounts = real.map(|real| mounts::overridden(&sent, real)).unwrap_or_default();
        let unreachable = publish(&context, &app, &config).await;
        let unshared = egress_warning(&context, &app, &made.id).await;
        let lines = told.into_iter().chain(of_mounts).chain(unreachable).chain(unshared);
        Ok::<_, ApiError>(made.warning(lines.collect()))
    });
    let made = work
        .await
        .map_err(|e| ApiError::internal(format!("creating the machine was interrupted: {e}")))?;
    Ok(Json(made?))
}

async fn check(
    context: &Context,
    caller: &Caller,
    app: &AppPath,
    request: CreateMachineRequest,
) -> Result<Wanted, ApiError> {
    let raw = request.config.ok_or_else(|| ApiError::invalid("invalid config, it is required"))?;
    let (raw, config) = validate::normalise(raw)?;
    let name = request.name.filter(|name| !name.is_empty());
    if let Some(name) = &name {
        names::check_machine_name(name)?;
    }
    let ttl = checked_ttl(request.lease_ttl)?;
    check_secrets(request.min_secrets_version)?;
    let app = app.look_up(context).await?;
    if app.state == AppState::Deleting {
        return Err(CatalogError::AppInDeletion(app.name).into());
    }
    Ok(Wanted {
        app,
        name,
        regions: context.regions.resolve(request.region.as_deref())?,
        raw,
        config,
        skip_launch: request.skip_launch,
        cordoned: request.skip_service_registration,
        lease: ttl.map(|ttl| (ttl, caller.owner())),
        request_id: None,
    })
}

/// Refuses to run with secrets that are not there: an app has none yet, so they are at version 0.
pub(super) fn check_secrets(minimum: Option<u64>) -> Result<(), ApiError> {
    match minimum {
        None | Some(0) => Ok(()),
        Some(minimum) => Err(ApiError::precondition(format!(
            "min_secrets_version is {minimum}, the app's secrets are at version 0: this server has \
             no secrets yet"
        ))),
    }
}

/// How long a lease is to last that is taken in the same step, seconds; zero means none.
pub(super) fn checked_ttl(ttl: Option<u64>) -> Result<Option<u64>, ApiError> {
    let ttl = ttl.filter(|ttl| *ttl > 0);
    if ttl.is_some_and(|ttl| ttl > MAX_TTL_SECONDS) {
        return Err(ApiError::invalid(format!(
            "invalid lease_ttl, cannot exceed {MAX_TTL_SECONDS} seconds"
        )));
    }
    Ok(ttl)
}

async fn make(context: &Context, wanted: Wanted) -> Result<Machine, ApiError> {
    if let Some(id) = &wanted.request_id
        && let Some(placement) = context.catalog.placement_of_request(id).await?
        && let Some(machine) = resume(context, &wanted, placement).await?
    {
        return Ok(machine);
    }
    place(context, wanted).await
}

/// The machine of a request that was cut short, unless there is none and won't be.
#[expect(clippy::disallowed_methods, reason = "the machine that this request has placed")]
async fn resume(
    context: &Context,
    wanted: &Wanted,
    placement: Placement,
) -> Result<Option<Machine>, ApiError> {
    context.synced().await?;
    if placement.released {
        // Made and gone again, or never made.
        return Ok(context.view.get(&placement.machine).map(|shown| shown.record.machine.clone()));
    }
    if !deletion::may_be_under_way(context, &placement) {
        deletion::release_unless_made(context, &placement).await?;
        if context.view.get(&placement.machine).is_none() {
            return Ok(None);
        }
    }
    let raw = match mounts_of(wanted).is_empty() {
        true => wanted.raw.clone(),
        false => resumed_mounts(context, wanted, &placement).await?,
    };
    hand_over(context, wanted, (placement, &raw), true).await.map(Some)
}

fn mounts_of(wanted: &Wanted) -> &[Mount] {
    wanted.config.mounts.as_deref().unwrap_or_default()
}

/// The configuration with the volumes of the machine that an earlier try may have made.
#[expect(clippy::disallowed_methods, reason = "the machine that this request has placed")]
async fn resumed_mounts(
    context: &Context,
    wanted: &Wanted,
    placement: &Placement,
) -> Result<RawConfig, ApiError> {
    let known = context.view.get(&placement.machine);
    if let Some(config) = known.and_then(|shown| shown.record.machine.config.clone()) {
        return Ok(config);
    }
    let wish = Wish {
        app: &wanted.app,
        config: &wanted.config,
        regions: std::slice::from_ref(&placement.region),
        machine: Some(&placement.machine),
    };
    let mut chooser = Chooser::new(context, &wish).await?;
    let nothing = || mounts::nothing_fits(&wanted.config, wish.regions);
    loop {
        let choice = chooser.choose().ok_or_else(nothing)?;
        if choice.worker == placement.worker {
            return Ok(mounts::filled_in(&wanted.raw, &choice.volumes));
        }
        chooser.is_full(&choice.worker);
    }
}

/// Where its volumes are, one choice of them after the other.
async fn place_with_volumes(context: &Context, wanted: Wanted) -> Result<Machine, ApiError> {
    let wish =
        Wish { app: &wanted.app, config: &wanted.config, regions: &wanted.regions, machine: None };
    let mut chooser = Chooser::new(context, &wish).await?;
    let mut refusal = None;
    while let Some(choice) = chooser.choose() {
        let place = NewPlacement {
            app: wanted.app.name.clone(),
            name: wanted.name.clone(),
            worker: choice.worker.clone(),
            region: choice.region.clone(),
            request: wanted.request_id.clone(),
        };
        let (placement, again) = reserve(context, place).await?;
        let raw = match again {
            true => resumed_mounts(context, &wanted, &placement).await?,
            false => mounts::filled_in(&wanted.raw, &choice.volumes),
        };
        match hand_over(context, &wanted, (placement, &raw), again).await {
            Ok(machine) => {
                // Lists show from now on whose they are.
                mounts::refresh(context, &choice).await;
                return Ok(machine);
            }
            Err(error) if mounts::is_for_want_of_room(&error) => {
                refusal = Some(mounts::no_room(&choice, error));
                chooser.is_full(&choice.worker);
            }
            Err(error) => {
                // Another machine may have got one of them between the choice and now. While the
                // worker may yet make this machine, no second one is placed.
                let is_refusal =
                    matches!(error.code, ErrorCode::FailedPrecondition | ErrorCode::NotFound);
                if again || !is_refusal || !chooser.is_refused(context, &choice).await {
                    return Err(error);
                }
                refusal = Some(error);
            }
        }
    }
    Err(refusal.unwrap_or_else(|| mounts::nothing_fits(&wanted.config, &wanted.regions)))
}

async fn place(context: &Context, wanted: Wanted) -> Result<Machine, ApiError> {
    if !mounts_of(&wanted).is_empty() {
        return place_with_volumes(context, wanted).await;
    }
    let (region, offers) = scheduler::offers(context, &wanted.regions, &wanted.config).await?;
    let mut refusal = None;
    for offer in offers.into_iter().take(MAX_HOSTS) {
        let place = NewPlacement {
            app: wanted.app.name.clone(),
            name: wanted.name.clone(),
            worker: offer.worker,
            region: region.clone(),
            request: wanted.request_id.clone(),
        };
        let (placement, again) = reserve(context, place).await?;
        match hand_over(context, &wanted, (placement, &wanted.raw), again).await {
            // It was taken between the offer and now.
            Err(error) if error.code == ErrorCode::InsufficientCapacity => refusal = Some(error),
            outcome => return outcome,
        }
    }
    Err(refusal.unwrap_or_else(|| ApiError::internal("no host was tried")))
}

/// Takes id, name and address. A name that a destroyed machine still holds, because its release is
/// under way, is released here. Where another gateway has placed a machine for this very request
/// meanwhile, it is that one, and its worker may have been asked.
#[expect(clippy::disallowed_methods, reason = "tells nobody whose the name is")]
async fn reserve(context: &Context, place: NewPlacement) -> Result<(Placement, bool), ApiError> {
    match context.catalog.place(place.clone()).await {
        Err(CatalogError::RequestHasMachine { machine }) => {
            match context.catalog.placement(&machine).await? {
                Some(placement) if !placement.released => Ok((placement, true)),
                // It came to nothing.
                _ => Ok((context.catalog.place(place).await?, false)),
            }
        }
        Err(CatalogError::MachineNameTaken { holder, .. })
            if context.view.get(&holder).is_some_and(|shown| is_gone(shown.state())) =>
        {
            context.catalog.release(&holder).await?;
            Ok((context.catalog.place(place).await?, false))
        }
        placed => Ok((placed?, false)),
    }
}

/// `again`: its worker may have been asked before.
#[expect(clippy::disallowed_methods, reason = "the app was looked up for the caller before")]
async fn hand_over(
    context: &Context,
    wanted: &Wanted,
    (placement, raw): (Placement, &RawConfig),
    again: bool,
) -> Result<Machine, ApiError> {
    let request = WorkerRequest::Create(Box::new(CreateMachine {
        id: placement.machine.clone(),
        name: placement.name.clone(),
        app: wanted.app.name.clone(),
        org: wanted.app.organization.slug.clone(),
        region: placement.region.clone(),
        config: raw.clone(),
        ipv6: placement.ipv6,
        network: placement.network_prefix.clone(),
        placement_epoch: placement.epoch,
        skip_launch: wanted.skip_launch,
        cordoned: wanted.cordoned,
        lease: wanted.lease.clone(),
    }));
    // What it may send and receive, and that its first packet is to come from where all others do,
    // is known before it is there.
    let known = match egress::machine_was_placed(context, &placement.worker).await {
        Ok(()) => policies::machine_was_placed(context, &placement.worker).await,
        Err(error) => Err(error),
    };
    let asked = match known {
        Ok(()) => context.ask(&placement.worker, request, context.settings.create_deadline).await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(WorkerReply::Created { record, lease }) => {
            let mut machine = record.machine;
            machine.nonce = lease.map(|lease| lease.nonce);
            let app = context.catalog.app(&wanted.app.name).await?;
            if app.is_some_and(|app| app.state == AppState::Deleting) {
                // The deletion may have looked before this machine was there.
                deletion::begin(context, &wanted.app.name);
            }
            Ok(machine)
        }
        Ok(other) => Err(unexpected(&other)),
        // Of one that was asked before, only its worker knows.
        Err(AskError::Bus(error)) if again || !matches!(error, BusError::NotDelivered(_)) => {
            tracing::warn!(machine = %placement.machine, %error, "a worker did not answer to a \
                create");
            let machine = placement.machine.clone();
            context.background(deletion::give_up_unless_made(context.clone(), placement));
            Err(ApiError::new(
                ErrorCode::Unavailable,
                format!(
                    "unavailable: {error}; machine {machine} may still appear, look for it before \
                     trying again"
                ),
            ))
        }
        // What an earlier try has made may be there, though this one was refused.
        Err(AskError::Refused(error))
            if again && matches!(error.code, ErrorCode::Unavailable | ErrorCode::Internal) =>
        {
            context.background(deletion::give_up_unless_made(context.clone(), placement));
            Err(error)
        }
        Err(error) => {
            context.catalog.release(&placement.machine).await?;
            context.catalog.finish_app_deletion(&wanted.app.name).await?;
            Err(error.into())
        }
    }
}
