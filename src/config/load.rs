//! Layers of configuration: defaults, file, environment, each value with its origin.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use config::{File, FileFormat, Map, Source, Value, ValueKind};
use secrecy::SecretString;

use super::{Config, ConfigError, DEFAULTS};

/// Names that operators know from elsewhere, and the key each one sets. Each may also be given as
/// `NAME_FILE`, the path of a file that holds the value.
const WELL_KNOWN: [(&str, &str); 8] = [
    ("DATABASE_URL", "database.url"),
    ("HASHINSIGHT__WAL__DATABASE_URL", "wal.database_url"),
    ("REDIS_URL", "redis.url"),
    ("KAFKA_BROKERS", "kafka.brokers"),
    ("KAFKA_SASL_PASSWORD", "kafka.sasl_password"),
    ("KAFKA_CONNECT_URL", "kafka.connect_url"),
    ("JWT_SECRET", "auth.jwt_secret"),
    ("WEBHOOKS_KEY", "webhooks.key"),
];

/// One line of `hashinsight config`: a key, its value (masked if secret) and where it came from.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Origin {
    pub key: String,
    pub value: String,
    pub origin: String,
}

/// The configuration with the origin of each value.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    pub origins: Vec<Origin>,
    /// The file that was read, for a process of ours to read as well.
    pub file: Option<PathBuf>,
}

/// Loads the configuration of this process: `file`, or else the file of `HASHINSIGHT_CONFIG`.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    load_from(file, &environment)
}

/// As [`load`], from a given environment: what the tests call.
pub fn load_from(file: Option<&Path>, environment: &BTreeMap<String, String>) -> Result<Loaded, ConfigError> {
    let file =
        file.map(Path::to_path_buf).or_else(|| environment.get("HASHINSIGHT_CONFIG").map(PathBuf::from));
    let mut builder = config::Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
    if let Some(path) = &file {
        let text = std::fs::read_to_string(path).map_err(|e| {
            ConfigError(format!(
                "cannot read the file of --config or HASHINSIGHT_CONFIG {}: {e}",
                path.display()
            ))
        })?;
        let mut values = config::Config::builder()
            .add_source(File::from_str(&text, FileFormat::Toml))
            .build()
            .map_err(|e| ConfigError(format!("{}: {e}", path.display())))?
            .cache
            .into_table()
            .map_err(|e| ConfigError(e.to_string()))?;
        name_origin(&mut values, &path.display().to_string());
        builder = builder.add_source(Layer(values));
    }
    let built = builder
        .add_source(Layer(sectioned(environment)))
        .add_source(Layer(well_known(environment)?))
        .build()
        .map_err(|e| ConfigError(one_line(&e.to_string())))?;

    let mut leaves = BTreeMap::new();
    flatten("", &built.cache, &mut leaves);
    refuse_unknown(&leaves)?;
    let config: Config = built.try_deserialize().map_err(|e| ConfigError(one_line(&e.to_string())))?;
    config.check()?;
    let origins = leaves
        .into_iter()
        .map(|(key, value)| Origin {
            value: masked(&key, &value.to_string()),
            origin: value.origin().unwrap_or("default").to_owned(),
            key,
        })
        .collect();
    Ok(Loaded { config, origins, file })
}

/// The program that runs, to start it once more.
pub fn executable() -> Result<PathBuf, ConfigError> {
    std::env::current_exe()
        .map_err(|e| ConfigError(format!("the path of this program cannot be found out: {e}")))
}

/// A secret that is made once and kept in the data folder, readable by its owner alone.
pub fn kept_secret(name: &str) -> Result<SecretString, ConfigError> {
    use std::io::Write;
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")))
        .unwrap_or_else(std::env::temp_dir);
    let folder = base.join("hashinsight");
    let path = folder.join(name);
    let failed = |e: std::io::Error| ConfigError(format!("cannot keep a secret in {}: {e}", path.display()));
    if let Ok(kept) = std::fs::read_to_string(&path)
        && kept.trim().len() >= 32
    {
        return Ok(kept.trim().to_owned().into());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
    let secret = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    file.write_all(secret.as_bytes()).map_err(failed)?;
    Ok(secret.into())
}

/// One layer of values that already know where they came from.
#[derive(Debug, Clone)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// `HASHINSIGHT__SECTION__KEY` -> section.key. A name with another shape becomes an unknown key.
fn sectioned(environment: &BTreeMap<String, String>) -> Map<String, Value> {
    let mut layer: Map<String, Value> = Map::new();
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("HASHINSIGHT__") else { continue };
        if name.strip_suffix("_FILE").is_some_and(|name| WELL_KNOWN.iter().any(|(known, _)| *known == name)) {
            continue;
        }
        let path = path.to_ascii_lowercase();
        let leaf = Value::new(Some(name), ValueKind::String(value.clone()));
        match path.split_once("__") {
            Some((section, key)) => {
                let table = layer
                    .entry(section.to_owned())
                    .or_insert_with(|| Value::new(Some(name), ValueKind::Table(Map::new())));
                if let ValueKind::Table(table) = &mut table.kind {
                    table.insert(key.replace("__", "."), leaf);
                }
            }
            None => {
                layer.insert(path, leaf);
            }
        }
    }
    layer
}

