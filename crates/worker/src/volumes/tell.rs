//! Telling of volumes where their users look: among the events of the machine that has them.

use caddis_api::VolumeId;
use serde_json::{Value, json};

use crate::{engine::Shared, owner::Message};

impl Shared {
    /// Has an event of the machine that has a volume, if one runs with it, tell of something,
    /// unless it was the last that was told.
    pub(super) async fn tell_machine_of(
        &self,
        volume: &VolumeId,
        message: String,
        mut details: Value,
    ) {
        let Some(attached) = self.volumes.attached(volume) else { return };
        if !self.volumes.is_news(volume, &message) {
            return;
        }
        tracing::info!(%volume, machine = %attached.machine, message, "told of a volume");
        details["message"] = json!(message);
        if let Some(owner) = self.owner(&attached.machine) {
            // One that is gone has no events any more.
            let _ = owner.send(Message::Note { kind: "volume", details }).await;
        }
    }
}
