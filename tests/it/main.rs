//! The integration tests, against real services: one binary, so that it links once.
//! Each test has a database, topics and tenants of its own; tests run in parallel.
//! Run by `dev/test`, or by `cargo test --test it` after `eval "$(dev/services up postgres redis kafka)"`.

mod auth;
mod bench;
mod bulk;
mod cache;
mod chaos;
mod clock;
mod connector;
mod consumer;
mod consumer_locks;
mod consumer_log;
mod consumer_processes;
mod crm;
mod disk_full;
mod doctor;
mod doorbell;
mod failover;
mod golden;
mod group_faults;
mod group_kafka;
mod history;
mod house;
mod http;
mod jobs;
mod kafka_broker;
mod kafka_faults;
mod kafka_log;
mod kafka_tls;
mod letters;
mod locks;
mod miner_telemetry;
mod miners;
mod network;
mod outbox;
mod partitions;
mod pipeline;
mod portfolio;
mod postgres_log;
mod processes;
mod publish;
mod rebase;
mod retention;
mod support;
mod tenancy;
mod wal;
