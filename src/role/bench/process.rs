//! What a process has used, and which process listens on a port, as /proc tells it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// The kernel counts CPU time for /proc in hundredths of a second, whatever it uses itself.
const TICKS_PER_SECOND: u64 = 100;

/// "Listening" in /proc/net/tcp.
const LISTEN: &str = "0A";

/// What a process has used since it started.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    /// The most memory it ever had.
    pub peak_rss_bytes: u64,
}

/// What the process with this number has used.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}: the process has ended"))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    match (cpu_of(&stat), peak_rss_of(&status)) {
        (Some(cpu), Some(peak_rss_bytes)) => Ok(Usage { cpu, peak_rss_bytes }),
        _ => bail!("/proc/{pid}/stat and status cannot be understood"),
    }
}

/// What this process has used.
pub fn own_usage() -> anyhow::Result<Usage> {
    usage(std::process::id())
}

/// The process that listens on a TCP port of this machine.
pub fn listening_on(port: u16) -> Option<u32> {
    let inode = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .find_map(|table| inode_of_listener(&table, port))?;
    let socket = format!("socket:[{inode}]");
    let numbers = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        Some((pid, entry.path().join("fd")))
    });
    numbers.into_iter().find(|(_, open)| holds(open, &socket)).map(|(pid, _)| pid)
}

fn holds(open: &Path, socket: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(open) else { return false };
    entries
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == socket))
}

/// Bytes as people read them.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// User and system time: the 14th and 15th field, counted from behind the name, which may hold anything.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1_000 / TICKS_PER_SECOND))
}

fn peak_rss_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1_024)
}

fn inode_of_listener(table: &str, port: u16) -> Option<u64> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
        fields.get(9).filter(|_| listens)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "4242 (a) name (x) S 1 4242 4242 0 -1 4194560 900 0 12 0 250 130 0 0 20 0 9 0 8812 1 2";
        assert_eq!(cpu_of(stat), Some(Duration::from_millis(3_800)));
        assert_eq!(cpu_of("4242 (a) S 1"), None);
    }

    #[test]
    fn peak_memory_is_read_in_bytes() {
        assert_eq!(
            peak_rss_of("Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t   20 kB\nVmRSS:\t 10 kB\n"),
            Some(20_480)
        );
        assert_eq!(peak_rss_of("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn only_a_listener_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:46A3 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
             1: 0100007F:46A3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1\n";
        assert_eq!(inode_of_listener(table, 0x46A3), Some(22));
        assert_eq!(inode_of_listener(table, 0x1F90), None);
    }

    #[test]
    fn this_process_is_found_by_its_port() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        assert_eq!(listening_on(port), Some(std::process::id()));
        assert!(own_usage().expect("readable").peak_rss_bytes > 1 << 20);
    }
}
