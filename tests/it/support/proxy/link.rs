//! One connection of the proxy: requests there, answers back.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::frame::{self, Frame};
use super::{Fate, Mode, Shared};

/// What becomes of one answer.
enum Answer {
    Lose,
    Hold(CancellationToken),
    Replace(Frame),
}

struct Link<'a> {
    mode: watch::Receiver<Mode>,
    shared: &'a Shared,
    to_client: tokio::sync::Mutex<WriteHalf<'a>>,
    /// By the correlation id of the request.
    answers: Mutex<HashMap<i32, Answer>>,
    /// Requests that the broker has not answered.
    outstanding: watch::Sender<usize>,
}

/// Until either side closes the connection or the mode resets it.
pub(super) async fn run(mut client: TcpStream, mut mode: watch::Receiver<Mode>, shared: &Shared) {
    client.set_nodelay(true).expect("set");
    let Ok(mut broker) = TcpStream::connect(&shared.broker).await else {
        return client.set_zero_linger().expect("set");
    };
    broker.set_nodelay(true).expect("set");
    let reset = {
        let (from_client, to_client) = client.split();
        let (from_broker, to_broker) = broker.split();
        let link = Link {
            mode: mode.clone(),
            shared,
            to_client: tokio::sync::Mutex::new(to_client),
            answers: Mutex::default(),
            outstanding: watch::Sender::new(0),
        };
        tokio::select! {
            _ = link.requests(from_client, to_broker) => false,
            back = link.answers(from_broker) => back.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset),
            _ = mode.wait_for(|mode| matches!(mode, Mode::Reset | Mode::Refuse)) => true,
        }
    };
    if reset {
        client.set_zero_linger().expect("set");
    }
}

impl Link<'_> {
    async fn requests(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        while let Ok(request) = frame::read(&mut from).await {
            self.pass(&[Mode::Blackhole]).await;
            let correlation = request.correlation();
            let answer = match self.shared.judge(&request) {
                None => None,
                Some(Fate::LoseAnswer) => Some(Answer::Lose),
                Some(Fate::HoldAnswer(until)) => Some(Answer::Hold(until)),
                Some(Fate::Garble(body)) => {
                    Some(Answer::Replace(Frame([&correlation.to_be_bytes()[..], &body].concat())))
                }
                Some(Fate::AppendButRefuse(code)) => Some(Answer::Replace(request.refusal(code))),
                Some(Fate::Refuse(code)) => {
                    self.to_client.lock().await.write_all(&request.refusal(code).bytes()).await?;
                    continue;
                }
                Some(Fate::Swallow) => std::future::pending().await,
                Some(Fate::HoldRequest(until)) => {
                    until.cancelled().await;
                    None
                }
            };
            if let Some(answer) = answer {
                self.answers.lock().expect("no panic").insert(correlation, answer);
            }
            self.outstanding.send_modify(|count| *count += 1);
            to.write_all(&request.bytes()).await?;
        }
        // A client that is gone does not take back what it asked for.
        let _ = self.outstanding.subscribe().wait_for(|count| *count == 0).await;
        Ok(())
    }

    async fn answers(&self, mut from: ReadHalf<'_>) -> io::Result<()> {
        let mut sent = 0;
        loop {
            let mut answer = frame::read(&mut from).await?;
            self.outstanding.send_modify(|count| *count -= 1);
            self.pass(&[Mode::Blackhole, Mode::LoseAnswers]).await;
            let fate = self.answers.lock().expect("no panic").remove(&answer.answers());
            match fate {
                None => {}
                Some(Answer::Lose) => continue,
                Some(Answer::Hold(until)) => until.cancelled().await,
                Some(Answer::Replace(other)) => answer = other,
            }
            let (broker, proxy) = &self.shared.names;
            answer.rename(broker, proxy);
            let mut bytes = answer.bytes();
            let mode = *self.mode.borrow();
            if let Mode::CutAfter(limit) = mode {
                bytes.truncate(limit.saturating_sub(sent));
            }
            sent += bytes.len();
            self.to_client.lock().await.write_all(&bytes).await?;
            if matches!(mode, Mode::CutAfter(limit) if sent >= limit) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }

    /// What the mode does to a frame: nothing, a delay, or for ever nothing more in one of `stop`.
    async fn pass(&self, stop: &[Mode]) {
        let mode = *self.mode.borrow();
        if stop.contains(&mode) {
            std::future::pending::<()>().await;
        }
        if let Mode::Delay(time) = mode {
            tokio::time::sleep(time).await;
        }
    }
}
