//! The folder of a run: its schedule, the logs of its processes and, if there is something to find, the whole history.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::run::Plan;
use crate::history::{History, Violation};

/// Kept until it is known that nothing is in it.
pub(crate) struct Evidence {
    pub(crate) folder: PathBuf,
}

impl Evidence {
    pub(crate) fn open(plan: &Plan) -> Self {
        let name = crate::support::unique(&format!("seed-{}", plan.seed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos").join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("schedule"), plan.to_string()).expect("written");
        Self { folder }
    }

    /// Writes down what was found and what it was found in.
    pub(crate) fn keep(&self, plan: &Plan, history: &History, found: &[Violation]) {
        let mut text = format!("{plan}\n");
        for violation in found {
            writeln!(text, "{violation}").expect("formats");
        }
        std::fs::write(self.folder.join("violations"), &text).expect("written");
        let json = serde_json::to_vec(history).expect("json");
        std::fs::write(self.folder.join("history.json"), json).expect("written");
    }

    /// A clean run leaves nothing behind.
    pub(crate) fn discard(&self) {
        std::fs::remove_dir_all(&self.folder).expect("removed");
    }
}
