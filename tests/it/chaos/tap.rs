//! The way of one process to the database: open, stalled or broken. It knows nothing of what goes through.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Pause after a connection could not be taken over.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    /// Connections stay, nothing goes through until it is open again.
    Stalled,
    /// Connections end with a reset, those to come as well.
    Broken,
}

/// Ends with the runtime of its test.
pub(crate) struct Tap {
    pub(crate) port: u16,
    flow: watch::Sender<Flow>,
}

impl Tap {
    pub(crate) async fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (flow, current) = watch::channel(Flow::Open);
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => drop(tokio::spawn(connection(client, server, current.clone()))),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
        Self { port, flow }
    }

    pub(crate) fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

async fn connection(mut client: TcpStream, server: u16, mut flow: watch::Receiver<Flow>) {
    let server = TcpStream::connect(("127.0.0.1", server)).await;
    let both = server
        .and_then(|s| s.set_nodelay(true).map(|()| s))
        .and_then(|s| client.set_nodelay(true).map(|()| s));
    if let Ok(mut server) = both {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let there = pass(from_client, to_server, flow.clone());
        let back = pass(from_server, to_client, flow.clone());
        tokio::select! {
            _ = there => return,
            _ = back => return,
            _ = flow.wait_for(|flow| *flow == Flow::Broken) => {}
        }
    }
    // As a reset: nobody says goodbye.
    let _ = client.set_zero_linger();
}

/// Until one side closes.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut flow: watch::Receiver<Flow>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        let _ = flow.wait_for(|flow| *flow != Flow::Stalled).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
