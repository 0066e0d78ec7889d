//! Owns the read models: the rows that projections keep and readers ask for.
//! Promises that a reader can wait until an event of its own is in what it reads.
//! Called by the projections (write) and the API (read).

pub mod anomaly;
pub mod anomaly_write;
pub mod crm;
pub mod crm_write;
pub mod curtailed;
pub mod forecast;
pub mod forecast_write;
pub mod optimum;
pub mod portfolio;
pub mod portfolio_history;
pub mod portfolio_write;
pub mod schedule;
pub mod schedule_write;
pub mod silence_write;
pub mod treasury;
pub mod treasury_write;
pub mod visibility;
