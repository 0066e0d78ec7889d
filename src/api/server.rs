//! Owns the sockets: accepting, the deadlines of a connection, and its end.
//! Promises that a client which is slow or silent holds a socket for a bounded time, and that a stop lets started
//! requests finish.
//! Called by the roles `serve` and `standalone`.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::ServerConfig;
use crate::lifecycle::Lifecycle;

/// Largest request head.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Pause after the process ran out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; choose another address with HASHINSIGHT__SERVER__BIND")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// Listens on the configured address; port 0 takes a free one, which the listener tells.
pub async fn bind(config: &ServerConfig) -> Result<TcpListener, BindError> {
    let address = config.bind;
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Serves until the stop; connections are tasks of the lifecycle and finish the request they are in.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    config: ServerConfig,
    lifecycle: Lifecycle,
) -> anyhow::Result<()> {
    info!(address = %listener.local_addr()?, "the API listens");
    let mut http = http1::Builder::new();
    // Without a timer hyper's time-outs do nothing. This one runs from the first moment of a connection and from the
    // end of each answer, so it is the deadline of the first byte and of an idle connection as well.
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(config.header_timeout_ms))
        .max_buf_size(MAX_HEAD_BYTES);
    let room = Arc::new(Semaphore::new(config.max_connections));
    let stopping = lifecycle.stopping().clone();
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            // Beyond the limit connections wait in the listen queue.
            accepted = accept(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = connection(stream, http.clone(), router.clone(), stopping.clone());
                lifecycle.spawn_brief(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) if of_one_connection(&error) => debug!(%error, "a connection ended before it began"),
            Err(error) => {
                warn!(%error, "connections cannot be accepted; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn connection(stream: TcpStream, http: http1::Builder, router: Router, stopping: CancellationToken) {
    // An answer is one write: waiting for more would only delay it.
    let _ = stream.set_nodelay(true);
    let mut serving = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopping.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
