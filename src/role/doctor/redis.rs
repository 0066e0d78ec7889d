//! Redis: there, or not wanted.

use super::{Check, Limit};
use crate::config::{Config, mask_userinfo};
use crate::redis;

const NAME: &str = "redis";

pub(super) async fn examine(config: &Config) -> Check {
    let Some(url) = config.redis.url() else {
        return Check::ok(NAME, "not configured: each process keeps cache and locks to itself");
    };
    // Without a scheme there is no telling what of it is a password.
    let address = url.split_once("://").map_or_else(|| "***".to_owned(), |_| mask_userinfo(url));
    match Limit::start().ask(redis::probe(url, &config.redis)).await {
        Ok(version) => Check::ok(NAME, format!("Redis {version} at {address}")),
        Err(cause) => Check::failed(
            NAME,
            format!("Redis at {address} cannot be used: {cause}"),
            "start it, or correct REDIS_URL; reads go to the database and nothing is locked outside of it meanwhile",
        ),
    }
}
