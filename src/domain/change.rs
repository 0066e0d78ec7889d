//! Owns how a change is told: the entity as its event has it, the fields that differ, the rule that was in the way.
//! Promises that a field which stays as it was is not told.
//! Called by the commands.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::CommandError;

/// Each field that differs, as `{"old", "new"}`.
pub(super) fn changes<E: Serialize>(old: &E, new: &E) -> Result<Map<String, Value>, sqlx::Error> {
    let (old, new) = (object(old)?, object(new)?);
    let differing = new.into_iter().filter(|(name, value)| old.get(name) != Some(value));
    Ok(differing.map(|(name, value)| (name.clone(), json!({"old": old.get(&name), "new": value}))).collect())
}

/// The entity as its event tells it.
pub(super) fn object<E: Serialize>(entity: &E) -> Result<Map<String, Value>, sqlx::Error> {
    match serde_json::to_value(entity) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Ok(Map::new()),
        Err(error) => Err(sqlx::Error::Encode(Box::new(error))),
    }
}

/// A rule of the business that a command would break.
pub(super) fn broken(rule: &'static str, detail: impl Into<String>) -> CommandError {
    CommandError::Rule { rule, detail: detail.into() }
}
