//! Owns a Kafka broker of the test's own, for tests that stop it, freeze it, or ask it for TLS and passwords.
//! Promises that it answers when a call returns, and that neither process nor files outlive the value.
//! Used by tests for which the shared broker of `dev/services` would be the wrong one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hashinsight::config::load_from;
use hashinsight::log::kafka::KafkaLog;
use tokio::process::{Child, Command};
use uuid::Uuid;

/// Longer than a JVM takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The listener that every broker has, without TLS or passwords: the tests' own way in.
const PLAINTEXT: &str = "PLAINTEXT";

/// What a broker may have beside the usual.
#[derive(Default)]
pub(crate) struct Settings {
    /// Lines of the broker's file.
    pub(crate) properties: Vec<(&'static str, String)>,
    pub(crate) listeners: Vec<Listener>,
    /// Levels of the cluster's features other than the newest, such as `group.version=0`.
    pub(crate) features: Vec<&'static str>,
    /// Names and passwords, for PLAIN and for SCRAM alike.
    pub(crate) users: Vec<(&'static str, &'static str)>,
}

/// One more way in.
#[derive(Clone)]
pub(crate) struct Listener {
    /// In capitals, each name once.
    pub(crate) name: &'static str,
    /// Key and certificate in PEM: TLS.
    pub(crate) identity: Option<String>,
    /// The authority, in PEM, of the clients' certificates, which then are required.
    pub(crate) client_authority: Option<String>,
    /// Asks for a user's password.
    pub(crate) sasl: bool,
}

/// A running broker. Killed with this value.
pub(crate) struct Broker {
    child: Child,
    ports: BTreeMap<&'static str, u16>,
    home: Home,
}

impl Broker {
    /// Starts a broker on free ports.
    pub(crate) async fn start(settings: Settings) -> Self {
        let home = Home::new();
        let mut ports = BTreeMap::from([(PLAINTEXT, free_port()), ("CONTROLLER", free_port())]);
        ports.extend(settings.listeners.iter().map(|listener| (listener.name, free_port())));
        std::fs::write(home.file("server.properties"), properties(&settings, &ports, &home))
            .expect("written");

        let mut format = java(&["-Xmx64m"]);
        format.args(["kafka.tools.StorageTool", "format", "-t", "MDAwMDAwMDAwMDAwMDAwMA", "-c"]);
        format.arg(home.file("server.properties"));
        for feature in &settings.features {
            format.args(["--feature", feature]);
        }
        for (name, password) in &settings.users {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                format.arg("--add-scram").arg(format!("{mechanism}=[name={name},password={password}]"));
            }
        }
        let formatted = format.output().await.expect("java");
        let said = [formatted.stdout, formatted.stderr].concat();
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&said));

        let child = launch(&home);
        let mut broker = Self { child, ports, home };
        broker.answers().await;
        broker
    }

    /// Where it listens without TLS or passwords.
    pub(crate) fn address(&self) -> String {
        self.address_of(PLAINTEXT)
    }

    /// Where a listener of its settings listens.
    pub(crate) fn address_of(&self, listener: &str) -> String {
        format!("127.0.0.1:{}", self.ports[listener])
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.home.0
    }

    /// SIGKILL: no chance to tidy up. Returns when the process is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// Another value for a property, from the next start on.
    pub(crate) fn set(&self, property: &str, value: &str) {
        let file = self.home.file("server.properties");
        let mut lines = std::fs::read_to_string(&file).expect("written at the start");
        // The last line for a property counts.
        writeln!(lines, "{property}={value}").expect("formats");
        std::fs::write(&file, lines).expect("written");
    }

    /// Starts it again with what it had written; answers when this returns.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        self.child = launch(&self.home);
        self.answers().await;
    }

    /// SIGSTOP: connections stay open, nothing answers.
    pub(crate) async fn pause(&self) {
        self.signal("STOP").await;
    }

    /// SIGCONT.
    pub(crate) async fn resume(&self) {
        self.signal("CONT").await;
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await.expect("kill");
        assert!(sent.success());
    }

    /// Until it answers a request for metadata.
    async fn answers(&mut self) {
        let environment = BTreeMap::from([
            ("KAFKA_BROKERS".to_owned(), self.address()),
            ("HASHINSIGHT__KAFKA__CONNECT_TIMEOUT_MS".to_owned(), PATIENCE.as_millis().to_string()),
        ]);
        let config = load_from(None, &environment).expect("valid").config;
        let why = tokio::select! {
            connected = KafkaLog::connect(&config.kafka) => connected.err().map(|error| error.to_string()),
            ended = self.child.wait() => Some(format!("it ended: {ended:?}")),
        };
        if let Some(why) = why {
            panic!("the broker does not answer, {why}\n{}", self.home.last_words());
        }
    }
}

fn launch(home: &Home) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(home.file("log")).expect("a log");
    java(&["-Xmx256m", "-XX:+ExitOnOutOfMemoryError"])
        .arg("kafka.Kafka")
        .arg(home.file("server.properties"))
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("java")
}

