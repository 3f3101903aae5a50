//! The messages. Control messages travel as JSON so that either end may be newer: unknown fields
//! are ignored and new ones have defaults. Bulk bytes (log text, standard streams) travel raw, as
//! the frame's payload.

use serde::{Deserialize, Serialize};

use crate::spec::MachineSpec;

/// What the program in the VM is doing, as init sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum GuestState {
    /// Booted, waits for [`HostMessage::Configure`].
    Waiting,
    /// Configured; mounting and preparing.
    Preparing,
    /// The program runs.
    Running {
        /// Its process id in the guest.
        pid: i32,
    },
    /// The program has ended and the report waits for [`HostMessage::AcknowledgeExit`].
    Exited(ExitReport),
    /// Preparing failed: the program never ran. Acknowledged like an exit.
    Failed {
        /// What could not be done and why.
        message: String,
    },
}

/// How the program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Exit status, or 128 + signal number.
    pub code: i32,
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// The guest's kernel killed it for want of memory. Before [`crate::VICTIMS_SINCE`] a child of
    /// it counted too.
    pub oom_killed: bool,
    /// Guest's wall clock, nanoseconds since the Unix epoch.
    pub exited_at_ns: u64,
    /// All that the program wrote was sent before this report.
    #[serde(default)]
    pub logs_complete: bool,
}

