//! Where a VM is launched: a slot of its own, or that of a warm VM, which becomes the machine's.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, mpsc},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::task::spawn_blocking;
use tracing::warn;

use super::{Driver, QemuVm, launch::Running, panicked, pause::AFTER_START, pool::WarmVm};
use crate::{LaunchSpec, Seat, Slot, Vm, VmmError};

pub(super) struct QemuSeat {
    driver: Arc<Driver>,
    spec: Arc<LaunchSpec>,
    warm: Option<Attaching>,
    /// That of a warm VM.
    tap: Option<OwnedFd>,
    slot: Slot,
}

/// A warm VM that is being given the machine's disks, while its network is connected. Dropped, it
/// is gone, before the slot is given back.
struct Attaching(Mutex<mpsc::Receiver<Result<WarmVm, VmmError>>>);

impl Attaching {
    fn begin(warm: WarmVm, spec: Arc<LaunchSpec>) -> Self {
        let (sender, attached) = mpsc::sync_channel(1);
        spawn_blocking(move || {
            let attached = warm.attach(&spec);
            // No copy of a volume's descriptor is left when a launch is over.
            drop(spec);
            // Where nobody waits for it any more it is gone.
            drop(sender.send(attached));
        });
        Self(Mutex::new(attached))
    }

    /// Blocks.
    fn done(mut self) -> Result<WarmVm, VmmError> {
        let gone = |_| VmmError::io("attach disks to a warm VM")(std::io::ErrorKind::Other.into());
        self.0.get_mut().recv().map_err(gone)?
    }
}

impl Drop for Attaching {
    fn drop(&mut self) {
        // Nothing comes any more where it was taken.
        drop(self.0.get_mut().recv());
    }
}

impl QemuSeat {
    /// That of a warm VM, if one fits.
    pub(super) fn new(driver: Arc<Driver>, spec: LaunchSpec) -> Result<Self, VmmError> {
        let fits = spec.saved.is_none() && spec.kernel_args.is_empty() && !spec.not_warm;
        let with_volumes = !spec.volumes.is_empty();
        let warm = if fits { driver.pool.acquire(spec.shape(), with_volumes) } else { None };
        let spec = Arc::new(spec);
        let Some(mut warm) = warm else {
            let slot = driver.config.slots.lease()?;
            return Ok(Self { driver, spec, warm: None, tap: None, slot });
        };
        // Held until there is another VM, should it come to that: the slot's tap is connected
        // already then.
        let (slot, tap) = (warm.slot().clone(), warm.take_tap());
        let warm = Some(Attaching::begin(warm, spec.clone()));
        Ok(Self { driver, spec, warm, tap, slot })
    }

    /// Blocks.
    fn start(&mut self, tap: Option<OwnedFd>) -> Result<Running, VmmError> {
        let tap = self.tap.take().or(tap);
        if let Some(attaching) = self.warm.take() {
            match attaching.done().and_then(|warm| warm.assign(&self.spec)) {
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
            Ok((running, self.spec.directory.clone(), self.slot.clone()))
        });
        let (running, directory, slot) = launched.await.map_err(panicked)??;
        QemuVm::watch(running, directory, slot, AFTER_START)
    }
}
