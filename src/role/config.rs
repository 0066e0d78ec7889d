//! `hashinsight config`: the effective configuration.

use crate::config::Origin;
use crate::role::print_json;

/// Prints each key with its value and where it comes from.
pub fn run(origins: &[Origin], json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(origins);
    }
    let width = origins.iter().map(|o| o.key.len()).max().unwrap_or_default();
    let values = origins.iter().map(|o| o.value.len()).max().unwrap_or_default().min(60);
    for o in origins {
        println!("{:<width$}  {:<values$}  {}", o.key, o.value, o.origin);
    }
    Ok(())
}