/// From the host to init.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HostMessage {
    /// First message of every connection.
    Hello {
        /// Highest protocol version the host speaks.
        protocol: u32,
        /// Log records up to and including this sequence number are safe on the host; init drops
        /// them.
        acknowledged_logs: u64,
        /// Host's wall clock, nanoseconds since the Unix epoch.
        time_ns: u64,
    },
    /// Makes the VM the given machine. Refused with [`GuestMessage::Error`] unless the state is
    /// `Waiting`; repeating the same spec is harmless.
    Configure(Box<MachineSpec>),
    /// While the guest waits: does what [`Self::Configure`] will ask for, with this configuration
    /// that is no machine's, and undoes it, so that the second time is quicker. Answered.
    WarmUp {
        /// Echoed in the answer.
        id: u32,
        /// In the place of a machine's.
        spec: Box<MachineSpec>,
    },
    /// Before the VM is saved: holds all programs still and writes out what is not on the disks
    /// yet. Answered.
    Freeze {
        /// Echoed in the answer.
        id: u32,
    },
    /// After the VM was saved, or restored: takes fresh entropy, brings the clock to the host's,
    /// and only then lets the programs go on. Harmless when they never stood still. Answered.
    Thaw {
        /// Echoed in the answer.
        id: u32,
        /// Host's wall clock, nanoseconds since the Unix epoch.
        time_ns: u64,
        /// Random bytes, base64.
        entropy: String,
        /// The VM was restored from a snapshot meanwhile.
        resumed: bool,
    },
    /// Sends a signal to the program.
    Signal {
        /// Linux signal number.
        signal: i32,
        /// It is to end the program and was chosen by nobody: a program that ends by another one
        /// gets that.
        #[serde(default)]
        is_default: bool,
    },
    /// Runs another program. Its streams use the frame's stream id `id`.
    Exec(ExecRequest),
    /// Bytes for an exec's standard input; they are the frame's payload.
    Input {
        /// Stream of the exec.
        id: u32,
    },
    /// Closes the standard input of an exec after the bytes sent so far.
    CloseInput {
        /// Stream of the exec.
        id: u32,
    },
    /// Hangs up on a running exec: its session gets SIGHUP, and SIGKILL when it does not end within
    /// seconds.
    CancelExec {
        /// Stream of the exec.
        id: u32,
    },
    /// Sends a signal to an exec: to what runs in the foreground of its terminal, or to its process
    /// group. Since [`crate::SESSIONS_SINCE`].
    SignalExec {
        /// Stream of the exec.
        id: u32,
        /// Linux signal number.
        signal: i32,
    },
    /// New terminal size for an exec with a terminal.
    Resize {
        /// Stream of the exec.
        id: u32,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// The host has taken `bytes` of an exec's output: so many more may be sent.
    Credit {
        /// Stream of the exec.
        id: u32,
        /// Additional bytes that may be sent.
        bytes: u32,
    },
    /// Asks for the process list.
    ListProcesses {
        /// Echoed in the answer.
        id: u32,
    },
    /// Asks for, and may change, what the programs may have of the memory.
    Memory {
        /// Echoed in the answer.
        id: u32,
        /// The limit from now on, MiB.
        limit_mib: Option<u64>,
        /// Take back so much that is not needed right now, MiB.
        reclaim_mib: Option<u64>,
    },
    /// Log records up to and including this one are safe on the host.
    AcknowledgeLogs {
        /// Sequence number.
        sequence: u64,
    },
    /// The exit report (or failure) is safe on the host: init unmounts and powers off.
    AcknowledgeExit,
    /// Host's wall clock: sent now and then, and as the answer to [`GuestMessage::AskTime`].
    Time {
        /// Nanoseconds since the Unix epoch.
        time_ns: u64,
        /// The question it answers, if it is an answer.
        #[serde(default)]
        answers: Option<u64>,
    },
    /// Answer to [`GuestMessage::Hold`].
    Held {
        /// Of the request.
        id: u32,
        /// What the program is told: an HTTP status, 200 when it was done.
        status: u16,
        /// When the hold ends, if there is one now; RFC 3339.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<String>,
        /// Why it was not done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// Has the file system of a volume grow to the size of its disk, of which the VM was told. A
    /// raw one is only waited for to have that size. Answered. Since [`crate::VOLUMES_SINCE`].
    GrowVolume {
        /// Echoed in the answer.
        id: u32,
        /// Its number.
        volume: u8,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// Asks how full the volumes are. Answered by [`GuestMessage::VolumeUsage`]. Since
    /// [`crate::VOLUMES_SINCE`].
    VolumeUsage {
        /// Echoed in the answer.
        id: u32,
    },
    /// Writes out what is not on the volumes yet and holds their file systems still, whole as they
    /// are. Whoever writes to them waits. Raw ones can't be held still; their programs have to see
    /// to it. Answered when all stand still. Since [`crate::VOLUMES_SINCE`].
    FreezeVolumes {
        /// Echoed in the answer.
        id: u32,
        /// Milliseconds from now on until they go on by themselves, and until this is given up.
        deadline_ms: u64,
    },
    /// Lets the file systems of volumes go on. A failure in the answer: they did before, since
    /// their time was over. Since [`crate::VOLUMES_SINCE`].
    ThawVolumes {
        /// Echoed in the answer.
        id: u32,
    },
    /// Ends the VM whatever runs in it: unmounts volumes, powers off.
    PowerOff,
}

/// From init to the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GuestMessage {
    /// Answer to `Hello`.
    Welcome {
        /// The protocol version that both ends speak from here on.
        protocol: u32,
        /// Version of the init binary.
        init_version: String,
        /// What the guest is doing.
        status: GuestState,
        /// Machine id it was configured as, if it was.
        machine_id: Option<String>,
    },
    /// The program has been started.
    Started {
        /// Its process id in the guest.
        pid: i32,
        /// Where the guest's time went, in order: name and microseconds.
        steps: Vec<(String, u64)>,
    },
    /// One record of log output; the text is the frame's payload, cut at a line end where there is
    /// one, at 16 KiB at most, and never within a character.
    Log {
        /// Counts records from 1 without holes, over the whole life of the VM.
        sequence: u64,
        /// Which stream.
        source: LogSource,
        /// Guest's wall clock, nanoseconds since the Unix epoch.
        time_ns: u64,
        /// Number of records dropped just before this one because nobody acknowledged them in time.
        dropped_before: u64,
        /// Its last line was cut because it is too long, and goes on in the next record of the
        /// stream.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
    },
    /// The guest's kernel has killed a process for want of memory that is none of the machine's
    /// programs itself. Since [`crate::VICTIMS_SINCE`].
    OutOfMemory {
        /// Its process id.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// The program ended, or never began ([`GuestState::Failed`]).
    Finished(GuestState),
    /// Bytes of an exec's output; they are the frame's payload.
    Output {
        /// Stream of the exec.
        id: u32,
        /// Which stream.
        source: LogSource,
    },
    /// An exec ended; all its output was sent before.
    ExecFinished {
        /// Stream of the exec.
        id: u32,
        /// Exit status, or 128 + signal number.
        code: i32,
        /// The signal that killed it, if one did.
        signal: Option<i32>,
        /// It ran into its timeout and was killed.
        timed_out: bool,
    },
    /// An exec could not be started.
    ExecFailed {
        /// Stream of the exec.
        id: u32,
        /// Why, for the user.
        message: String,
        /// Exit status that a shell would give, where it is about the program: 127 when there is
        /// none, 126 when it can't be executed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<i32>,
    },
    /// The program has taken `bytes` of its standard input: so many more may be sent.
    Credit {
        /// Stream of the exec.
        id: u32,
        /// Additional bytes that may be sent.
        bytes: u32,
    },
    /// Answer to `ListProcesses`.
    Processes {
        /// Of the request.
        id: u32,
        /// The processes, init's own and kernel threads left out.
        processes: Vec<ProcessInfo>,
    },
    /// Answer to `Memory`, when that could be done.
    Memory {
        /// Of the request.
        id: u32,
        /// The programs' memory.
        memory: MemoryInfo,
    },
    /// Answer to `VolumeUsage`, when that could be found out.
    VolumeUsage {
        /// Of the request.
        id: u32,
        /// Those with a file system.
        volumes: Vec<VolumeUsage>,
    },
    /// A program asks that the machine is not put to sleep when idle, or no longer.
    /// Answered. Since [`crate::HOLDS_SINCE`].
    Hold {
        /// Echoed in the answer.
        id: u32,
        /// For so long from now on, in place of an earlier hold; `None` ends it.
        ttl_seconds: Option<u64>,
    },
    /// Asks for the host's time: how long the answer takes tells how far it can be off.
    AskTime {
        /// Of this question.
        id: u64,
    },
    /// Answer to `WarmUp`, `Freeze`, `Thaw`, `GrowVolume`, `FreezeVolumes` and `ThawVolumes`, and
    /// to `Memory` and `VolumeUsage` when that could not be done.
    Answer {
        /// Of the request.
        id: u32,
        /// Why it could not be done; `None` when it was.
        failure: Option<String>,
        /// After `ThawVolumes`: for how long they stood still, microseconds by the guest's clock.
        /// Earlier releases of init do not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        still_us: Option<u64>,
    },
    /// Init could not do what it was asked; not tied to an exec.
    Error {
        /// Why.
        message: String,
    },
}

/// The memory of a machine's programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryInfo {
    /// What they may have, MiB; `None` for all there is.
    pub limit_mib: Option<u64>,
    /// What they could have more, MiB.
    pub available_mib: u64,
    /// What this request took back, MiB.
    pub reclaimed_mib: u64,
}

/// How full the file system of a volume is, as statvfs(3) has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeUsage {
    /// Number of the volume.
    pub volume: u8,
    /// Size of a block, bytes.
    pub block_size: u64,
    /// Blocks of the file system, without its own tables.
    pub blocks: u64,
    /// Free ones.
    pub blocks_free: u64,
    /// Free ones that any user may take.
    pub blocks_avail: u64,
}

