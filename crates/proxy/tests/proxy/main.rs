//! The proxy over real sockets on loopback, with fake upstreams and machines. Tests are named after
//! those of Pingora and the KEDA HTTP add-on where they prove the same.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod grpc;
mod http;
mod lifecycle;
mod limits;
mod private;
mod refusals;
mod replay;
mod responses;
mod sleeping;
mod slow;
mod smuggling;
mod support;
mod tcp;
mod tls;
mod udp;
mod upgrade;
mod waking;
