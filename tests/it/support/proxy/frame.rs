//! The frames of the protocol, as far as the proxy has to understand them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const PRODUCE: i16 = 0;
pub(crate) const METADATA: i16 = 3;
pub(crate) const OFFSET_COMMIT: i16 = 8;
pub(crate) const FIND_COORDINATOR: i16 = 10;
pub(crate) const SASL_AUTHENTICATE: i16 = 36;
pub(crate) const CONSUMER_GROUP_HEARTBEAT: i16 = 68;

/// One request or answer, without its length.
pub(super) struct Frame(pub(super) Vec<u8>);

/// Reads one frame.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let length = from.read_u32().await?;
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await?;
    Ok(Frame(frame))
}

/// Host and port as they stand in an answer to Metadata.
pub(super) fn name_on_the_wire(address: &str) -> Vec<u8> {
    let (host, port) = address.rsplit_once(':').expect("host:port");
    let port: i32 = port.parse().expect("a port");
    [host.as_bytes(), &port.to_be_bytes()].concat()
}

impl Frame {
    /// With its length, as it is sent.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a frame");
        [&length.to_be_bytes()[..], &self.0].concat()
    }

    /// Of a request.
    pub(super) fn api_key(&self) -> i16 {
        i16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// Of a request.
    pub(super) fn correlation(&self) -> i32 {
        i32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]])
    }

    /// Of an answer.
    pub(super) fn answers(&self) -> i32 {
        i32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Replaces what is written in an answer as the broker's name by one of the same length.
    pub(super) fn rename(&mut self, from: &[u8], to: &[u8]) {
        if let Some(at) = self.0.windows(from.len()).position(|bytes| bytes == from) {
            self.0[at..at + from.len()].copy_from_slice(to);
        }
    }

    /// Topic and partition of a Produce request, which has one of each: versions 3 to 8.
    pub(super) fn lane(&self) -> Option<(String, i32)> {
        if self.api_key() != PRODUCE {
            return None;
        }
        let mut rest = &self.0[8..];
        // Client id; transactional id, acks, timeout, number of topics.
        skip_string(&mut rest);
        skip_string(&mut rest);
        rest = &rest[2 + 4 + 4..];
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let topic = String::from_utf8(rest[2..2 + length].to_vec()).expect("a topic's name");
        // Number of partitions.
        let partition = &rest[2 + length + 4..];
        Some((topic, i32::from_be_bytes([partition[0], partition[1], partition[2], partition[3]])))
    }

    /// The answer to a Produce request that names an error: versions 5 to 7.
    pub(super) fn refusal(&self, code: i16) -> Self {
        let (topic, partition) = self.lane().expect("a Produce request");
        let length = i16::try_from(topic.len()).expect("a topic's name");
        // Base offset, time and start of the log are unknown, then the throttle time.
        let unknown = (-1_i64).to_be_bytes();
        Self(
            [
                &self.correlation().to_be_bytes()[..],
                &1_i32.to_be_bytes(),
                &length.to_be_bytes(),
                topic.as_bytes(),
                &1_i32.to_be_bytes(),
                &partition.to_be_bytes(),
                &code.to_be_bytes(),
                &unknown,
                &unknown,
                &unknown,
                &0_i32.to_be_bytes(),
            ]
            .concat(),
        )
    }
}

/// A string that may be absent.
fn skip_string(rest: &mut &[u8]) {
    let length = usize::try_from(i16::from_be_bytes([rest[0], rest[1]])).unwrap_or_default();
    *rest = &rest[2 + length..];
}
