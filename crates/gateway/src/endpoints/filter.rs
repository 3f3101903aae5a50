//! Which machines a list is to have.

use caddis_api::{ApiError, MachineState, RegionCode};
use caddis_view::CachedMachine;
use utoipa::IntoParams;

use crate::http::query::Params;

/// Which machines are wanted.
pub(crate) struct Filter {
    deleted: bool,
    region: Option<RegionCode>,
    states: Vec<MachineState>,
    metadata: Vec<(String, String)>,
}

/// What [`Filter::read`] reads, and `summary`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters")]
pub(crate) struct FilterParams {
    /// Include destroyed machines.
    include_deleted: Option<bool>,
    /// Only machines in this region.
    region: Option<String>,
    /// Only machines in this state, or in one of several, comma-separated.
    state: Option<String>,
    /// Only machines with this metadata value.
    #[param(rename = "metadata.{key}")]
    metadata: Option<String>,
    /// Leave out configuration and events.
    summary: Option<bool>,
}

impl Filter {
    /// Reads `include_deleted`, `region`, `state` and `metadata.*`.
    pub fn read(params: &Params) -> Result<Self, ApiError> {
        let words = params.all("state").flat_map(|value| value.split(',')).map(str::trim);
        let states = words.filter(|word| !word.is_empty()).map(|word| {
            word.parse().map_err(|e| ApiError::invalid(format!("invalid parameter state: {e}")))
        });
        let metadata = params
            .0
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("metadata.")?, value)));
        Ok(Self {
            deleted: params.flag("include_deleted")?,
            region: params.get("region").map(RegionCode::from_trusted),
            states: states.collect::<Result<_, ApiError>>()?,
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        })
    }

    /// Whether a machine is wanted.
    pub fn accepts(&self, shown: &CachedMachine) -> bool {
        let machine = &shown.record.machine;
        let metadata = |key: &str| machine.config.as_ref()?.metadata(key);
        (self.deleted || !is_gone(machine.state) || self.states.contains(&machine.state))
            && self.region.as_ref().is_none_or(|region| *region == machine.region)
            && (self.states.is_empty() || self.states.contains(&machine.state))
            && self.metadata.iter().all(|(key, value)| metadata(key).as_ref() == Some(value))
    }
}

/// Whether lists leave it out unless asked.
pub(crate) fn is_gone(state: MachineState) -> bool {
    state == MachineState::Destroyed
}
