//! Owns the conversation with Kafka Connect over its REST interface.
//! Promises that a call ends by its deadline, and that no more of an answer is read than a sane one has.
//! Called by the roles `connector`, `doctor` and `bench`.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{CLASS, NAME, Settings};
use crate::config::{Config, ConfigError};

/// Reading a state takes Connect milliseconds.
const READ: Duration = Duration::from_secs(5);

/// Before it answers a change, Connect asks the connector, which asks the database; a standalone worker even starts the
/// task. It gives up after this long itself.
const CHANGE: Duration = Duration::from_secs(90);

/// The answer to a validation describes every setting there is: about 200 KiB.
const LARGEST_ANSWER: usize = 8 << 20;

/// Why Connect did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// Nobody answers, or nobody who speaks HTTP.
    #[error("Kafka Connect at {address} does not answer: {cause}")]
    Unavailable { address: String, cause: String },
    /// It answers that it will not.
    #[error("Kafka Connect at {address} refuses with {status}: {message}")]
    Refused { address: String, status: u16, message: String },
    /// It answers what it should not.
    #[error("Kafka Connect at {address} gives an answer that cannot be read: {cause}")]
    Unreadable { address: String, cause: String },
}

/// Connect itself.
#[derive(Debug, Deserialize)]
pub struct Worker {
    pub version: String,
}

/// What a connector does.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    pub connector: State,
    pub tasks: Vec<Task>,
}

/// The state of a connector: RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED, RESTARTING.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    pub state: String,
    /// Of a failure.
    pub trace: Option<String>,
}

/// The state of a task.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub id: i32,
    pub state: String,
    /// Of a failure.
    pub trace: Option<String>,
}

impl Status {
    /// Whether the connector and its one task run.
    pub fn runs(&self) -> bool {
        self.connector.state == "RUNNING"
            && !self.tasks.is_empty()
            && self.tasks.iter().all(|task| task.state == "RUNNING")
    }

    /// The cause of a failure in one line.
    pub fn failure(&self) -> Option<String> {
        let traces = self.tasks.iter().map(|task| &task.trace).chain([&self.connector.trace]);
        traces.flatten().next().map(|trace| cause(trace))
    }
}

/// The last "Caused by" of a stack trace names what is to be repaired.
fn cause(trace: &str) -> String {
    let lines = trace.lines().filter(|line| !line.trim_start().starts_with("at ") && !line.trim().is_empty());
    let line = lines.clone().rfind(|line| line.starts_with("Caused by: ")).or_else(|| lines.clone().next());
    line.unwrap_or_default().trim_start_matches("Caused by: ").trim().to_owned()
}

/// A client of Kafka Connect.
#[derive(Debug, Clone)]
pub struct Connect {
    /// `http://host:port`, possibly with a path, without a slash at the end.
    address: String,
    host: String,
    port: u16,
}

