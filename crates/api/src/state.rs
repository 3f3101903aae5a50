//! States of a machine.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// State of a machine, or of one of its versions.
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
            ToSchema,
        )]
        #[serde(rename_all = "snake_case")]
        pub enum MachineState { $($(#[$doc])* $name),+ }

        impl MachineState {
            /// Every state there is.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

states! {
    /// Accepted, not yet placed.
    Pending = "pending",
    /// Image and root disk are being prepared.
    Creating = "creating",
    /// Prepared, never booted.
    Created = "created",
    /// Booting or resuming.
    Starting = "starting",
    /// Running.
    Started = "started",
    /// Shutting down.
    Stopping = "stopping",
    /// Not running.
    Stopped = "stopped",
    /// Writing its snapshot.
    Suspending = "suspending",
    /// Its snapshot is on disk.
    Suspended = "suspended",
    /// Stopping in order to start again.
    Restarting = "restarting",
    /// Moving to a new version.
    Updating = "updating",
    /// A new version was requested.
    Replacing = "replacing",
    /// Could not be started; may be started again, stopped or destroyed.
    Failed = "failed",
    /// The first launch failed.
    LaunchFailed = "launch_failed",
    /// Being removed.
    Destroying = "destroying",
    /// Gone.
    Destroyed = "destroyed",
    /// Of versions only: a newer one exists.
    Replaced = "replaced",
    /// Of placements only: the machine lives elsewhere now.
    Migrated = "migrated",
}

impl MachineState {
    /// Whether no transition is in progress: what `wait?state=settled` waits for.
    pub fn is_settled(self) -> bool {
        matches!(
            self,
            Self::Created
                | Self::Started
                | Self::Stopped
                | Self::Suspended
                | Self::Failed
                | Self::Destroyed
        )
    }
}

impl fmt::Display for MachineState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown machine state '{0}'")]
pub struct UnknownState(pub String);

impl FromStr for MachineState {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_serde() {
        for state in MachineState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(state.as_str().parse::<MachineState>().unwrap(), *state);
        }
    }
}
