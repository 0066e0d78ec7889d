//! The integration tests, against real services: one binary, so that it links once.
//! Each test has a database, topics and tenants of its own; tests run in parallel.
//! Run by `dev/test`, or by `cargo test --test it` after `eval "$(dev/services up postgres redis kafka)"`.

mod auth;
mod cache;
mod house;
mod http;
mod kafka_log;
mod miners;
mod network;
mod outbox;
mod pipeline;
mod portfolio;
mod processes;
mod support;
mod tenancy;
