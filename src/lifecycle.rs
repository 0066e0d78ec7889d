//! Owns the life of a process: its tasks, its two-stage stop, its exit code.
//! Promises that started work finishes or meets the deadline, and that a task which dies makes the process fail.
//! Called by the roles; nothing else starts a task.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

/// The tasks of one process and the signals that stop them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tasks: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
}

impl Lifecycle {
    /// Cancelled when the process should take no new work: race waits against it, never work.
    pub fn stopping(&self) -> &CancellationToken {
        &self.soft
    }

    /// Asks every task to stop.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Starts a task. Its error, its panic, and its end before a stop was asked for stop the process.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let this = self.clone();
        let running = tokio::spawn(task);
        self.tasks.spawn(async move {
            let abort = running.abort_handle();
            let result = tokio::select! {
                result = running => result,
                () = this.hard.cancelled() => {
                    abort.abort();
                    return this.fail(name, "cut off at the deadline of the stop");
                }
            };
            match result {
                Ok(Ok(())) if this.soft.is_cancelled() => {}
                Ok(Ok(())) => this.fail(name, "ended without being asked to"),
                Ok(Err(cause)) => this.fail(name, &format!("{cause:#}")),
                Err(panic) => this.fail(name, &panic.to_string()),
            }
        });
    }

    /// Starts a short-lived task: only its panic is a failure.
    pub fn spawn_brief<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let hard = self.hard.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = hard.cancelled() => {}
            }
        });
    }

    /// Runs until a signal, a failing task, or [`Lifecycle::stop`]; then waits for the tasks up to `drain`.
    /// A second signal cuts the wait short. Fails if a task failed or had to be cut off.
    pub async fn run(&self, drain: Duration) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        tokio::select! {
            () = self.soft.cancelled() => {}
            name = signals.next() => {
                info!(signal = name, "stopping: new work is refused, started work finishes");
                self.soft.cancel();
            }
        }
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => {}
            () = tokio::time::sleep(drain) => warn!("the drain deadline has passed: cutting off what still runs"),
            name = signals.next() => warn!(signal = name, "second signal: cutting off what still runs"),
        }
        self.hard.cancel();
        self.tasks.wait().await;
        let failure = self.failure.lock().map_or(None, |mut f| f.take());
        match failure {
            None => Ok(()),
            Some(message) => Err(anyhow::anyhow!(message)),
        }
    }

    fn fail(&self, task: &'static str, message: &str) {
        error!(task, error = message, "task failed; the process stops");
        if let Ok(mut failure) = self.failure.lock() {
            failure.get_or_insert_with(|| format!("{task}: {message}"));
        }
        self.soft.cancel();
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_fails_the_process() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("early", async { Ok(()) });
        let failure = lifecycle.run(Duration::from_secs(5)).await.expect_err("fails");
        assert!(failure.to_string().contains("early"), "{failure}");
    }

    #[tokio::test]
    async fn a_panic_fails_the_process() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("broken", async { panic!("on purpose") });
        assert!(lifecycle.run(Duration::from_secs(5)).await.is_err());
    }

    #[tokio::test]
    async fn a_stop_lets_started_work_finish() {
        let lifecycle = Lifecycle::default();
        let stopping = lifecycle.stopping().clone();
        let (done, finished) = tokio::sync::oneshot::channel();
        lifecycle.spawn("worker", async move {
            stopping.cancelled().await;
            tokio::task::yield_now().await;
            done.send(()).map_err(|()| anyhow::anyhow!("nobody listens"))
        });
        lifecycle.stop();
        lifecycle.run(Duration::from_secs(5)).await.expect("clean");
        finished.await.expect("finished its work");
    }

    #[tokio::test]
    async fn work_beyond_the_deadline_is_cut_off_and_said() {
        let lifecycle = Lifecycle::default();
        lifecycle.spawn("endless", std::future::pending());
        lifecycle.stop();
        let failure = lifecycle.run(Duration::from_millis(1)).await.expect_err("fails");
        assert!(failure.to_string().contains("cut off"), "{failure}");
    }
}
