//! `hashinsight token jwt`: a token for development.

use anyhow::Context as _;

use crate::api::token::{Grant, sign};
use crate::cli;
use crate::config::{Config, ConfigError};

/// Prints a signed token.
pub fn jwt(config: &Config, args: &cli::Jwt) -> anyhow::Result<()> {
    let refused = |option: &str, value: &str, cause: &dyn std::fmt::Display| {
        ConfigError(format!("{option} {value:?}: {cause}"))
    };
    let tenant = args.tenant.parse().map_err(|e| refused("--tenant", &args.tenant, &e))?;
    let user = args.user.parse().map_err(|e| refused("--user", &args.user, &e))?;
    let grant =
        Grant { tenant_id: &tenant, user_id: &user, scopes: &args.scopes, role: args.role.as_deref() };
    println!("{}", sign(&config.auth, &grant, args.ttl).context("token jwt")?);
    Ok(())
}
