//! `caddis platform regions`.

use std::collections::BTreeMap;

use caddis_api::platform::Region;

use crate::{CliError, session::Session};

pub async fn run(json: bool, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let regions = session.client()?.regions().await?.regions;
    if json {
        printer.json(&regions)?;
        return Ok(());
    }
    let mut by_part: BTreeMap<&str, Vec<&Region>> = BTreeMap::new();
    for region in &regions {
        by_part.entry(&region.geo_region).or_default().push(region);
    }
    for (part, regions) in by_part {
        let rows: Vec<_> = regions
            .iter()
            .map(|r| vec![r.name.clone(), r.code.to_string(), r.capacity.to_string()])
            .collect();
        printer.table(&title(part), &["Name", "Code", "Capacity"], &rows)?;
    }
    Ok(())
}

/// `north_america` as `North America`.
fn title(part: &str) -> String {
    let words = part.split('_').map(|word| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    });
    words.collect::<Vec<_>>().join(" ")
}
