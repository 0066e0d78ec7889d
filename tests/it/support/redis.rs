//! A Redis of the test's own: for freezing, killing and flushing it, and for looking inside.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::api::until;
use super::cluster::send;

/// Longer than a start takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server that keeps nothing on disk; gone with this value.
pub(crate) struct RedisServer {
    port: u16,
    folder: PathBuf,
    clustered: bool,
    server: Option<Child>,
}

impl RedisServer {
    pub(crate) async fn start() -> Self {
        Self::make(false).await
    }

    /// A cluster of one node, which refuses commands about several keys as any other.
    pub(crate) async fn start_cluster() -> Self {
        let redis = Self::make(true).await;
        redis.ask("CLUSTER ADDSLOTSRANGE 0 16383").await;
        until("the cluster is complete", DEADLINE, async || {
            let state = redis.ask("CLUSTER INFO").await?;
            state.contains("cluster_state:ok").then_some(())
        })
        .await;
        redis
    }

    async fn make(clustered: bool) -> Self {
        let folder = std::env::temp_dir().join(super::unique("hi_redis"));
        std::fs::create_dir(&folder).expect("a folder");
        // Nobody else takes it until the server does.
        let port =
            TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a free port").port();
        let mut redis = Self { port, folder, clustered, server: None };
        redis.restart().await;
        redis
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.clustered { "redis-cluster" } else { "redis" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// SIGKILL: what it held is gone.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().expect("killed");
        server.wait().expect("ended");
    }

    /// Starts it, empty, where it was.
    pub(crate) async fn restart(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(&self.folder);
        if self.clustered {
            // Left alone, its second port is its first and 10,000, which may be none.
            command.args(["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"]);
            let bus = TcpListener::bind(("127.0.0.1", 0)).and_then(|l| l.local_addr()).expect("a free port");
            command.args(["--cluster-port", &bus.port().to_string()]);
        }
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.server = Some(server.expect("redis-server is installed"));
        until("Redis answers", DEADLINE, async || TcpStream::connect(("127.0.0.1", self.port)).await.ok())
            .await;
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub(crate) fn freeze(&self) {
        send("STOP", self.server.as_ref().expect("it runs").id());
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        send("CONT", self.server.as_ref().expect("it runs").id());
    }

    /// What it answers to a command whose words hold no space; `None` for nil.
    pub(crate) async fn ask(&self, command: &str) -> Option<String> {
        let mut stream =
            BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await.expect("connected"));
        stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).await.expect("asked");
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("an answer");
        let line = line.trim_end();
        match line.split_at(1) {
            ("$", "-1") => None,
            ("$", length) => {
                let mut text = vec![0; length.parse().expect("a length")];
                stream.read_exact(&mut text).await.expect("a text");
                Some(String::from_utf8(text).expect("text"))
            }
            ("+" | ":", answer) => Some(answer.to_owned()),
            _ => panic!("{command}: {line}"),
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
