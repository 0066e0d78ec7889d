//! The way to a server: open, stalled or broken, and to which of several. It knows nothing of what goes through.

use std::io;
use std::sync::{Arc, Mutex};
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
    aim: Arc<Mutex<Aim>>,
}

/// Where connections go, by port.
struct Aim {
    server: u16,
    /// Those that begin by saying this, and where they go.
    diverted: Option<(&'static str, u16)>,
}

impl Tap {
    pub(crate) async fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (flow, current) = watch::channel(Flow::Open);
        let aim = Arc::new(Mutex::new(Aim { server, diverted: None }));
        let aims = Arc::clone(&aim);
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((client, _)) => {
                        drop(tokio::spawn(connection(client, Arc::clone(&aims), current.clone())));
                    }
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
        Self { port, flow, aim }
    }

    /// Connections from now on go to the server at this port; those that are open stay where they are.
    pub(crate) fn aim(&self, server: u16) {
        *self.aim.lock().expect("no panic") = Aim { server, diverted: None };
    }

    /// As [`Tap::aim`], but those that begin by saying `text` go to another.
    pub(crate) fn divert(&self, server: u16, text: &'static str, elsewhere: u16) {
        *self.aim.lock().expect("no panic") = Aim { server, diverted: Some((text, elsewhere)) };
    }

    pub(crate) fn set(&self, flow: Flow) {
        self.flow.send_replace(flow);
    }
}

/// The server that a connection is meant for.
async fn server_of(client: &TcpStream, aim: &Mutex<Aim>) -> u16 {
    let diverted = aim.lock().expect("no panic").diverted;
    if let Some((text, elsewhere)) = diverted {
        let mut said = vec![0; 4 << 10];
        let length = client.peek(&mut said).await.unwrap_or_default();
        if said[..length].windows(text.len()).any(|window| window == text.as_bytes()) {
            return elsewhere;
        }
    }
    aim.lock().expect("no panic").server
}

async fn connection(mut client: TcpStream, aim: Arc<Mutex<Aim>>, mut flow: watch::Receiver<Flow>) {
    let server = server_of(&client, &aim).await;
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
