//! Tells workers the network policies of all apps.
//!
//! What a policy names is looked up here: the private addresses of an app's machines, and the
//! prefix of a network. An app or a network that is not there is nobody.
#![expect(
    clippy::disallowed_methods,
    reason = "what the server does by itself is done for no caller"
)]

use std::net::IpAddr;

use caddis_api::{
    ApiError, WorkerId,
    policies::{
        PolicyDirection, PolicyDns, PolicyPeer, PolicyRule, PolicySelector, PutPolicyRequest,
    },
};
use caddis_bus::{
    AskError,
    message::{Allowance, AppPolicies, Policy, WorkerRequest},
};
use caddis_catalog::{AppQuery, AppRecord, Placement, PolicyRecord, Push};
use caddis_view::Change;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::{
    http::context::Context,
    push::{self, Pushed},
    told::Workers,
};

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

impl Pushed for Vec<AppPolicies> {
    const PUSH: Push = Push::Policies;
    const NAME: &'static str = "network policies";

    fn workers(context: &Context) -> &Workers<Self> {
        &context.policies
    }

    /// All workers are told the same.
    async fn read(context: &Context, _: &WorkerId) -> Result<Self, ApiError> {
        wanted(context).await
    }

    fn request(self, revision: u64) -> WorkerRequest {
        WorkerRequest::SetPolicies { revision, apps: self }
    }

    async fn tell_all(context: &Context) -> bool {
        push::tell_each::<Self>(context).await.0
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
    push::tell::<Vec<AppPolicies>>(context, worker).await
}

/// Tells all workers. What those that do not answer miss is told later.
///
/// # Errors
/// When one of them can't put the policies in force.
pub(crate) async fn tell_all(context: &Context) -> Result<(), ApiError> {
    let (_, outcome) = push::tell_each::<Vec<AppPolicies>>(context).await;
    outcome.map_err(|(worker, error)| {
        let text = format!(
            "the policies are recorded, but host {worker} can't put them in force yet: {}",
            error.message
        );
        ApiError::new(error.code, text)
    })
}

/// Keeps all workers told; never ends.
pub(crate) async fn follow(context: Context, changes: broadcast::Receiver<Change>) {
    let changed = context.catalog.policies_changed();
    push::follow::<Vec<AppPolicies>>(context, changes, changed).await;
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
