//! The integration tests, against real services: one binary, so that it links once.
//! Each test has a database, topics and tenants of its own; tests run in parallel.
//! Run by `dev/test`, or by `cargo test --test it` after `eval "$(dev/services up postgres redis kafka)"`.

#![expect(dead_code, unused_imports, reason = "the tests of the API use the rest")]

mod house;
mod kafka_log;
mod miners;
mod outbox;
mod pipeline;
mod support;