impl Connect {
    /// The Connect of a configuration.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let url = config.kafka.connect_url().ok_or_else(|| {
            ConfigError(
                "kafka.connect_url is not set: set KAFKA_CONNECT_URL=http://host:port of Kafka Connect"
                    .to_owned(),
            )
        })?;
        let refused = || ConfigError(format!("kafka.connect_url = {url:?} is not allowed: http://host:port"));
        let uri: Uri = url.parse().map_err(|_| refused())?;
        let host = uri.host().ok_or_else(refused)?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(80);
        Ok(Self { address: url.trim_end_matches('/').to_owned(), host, port })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Reads a resource.
    pub async fn get(&self, path: &str) -> Result<Value, RestError> {
        self.json(self.ask(Method::GET, path, None, CHANGE).await?)
    }

    /// Makes a resource or replaces it.
    pub async fn put(&self, path: &str, body: Value) -> Result<(), RestError> {
        self.ask(Method::PUT, path, Some(body), CHANGE).await.map(drop)
    }

    /// Deletes a resource, which may be gone.
    pub async fn delete(&self, path: &str) -> Result<(), RestError> {
        match self.ask(Method::DELETE, path, None, CHANGE).await {
            Ok(_) | Err(RestError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Connect itself.
    pub async fn worker(&self) -> Result<Worker, RestError> {
        self.json(self.ask(Method::GET, "/", None, READ).await?)
    }

    /// The settings of our connector, if it is registered.
    pub async fn settings(&self) -> Result<Option<Settings>, RestError> {
        self.existing(&format!("/connectors/{NAME}/config")).await
    }

    /// The state of our connector, if it is registered.
    pub async fn status(&self) -> Result<Option<Status>, RestError> {
        self.existing(&format!("/connectors/{NAME}/status")).await
    }

    /// Registers our connector, or changes its settings.
    pub async fn register(&self, settings: &Settings) -> Result<(), RestError> {
        self.put(&format!("/connectors/{NAME}/config"), json!(settings)).await
    }

    /// Whether the worker runs every source in transactions, which is not among the settings of a connector.
    ///
    /// There is no direct way to ask. A worker without exactly-once support refuses a connector that requires it, and
    /// any distributed worker refuses Debezium as the one to draw the boundaries of transactions. A standalone worker
    /// has no transactions at all, and checks neither.
    pub async fn writes_transactions(&self) -> Result<bool, RestError> {
        let probe = json!({
            "name": NAME,
            "connector.class": CLASS,
            "tasks.max": "1",
            "exactly.once.support": "required",
            "transaction.boundary": "connector",
        });
        let path = format!("/connector-plugins/{CLASS}/config/validate");
        let answer: Value = self.json(self.ask(Method::PUT, &path, Some(probe), CHANGE).await?)?;
        let refused = |name: &str| {
            let values = answer["configs"].as_array().into_iter().flatten().map(|config| &config["value"]);
            let mut of_name = values.filter(|value| value["name"] == name);
            of_name.any(|value| value["errors"].as_array().is_some_and(|errors| !errors.is_empty()))
        };
        Ok(refused("transaction.boundary") && !refused("exactly.once.support"))
    }

    async fn existing<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<Option<T>, RestError> {
        match self.ask(Method::GET, path, None, READ).await {
            Ok(answer) => self.json(answer).map(Some),
            Err(RestError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, answer: Vec<u8>) -> Result<T, RestError> {
        serde_json::from_slice(&answer)
            .map_err(|e| RestError::Unreadable { address: self.address.clone(), cause: e.to_string() })
    }

    /// Sends one request on a connection of its own.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        deadline: Duration,
    ) -> Result<Vec<u8>, RestError> {
        let unavailable = |cause: String| RestError::Unavailable { address: self.address.clone(), cause };
        let exchange = Box::pin(self.exchange(method, path, body));
        let (status, answer) = timeout(deadline, exchange)
            .await
            .map_err(|_| unavailable(format!("no answer within {} ms", deadline.as_millis())))?
            .map_err(|e| unavailable(e.to_string()))?;
        if status.is_success() {
            return Ok(answer);
        }
        let document: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let message = document["message"].as_str().unwrap_or("no reason given");
        Err(RestError::Refused {
            address: self.address.clone(),
            status: status.as_u16(),
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(StatusCode, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
        let uri: Uri = format!("{}{path}", self.address).parse()?;
        let request = Request::builder()
            .method(method)
            .uri(uri.path())
            .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.map_or_else(Body::empty, |json| Body::from(json.to_string())))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The sender goes with its block: then the connection ends as well.
        let asked = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let answer = to_bytes(Body::new(body), LARGEST_ANSWER).await?;
            Ok((head.status, answer.to_vec()))
        };
        let (answered, _) = tokio::join!(asked, connection);
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(connector: &str, tasks: &[&str], trace: Option<&str>) -> Status {
        let state = |state: &str| (state.to_owned(), trace.map(str::to_owned));
        let (of_connector, _) = state(connector);
        let task = |(id, text): (usize, &&str)| {
            let (state, trace) = state(text);
            Task { id: i32::try_from(id).unwrap_or_default(), state, trace }
        };
        Status {
            connector: State { state: of_connector, trace: None },
            tasks: tasks.iter().enumerate().map(task).collect(),
        }
    }

    #[test]
    fn a_connector_runs_with_its_task_or_not_at_all() {
        assert!(status("RUNNING", &["RUNNING"], None).runs());
        assert!(!status("RUNNING", &[], None).runs());
        assert!(!status("RUNNING", &["FAILED"], None).runs());
        assert!(!status("PAUSED", &["PAUSED"], None).runs());
    }

    #[test]
    fn the_cause_of_a_failure_is_its_last_cause() {
        let trace = "org.apache.kafka.connect.errors.ConnectException: no start\n\tat a.B.c(B.java:1)\n\
                     Caused by: java.lang.RuntimeException: outer\n\tat x.Y.z(Y.java:2)\n\
                     Caused by: org.postgresql.util.PSQLException: FATAL: no such login\n\t... 3 more\n";
        let failed = status("RUNNING", &["FAILED"], Some(trace));
        assert_eq!(
            failed.failure().as_deref(),
            Some("org.postgresql.util.PSQLException: FATAL: no such login")
        );
        assert_eq!(status("RUNNING", &["RUNNING"], None).failure(), None);
    }
}
