//! Wire types of the Machines API.
