//! Gets templates: reads them from disk, or boots a VM and saves it.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde_json::json;
use tokio::task::spawn_blocking;

use super::{DEFAULT_SHAPE, Found, Sealed, file, key};
use crate::qemu::{
    Driver, arguments,
    disks::Backing,
    launch::{Launch, QMP_SOCKET, Source},
    panicked,
    qmp::Qmp,
    unassigned::{self, BUILDING, UnassignedVm},
    warm_up::{Part, warm_up, warm_up_disk},
};
use crate::{Shape, Slot, Start, VmmError, boot::BootFiles};

/// How long a start waits for a template that is being read from disk, 0.4 s on a host that does
/// nothing else; more than a boot takes would be in vain.
const READING: Duration = Duration::from_secs(20);
/// How long a template may take to boot on a busy host.
const TIMEOUT: Duration = Duration::from_secs(120);
/// What stands in a template for what each machine has of its own.
const NAME: &str = "template";
pub(in crate::qemu) const MAC: &str = "02:00:00:00:00:01";
/// Weight of VMs that nobody waits for against those that people do; 100 is theirs.
const CPU_WEIGHT: u32 = 50;

impl Driver {
    /// The template to start a machine of this shape from; why not while there is none, and then it
    /// is being got.
    pub(in crate::qemu) fn template(self: &Arc<Self>, shape: Shape) -> Result<Arc<Sealed>, String> {
        match self.templates.find(shape) {
            Found::Ready(sealed) => return Ok(sealed),
            Found::Failed(reason) => return Err(reason),
            Found::Reading => return Err("its template was still being read from disk".to_owned()),
            Found::Building => {}
            Found::Missing => {
                self.tasks.spawn(self.clone().get(shape));
            }
        }
        Err("no template of this shape yet".to_owned())
    }

    /// As [`Self::template`], but one that is on disk is waited for: after a restart of the server,
    /// or of the host, many starts come before any template was read.
    pub(in crate::qemu) async fn template_from_disk(
        self: &Arc<Self>,
        shape: Shape,
    ) -> Result<Arc<Sealed>, String> {
        let template = self.template(shape);
        if template.is_ok() {
            return template;
        }
        self.templates.until_read(shape, READING).await;
        self.template(shape)
    }

    /// Names all that the saved state of such a VM depends on.
    pub(in crate::qemu) fn key(&self, shape: Shape, kernel_args: &[String]) -> String {
        let BootFiles { kernel, initrd, modules, .. } = &self.config.boot;
        let arguments = arguments::arguments(&arguments::Shape {
            name: NAME,
            accelerator: self.config.accelerator,
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            boots: true,
            waits: false,
            disks: self.disk_arguments(false, None),
            mac: MAC,
            has_tap: true,
            tsc_khz: self.tsc_khz,
            kernel_args,
        });
        let file =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let modules = modules.as_ref().map(|disk| file(disk.path())).unwrap_or_default();
        // The names of these files are digests of their contents, or those of one file ever.
        key(&[
            &self.version,
            &self.processor,
            &arguments.join(" "),
            &file(kernel),
            &file(initrd),
            &modules,
        ])
    }

