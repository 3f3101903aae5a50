//! Why a machine gave no response.

use caddis_api::MachineId;

use crate::{ErrorCode, app::Candidate, error::Failure, pool::UpstreamError};

/// The connection was closed before anything of a request was written.
pub(super) fn unsent_to(candidate: &Candidate) -> Failure {
    let id = &candidate.machine.id;
    let text = format!("machine {id} closed its connection before the request was sent");
    Failure::of(id, ErrorCode::PU02, text)
}

/// A request was sent, or begun, and no response came.
pub(super) fn broken(candidate: &Candidate, error: &UpstreamError) -> Failure {
    let id = &candidate.machine.id;
    // What the library says then is about itself.
    let text = if error.is_cut() {
        format!("machine {id} gave no response to the request before its connection was cut")
    } else if error.is_invalid() {
        format!("machine {id} sent an invalid response: {error}")
    } else {
        format!("machine {id} gave no response to the request: {error}")
    };
    Failure::of(id, ErrorCode::PU02, text)
}

/// The client sent the request's body so slowly that it was given up.
pub(super) fn too_slow(id: &MachineId) -> Failure {
    let text = format!("the client sent the body of its request to machine {id} too slowly");
    Failure::of(id, ErrorCode::PC04, text)
}
