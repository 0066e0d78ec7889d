//! A PostgreSQL server of the test's own: for settings the shared one does not have, and for stopping and crashing it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::api::until;
use super::broker::free_port;

/// Longer than a start with recovery takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The server refuses to run as root.
const SERVER_USER: &str = "postgres";

/// A running server in a folder of its own; both are gone with this value.
pub(crate) struct Cluster {
    folder: PathBuf,
    /// Of the write-ahead log, where it is elsewhere.
    wal: Option<PathBuf>,
    log: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
    server: Option<Child>,
}

impl Cluster {
    /// Makes a cluster and starts it, ready for logical replication unless `settings` say otherwise.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_in(&std::env::temp_dir(), None, settings).await
    }

    /// As [`Cluster::start`], with its files in a folder below this one, and the write-ahead log below another.
    pub(crate) async fn start_in(place: &Path, wal: Option<&Path>, settings: &[(&str, &str)]) -> Self {
        let name = super::unique("hi_cluster");
        let folder = place.join(&name);
        let wal = wal.map(|wal| wal.join(format!("{name}_wal")));
        let elsewhere = wal.as_ref().map(|wal| format!("--waldir={}", wal.display()));
        let made = as_server_user("initdb")
            .arg(format!("--pgdata={}", folder.display()))
            .args(elsewhere)
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
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self { log: log_of(&name), folder, wal, port: free_port(), settings, server: None };
        cluster.run().await;
        cluster
    }

    /// A hot standby of it, which receives what it writes without being waited for.
    pub(crate) async fn standby(&self) -> Self {
        let name = super::unique("hi_standby");
        let folder = std::env::temp_dir().join(&name);
        let copied = as_server_user("pg_basebackup")
            .arg(format!("--pgdata={}", folder.display()))
            .arg(format!("--dbname=host=127.0.0.1 port={} user=hashinsight", self.port))
            .args(["--write-recovery-conf", "--checkpoint=fast", "--wal-method=stream", "--no-sync"])
            .output()
            .expect("pg_basebackup");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let (settings, log) = (self.settings.clone(), log_of(&name));
        let mut standby = Self { folder, wal: None, log, port: free_port(), settings, server: None };
        standby.run().await;
        standby
    }

    /// Waits until a standby has everything that is committed here.
    pub(crate) async fn is_followed_by(&self, standby: &Self) {
        let mark = "select pg_logical_emit_message(true, 'test', 'mark')::text";
        let mark: String = self.scalar(mark).await;
        let there = format!("select pg_last_wal_replay_lsn() >= '{mark}'");
        until("the standby has everything", DEADLINE, async || {
            standby.scalar::<bool>(&there).await.then_some(())
        })
        .await;
    }

    /// A standby receives nothing more.
    pub(crate) async fn cut_off(&self, standby: &Self) {
        standby.execute("postgres", "alter system set primary_conninfo = ''").await;
        standby.execute("postgres", "select pg_reload_conf()").await;
        let receives =
            "select exists (select from pg_stat_replication where application_name = 'walreceiver')";
        until("the standby receives nothing", DEADLINE, async || {
            (!self.scalar::<bool>(receives).await).then_some(())
        })
        .await;
    }

    /// Makes a primary of a standby.
    pub(crate) async fn promote(&self) {
        assert!(self.scalar::<bool>("select pg_promote(true, 60)").await, "promoted");
    }

    /// One value, asked of the database `postgres`.
    async fn scalar<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        let mut conn = PgConnection::connect(&self.url("postgres")).await.expect("connected");
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut conn).await.expect(sql)
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
        let log = File::options().create(true).append(true).open(&self.log).expect("a log file");
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
                panic!("{status}: {}", self.said());
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

    /// Its log since the first start.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// After a crash it brought upon itself: starts it again unless it has done so alone, and waits until it answers.
    pub(crate) async fn revive(&mut self) {
        let mut server = self.server.take().expect("it was started");
        let answers = until("the cluster answers or has ended", DEADLINE, async || {
            if server.try_wait().expect("its status").is_some() {
                return Some(false);
            }
            PgConnection::connect(&self.url("postgres")).await.ok().map(|_| true)
        });
        if answers.await {
            self.server = Some(server);
        } else {
            self.run().await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            send("QUIT", server.id());
            let _ = server.wait();
        }
        for folder in [Some(&self.folder), self.wal.as_ref()].into_iter().flatten() {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = std::fs::remove_file(&self.log);
    }
}

/// Beside the data: what is said about a disk that is full must not go there.
fn log_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(name).with_extension("log")
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
