//! Owns how a strategy is written in JSON: by its name alone, or with its parameters.
//! Promises that a name alone means the default of every parameter.
//! Called by serde.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Strategy, StrategyKind};

impl Serialize for Strategy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Strategy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

struct Written;

impl<'de> Visitor<'de> for Written {
    type Value = Strategy;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a strategy, or an object with the name as its key and the parameters in it")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Strategy, E> {
        let known = || StrategyKind::ALL.map(StrategyKind::as_str).join(", ");
        name.parse()
            .map(Strategy::with_defaults)
            .map_err(|_| E::custom(format_args!("no strategy is called {name:?}: {}", known())))
    }

    fn visit_map<A: MapAccess<'de>>(self, parameters: A) -> Result<Strategy, A::Error> {
        Strategy::deserialize(MapAccessDeserializer::new(parameters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Strategy, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_alone_has_the_defaults() {
        for kind in StrategyKind::ALL {
            let strategy = Strategy::with_defaults(kind);
            assert_eq!(read(&format!("\"{kind}\"")), Ok(strategy.clone()));
            let written = serde_json::to_string(&strategy).expect("serialisable");
            assert_eq!(read(&written), Ok(strategy), "{written}");
        }
        assert_eq!(read("{\"layered\": {}}"), read("\"layered\""));
        assert_ne!(read("{\"opex_coverage\": {\"days\": 45}}"), read("\"opex_coverage\""));
    }

    #[test]
    fn what_is_no_strategy_is_named() {
        assert!(read("\"magic\"").is_err_and(|e| e.contains("no strategy is called \"magic\": hodl, ")));
        assert!(read("{\"magic\": {}}").is_err_and(|e| e.contains("magic")));
        assert!(read("7").is_err_and(|e| e.contains("the name of a strategy")));
    }
}
