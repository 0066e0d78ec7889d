//! The house is in order: the import table in the documentation of `lib.rs` is what the code does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The table of `lib.rs`: room -> rooms it may import, with `frame` spelled out.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let lib = std::fs::read_to_string("src/lib.rs").expect("src/lib.rs");
    let words = |text: &str| -> Vec<String> {
        text.split(',').map(|w| w.split('(').next().unwrap_or_default().trim().to_owned()).collect()
    };
    let frame: BTreeSet<String> = lib
        .lines()
        .find_map(|l| l.strip_prefix("//! frame = "))
        .map(|l| words(l.split('.').next().expect("a list")))
        .expect("lib.rs says what the frame is")
        .into_iter()
        .collect();
    let spelled = |names: Vec<String>| -> BTreeSet<String> {
        names
            .into_iter()
            .flat_map(|n| if n == "frame" { frame.iter().cloned().collect() } else { vec![n] })
            .collect()
    };
    let rows = lib.lines().filter_map(|l| l.strip_prefix("//! | ")?.strip_suffix(" |")?.split_once(" | "));
    let mut table = BTreeMap::new();
    for (rooms, imports) in rows.filter(|(rooms, _)| *rooms != "module") {
        for room in spelled(words(rooms)) {
            table.insert(room, spelled(words(imports)));
        }
    }
    table
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix("src").expect("under src");
    let first = inside.components().next().expect("a component").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The rooms that a file names as `crate::room`.
fn imports(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut rooms = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = rest.strip_prefix('{').map_or_else(|| vec![rest], |g| g.split(',').collect());
        for name in group {
            let name: String =
                name.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                rooms.insert(name);
            }
        }
    }
    rooms
}

#[test]
fn every_import_stands_in_the_table() {
    let table = table();
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    assert!(files.len() > 30, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let room = room_of(&file);
        if ["lib", "main", "role", "cli"].contains(&room.as_str()) {
            continue;
        }
        let Some(allowed) = table.get(&room) else {
            wrong.push(format!("{}: the room {room} is not in the table of lib.rs", file.display()));
            continue;
        };
        let text = std::fs::read_to_string(&file).expect("readable");
        for import in imports(&text) {
            if import != room && !allowed.contains(&import) {
                wrong.push(format!("{}: {room} must not import {import}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_one_file_names_each_edge() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    for (needle, rooms) in [
        ("rskafka::", &["log"][..]),
        ("pgwire_replication::", &["outbox"]),
        ("fred::", &["redis"]),
        ("crate::redis", &["cache", "lock", "role"]),
        ("moka::", &["cache"]),
        ("tokio::spawn", &["lifecycle"]),
        (".begin()", &["db", "role"]),
        ("std::env::", &["config"]),
        ("set_config('app.tenant_id'", &["db"]),
    ] {
        for file in &files {
            let text = std::fs::read_to_string(file).expect("readable");
            let used = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(needle));
            let room = room_of(file);
            assert!(!used || rooms.contains(&room.as_str()), "{} names {needle}", file.display());
        }
    }
}

#[test]
fn the_table_is_checked_at_all() {
    assert!(
        imports("use crate::{db, log};\nlet x = crate::api::run();").is_superset(&["api".to_owned()].into())
    );
    assert!(table().get("domain").expect("domain").contains("outbox"));
    assert!(!table().get("domain").expect("domain").contains("api"));
}
