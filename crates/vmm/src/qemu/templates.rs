//! Gets templates: reads them from disk, or boots a VM and saves it.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use caddis_guest_protocol::{
    GuestState,
    host::{AgentStream, Connector, GuestEvent, Session},
};
use serde_json::json;
use tokio::task::spawn_blocking;

use super::{
    Driver, find,
    launch::{CONTROL_SOCKET, Launch, QMP_SOCKET, Running, Source, clear, end},
    panicked,
};
use crate::{
    Slot, StartKind, VmmError,
    boot::BootFiles,
    qmp::Qmp,
    socket,
    template::{Found, Sealed, Shape, USUAL, file, key},
};

/// How long a template may take to boot on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);
/// What stands in a template for what each machine has of its own.
const NAME: &str = "template";
const MAC: &str = "02:00:00:00:00:01";
/// Directories of templates in the making begin so.
const BUILDING: &str = "building-";
/// Weight against VMs that people wait for; 100 is theirs.
const CPU_WEIGHT: u32 = 50;

impl Driver {
    /// The template to start a machine of this shape from; none while there is none, and then it is being got.
    pub(super) fn template(self: &Arc<Self>, shape: Shape) -> Option<Arc<Sealed>> {
        match self.templates.find(shape) {
            Found::Ready(sealed) => Some(sealed),
            Found::Coming => None,
            Found::Missing => {
                tokio::spawn(self.clone().get(shape));
                None
            }
        }
    }

    /// Names the template of a shape.
    pub(super) fn key(&self, shape: Shape, slot: &Slot) -> String {
        let launch = self.building(shape, slot, Path::new(""), Source::Cold);
        let file = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let BootFiles { kernel, initrd, .. } = &self.config.boot;
        let arguments = launch.arguments().join(" ");
        // The names of these files are digests of their contents.
        key(&[&self.version, &self.processor, &arguments, &file(kernel), &file(initrd)])
    }

    fn building<'a>(&'a self, shape: Shape, slot: &'a Slot, directory: &'a Path, source: Source<'a>) -> Launch<'a> {
        Launch {
            driver: self,
            name: NAME,
            directory,
            slot,
            shape,
            cpu_weight: CPU_WEIGHT,
            disk: None,
            tap: None,
            mac: MAC,
            kernel_args: &[],
            source,
            kind: StartKind::Cold { reason: "builds a template".to_owned() },
        }
    }

    async fn get(self: Arc<Self>, shape: Shape) {
        // In a task of its own: were this one dropped, nobody would ever settle it.
        let this = self.clone();
        let result = tokio::spawn(async move { this.read_or_build(shape).await }).await;
        let result = result.map_err(|error| error.to_string()).and_then(|result| result.map_err(|e| e.to_string()));
        match result {
            Ok((key, sealed)) => self.templates.settle(shape, &key, Ok(sealed)),
            Err(error) => self.templates.settle(shape, "", Err(error)),
        }
    }

    async fn read_or_build(self: &Arc<Self>, shape: Shape) -> Result<(String, Sealed), VmmError> {
        // One after the other: they are made in the background, beside what people wait for.
        let _turn = self.turns.acquire().await;
        let slot = self.config.slots.lease()?;
        let key = self.key(shape, &slot);
        let (this, name) = (self.clone(), key.clone());
        let read = spawn_blocking(move || this.templates.read(shape, &name)).await.map_err(panicked)?;
        if let Some(sealed) = read {
            return Ok((key, sealed));
        }
        let directory = self.templates.directory().join(format!("{BUILDING}{key}"));
        let built = self.build(shape, slot, &directory).await;
        let (this, name) = (self.clone(), key.clone());
        let keep = move || {
            let sealed = built?;
            this.templates.keep(shape, &name, &sealed);
            Ok(sealed)
        };
        let sealed = spawn_blocking(keep).await.map_err(panicked)?;
        remove(&directory);
        sealed.map(|sealed| (key, sealed))
    }

