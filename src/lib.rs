//! HashInsight keeps Bitcoin-mining portfolios current: a write commits in PostgreSQL with its event, the event
//! reaches the log, consumer groups apply it exactly once in effect, and the result is readable milliseconds later.
//!
//! ```text
//!  HTTP / CLI ─► domain ─► outbox ─► publisher ─► log ─► consumer ─► inbox + projection ─► read model ─► cache ─► HTTP
//!                (1 tx: state + event)   poll    Kafka    group        (1 tx: fence, inbox, domain,      after
//!                                                or PG    membership    retry/dead letter, offset)       commit
//! ```
//!
//! Reading this file from top to bottom walks the flow.
//!
//! | module | may import |
//! |---|---|
//! | frame | frame |
//! | event, economics | identifier |
//! | domain | event, economics, outbox, frame |
//! | outbox | event, frame |
//! | publisher | outbox, log, dead_letter, event, frame |
//! | connector | event, outbox, frame |
//! | log | frame |
//! | group | log (connections to brokers), frame |
//! | consumer | log, group, inbox, dead_letter, projection, cache, lock, event, outbox (what the log lost), publisher (its record), frame |
//! | inbox | event, frame |
//! | dead_letter | event, inbox, log, frame |
//! | webhook | domain (endpoints), event, frame |
//! | projection | event, economics, domain (the execution of trades), outbox (append), read_model, webhook (enqueue), frame |
//! | read_model | event, economics, frame |
//! | lag | log, group (who lives), frame |
//! | cache | frame |
//! | lock | frame |
//! | api | domain, economics, read_model, cache, dead_letter, event, frame |
//! | role | everything |
//!
//! frame = backoff, config, db, doorbell, identifier, jobs, lifecycle, metrics, partitions, redis, telemetry.
//! A test checks the table.

// frame: knows no domain
pub mod backoff;
pub mod config;
pub mod db;
pub mod doorbell;
pub mod identifier;
pub mod jobs;
pub mod lifecycle;
pub mod metrics;
pub mod partitions;
pub mod redis;
pub mod telemetry;

// the flow
pub mod event;
pub mod economics;
pub mod domain;
pub mod outbox;
pub mod publisher;
pub mod connector;
pub mod log;
pub mod group;
pub mod consumer;
pub mod inbox;
pub mod dead_letter;
pub mod webhook;
pub mod projection;
pub mod read_model;
pub mod cache;
pub mod lock;
pub mod lag;
pub mod api;

// composition
pub mod cli;
pub mod role;
