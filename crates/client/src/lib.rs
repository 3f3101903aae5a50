//! Typed client of the API: one method per endpoint, errors that keep what the server said.
//!
//! [`Client`] is cheap to clone. Only `GET` requests are sent again, and only when the connection
//! failed: every other request may have been carried out although its answer was lost.
#![forbid(unsafe_code)]

mod addresses;
mod apps;
mod error;
mod holds;
mod images;
mod leases;
mod lines;
mod logs;
mod machines;
mod operation;
mod platform;
mod policies;
mod terminal;
mod transport;
mod usage;
mod volumes;
mod watch;
mod wireguard;

pub use error::ClientError;
pub use images::{ArchiveFormat, Which};
pub use logs::LogsQuery;
pub use machines::{ListMachines, RestartOptions, WaitFor};
pub use operation::OperationUpdate;
pub use terminal::{FromSession, SessionReader, SessionWriter};
pub use transport::Client;
