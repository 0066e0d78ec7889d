//! A Kafka Connect of a test's own, with Debezium.
//! Promises that it is gone, with its files, when the value is dropped.
//! Used by the tests of the connector.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use uuid::Uuid;

use super::{service, until};

/// A JVM start on a busy machine.
const STARTS: Duration = Duration::from_secs(120);

/// How the workers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Standalone,
    /// With or without transactions of every source.
    Distributed {
        exactly_once: bool,
    },
}

/// A running Connect.
pub(crate) struct Connect {
    pub(crate) url: String,
    child: Child,
    folder: PathBuf,
}

impl Connect {
    /// A standalone worker.
    pub(crate) async fn start(brokers: &str) -> Self {
        Self::start_as(brokers, Mode::Standalone).await
    }

    pub(crate) async fn start_as(brokers: &str, mode: Mode) -> Self {
        let jars = PathBuf::from(service("HASHINSIGHT_DEV_KAFKA_JARS")).join("kafka");
        let plugins = service("HASHINSIGHT_DEV_DEBEZIUM_JARS");
        let folder = std::env::temp_dir().join(format!("hi_connect_{}", Uuid::now_v7().simple()));
        std::fs::create_dir(&folder).expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let file = folder.join("connect.properties");
        std::fs::write(&file, properties(brokers, &plugins, port, &folder, mode)).expect("written");
        let log = File::create(folder.join("log")).expect("a log");
        let main = match mode {
            Mode::Standalone => "org.apache.kafka.connect.cli.ConnectStandalone",
            Mode::Distributed { .. } => "org.apache.kafka.connect.cli.ConnectDistributed",
        };
        let logging =
            concat!("-Dlog4j2.configurationFile=", env!("CARGO_MANIFEST_DIR"), "/dev/lib/log4j2.properties");
        let java =
            std::env::var("JAVA_HOME").map_or_else(|_| "java".to_owned(), |home| format!("{home}/bin/java"));
        let child = Command::new(java)
            .args([
                "-Xmx512m",
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                "-Djava.awt.headless=true",
                logging,
                "-cp",
            ])
            .arg(format!("{}/*", jars.display()))
            .arg(main)
            .arg(&file)
            // What the generated settings refer to.
            .env("HASHINSIGHT_DEBEZIUM_PASSWORD", "unused: the tests' server trusts")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("java: dev/services fetch connect installs it");
        let mut connect = Self { url: format!("http://127.0.0.1:{port}"), child, folder };
        until("Kafka Connect answers", STARTS, async || {
            let ended = connect.child.try_wait().expect("a state");
            assert!(ended.is_none(), "Kafka Connect ended:\n{}", connect.log());
            // Until it has joined its group a distributed worker answers, but not to this.
            let answer = reqwest::get(format!("{}/connectors", connect.url)).await;
            answer.ok().filter(|answer| answer.status().is_success()).map(drop)
        })
        .await;
        connect
    }

    /// Ends it and deletes the topics that it keeps its own state in.
    pub(crate) async fn end(mut self) {
        self.child.kill().await.expect("killed");
        let brokers = service("KAFKA_BROKERS").split(',').map(str::to_owned).collect();
        let client = rskafka::client::ClientBuilder::new(brokers).build().await.expect("a broker");
        let controller = client.controller_client().expect("a controller");
        for topic in own_topics(&self.folder) {
            controller.delete_topic(topic, 5_000).await.expect("deleted");
        }
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What a distributed worker keeps in topics.
const KINDS: [&str; 3] = ["offset", "config", "status"];

fn own_topics(folder: &Path) -> [String; 3] {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    KINDS.map(|kind| format!("{name}_{kind}"))
}

fn properties(brokers: &str, plugins: &str, port: u16, folder: &Path, mode: Mode) -> String {
    let common = format!(
        "bootstrap.servers={brokers}\n\
         key.converter=org.apache.kafka.connect.storage.StringConverter\n\
         value.converter=org.apache.kafka.connect.storage.StringConverter\n\
         offset.flush.interval.ms=1000\n\
         plugin.path={plugins}\n\
         plugin.discovery=service_load\n\
         listeners=http://127.0.0.1:{port}\n\
         config.providers=env\n\
         config.providers.env.class=org.apache.kafka.common.config.provider.EnvVarConfigProvider\n"
    );
    match mode {
        Mode::Standalone => {
            format!("{common}offset.storage.file.filename={}\n", folder.join("offsets").display())
        }
        Mode::Distributed { exactly_once } => {
            // A group of its own, whose topics are its own as well.
            let group = folder.file_name().unwrap_or_default().to_string_lossy();
            let support = if exactly_once { "enabled" } else { "disabled" };
            let topics = KINDS.into_iter().zip(own_topics(folder)).map(|(kind, topic)| {
                format!("{kind}.storage.topic={topic}\n{kind}.storage.replication.factor=1\n")
            });
            format!(
                "{common}group.id={group}\noffset.storage.partitions=1\nstatus.storage.partitions=1\n\
                 exactly.once.source.support={support}\n{}",
                topics.collect::<String>()
            )
        }
    }
}
