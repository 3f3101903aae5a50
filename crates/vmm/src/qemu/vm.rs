//! A running VM process of a machine.

use std::{
    any::Any,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{sync::watch, task::spawn_blocking};

use super::{
    exit::Watched,
    launch::{CONTROL_SOCKET, QMP_SOCKET, Running, end},
    panicked,
    pause::{Listener, Orders, Turn},
    qmp::Qmp,
    snapshot, suspend, volumes,
};
use crate::{
    AgentStream, BegunSnapshot, Hydration, Pause, PointInTime, PreparedSnapshot, Slot, Start,
    StartKind, Vm, VmExit, VmmError, VolumeExport, process::Process, record::Saving, socket,
};

/// How long a VM process that is killed may take to write what its guest has written to volumes:
/// it keeps some of where that lies in its own memory.
const CLOSING: Duration = Duration::from_secs(5);

pub(super) struct QemuVm {
    process: Arc<Process>,
    slot: Slot,
    directory: PathBuf,
    killed: Arc<AtomicBool>,
    exit: watch::Receiver<Option<VmExit>>,
    start: Start,
    steps: Vec<(&'static str, Duration)>,
    /// What saving it takes.
    saving: Option<Saving>,
    has_volumes: bool,
    /// One at a time tells QEMU anything.
    orders: Arc<Orders>,
    pause: watch::Receiver<Option<Pause>>,
    _listener: Listener,
}

impl QemuVm {
    /// Begins to watch a process, and from `after` on how it stands with its disk.
    pub(super) fn watch(
        running: Running,
        directory: PathBuf,
        slot: Slot,
        after: Duration,
    ) -> Result<Arc<dyn Vm>, VmmError> {
        let Running { process, output, console, kind: start, steps, saving, has_volumes } = running;
        let process = Arc::new(process);
        let watcher = process.watch().map_err(|error| {
            // Nobody would know of it any more.
            end(&process);
            VmmError::io(format!("watch the VM process {}", process.id.pid))(error)
        })?;
        let (sender, exit) = watch::channel(None);
        let killed = Arc::new(AtomicBool::new(false));
        let captures = Mutex::new(Some((output, console)));
        let resumed = start.kind == StartKind::Resume;
        let watched = Watched {
            directory: directory.clone(),
            slot: slot.clone(),
            killed: killed.clone(),
            resumed,
            captures,
        };
        tokio::spawn(async move { sender.send_replace(Some(watched.ended(watcher).await)) });
        let orders = Orders::new();
        let (listener, pause) =
            Listener::begin(process.clone(), directory.clone(), orders.clone(), after);
        Ok(Arc::new(Self {
            process,
            slot,
            directory,
            killed,
            exit,
            start,
            steps,
            saving,
            has_volumes,
            orders,
            pause,
            _listener: listener,
        }))
    }
}

impl QemuVm {
    /// Tells QEMU something, when nobody else does. Once begun it is done whoever waits for it.
    async fn tell<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Qmp, &Path) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<T, VmmError> {
        self.open_line(work).await.map(|(told, _)| told)
    }

    /// The same, and nobody else can until the line is dropped.
    async fn open_line<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Qmp, &Path) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<(T, Line), VmmError> {
        let (directory, process) = (self.directory.clone(), self.process.clone());
        let turn = self.orders.turn().await;
        let telling = spawn_blocking(move || {
            // Dropped after the connection.
            let turn = turn;
            let mut qmp = Qmp::connect(&process, &directory, QMP_SOCKET)
                .map_err(VmmError::io("connect to the VM process"))?;
            let told = work(&mut qmp, &directory)?;
            Ok((told, Line { qmp, _turn: turn }))
        });
        telling.await.map_err(panicked)?
    }

    /// Tells QEMU something over a line that is there.
    async fn tell_over<T: Send + 'static>(
        &self,
        mut line: Line,
        work: impl FnOnce(&mut Qmp, &Path) -> Result<T, VmmError> + Send + 'static,
    ) -> Result<(T, Line), VmmError> {
        let directory = self.directory.clone();
        let telling = spawn_blocking(move || Ok((work(&mut line.qmp, &directory)?, line)));
        telling.await.map_err(panicked)?
    }
}

/// A connection to QEMU, and the turn to tell it anything.
struct Line {
    qmp: Qmp,
    _turn: Turn,
}

impl Line {
    /// What a step of a snapshot has left for the next one.
    fn of(left: Option<Box<dyn Any + Send>>) -> Result<Self, VmmError> {
        let line = left.and_then(|left| left.downcast().ok()).map(|line| *line);
        line.ok_or_else(|| {
            let other = io::Error::other("it was prepared by another driver");
            VmmError::io("begin a snapshot")(other)
        })
    }
}

