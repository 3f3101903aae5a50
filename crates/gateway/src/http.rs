//! What lies between a connection and an endpoint: authentication, limits, idempotency, and what
//! endpoints read of a request.

pub(crate) mod authentication;
pub(crate) mod authorization;
pub(crate) mod caller;
pub(crate) mod context;
pub(crate) mod cursor;
pub(crate) mod description;
pub(crate) mod endpoint;
pub(crate) mod envelope;
pub(crate) mod errors;
pub(crate) mod extract;
pub(crate) mod forward;
pub(crate) mod idempotency;
pub(crate) mod in_flight;
pub(crate) mod limits;
pub(crate) mod query;
pub(crate) mod responses;
pub(crate) mod steady;
pub(crate) mod underway;
