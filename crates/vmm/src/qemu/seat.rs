//! Where a VM is launched: a slot of its own, or that of a warm VM, which becomes the machine's.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Driver, QemuVm, launch::Running, panicked, pause::AFTER_START, pool::WarmVm};
use crate::{LaunchSpec, Seat, Slot, Vm, VmmError};

pub(super) struct QemuSeat {
    driver: Arc<Driver>,
    spec: LaunchSpec,
    /// What runs there, with its tap. Gone before the slot is given back.
    warm: Option<WarmVm>,
    slot: Slot,
}

impl QemuSeat {
    /// That of a warm VM, if one fits.
    pub(super) fn new(driver: Arc<Driver>, spec: LaunchSpec) -> Result<Self, VmmError> {
        let fits = spec.saved.is_none() && spec.kernel_args.is_empty() && !spec.not_warm;
        let warm = if fits { driver.pool.acquire(spec.shape()) } else { None };
        let slot = match &warm {
            Some(warm) => warm.slot().clone(),
            None => driver.config.slots.lease()?,
        };
        Ok(Self { driver, spec, warm, slot })
    }

    /// Blocks.
    fn start(&mut self, mut tap: Option<OwnedFd>) -> Result<Running, VmmError> {
        if let Some(mut warm) = self.warm.take() {
            // Held until there is another VM, should it come to that: the slot's tap is connected
            // already.
            tap = warm.take_tap();
            match warm.assign(&self.spec) {
                Ok(running) => return Ok(running),
                // No other VM can have it either.
                Err(error @ VmmError::InvalidDisk { .. }) => return Err(error),
                Err(error) => {
                    let machine = &self.spec.machine_id;
                    warn!(machine, %error, "can't use a warm VM for the machine");
                }
            }
        }
        self.driver.start(&self.spec, &self.slot, tap.as_ref().map(|tap| tap.as_fd()))
    }
}

#[async_trait]
impl Seat for QemuSeat {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn has_tap(&self) -> bool {
        self.warm.is_some()
    }

    async fn launch(mut self: Box<Self>, tap: Option<OwnedFd>) -> Result<Arc<dyn Vm>, VmmError> {
        let launched = spawn_blocking(move || {
            let running = self.start(tap)?;
            Ok((running, self.spec.directory, self.slot))
        });
        let (running, directory, slot) = launched.await.map_err(panicked)??;
        QemuVm::watch(running, directory, slot, AFTER_START)
    }
}
