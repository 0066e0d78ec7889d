//! Dead letters: how they come to be whatever the bytes are, and what becomes of them.

mod command;
mod corpus;
mod downgrade;
mod http;
mod relay;
mod replay;
mod ward;