fn well_known(environment: &BTreeMap<String, String>) -> Result<Map<String, Value>, ConfigError> {
    let mut layer: Map<String, Value> = Map::new();
    for (name, key) in WELL_KNOWN {
        let file_name = format!("{name}_FILE");
        let (origin, value) = match (environment.get(name), environment.get(&file_name)) {
            (Some(value), _) if !value.is_empty() => (name.to_owned(), value.clone()),
            (_, Some(path)) if !path.is_empty() => {
                let text = std::fs::read_to_string(path)
                    .map_err(|e| ConfigError(format!("{file_name}: cannot read {path}: {e}")))?;
                (file_name, text.trim_end().to_owned())
            }
            _ => continue,
        };
        let Some((section, leaf)) = key.split_once('.') else { continue };
        let leaf_value = Value::new(Some(&origin), ValueKind::String(value));
        let table =
            layer.entry(section.to_owned()).or_insert_with(|| Value::new(None, ValueKind::Table(Map::new())));
        if let ValueKind::Table(table) = &mut table.kind {
            table.insert(leaf.to_owned(), leaf_value);
        }
    }
    Ok(layer)
}

fn name_origin(table: &mut Map<String, Value>, origin: &str) {
    for value in table.values_mut() {
        match &mut value.kind {
            ValueKind::Table(inner) => name_origin(inner, origin),
            kind => *value = Value::new(Some(&origin.to_owned()), kind.clone()),
        }
    }
}

fn flatten(prefix: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    match &value.kind {
        ValueKind::Table(table) => {
            for (key, inner) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, inner, leaves);
            }
        }
        _ => {
            leaves.insert(prefix.to_owned(), value.clone());
        }
    }
}

/// The defaults name every key, so a key they lack is a mistake: usually a typing error.
fn refuse_unknown(leaves: &BTreeMap<String, Value>) -> Result<(), ConfigError> {
    let defaults = config::Config::builder()
        .add_source(File::from_str(DEFAULTS, FileFormat::Toml))
        .build()
        .map_err(|e| ConfigError(e.to_string()))?;
    let mut known = BTreeMap::new();
    flatten("", &defaults.cache, &mut known);
    for (key, value) in leaves {
        if known.contains_key(key) {
            continue;
        }
        let section = key.split_once('.').map_or(key.as_str(), |(section, _)| section);
        let of_section: Vec<&str> = known
            .keys()
            .filter_map(|k| k.split_once('.'))
            .filter(|(s, _)| *s == section)
            .map(|(_, k)| k)
            .collect();
        let sections: BTreeSet<&str> = known.keys().filter_map(|k| Some(k.split_once('.')?.0)).collect();
        let allowed = if of_section.is_empty() {
            format!("sections are {}", sections.into_iter().collect::<Vec<_>>().join(", "))
        } else {
            format!("keys of {section} are {}", of_section.join(", "))
        };
        let origin = value.origin().unwrap_or("file");
        return Err(ConfigError(format!("unknown key {key} (from {origin}): {allowed}")));
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A secret shows only whether it is set; an address shows no user information.
fn masked(key: &str, value: &str) -> String {
    match key {
        "auth.jwt_secret" | "kafka.sasl_password" | "webhooks.key" if !value.is_empty() => "***".to_owned(),
        "database.url" | "debezium.database_url" | "wal.database_url" | "redis.url" => mask_userinfo(value),
        _ => value.to_owned(),
    }
}

/// Replaces `user:password@` and a `password=` parameter of an address.
pub fn mask_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority_and_path, query) = rest.split_once('?').map_or((rest, None), |(a, q)| (a, Some(q)));
    let shown = authority_and_path.rsplit_once('@').map_or_else(
        || authority_and_path.to_owned(),
        |(user, host)| format!("{}:***@{host}", user.split(':').next().unwrap_or_default()),
    );
    match query {
        Some(query) if query.contains("password") => format!("{scheme}://{shown}?***"),
        Some(query) => format!("{scheme}://{shown}?{query}"),
        None => format!("{scheme}://{shown}"),
    }
}
