//! What follows the machines of an app is told, line by line.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Machine, MachineId};

/// One line of `GET /v1/apps/{app}/machines/watch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MachinesUpdate {
    /// Start of a snapshot, which replaces what came before: this many machines follow, a line
    /// each.
    Snapshot {
        /// How many lines with a machine belong to it.
        machines: u64,
    },
    /// A machine that is new or has changed, as it is now.
    Machine(Box<Machine>),
    /// A machine that was destroyed.
    Removed(MachineId),
}