/// One of Kafka's own tools, by its class.
pub(crate) fn tool(class: &str, arguments: &[&str]) -> Command {
    let mut command = java(&["-Xmx128m"]);
    command.arg(class).args(arguments);
    command
}

fn java(options: &[&str]) -> Command {
    let program =
        std::env::var("JAVA_HOME").map_or_else(|_| "java".to_owned(), |home| format!("{home}/bin/java"));
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("dev/lib");
    let mut command = Command::new(program);
    // What a short life does not repay is left out: the optimising compiler and parallel collection.
    command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true"]).args(options);
    command.arg(format!("-Dlog4j2.configurationFile={}", library.join("log4j2.properties").display()));
    command.arg("-cp").arg(jars(&library).join("*")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Where `dev/lib/kafka.sh` puts the jars: beside the build, in a folder named after its pom.
fn jars(library: &Path) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_hashinsight")).ancestors().nth(2).expect("the build's folder");
    let pom = std::fs::File::open(library.join("kafka.pom.xml")).expect("a pom");
    let sum = std::process::Command::new("sha256sum").stdin(pom).output().expect("sha256sum").stdout;
    let sum = String::from_utf8(sum).expect("a checksum");
    let folder = target.join(format!("services/jars/kafka-{}/kafka", &sum[..12]));
    assert!(folder.is_dir(), "{} is missing: run  dev/services up kafka", folder.display());
    folder
}

fn properties(settings: &Settings, ports: &BTreeMap<&'static str, u16>, home: &Home) -> String {
    let mut protocols = vec!["CONTROLLER:PLAINTEXT".to_owned(), format!("{PLAINTEXT}:PLAINTEXT")];
    let mut of_listeners = String::new();
    for listener in &settings.listeners {
        let protocol = match (listener.identity.is_some(), listener.sasl) {
            (false, false) => "PLAINTEXT",
            (false, true) => "SASL_PLAINTEXT",
            (true, false) => "SSL",
            (true, true) => "SASL_SSL",
        };
        protocols.push(format!("{}:{protocol}", listener.name));
        of_listeners += &listener_properties(listener, &settings.users, home);
    }
    let at = |name: &str| format!("{name}://127.0.0.1:{}", ports[name]);
    let listeners: Vec<String> = ports.keys().map(|name| at(name)).collect();
    let advertised: Vec<String> = ports.keys().filter(|n| **n != "CONTROLLER").map(|name| at(name)).collect();
    let mut file = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{}\n\
         listeners={}\nadvertised.listeners={}\ncontroller.listener.names=CONTROLLER\n\
         inter.broker.listener.name={PLAINTEXT}\nlistener.security.protocol.map={}\nlog.dirs={}\n{of_listeners}",
        ports["CONTROLLER"],
        listeners.join(","),
        advertised.join(","),
        protocols.join(","),
        home.file("data").display(),
    );
    // Small, and back soon: a broker that was killed is registered until its session ends.
    file += "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\nauto.create.topics.enable=false\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             log.cleaner.dedupe.buffer.size=2097152\nbroker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=500\n";
    for (key, value) in &settings.properties {
        writeln!(file, "{key}={value}").expect("a string");
    }
    file
}

fn listener_properties(listener: &Listener, users: &[(&str, &str)], home: &Home) -> String {
    let mut lines = Vec::new();
    if let Some(identity) = &listener.identity {
        let file = home.file(&format!("{}.pem", listener.name));
        std::fs::write(&file, identity).expect("written");
        lines.push(format!("ssl.keystore.location={}", file.display()));
        lines.push("ssl.keystore.type=PEM".to_owned());
    }
    if let Some(authority) = &listener.client_authority {
        let file = home.file(&format!("{}-clients.pem", listener.name));
        std::fs::write(&file, authority).expect("written");
        lines.push(format!("ssl.truststore.location={}", file.display()));
        lines.push("ssl.truststore.type=PEM".to_owned());
        lines.push("ssl.client.auth=required".to_owned());
    }
    if listener.sasl {
        let module = "org.apache.kafka.common.security";
        let known: Vec<String> =
            users.iter().map(|(name, password)| format!("user_{name}=\"{password}\"")).collect();
        lines.push("sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned());
        lines.push(format!(
            "plain.sasl.jaas.config={module}.plain.PlainLoginModule required {};",
            known.join(" ")
        ));
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            lines.push(format!("{mechanism}.sasl.jaas.config={module}.scram.ScramLoginModule required;"));
        }
    }
    let prefix = format!("listener.name.{}.", listener.name.to_ascii_lowercase());
    lines.into_iter().map(|line| format!("{prefix}{line}\n")).collect()
}

/// Below the ports that the kernel gives to outgoing connections: one of those could take it while a broker restarts.
pub(crate) fn free_port() -> u16 {
    std::iter::repeat_with(|| fastrand::u16(20_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// The folder of a broker.
struct Home(PathBuf);

impl Home {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("hashinsight-broker-{}", Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.file("log")).unwrap_or_default();
        // A broker repeats all of its settings before it says what it dislikes.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" = ")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // The broker may be writing its last file: what stays behind lies where temporary files lie.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
