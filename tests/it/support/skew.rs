//! A clock of its own for a process: hours off, and to be stepped while it runs.

use std::path::{Path, PathBuf};

/// What the processes of this clock get. Clocks that only run, which deadlines are measured by, stay as they are.
pub(crate) struct SkewedClock {
    offset: PathBuf,
    library: PathBuf,
}

impl SkewedClock {
    /// Off by so much: `+5h`, `-30d`.
    pub(crate) fn off_by(offset: &str) -> Self {
        let file = std::env::temp_dir().join(super::unique("hi_clock"));
        let clock = Self { offset: file, library: library() };
        clock.step(offset);
        clock
    }

    /// From now on off by so much.
    pub(crate) fn step(&self, offset: &str) {
        // As a whole: it is read at any moment.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, offset).expect("written");
        std::fs::rename(new, &self.offset).expect("renamed");
    }

    /// For the environment of a process.
    pub(crate) fn variables(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", text(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", text(&self.offset)),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }
}

impl Drop for SkewedClock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.offset);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The variant for programs with threads.
fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").expect("/usr/lib").filter_map(|entry| {
        let library = entry.ok()?.path().join("faketime/libfaketimeMT.so.1");
        library.exists().then_some(library)
    });
    found
        .last()
        .expect("libfaketime is installed: `dev/services up` as root does it, or apt-get install libfaketime")
}
