//! What goes wrong, as codes of the reference (runtime-semantics §3.9).

use caddis_api::MachineId;
use http::StatusCode;

use crate::AppName;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $status:ident,)*) => {
        /// A kind of error. Its name is what clients and logs are told.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code as it is written.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// The status of the answer to an HTTP request.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)*
                }
            }
        }
    };
}

codes! {
    /// An error in the proxy itself.
    PP01 => INTERNAL_SERVER_ERROR,
    /// The HTTP/2 handshake with the machine failed.
    PU01 => BAD_GATEWAY,
    /// The connection to the machine ended before its response began.
    PU02 => BAD_GATEWAY,
    /// The machine refused the connection to its port.
    PC01 => BAD_GATEWAY,
    /// The machine reset the connection.
    PC03 => BAD_GATEWAY,
    /// The client took its response too slowly, and was cut off; or sent the request's body too
    /// slowly.
    PC04 => REQUEST_TIMEOUT,
    /// Connecting to the machine timed out.
    PC05 => GATEWAY_TIMEOUT,
    /// Input or output with the machine failed.
    PC06 => BAD_GATEWAY,
    /// Too many TLS handshakes from the client's range of addresses.
    PT01 => TOO_MANY_REQUESTS,
    /// Too many TLS handshakes for the name asked for.
    PT02 => TOO_MANY_REQUESTS,
    /// The TLS handshake failed.
    PT04 => BAD_REQUEST,
    /// There is no certificate for the name asked for.
    PT05 => MISDIRECTED_REQUEST,
    /// The TLS handshake timed out.
    PT08 => REQUEST_TIMEOUT,
    /// The machine's host refused to start it, for want of memory for example.
    PM01 => SERVICE_UNAVAILABLE,
    /// Starting the machine failed.
    PM02 => SERVICE_UNAVAILABLE,
    /// The machine did not start, or was not ready, in time.
    PM03 => GATEWAY_TIMEOUT,
    /// The machine's state does not allow a start.
    PM08 => SERVICE_UNAVAILABLE,
    /// The machine is not there any more.
    PM09 => SERVICE_UNAVAILABLE,
    /// The machine's host can't be reached.
    PM10 => SERVICE_UNAVAILABLE,
    /// No healthy machine has the port.
    PR01 => SERVICE_UNAVAILABLE,
    /// The app, or the machine asked for, is not found.
    PR02 => NOT_FOUND,
    /// No machine could take the request after several attempts.
    PR03 => SERVICE_UNAVAILABLE,
    /// All machines are at their hard limit, and stayed there for as long as a request may wait.
    PR04 => SERVICE_UNAVAILABLE,
    /// Too much waits for the app's machines already.
    PR06 => SERVICE_UNAVAILABLE,
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error for an app's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyError {
    /// The app.
    pub app: AppName,
    /// The machine, where there is one to blame.
    pub machine: Option<MachineId>,
    /// What kind of error; none where the client's request was at fault, and was refused.
    pub code: Option<ErrorCode>,
    /// The request, for HTTP: what `fly-request-id` tells the client.
    pub request_id: Option<String>,
    /// What happened.
    pub text: String,
}

/// Why a machine could not be started or put to sleep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WakeError {
    /// The host has no room for it, or refused for another reason of its own (PM01).
    #[error("the host refused: {0}")]
    Refused(String),
    /// An error of the host (PM02).
    #[error("failed: {0}")]
    Failed(String),
    /// No answer in time; it may still happen (PM03).
    #[error("timed out: {0}")]
    TimedOut(String),
    /// Something keeps it awake.
    #[error("could not be changed: {0}")]
    Conflict(String),
    /// Its state does not allow it (PM08).
    #[error("its state does not allow it: {0}")]
    WrongState(String),
    /// There is no such machine any more (PM09).
    #[error("it does not exist: {0}")]
    Gone(String),
    /// Its host can't be reached (PM10).
    #[error("its host can't be reached: {0}")]
    Unreachable(String),
}

impl WakeError {
    /// The code that tells of it.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(_) => ErrorCode::PM01,
            // Nobody waits for a machine to go to sleep.
            Self::Failed(_) | Self::Conflict(_) => ErrorCode::PM02,
            Self::TimedOut(_) => ErrorCode::PM03,
            Self::WrongState(_) => ErrorCode::PM08,
            Self::Gone(_) => ErrorCode::PM09,
            Self::Unreachable(_) => ErrorCode::PM10,
        }
    }
}

/// Why a request or connection can't be served: what its client and the app's log are told.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub machine: Option<MachineId>,
    pub text: String,
}

impl Failure {
    pub(crate) fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, machine: None, text: text.into() }
    }

    pub(crate) fn of(machine: &MachineId, code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, machine: Some(machine.clone()), text: text.into() }
    }
}
