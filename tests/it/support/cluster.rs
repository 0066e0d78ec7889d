//! A PostgreSQL server of the test's own: for settings the shared one does not have, and for stopping and crashing it.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::api::until;

/// Longer than a start with recovery takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The server refuses to run as root.
const SERVER_USER: &str = "postgres";

/// A running server in a folder of its own; both are gone with this value.
pub(crate) struct Cluster {
    folder: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    server: Option<Child>,
}

impl Cluster {
    /// Makes a cluster and starts it, ready for logical replication unless `settings` say otherwise.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let folder = std::env::temp_dir().join(super::unique("hi_cluster"));
        let made = as_server_user("initdb")
            .arg(format!("--pgdata={}", folder.display()))
            .args([
                "--username=hashinsight",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ])
            // Small segments: what a slot holds back is counted in whole ones.
            .args(["--wal-segsize=1", "--no-instructions"])
            .output()
            .expect("initdb");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Nobody else takes it until the server does.
        let port =
            TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a free port").port();
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self { folder, port, settings, server: None };
        cluster.run().await;
        cluster
    }

    /// The address of one of its databases, as a superuser without a password.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_as("hashinsight", database)
    }

    /// As another login, or one with a password: `name:password`.
    pub(crate) fn url_as(&self, login: &str, database: &str) -> String {
        format!("postgres://{login}@127.0.0.1:{}/{database}", self.port)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A statement as the superuser.
    pub(crate) async fn execute(&self, database: &str, sql: &str) {
        let mut conn = PgConnection::connect(&self.url(database)).await.expect("connected");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.expect(sql);
        conn.close().await.expect("closed");
    }

    /// An orderly stop.
    pub(crate) async fn stop(&mut self) {
        self.end("INT").await;
    }

    /// A crash: no checkpoint, recovery at the next start.
    pub(crate) async fn kill(&mut self) {
        self.end("QUIT").await;
    }

    /// Starts it again, on the same port, after [`Cluster::stop`] or [`Cluster::kill`]; stops it first if it runs.
    pub(crate) async fn restart(&mut self) {
        if self.server.is_some() {
            self.stop().await;
        }
        self.run().await;
    }

    /// SIGSTOP to every process of it: connections stay open, nothing answers.
    pub(crate) fn freeze(&self) {
        let server = self.server.as_ref().expect("it runs").id();
        // The parent first: it makes no more children then.
        send("STOP", server);
        children(server).into_iter().for_each(|pid| send("STOP", pid));
    }

    /// SIGCONT to all but one, which is for the caller to wake.
    pub(crate) fn thaw_all_but(&self, sleeper: u32) {
        let server = self.server.as_ref().expect("it runs").id();
        let all = children(server).into_iter().chain([server]);
        all.filter(|pid| *pid != sleeper).for_each(|pid| send("CONT", pid));
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        let server = self.server.as_ref().expect("it runs").id();
        children(server).into_iter().chain([server]).for_each(|pid| send("CONT", pid));
    }

    async fn run(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = as_server_user("postgres");
        command.arg("-D").arg(&self.folder).args(["-c", &format!("port={}", self.port)]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        command.args(["-c", "wal_level=logical"]);
        for (name, value) in &self.settings {
            command.args(["-c", &format!("{name}={value}")]);
        }
        let mut server = command.stdout(Stdio::null()).stderr(log).spawn().expect("postgres");
        until("the cluster answers", DEADLINE, async || {
            if let Some(status) = server.try_wait().expect("its status") {
                panic!("{status}: {}", std::fs::read_to_string(self.log()).unwrap_or_default());
            }
            PgConnection::connect(&self.url("postgres")).await.ok()
        })
        .await;
        self.server = Some(server);
    }

    async fn end(&mut self, signal: &str) {
        let mut server = self.server.take().expect("it runs");
        send(signal, server.id());
        until("the cluster has ended", DEADLINE, async || server.try_wait().expect("its status")).await;
    }

    fn log(&self) -> PathBuf {
        self.folder.with_extension("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            send("QUIT", server.id());
            let _ = server.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
        let _ = std::fs::remove_file(self.log());
    }
}

fn children(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may have any; state and parent follow.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    std::fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

/// Sends a signal to a process.
pub(crate) fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args(["-s", signal, &pid.to_string()]).status().expect("kill");
    assert!(sent.success(), "SIG{signal} to {pid}");
}

/// One of the server's programs.
pub(crate) fn program(name: &str) -> PathBuf {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed under /usr/lib/postgresql")
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|program| program.exists())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("{name} is not installed"))
}

/// A program as somebody whom the server lets run it, in a folder that this one may enter.
fn as_server_user(name: &str) -> Command {
    let root = std::fs::metadata("/proc/self").expect("/proc").uid() == 0;
    let mut command = if root {
        let mut command = Command::new("setpriv");
        let user = format!("--reuid={SERVER_USER}");
        command.args([&user, &format!("--regid={SERVER_USER}"), "--init-groups", "--"]).arg(program(name));
        command
    } else {
        Command::new(program(name))
    };
    command.current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}
