//! Regions: the list, and expressions like `lhr,eu,any`.

use std::{sync::Arc, time::Duration};

use caddis_api::{ApiError, ErrorCode, RegionCode, platform::Region};
use caddis_view::View;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Aliases of the field and the parts of the world they stand for.
const ALIASES: &[(&str, &str)] = &[
    ("apac", "asia_pacific"),
    ("eu", "europe"),
    ("na", "north_america"),
    ("sa", "south_america"),
    ("us", "north_america"),
    ("usa", "north_america"),
    ("africa", "africa"),
];

/// How long an answer about capacity is good for: anyone may ask without a token.
const CAPACITY_AGE: Duration = Duration::from_secs(5);

/// The regions of the installation: those of the configuration, and those that hosts are in.
pub(crate) struct Regions {
    own: RegionCode,
    configured: Vec<Region>,
    view: Arc<View>,
    capacity: Mutex<Option<(Instant, Vec<Region>)>>,
}

impl Regions {
    /// `own` is listed even when the configuration does not name it.
    pub fn new(own: RegionCode, mut configured: Vec<Region>, view: Arc<View>) -> Self {
        add(&mut configured, &own);
        Self { own, configured, view, capacity: Mutex::default() }
    }

    /// All of them; without `capacity`.
    pub fn all(&self) -> Vec<Region> {
        let mut all = self.configured.clone();
        self.view.hosts().all().iter().for_each(|(_, host)| add(&mut all, &host.region));
        all
    }

    /// All of them with their capacity, unless it was counted too long ago.
    pub fn with_capacity(&self) -> Option<Vec<Region>> {
        let capacity = self.capacity.lock();
        let recent = capacity.as_ref().filter(|(asked, _)| asked.elapsed() < CAPACITY_AGE);
        recent.map(|(_, regions)| regions.clone())
    }

    /// Keeps what was just found out about their capacity.
    pub fn keep_capacity(&self, regions: Vec<Region>) {
        *self.capacity.lock() = Some((Instant::now(), regions));
    }

    /// Whether it is the code of one.
    pub fn knows(&self, code: &str) -> bool {
        self.all().iter().any(|region| region.code == code)
    }

    /// Where this gateway is.
    pub fn own(&self) -> &RegionCode {
        &self.own
    }

    /// The regions an expression names, in the order to try them. Without one: ours, then any.
    pub fn resolve(&self, expression: Option<&str>) -> Result<Vec<RegionCode>, ApiError> {
        let expression = expression.map(str::trim).filter(|text| !text.is_empty()).unwrap_or("any");
        let mut found: Vec<RegionCode> = Vec::new();
        let all = self.all();
        for item in expression.split(',').map(str::trim) {
            let part = ALIASES.iter().find(|(alias, _)| *alias == item).map(|(_, part)| *part);
            let matches = |region: &&Region| {
                region.code == item
                    || (!region.deprecated
                        && (item == "any" || part == Some(region.geo_region.as_str())))
            };
            let mut named: Vec<_> =
                all.iter().filter(matches).map(|region| region.code.clone()).collect();
            named.sort_by_key(|code| *code != self.own);
            found.extend(named);
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|code| seen.insert(code.clone()));
        if found.is_empty() {
            let known: Vec<_> = all.iter().map(|region| region.code.as_str()).collect();
            return Err(ApiError::new(
                // No other answer is to be had later.
                ErrorCode::Unprocessable,
                format!(
                    "could not find a candidate host: unknown region '{}'; available: any, {}",
                    expression.escape_debug().take(100).collect::<String>(),
                    known.join(", ")
                ),
            ));
        }
        Ok(found)
    }
}

/// Adds a region that the configuration says nothing of, unless it is there.
fn add(regions: &mut Vec<Region>, code: &RegionCode) {
    if regions.iter().any(|region| region.code == *code) {
        return;
    }
    regions.push(Region {
        code: code.clone(),
        name: code.to_string(),
        latitude: 0.0,
        longitude: 0.0,
        gateway_available: true,
        requires_paid_plan: false,
        deprecated: false,
        capacity: 0,
        geo_region: String::new(),
        mpg_available: false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions() -> Regions {
        let view = Arc::new(View::new(caddis_view::ViewSettings {
            workers: Vec::new(),
            region: RegionCode::from_trusted("fra"),
            suspected_after: Duration::from_secs(3),
            unreachable_after: Duration::from_secs(10),
            destroyed_retention: Duration::ZERO,
        }));
        let empty = Regions::new(RegionCode::from_trusted("fra"), Vec::new(), view.clone());
        let region = |code: &str, part: &str| Region {
            code: RegionCode::from_trusted(code),
            geo_region: part.to_owned(),
            ..empty.all()[0].clone()
        };
        let all =
            vec![region("lhr", "europe"), region("fra", "europe"), region("iad", "north_america")];
        Regions::new(RegionCode::from_trusted("fra"), all, view)
    }

    #[test]
    fn expressions_name_regions_in_order() {
        let regions = regions();
        for (expression, expected) in [
            (None, &["fra", "lhr", "iad"][..]),
            (Some(""), &["fra", "lhr", "iad"]),
            (Some("iad"), &["iad"]),
            (Some("eu"), &["fra", "lhr"]),
            (Some("us, eu"), &["iad", "fra", "lhr"]),
            (Some("nowhere,lhr,any"), &["lhr", "fra", "iad"]),
        ] {
            assert_eq!(regions.resolve(expression).unwrap(), expected, "{expression:?}");
        }
        let error = regions.resolve(Some("nowhere")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unprocessable);
        assert!(!error.code.is_retryable());
        assert!(error.message.contains("nowhere") && error.message.contains("iad"), "{error}");
    }
}
