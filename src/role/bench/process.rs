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
    /// The memory it has.
    pub rss_bytes: u64,
}

/// What the process with this number has used.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}: the process has ended"))
    };
    let (stat, status) = (read("stat")?, read("status")?);
    match (cpu_of(&stat), bytes_of(&status, "VmHWM:"), bytes_of(&status, "VmRSS:")) {
        (Some(cpu), Some(peak_rss_bytes), Some(rss_bytes)) => Ok(Usage { cpu, peak_rss_bytes, rss_bytes }),
        _ => bail!("/proc/{pid}/stat and status cannot be understood"),
    }
}

/// Memory of this process at a moment, from which on its peak is counted.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    rss_bytes: u64,
}

/// Begins to count the peak anew.
pub fn own_memory() -> anyhow::Result<Memory> {
    // Not every kernel lets a process do so: then the peak is that since its start, which is more.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    Ok(Memory { rss_bytes: own_usage()?.rss_bytes })
}

impl Memory {
    /// By how much the most memory since then exceeds what there was.
    pub fn exceeded_by(&self) -> anyhow::Result<u64> {
        Ok(own_usage()?.peak_rss_bytes.saturating_sub(self.rss_bytes))
    }
}

/// CPU time of a process and of its children, those that have ended included.
pub fn family_cpu(pid: u32) -> Option<Duration> {
    let stats = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let is_process = entry.file_name().to_str()?.parse::<u32>().is_ok();
        is_process.then(|| std::fs::read_to_string(entry.path().join("stat")).ok()).flatten()
    });
    let children: Duration =
        stats.filter(|stat| parent_of(stat) == Some(pid)).filter_map(|s| cpu_of(&s)).sum();
    let own = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(children + cpu_of(&own)? + ended_children_of(&own)?)
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

/// A field of /proc/PID/stat by its number; counted from behind the name, which may hold anything.
fn field_of(stat: &str, number: usize) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

fn ticks_of(stat: &str, user: usize) -> Option<Duration> {
    let ticks = field_of(stat, user)? + field_of(stat, user + 1)?;
    Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// User and system time.
fn cpu_of(stat: &str) -> Option<Duration> {
    ticks_of(stat, 14)
}

/// User and system time of children that have ended and were waited for.
fn ended_children_of(stat: &str) -> Option<Duration> {
    ticks_of(stat, 16)
}

fn parent_of(stat: &str) -> Option<u32> {
    u32::try_from(field_of(stat, 4)?).ok()
}

fn bytes_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
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
        assert_eq!(ended_children_of(stat), Some(Duration::ZERO));
        assert_eq!(parent_of(stat), Some(1));
        assert_eq!(cpu_of("4242 (a) S 1"), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t   20 kB\nVmRSS:\t 10 kB\n";
        assert_eq!((bytes_of(status, "VmHWM:"), bytes_of(status, "VmRSS:")), (Some(20_480), Some(10_240)));
        assert_eq!(bytes_of("Name:\tkthreadd\n", "VmHWM:"), None);
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
