//! Tells who looks for a host what this one has room for.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use caddis_bus::{
    Handler,
    message::{Offer, Question, decode, encode},
};

use crate::{capacity::Room, engine::Shared};

/// Serves the region's subject.
pub struct QuestionHandler {
    shared: Arc<Shared>,
}

impl QuestionHandler {
    /// A handler for questions to all workers of the region.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl Handler for QuestionHandler {
    async fn handle(&self, request: Bytes) -> Bytes {
        let Ok(Question::Place { cpus, memory_mib, disk_gib, volume_gib, image }) =
            decode("region", &request)
        else {
            return Bytes::new();
        };
        let shared = &self.shared;
        let free = shared.capacity.free();
        let wanted = Room { cpus, memory_mib, disk_gib };
        let drains = shared.check_not_draining().is_err();
        let volume_room = shared.volumes.room_for(volume_gib);
        let volume_shortage = || {
            let free = volume_room?.err()?;
            Some(format!(
                "{volume_gib} GiB for volumes needed, {free} free; deleted ones count for a day, \
                 or until they are purged"
            ))
        };
        let shortage = shared.capacity.shortage(free, wanted).or_else(volume_shortage);
        let fits = shortage.is_none() && !drains;
        // What is left of it afterwards; of what does not fit nothing is taken.
        let left = if fits { free.minus(wanted) } else { free };
        let free_volume_gib = match volume_room {
            Some(Ok(left)) if !fits => Some(left + volume_gib),
            room => room.map(|room| room.unwrap_or_else(|free| free)),
        };
        encode(&Offer {
            worker: shared.worker.clone(),
            fits,
            drains,
            shortage,
            free_memory_mib: left.memory_mib,
            free_cpus: left.cpus,
            free_disk_gib: left.disk_gib,
            free_volume_gib,
            has_image: shared.images.knows(&image),
        })
    }
}
