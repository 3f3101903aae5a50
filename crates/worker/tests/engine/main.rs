//! The machine engine as a whole: the real worker on the real bus and its real database, over a
//! fake VMM whose guests speak the real protocol.
#![forbid(unsafe_code)]

mod databases;
mod deaths;
mod egress;
mod faults;
mod health;
mod lifecycle;
mod paused;
mod policies;
mod quarantine;
mod races;
mod restarts;
mod sabotage;
mod schedule;
mod silence;
mod snapshots;
mod steps;
mod support;
mod suspend;
mod terminal;
mod traffic;
mod turns;
mod update;
mod volumes;
mod wishes;