    fn building<'a>(
        &'a self,
        shape: Shape,
        slot: &'a Slot,
        directory: &'a Path,
        (disk, memory): (&'a OwnedFd, &'a OwnedFd),
    ) -> Launch<'a> {
        Launch {
            driver: self,
            name: NAME,
            directory,
            slot,
            shape,
            cpu_weight: CPU_WEIGHT,
            disks: Backing::WarmUp(disk),
            volumes: &[],
            volume_limits: None,
            modules: None,
            tap: None,
            mac: MAC,
            kernel_args: &[],
            source: Source::Cold(memory),
            kind: Start::cold("builds a template"),
        }
    }

    async fn get(self: Arc<Self>, shape: Shape) {
        // In a task of its own: should it panic, it is settled all the same.
        let this = self.clone();
        let result = tokio::spawn(async move { this.read_or_build(shape).await }).await;
        let result = result
            .map_err(|error| error.to_string())
            .and_then(|result| result.map_err(|e| e.to_string()));
        match result {
            Ok((key, sealed)) => {
                self.templates.settle(shape, &key, Ok(sealed));
                self.look_at_pool();
            }
            Err(_) if self.ending.is_cancelled() => {}
            Err(error) => self.templates.settle(shape, "", Err(error)),
        }
    }

    async fn read_or_build(self: &Arc<Self>, shape: Shape) -> Result<(String, Sealed), VmmError> {
        let key = self.key(shape, &[]);
        if let Some(sealed) = self.read(shape, &key).await? {
            return Ok((key, sealed));
        }
        self.templates.build(shape);
        // One after the other: they are made in the background, beside what people wait for.
        let _turn = self.turns.acquire().await;
        if self.ending.is_cancelled() {
            return Err(unassigned::called_off());
        }
        let directory = self.templates.directory().join(format!("{BUILDING}{key}"));
        let built = self.build(shape, self.config.slots.lease()?, &directory).await;
        let (this, name) = (self.clone(), key.clone());
        let keep = move || {
            let sealed = built?;
            this.templates.keep(shape, &name, &sealed);
            Ok(sealed)
        };
        spawn_blocking(keep).await.map_err(panicked)?.map(|sealed| (key, sealed))
    }

    /// Reads it from disk. Starts wait for that, so not behind one that is being built.
    async fn read(self: &Arc<Self>, shape: Shape, key: &str) -> Result<Option<Sealed>, VmmError> {
        let (this, name) = (self.clone(), key.to_owned());
        let there = spawn_blocking(move || this.templates.is_on_disk(shape, &name));
        if !there.await.map_err(panicked)? {
            return Ok(None);
        }
        let _turn = self.reads.acquire().await;
        if self.ending.is_cancelled() {
            return Err(unassigned::called_off());
        }
        let (this, name) = (self.clone(), key.to_owned());
        spawn_blocking(move || this.templates.read(shape, &name)).await.map_err(panicked)
    }

    async fn build(
        self: &Arc<Self>,
        shape: Shape,
        slot: Slot,
        directory: &Path,
    ) -> Result<Sealed, VmmError> {
        let failed = |error| VmmError::io("build a template")(error);
        let (this, path) = (self.clone(), directory.to_owned());
        let builder = move || {
            unassigned::directory(&path)?;
            let memory = file::memory("caddis-template", shape.memory_mib << 20)?;
            let tap = (this.config.tap.0)(&slot.tap_name())?;
            let disk = warm_up_disk(&this.config.boot.warm_up_disk)?;
            let mut launch = this.building(shape, &slot, &path, (&disk, &memory));
            launch.tap = Some(tap.as_fd());
            let running = launch.run().map_err(io::Error::other)?;
            Ok(Builder {
                vm: UnassignedVm { running: Some(running), tap: Some(tap), slot, directory: path },
                memory,
            })
        };
        let builder = spawn_blocking(builder).await.map_err(panicked)?.map_err(failed)?;
        let waits =
            self.ending.run_until_cancelled(warm_up(&builder.vm, Part::Files, TIMEOUT)).await;
        // Ending it, where it does not wait, blocks too.
        let save = move || {
            waits.unwrap_or_else(|| Err(unassigned::called_off()))?;
            builder.save().map_err(failed)
        };
        spawn_blocking(save).await.map_err(panicked)?
    }

    /// Gets templates again that could not be built or restored, each after its wait, until the
    /// driver ends.
    pub(in crate::qemu) async fn retry_failed(self: Arc<Self>) {
        let mut changes = self.templates.changes();
        loop {
            let next = self.templates.next_retry();
            let due = async {
                match next {
                    Some((_, at)) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.ending.cancelled() => return,
                _ = changes.changed() => {}
                () = due => {
                    // It is being got now; the outcome is a change.
                    let _ = next.map(|(shape, _)| self.template(shape));
                }
            }
        }
    }

    /// Gets the templates that are likely to be wanted: of the usual shape, and those that were
    /// used before.
    pub(in crate::qemu) async fn get_usual(self: Arc<Self>) {
        // It is wanted later; why it may be missing, who wants it then is told.
        let _ = self.template(DEFAULT_SHAPE);
        let this = self.clone();
        let known = spawn_blocking(move || this.templates.on_disk(|shape| this.key(shape, &[])));
        for shape in known.await.unwrap_or_default() {
            let _ = self.template(shape);
        }
    }
}

/// A VM that is to become a template.
struct Builder {
    vm: UnassignedVm,
    memory: OwnedFd,
}

impl Builder {
    /// Saves its state, ends it, and seals its memory.
    fn save(self) -> io::Result<Sealed> {
        let state = file::memory("caddis-template-state", 0)?;
        let gone = || io::Error::other("there is no VM to save");
        let process = &self.vm.running.as_ref().ok_or_else(gone)?.process;
        let mut qmp = Qmp::connect(process, &self.vm.directory, QMP_SOCKET)?;
        qmp.leave_out_shared_memory()?;
        qmp.execute("stop", json!({}))?;
        qmp.save(state.as_fd())?;
        qmp.migrated()?;
        let memory = self.memory.try_clone()?;
        // Nobody may have it mapped when it is sealed.
        drop(self);
        file::seal(&memory)?;
        file::seal(&state)?;
        Ok(Sealed { memory, state })
    }
}
