//! Tells workers the network policies of all apps. The catalog knows them; a worker is told all of
//! them at once, when something of that has changed, and when it is new or was away.
//!
//! What a policy names is looked up here: the private addresses of an app's machines, and the
//! prefix of a network. An app or a network that is not there is nobody.
#![expect(
    clippy::disallowed_methods,
    reason = "what the server does by itself is done for no caller"
)]

use std::{net::IpAddr, time::Duration};

use caddis_api::{
    ApiError, WorkerId,
    platform::HostState,
    policies::{
        PolicyDirection, PolicyDns, PolicyPeer, PolicyRule, PolicySelector, PutPolicyRequest,
    },
};
use caddis_bus::{
    AskError,
    message::{Allowance, AppPolicies, Policy, WorkerReply, WorkerRequest},
};
use caddis_catalog::{AppQuery, AppRecord, Placement, PolicyRecord};
use caddis_view::Change;
use futures::future::join_all;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::http::{context::Context, errors::unexpected, told::Told};

/// Until a worker that could not be told is told again.
const AGAIN: Duration = Duration::from_secs(1);

/// What a policy says, as the catalog keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Document {
    pub selector: PolicySelector,
    pub rules: Vec<PolicyRule>,
    #[serde(default)]
    pub dns: PolicyDns,
}

impl Document {
    /// What a request that was checked says.
    pub fn of(request: &PutPolicyRequest) -> Self {
        Self {
            selector: request.selector.clone().unwrap_or_default(),
            rules: request.rules.clone(),
            dns: request.dns.unwrap_or_default(),
        }
    }

    /// What was recorded.
    ///
    /// # Errors
    /// 500 when it can't be read.
    pub fn read(record: &PolicyRecord) -> Result<Self, ApiError> {
        let failed = |error| format!("network policy {} can't be read: {error}", record.id);
        serde_json::from_str(&record.document).map_err(|error| ApiError::internal(failed(error)))
    }
}

/// Tells a worker the policies as they are now, if it does not know. Once this has ended they, or
/// later ones, are in force there.
///
/// Several gateways may tell it at once. Each takes a number from the catalog first and reads the
/// policies then, and the worker takes nothing under a lower number than it knows: what it does not
/// take is older than what it has.
async fn tell(context: &Context, worker: &WorkerId) -> Result<(), AskError> {
    let refused = |error| AskError::Refused(ApiError::from(error));
    let told = context.policies.of(worker);
    // While it is held, so that what is read later is told later.
    let mut told = told.lock().await;
    let mut newest = context.catalog.policy_revision(worker).await.map_err(refused)?;
    let known = wanted(context).await.map_err(AskError::Refused)?;
    if told.as_ref().is_some_and(|told| told.revision == newest && told.apps == known) {
        return Ok(());
    }
    // Whether it has taken them is not known until it says so.
    *told = None;
    loop {
        let raised = context.catalog.raise_policy_revision(worker, newest).await;
        let revision = raised.map_err(refused)?;
        let apps = wanted(context).await.map_err(AskError::Refused)?;
        let request = WorkerRequest::SetPolicies { revision, apps: apps.clone() };
        let theirs = match context.ask(worker, request, context.settings.request_deadline).await? {
            WorkerReply::PoliciesSet { revision } => revision,
            other => return Err(AskError::Refused(unexpected(&other))),
        };
        if theirs <= revision {
            *told = Some(Told { revision, apps });
            return Ok(());
        }
        if context.catalog.policy_revision(worker).await.map_err(refused)? >= theirs {
            // Another gateway has read after this one, and told it.
            return Ok(());
        }
        // The catalog is an earlier one than the worker has known, as from a backup.
        newest = theirs;
    }
}

/// To be called when a machine was placed and before it is made: its worker knows its policies, and
/// the others come to know of it where a policy names its app.
pub(crate) async fn machine_was_placed(
    context: &Context,
    worker: &WorkerId,
) -> Result<(), AskError> {
    let refused = |error| AskError::Refused(ApiError::from(error));
    if context.catalog.policies().await.map_err(refused)?.is_empty() {
        return Ok(());
    }
    context.policies.due.notify_one();
    tell(context, worker).await
}

/// Tells all workers. What those that do not answer miss is told later.
///
/// # Errors
/// When one of them can't put the policies in force.
pub(crate) async fn tell_all(context: &Context) -> Result<(), ApiError> {
    let (_, outcome) = tell_each(context).await;
    outcome
}

