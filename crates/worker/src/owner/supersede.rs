//! The end of a copy: the machine was placed on another host since, as after a move that this host has missed.

use caddis_api::{ApiError, Signal};
use caddis_bus::message::{WorkerReply, WorkerResult};
use serde_json::json;

use super::Owner;
use crate::{event::Source, operation::Stop, policy::Request, store::Durability};

impl Owner {
    /// Stops this copy, for good. Its files stay: who moved the machine may need them.
    pub(super) async fn supersede(&mut self, epoch: u64) -> WorkerResult {
        if epoch <= self.row.placement_epoch {
            return Ok(WorkerReply::Done { record: self.status() });
        }
        if self.row.superseded_by.is_none_or(|known| known < epoch) {
            tracing::warn!(machine = %self.row.id, epoch, "the machine was placed on another host: this copy stops");
            self.try_change(Durability::Synced, |draft| {
                draft.row.superseded_by = Some(epoch);
                draft.row.drained = false;
                draft.row.next = None;
                let told = json!({
                    "placement_epoch": epoch,
                    "message": "the machine was placed on another host since: this copy stops and is not started again",
                });
                draft.event(Source::Worker, "supersede", draft.row.state, told);
            })
            .await?;
        }
        // Also when it is told again: the stop may have been cut short. What it would still write elsewhere must not be
        // written twice, so it is not asked for its consent.
        let kill = Stop { signal: Signal::KILL, timeout_ms: 0, is_default: false };
        self.request(Request::Stop, Some(kill)).await?;
        Ok(WorkerReply::Done { record: self.status() })
    }

    /// Why a request is refused that would have a copy run whose machine is elsewhere.
    pub(super) fn refuse_superseded(&self, request: Request) -> Option<ApiError> {
        let epoch = self.row.superseded_by?;
        let may_be_done = matches!(request, Request::Stop | Request::Signal | Request::Destroy { .. });
        (!may_be_done).then(|| {
            let text =
                format!("the machine was placed on another host since (placement {epoch}), this copy is not run");
            ApiError::precondition(text)
        })
    }
}
