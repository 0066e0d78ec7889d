//! Owns the identifiers of tenants, users and entities.
//! Promises that every value is 1 to 64 of `A-Z a-z 0-9 . _ @ -`: safe in a Kafka key, a cache key and a log line.
//! Called by every room.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

/// Text that is no identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 64 characters of A-Z a-z 0-9 . _ @ -")]
pub struct InvalidIdentifier;

fn is_identifier(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'@' | b'-'))
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidIdentifier;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                if is_identifier(text) { Ok(Self(text.to_owned())) } else { Err(InvalidIdentifier) }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match Value::deserialize(deserializer)? {
                    Value::String(text) => text.parse().map_err(de::Error::custom),
                    Value::Number(n) if n.is_i64() || n.is_u64() => n.to_string().parse().map_err(de::Error::custom),
                    _ => Err(de::Error::custom("must be a string or an integer")),
                }
            }
        }
    };
}

identifier!(
    /// A customer of the platform: the boundary that no read or write crosses.
    TenantId
);
identifier!(
    /// A person or a service inside a tenant.
    UserId
);
identifier!(
    /// The thing an event is about: a miner, a trade, a snapshot.
    EntityId
);

impl From<uuid::Uuid> for EntityId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.to_string())
    }
}

impl From<uuid::Uuid> for UserId {
    fn from(id: uuid::Uuid) -> Self {
        Self(id.to_string())
    }
}

impl From<&UserId> for EntityId {
    fn from(user: &UserId) -> Self {
        Self(user.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_integers_are_taken_the_rest_refused() {
        assert_eq!(serde_json::from_str::<UserId>("123").expect("integer").as_str(), "123");
        assert_eq!(serde_json::from_str::<UserId>("\"a.b_c@d-1\"").expect("text").as_str(), "a.b_c@d-1");
        for refused in ["\"\"", "\"a:b\"", "\"a b\"", "\"é\"", "1.5", "1e3", "true", "null", "[1]"] {
            assert!(serde_json::from_str::<UserId>(refused).is_err(), "{refused}");
        }
        assert!("x".repeat(64).parse::<TenantId>().is_ok());
        assert!("x".repeat(65).parse::<TenantId>().is_err());
    }
}