    async fn build(self: &Arc<Self>, shape: Shape, slot: Slot, directory: &Path) -> Result<Sealed, VmmError> {
        let failed = |error| VmmError::io("build a template")(error);
        let (this, path) = (self.clone(), directory.to_owned());
        let builder = move || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            let memory = file::memory("caddis-template", shape.memory_mib << 20)?;
            let tap = (this.config.tap)(&slot.tap_name())?;
            let mut launch = this.building(shape, &slot, &path, Source::Building(&memory));
            launch.tap = Some(tap.as_fd());
            let running = launch.run().map_err(io::Error::other)?;
            Ok(Builder { running, slot, memory, directory: path })
        };
        let builder = spawn_blocking(builder).await.map_err(panicked)?.map_err(failed)?;
        builder.ready().await?;
        spawn_blocking(move || builder.save()).await.map_err(panicked)?.map_err(failed)
    }

    /// Gets the templates that are likely to be wanted: of the usual shape, and those that were used before.
    pub(super) async fn get_usual(self: Arc<Self>) {
        self.template(USUAL);
        let this = self.clone();
        let known = spawn_blocking(move || {
            let slot = this.config.slots.lease().ok()?;
            Some(this.templates.on_disk(|shape| this.key(shape, &slot)))
        });
        for shape in known.await.ok().flatten().unwrap_or_default() {
            self.template(shape);
        }
    }
}

/// A VM that is to become a template. Dropped, it is gone with all it had.
struct Builder {
    running: Running,
    slot: Slot,
    memory: std::os::fd::OwnedFd,
    directory: PathBuf,
}

impl Drop for Builder {
    fn drop(&mut self) {
        end(&self.running.process);
        clear(&self.directory, self.slot.cgroups(), &self.slot.cgroup_name());
    }
}

struct Control(PathBuf);

#[async_trait]
impl Connector for Control {
    async fn connect(&self) -> io::Result<Box<dyn AgentStream>> {
        Ok(Box::new(socket::connect(&self.0, CONTROL_SOCKET).await.map_err(io::Error::other)?))
    }
}

impl Builder {
    /// Waits until init waits for its configuration.
    async fn ready(&self) -> Result<(), VmmError> {
        let (session, mut events) = Session::open(Arc::new(Control(self.directory.clone())), 0);
        let watch = self.running.process.watch().map_err(VmmError::io("watch a template in the making"))?;
        let welcome = async {
            while let Some(event) = events.recv().await {
                if matches!(event, GuestEvent::Welcome { status: GuestState::Waiting, .. }) {
                    return;
                }
            }
        };
        let ready = tokio::select! {
            () = welcome => Ok(()),
            _ = watch.ended() => Err(self.said("it ended")),
            () = tokio::time::sleep(PATIENCE) => Err(self.said("its init did not answer in time")),
        };
        session.close();
        ready.map_err(|message| VmmError::DiedAtStart { message })
    }

    fn said(&self, what: &str) -> String {
        let tail = |capture: &Option<crate::capture::Capture>| capture.as_ref().map(|c| c.tail()).unwrap_or_default();
        format!("{what} {} {}", tail(&self.running.output), tail(&self.running.console)).trim().to_owned()
    }

    /// Saves its state, ends it, and seals its memory.
    fn save(self) -> io::Result<Sealed> {
        let state = file::memory("caddis-template-state", 0)?;
        let mut qmp = Qmp::connect(&self.directory, QMP_SOCKET)?;
        qmp.leave_out_shared_memory()?;
        qmp.execute("stop", json!({}))?;
        qmp.give("state", state.as_fd())?;
        qmp.execute("migrate", json!({ "uri": "fd:state" }))?;
        qmp.migrated()?;
        let memory = self.memory.try_clone()?;
        // Nobody may have it mapped when it is sealed.
        drop(self);
        file::seal(&memory)?;
        file::seal(&state)?;
        Ok(Sealed { memory, state })
    }
}

/// Ends VMs that are no machine's: templates that a server which was killed has left in the making. Blocks.
pub fn end_unbound(directory: &Path, slots: &crate::SlotPool) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(BUILDING) {
            continue;
        }
        match find(&entry.path(), slots, NAME) {
            Ok(Some((running, slot))) => {
                end(&running.process);
                clear(&entry.path(), slot.cgroups(), &slot.cgroup_name());
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "can't end a template in the making"),
        }
        remove(&entry.path());
    }
}

fn remove(directory: &Path) {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(directory = %directory.display(), %error, "can't remove the directory of a template");
        }
        _ => {}
    }
}