/// Whether all were told, and what one of them says against the policies.
async fn tell_each(context: &Context) -> (bool, Result<(), ApiError>) {
    let (silent, heard): (Vec<_>, Vec<_>) = context
        .view
        .hosts()
        .all()
        .into_iter()
        .partition(|(_, host)| host.state == HostState::Unreachable);
    let told = heard.into_iter().map(|(worker, _)| async move {
        let outcome = tell(context, &worker).await;
        (worker, outcome)
    });
    // Those that are silent are not waited for.
    let (mut all, mut refused) = (silent.is_empty(), Ok(()));
    for (worker, outcome) in join_all(told).await {
        let Err(error) = outcome else { continue };
        all = false;
        let is_refused = matches!(error, AskError::Refused(_));
        let error = ApiError::from(error);
        tracing::warn!(%worker, error = error.message, "can't tell a worker the network policies, \
            will try again");
        if is_refused {
            let text = format!(
                "the policies are recorded, but host {worker} can't put them in force yet: {}",
                error.message
            );
            refused = Err(ApiError::new(error.code, text));
        }
    }
    (all, refused)
}

/// Keeps all workers told; never ends.
pub(crate) async fn follow(context: Context, mut changes: broadcast::Receiver<Change>) {
    let mut changed = context.catalog.policies_changed();
    let (mut all_told, mut again) = (false, tokio::time::interval(AGAIN));
    loop {
        tokio::select! {
            change = changes.recv() => match change {
                // It may be another process than before.
                Ok(Change::Listed(worker)) => context.policies.forget(&worker),
                Ok(Change::Host(_)) | Err(RecvError::Lagged(_)) => {}
                Ok(_) => continue,
                Err(RecvError::Closed) => return,
            },
            changed = changed.changed() => if changed.is_err() { return },
            () = context.policies.due.notified() => {}
            _ = again.tick(), if !all_told => {}
        }
        (all_told, _) = tell_each(&context).await;
    }
}

/// What policies name.
#[derive(Default)]
struct Known {
    apps: Vec<AppRecord>,
    placements: Vec<Placement>,
}

/// The policies of all apps as workers are told them.
async fn wanted(context: &Context) -> Result<Vec<AppPolicies>, ApiError> {
    let records = context.catalog.policies().await?;
    let documents: Vec<_> = records.iter().map(Document::read).collect::<Result<_, ApiError>>()?;
    let mut rules = documents.iter().flat_map(|document| &document.rules);
    let known = if rules.any(|rule| rule.peers().is_some_and(|peers| peers.iter().any(names_app))) {
        Known {
            apps: context.catalog.apps(AppQuery::default()).await?.apps,
            placements: context.catalog.placements(None).await?,
        }
    } else {
        Known::default()
    };
    let mut all: Vec<AppPolicies> = Vec::new();
    for (record, document) in records.iter().zip(documents) {
        let policy = Policy {
            egress: allowed(context, record, &document, PolicyDirection::Egress, &known).await?,
            ingress: allowed(context, record, &document, PolicyDirection::Ingress, &known).await?,
            selector: document.selector,
            dns: document.dns == PolicyDns::Allow,
        };
        match all.last_mut().filter(|last| last.app == record.app) {
            Some(last) => last.policies.push(policy),
            None => all.push(AppPolicies { app: record.app.clone(), policies: vec![policy] }),
        }
    }
    Ok(all)
}

fn names_app(peer: &PolicyPeer) -> bool {
    peer.app.is_some()
}

/// What a policy allows in a direction; `None` when it says nothing of it.
async fn allowed(
    context: &Context,
    record: &PolicyRecord,
    document: &Document,
    direction: PolicyDirection,
    known: &Known,
) -> Result<Option<Vec<Allowance>>, ApiError> {
    let mut allowed = Vec::new();
    for rule in document.rules.iter().filter(|rule| rule.direction == direction) {
        let mut peers = rule.peers().map(|_| Vec::new());
        for peer in rule.peers().unwrap_or_default() {
            let found = addresses(context, record, peer, known).await?;
            peers.get_or_insert_default().extend(found);
        }
        allowed.push(Allowance { peers, ports: rule.ports.clone() });
    }
    Ok((!allowed.is_empty()).then_some(allowed))
}

/// The addresses that a peer stands for.
async fn addresses(
    context: &Context,
    record: &PolicyRecord,
    peer: &PolicyPeer,
    known: &Known,
) -> Result<Vec<IpNet>, ApiError> {
    let PolicyPeer { cidr, app, network } = peer;
    let organization = &record.organization;
    if let Some(cidr) = cidr {
        return Ok(cidr_of(cidr).into_iter().collect());
    }
    if let Some(app) = app {
        let is_ours = known
            .apps
            .iter()
            .any(|other| other.name == **app && other.organization.slug == organization.slug);
        let of_app = known.placements.iter().filter(|placed| is_ours && placed.app == **app);
        return Ok(of_app.map(|placed| IpAddr::from(placed.ipv6).into()).collect());
    }
    let Some(network) = network else { return Ok(Vec::new()) };
    let number = organization.internal_numeric_id;
    let prefix = context.catalog.network_prefix(number, network).await?;
    let unreadable = |error| ApiError::internal(format!("network {network}: {error}"));
    prefix.map(|prefix| prefix.parse().map_err(unreadable)).into_iter().collect()
}

/// A range, or a single address.
pub(crate) fn cidr_of(text: &str) -> Option<IpNet> {
    let range = text.parse::<IpNet>().ok();
    range.or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|range| range.trunc())
}