/// Calls off what it was given to, when it is dropped.
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl Vm for QemuVm {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn pid(&self) -> u32 {
        self.process.id.pid
    }

    fn start(&self) -> &Start {
        &self.start
    }

    fn start_steps(&self) -> &[(&'static str, Duration)] {
        &self.steps
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        let stream = socket::connect(&self.directory, CONTROL_SOCKET).await?;
        self.process.check().map_err(VmmError::io("connect to a guest"))?;
        Ok(Box::new(stream))
    }

    fn can_save(&self) -> bool {
        self.saving.is_some()
    }

    async fn save(&self, directory: &Path) -> Result<(), VmmError> {
        let older = || VmmError::NotSaved {
            reason: "it was started by an older server; restart it".to_owned(),
        };
        let saving = self.saving.clone().ok_or_else(older)?;
        // Set when nobody waits any more.
        let cancelled = Cancelled(Arc::default());
        let called_off = cancelled.0.clone();
        let (own, file) = (self.directory.clone(), snapshot::file(directory));
        let (turn, process, uid) =
            (self.orders.turn().await, self.process.clone(), self.slot.uid());
        let saved = spawn_blocking(move || {
            let _turn = turn;
            let vm = suspend::Standing { process: &process, directory: &own, uid, saving: &saving };
            vm.save(&file, &called_off)
        });
        saved.await.map_err(panicked)?
    }

    async fn unpause(&self) -> Result<(), VmmError> {
        let (directory, orders) = (self.directory.clone(), self.orders.clone());
        let (turn, process) = (orders.turn().await, self.process.clone());
        let going = spawn_blocking(move || {
            let _turn = turn;
            if suspend::unpause(&process, &directory)? {
                orders.retry();
            }
            Ok(())
        });
        going.await.map_err(panicked)?
    }

    async fn resize_volume(&self, index: u8, bytes: u64) -> Result<(), VmmError> {
        self.tell(move |qmp, _| volumes::resize(qmp, index, bytes)).await
    }

    async fn prepare_snapshot(
        &self,
        index: u8,
        point: PointInTime,
    ) -> Result<PreparedSnapshot, VmmError> {
        let PointInTime { id, previous, .. } = &point;
        let (id, previous) = (id.clone(), previous.clone());
        let prepare =
            move |qmp: &mut Qmp, at: &Path| volumes::prepare_snapshot(qmp, at, index, &point);
        let (bitmaps, line) = self.open_line(prepare).await?;
        Ok(PreparedSnapshot { id, previous, bitmaps, line: Some(Box::new(line)) })
    }

    async fn begin_snapshot(
        &self,
        index: u8,
        prepared: PreparedSnapshot,
    ) -> Result<BegunSnapshot, VmmError> {
        let mut prepared = prepared;
        let line = Line::of(prepared.line.take())?;
        let begin = move |qmp: &mut Qmp, at: &Path| volumes::begin_snapshot(qmp, at, index);
        let ((), line) = self.tell_over(line, begin).await?;
        Ok(BegunSnapshot(PreparedSnapshot { line: Some(Box::new(line)), ..prepared }))
    }

    async fn export_snapshot(
        &self,
        index: u8,
        begun: BegunSnapshot,
    ) -> Result<VolumeExport, VmmError> {
        let BegunSnapshot(PreparedSnapshot { previous, bitmaps, line, .. }) = begun;
        let export = move |qmp: &mut Qmp, at: &Path| {
            volumes::export_snapshot(qmp, at, index, previous.as_deref(), &bitmaps)
        };
        let (export, _) = self.tell_over(Line::of(line)?, export).await?;
        Ok(export)
    }

    async fn end_snapshot(&self, index: u8, is_taken: bool) -> Result<(), VmmError> {
        self.tell(move |qmp, directory| volumes::end_snapshot(qmp, directory, index, is_taken))
            .await
    }

    async fn clone_volume(&self, index: u8, to: OwnedFd) -> Result<(), VmmError> {
        let process = self.process.clone();
        self.tell(move |qmp, directory| volumes::clone(qmp, &process, directory, index, &to)).await
    }

    async fn hydrate(&self, index: u8) -> Result<Hydration, VmmError> {
        self.tell(move |qmp, _| volumes::hydrate(qmp, index)).await
    }

    fn pause(&self) -> watch::Receiver<Option<Pause>> {
        self.pause.clone()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.killed.store(true, Ordering::Relaxed);
        if self.has_volumes && self.process.terminate().is_ok() {
            let _ = tokio::time::timeout(CLOSING, self.wait()).await;
        }
        self.process.kill().map_err(VmmError::io(format!("kill the VM process {}", self.pid())))
    }

    async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
        // The watching task ends only after it has told.
        ended.unwrap_or(VmExit::Ended)
    }

    async fn memory_used(&self) -> Result<u64, VmmError> {
        let process = self.process.clone();
        let read = spawn_blocking(move || process.memory()).await.map_err(panicked)?;
        read.map_err(VmmError::io(format!("read the memory of VM process {}", self.pid())))
    }

    async fn cpu_used(&self) -> Result<Duration, VmmError> {
        self.process
            .cpu()
            .map_err(VmmError::io(format!("read the CPU time of VM process {}", self.pid())))
    }
}
