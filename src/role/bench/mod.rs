//! Owns the measurements: `hashinsight bench`, one run of everything that is compared, on the services configured.
//! Promises that a figure is of events that all arrived, beside its price, and that a broken rule makes it void.
//! Called by `main`.
//!
//! | file | idea |
//! |---|---|
//! | ground | what a bench stands on, and how it is taken away |
//! | publish, consume | the plans: rounds and turns |
//! | database, backlog, load | what is read: a database of the bench's own, a backlog, a load |
//! | destination | what is written: a topic of each run, what arrived in it and when |
//! | source, child, debezium | who is measured: our own process, the peer in Kafka Connect |
//! | business | what the calculations take, alone and with their rows |
//! | ceilings, applying | what reading, producing or the SQL alone can do; the predecessor's way |
//! | drain, latency, process | one measurement |
//! | statistics, machine, report, text | what the measurements say together, and on what |

mod applying;
mod backlog;
mod business;
mod ceilings;
mod child;
mod consume;
mod database;
mod debezium;
mod destination;
mod drain;
mod ground;
mod latency;
mod load;
mod machine;
mod process;
mod publish;
mod report;
mod source;
mod statistics;
mod text;

pub use business::run as business;
pub use consume::run as consume;
pub use publish::run as publish;
