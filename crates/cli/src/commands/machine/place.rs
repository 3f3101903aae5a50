//! `caddis machine place`.

use std::collections::BTreeMap;

use caddis_api::platform::{PlacementsReply, PlacementsRequest};
use clap::Args;
use serde_json::{Map, json};

use crate::{
    CliError,
    globals::AppArgs,
    session::Session,
    spec::{self, VmFlags},
};

#[derive(Debug, Args)]
pub struct Place {
    #[command(flatten)]
    app: AppArgs,
    /// Number of machines [default: as many as fit].
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// Regions to try: comma-separated codes or aliases.
    #[arg(long, value_name = "REGIONS", default_value = "any")]
    region: String,
    /// Name of their volumes. No effect.
    #[arg(long, value_name = "NAME", hide = true)]
    volume_name: Option<String>,
    /// Size of a volume that each has, GB.
    #[arg(long, value_name = "GB")]
    volume_size: Option<u64>,
    /// Weights, comma-separated NAME=NUMBER: 'region' for the order of regions, 'spread' for using
    /// them evenly.
    #[arg(long, value_name = "WEIGHTS", value_delimiter = ',')]
    weights: Vec<String>,
    /// Organization of the machines [default: the app's, else your own].
    #[arg(short, long, value_name = "SLUG")]
    org: Option<String>,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    vm: VmFlags,
}

/// Says where machines would be placed.
pub async fn run(place: Place, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let mut config = Map::new();
    // The reference's size.
    let vm = match place.vm.vm_size {
        Some(_) => place.vm,
        None => VmFlags { vm_size: Some("performance-1x".to_owned()), ..place.vm },
    };
    spec::set_vm(&mut config, &vm)?;
    spec::check_guest(&config)?;
    let org_slug = match (place.org, place.app.find(&session.environment)?) {
        (Some(org), _) => org,
        (None, Some(app)) => client.get_app(&app).await?.organization.slug,
        (None, None) => "personal".to_owned(),
    };
    let request = PlacementsRequest {
        org_slug,
        region: Some(place.region),
        count: place.count,
        compute: config.get("guest").and_then(|guest| serde_json::from_value(guest.clone()).ok()),
        volume_name: place.volume_name,
        volume_size_bytes: place.volume_size.map(|size| size.saturating_mul(1_000_000_000)),
        weights: weights(&place.weights)?,
    };
    let placed = client.placements(&request).await;
    let PlacementsReply { mut regions } =
        placed.map_err(|e| CliError::attempted("failed getting machine placements", e))?;
    if place.json {
        // The reference's client writes the names of its fields.
        let regions: Vec<_> = regions
            .iter()
            .map(|r| json!({ "Region": r.region, "Count": r.count, "Concurrency": r.concurrency }))
            .collect();
        return Ok(printer.json(&json!({ "Regions": regions }))?);
    }
    regions.sort_by(|a, b| a.region.cmp(&b.region));
    let rows: Vec<_> = regions
        .into_iter()
        .map(|region| vec![region.region.to_string(), region.count.to_string()])
        .collect();
    Ok(printer.table("", &["Region", "Count"], &rows)?)
}

fn weights(weights: &[String]) -> Result<Option<BTreeMap<String, i64>>, CliError> {
    let read = |text: &String| {
        let pair = text
            .split_once('=')
            .and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        pair.ok_or_else(|| CliError::new(format!("invalid weight: {text:?}")))
    };
    let weights = weights.iter().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok((!weights.is_empty()).then_some(weights))
}
