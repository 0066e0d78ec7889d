//! Owns the composition: each file wires one subcommand from the rooms it needs.
//! Promises that wiring happens once, here; nobody imports a role.
//! Called by `main`.

pub mod migrate;
