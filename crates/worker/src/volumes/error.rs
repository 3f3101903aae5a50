//! What clients are told of errors of `caddis_volume`.

use caddis_api::{ApiError, ErrorCode, MachineId, VolumeId, volume::VolumeState};
use caddis_volume::VolumeError;

use super::row::VolumeRow;

/// What clients are told.
pub fn volume_error(error: VolumeError) -> ApiError {
    use VolumeError as E;
    let code = match &error {
        E::NotFound(_) => ErrorCode::NotFound,
        E::InvalidId(_) | E::InvalidSize(_) | E::CannotShrink { .. } => ErrorCode::InvalidArgument,
        E::InUse { .. }
        | E::Deleted(_)
        | E::NotDeleted(_)
        | E::Restoring(_)
        | E::Exists(_)
        | E::Damaged { .. }
        | E::OtherKey { .. }
        | E::KeyDamaged(_) => return ApiError::precondition(error),
        E::LimitReached { .. } => ErrorCode::InsufficientCapacity,
        E::NoSpace { .. } => ErrorCode::DiskFull,
        E::Interrupted(_) | E::Backing { .. } => ErrorCode::Unavailable,
        E::InvalidDirectory(_) | E::StoreInUse(_) | E::Program { .. } | E::Io { .. } => {
            return ApiError::internal(error);
        }
    };
    ApiError::new(code, error.to_string())
}

/// There is no such volume here, or it is another app's.
pub(super) fn not_found(volume: &VolumeId) -> ApiError {
    ApiError::new(ErrorCode::NotFound, format!("volume {volume} not found"))
}

/// A machine has it.
pub(super) fn in_use(volume: &VolumeId, machine: &MachineId, what_to_do: &str) -> ApiError {
    let text = format!("volume {volume} is in use by machine {machine}{what_to_do}");
    ApiError::precondition(text)
}

/// Why a volume in this state can't be used or changed, if it is not `created`.
pub(super) fn check_created(row: &VolumeRow) -> Result<(), ApiError> {
    let id = &row.id;
    let text = match row.state {
        VolumeState::Created | VolumeState::Hydrating => return Ok(()),
        VolumeState::Creating | VolumeState::Restoring => {
            format!("volume {id} is being created: try again when it is created")
        }
        VolumeState::Extending => {
            format!("volume {id} is being extended: try again when it is created")
        }
        VolumeState::Failed => return Err(failed(row)),
        VolumeState::PendingDestroy => format!("volume {id} is deleted: undelete it first"),
        VolumeState::Destroyed => return Err(not_found(id)),
    };
    Err(ApiError::precondition(text))
}

/// It could not be made, or is damaged.
pub(super) fn failed(row: &VolumeRow) -> ApiError {
    let reason = row.failure.as_ref().and_then(|failure| failure.error.as_deref());
    let reason = reason.unwrap_or("it could not be created");
    ApiError::precondition(format!("volume {} has failed: {reason}", row.id))
}
