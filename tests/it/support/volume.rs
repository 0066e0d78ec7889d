//! A small file system of the test's own, to be filled to the last byte.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system in memory; gone with this value.
pub(crate) struct Volume {
    folder: PathBuf,
}

impl Volume {
    /// Mounts one of so many megabytes. That takes root, or CAP_SYS_ADMIN.
    pub(crate) fn mount(megabytes: u32) -> Self {
        let folder = std::env::temp_dir().join(super::unique("hi_volume"));
        std::fs::create_dir(&folder).expect("a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=1777"), "hi_volume"])
            .arg(&folder)
            .output()
            .expect("mount");
        assert!(
            mounted.status.success(),
            "this test fills a file system of its own and may not mount one; run it as root, or with CAP_SYS_ADMIN: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves no room for a page.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.ballast()).expect("a file");
        let page = [0; 4 << 10];
        loop {
            match ballast.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Makes room again.
    pub(crate) fn relieve(&self) {
        std::fs::remove_file(self.ballast()).expect("removed");
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a server that is about to end may still be in there.
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
        let _ = std::fs::remove_dir(&self.folder);
    }
}
