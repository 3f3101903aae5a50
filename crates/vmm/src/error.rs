use std::path::PathBuf;

/// What can go wrong with a VM process.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The machine already has a VM.
    #[error("machine {machine_id} already has a running VM")]
    AlreadyRunning {
        /// Which.
        machine_id: String,
    },
    /// A file or program a VM needs can't be used.
    #[error("can't use {}: {reason}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A machine can't have this disk.
    #[error("can't attach disk {name}: {reason}")]
    InvalidDisk {
        /// Name of its role.
        name: String,
        /// Why.
        reason: String,
    },
    /// All slots of the host are taken.
    #[error("all {count} VM slots of this host are taken")]
    NoSlot {
        /// How many there are.
        count: u32,
    },
    /// The VMM ended before it was up.
    #[error("the VMM exited at start: {message}")]
    DiedAtStart {
        /// Tail of its standard error.
        message: String,
    },
    /// A template was there but no VM could be restored from it.
    #[error("the VM could not be restored: {message}")]
    NotRestored {
        /// The VMM's words.
        message: String,
    },
    /// A VM could not be saved.
    #[error("the VM could not be saved: {reason}")]
    NotSaved {
        /// Why.
        reason: String,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not answer while {attempted}")]
    TimedOut {
        /// What was attempted.
        attempted: String,
    },
    /// Anything the operating system refused.
    #[error("can't {attempted}: {source}")]
    Io {
        /// What was attempted, on what.
        attempted: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl VmmError {
    /// For `map_err`: says what was attempted.
    pub fn io(attempted: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Io { attempted, source }
    }
}
