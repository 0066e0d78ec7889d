//! What the tests stand on: a database of their own, the real services, the API in this process.
//! Promises isolation: nothing a test does is met by another, and nothing of it stays behind.
//! Used by every test module.

mod api;
pub(crate) mod broker;
pub(crate) mod cluster;
pub(crate) mod connect;
pub(crate) mod consuming;
mod database;
pub(crate) mod group;
pub(crate) mod kafka;
pub(crate) mod pipeline;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod publishing;
pub(crate) mod redis;
pub(crate) mod skew;
pub(crate) mod tap;
pub(crate) mod volume;

pub(crate) use api::{Answer, SCOPES, TestApi, problem, settings, token, unique, until, written};
pub(crate) use cluster::Cluster;
pub(crate) use database::{TestDb, service};
pub(crate) use redis::RedisServer;