/// Runs a program beside the machine's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Stream id chosen by the host, unique among running execs, not 0.
    pub id: u32,
    /// Program and arguments; the program is looked up in the machine's `PATH`. Empty is the user's
    /// shell, since [`crate::SESSIONS_SINCE`].
    pub argv: Vec<String>,
    /// Added to the machine's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// `user[:group]`; default is the machine's.
    #[serde(default)]
    pub user: Option<String>,
    /// Working directory; default is the machine's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Gives it a terminal of this size (columns, rows); output then all arrives as standard
    /// output.
    #[serde(default)]
    pub terminal: Option<(u16, u16)>,
    /// Killed (SIGKILL, with its children) after this many milliseconds; 0 means never.
    #[serde(default)]
    pub timeout_ms: u64,
    /// The host will send standard input; otherwise it is empty.
    #[serde(default)]
    pub has_input: bool,
    /// What to run is init's own program for files, and `argv` are its arguments: it needs nothing
    /// of the image. Since [`crate::SESSIONS_SINCE`].
    #[serde(default)]
    pub files: bool,
    /// The machine's own programs go on for as long as this runs, and end with it. Since
    /// [`crate::SESSIONS_SINCE`].
    #[serde(default)]
    pub holds_machine: bool,
}

/// Which output stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Init itself, about the machine.
    Init,
}

/// One process in the guest, as `ps` of the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id.
    pub pid: i32,
    /// System time, milliseconds.
    pub stime: u64,
    /// Run time (since its start), milliseconds.
    pub rtime: u64,
    /// Command line.
    pub command: String,
    /// Working directory.
    pub directory: String,
    /// CPU time (user and system), milliseconds.
    pub cpu: u64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Sockets it listens on.
    pub listen_sockets: Vec<ListenSocket>,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenSocket {
    /// `tcp`, `tcp6`, `udp` or `udp6`.
    pub proto: String,
    /// Address and port.
    pub address: String,
}
