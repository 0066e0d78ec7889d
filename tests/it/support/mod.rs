//! What the tests stand on: a database of their own, the real services, the API in this process.
//! Promises isolation: nothing a test does is met by another, and nothing of it stays behind.
//! Used by every test module.

mod api;
mod database;
pub(crate) mod pipeline;
pub(crate) mod process;

pub(crate) use api::{Answer, TestApi, settings, token, unique, until, written};
pub(crate) use database::{TestDb, service};
