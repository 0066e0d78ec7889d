//! Owns the catalogue of miner models: what a model's name says about its hashrate and power.
//! Promises that a model is found in any case and with or without its maker's name.
//! Called by the command that adds a miner and by the API.

use std::collections::HashMap;

use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::PgConnection;

use crate::economics::catalogue;

/// A model of the catalogue.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct MinerModel {
    pub name: String,
    pub manufacturer: String,
    pub algorithm: String,
    /// Rated hashrate of one miner, TH/s.
    pub hashrate_ths: Decimal,
    /// Nameplate power of one miner, W.
    pub power_w: Decimal,
    /// J/TH.
    pub efficiency_j_th: Decimal,
    /// Year and month, as far as known.
    pub released: Option<String>,
    pub cooling: Option<String>,
    /// Whether the model belongs to the promised part of the catalogue.
    pub core: bool,
    /// Where the figures come from.
    pub confidence: String,
}

/// The model of this name, in any spelling that [`catalogue::normalise`] knows.
pub async fn find(conn: &mut PgConnection, name: &str) -> Result<Option<MinerModel>, sqlx::Error> {
    sqlx::query_as("select * from miner_model where name_key = $1")
        .bind(catalogue::normalise(name))
        .fetch_optional(conn)
        .await
}

/// The models of these names by [`catalogue::normalise`]d name; names that the catalogue does not know are absent.
pub async fn find_all(
    conn: &mut PgConnection,
    names: impl Iterator<Item = &str>,
) -> Result<HashMap<String, MinerModel>, sqlx::Error> {
    let mut keys: Vec<String> = names.map(catalogue::normalise).collect();
    keys.sort_unstable();
    keys.dedup();
    let found: Vec<MinerModel> = sqlx::query_as("select * from miner_model where name_key = any($1)")
        .bind(keys)
        .fetch_all(conn)
        .await?;
    Ok(found.into_iter().map(|model| (catalogue::normalise(&model.name), model)).collect())
}

/// Up to `limit` models in the order of their names, behind the model of the name `after`.
pub async fn list(
    conn: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<MinerModel>, sqlx::Error> {
    sqlx::query_as("select * from miner_model where $1::text is null or name > $1 order by name limit $2")
        .bind(after)
        .bind(limit)
        .fetch_all(conn)
        .await
}
