//! Owns what an error of Kafka means for the caller.
//! Promises that what may have been appended is never called refused: the caller hands it over again.
//! Called by `log::kafka`.

use rskafka::client::error::{Error, ProtocolError, RequestError};

use super::clients::Failure;
use crate::log::LogError;
use crate::log::wire::WireError;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum During {
    Append,
    Fetch { offset: i64 },
    Bounds,
}

/// What to do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Ask again. For an append the only safe answer to anything that is not known to be final: the broker
    /// may have appended, and may still do so after it said that it ran out of time.
    Again,
    UnknownTopic,
    /// This record, never.
    Rejected,
    OutOfRange,
    /// The answer to a fetch does not decode. In an append the same means a lost answer.
    Unreadable,
    Refused,
}

/// Whether the same request may succeed later, possibly through another connection. An invalid response may
/// come from a stale view of the brokers as well.
pub(super) fn retry_helps(error: &Error) -> bool {
    matches!(error, Error::InvalidResponse(_)) || class(error) == Class::Again
}

fn class(error: &Error) -> Class {
    match error {
        Error::ServerError { protocol_error, .. } => class_of_code(*protocol_error),
        Error::Request(RequestError::NoVersionMatch { .. } | RequestError::WriteError(_)) => Class::Refused,
        Error::Request(
            RequestError::ReadError(_)
            | RequestError::ReadVersionedError(_)
            | RequestError::TooMuchData { .. },
        )
        | Error::InvalidResponse(_) => Class::Unreadable,
        _ => Class::Again,
    }
}

fn class_of_code(code: ProtocolError) -> Class {
    match code {
        ProtocolError::UnknownTopicOrPartition | ProtocolError::UnknownTopicId => Class::UnknownTopic,
        ProtocolError::MessageTooLarge | ProtocolError::RecordListTooLarge | ProtocolError::InvalidRecord => {
            Class::Rejected
        }
        ProtocolError::OffsetOutOfRange => Class::OutOfRange,
        // A broker that will not give a batch in a codec newer than the fetch.
        ProtocolError::UnsupportedCompressionType => Class::Unreadable,
        ProtocolError::InvalidTopicException
        | ProtocolError::InvalidRequiredAcks
        | ProtocolError::InvalidRequest
        | ProtocolError::UnsupportedVersion
        | ProtocolError::UnsupportedForMessageFormat
        | ProtocolError::PolicyViolation
        | ProtocolError::SecurityDisabled
        | ProtocolError::TopicAuthorizationFailed
        | ProtocolError::ClusterAuthorizationFailed
        | ProtocolError::SaslAuthenticationFailed
        | ProtocolError::IllegalSaslState
        | ProtocolError::UnsupportedSaslMechanism => Class::Refused,
        // Among them RequestTimedOut and NotEnoughReplicasAfterAppend, which are ambiguous, and InvalidTimestamp,
        // which ends when somebody repairs a clock or the topic.
        _ => Class::Again,
    }
}

/// The error of the log for a call that failed.
pub(super) fn log_error(failure: Failure, topic: &str, partition: i32, during: During) -> LogError {
    let lane = format!("{topic}/{partition}");
    let error = match failure {
        Failure::Deadline(_) | Failure::Panic => return LogError::Unavailable(format!("{lane}: {failure}")),
        Failure::Wire(error) => return error.into(),
        Failure::Client(error) => error,
    };
    let message = one_line(&error);
    let topic = topic.to_owned();
    match (class(&error), during) {
        (Class::UnknownTopic, _) => LogError::UnknownTopic { topic },
        (Class::Rejected, _) => LogError::Rejected { topic, message },
        (Class::OutOfRange, During::Fetch { offset }) => {
            LogError::OffsetOutOfRange { topic, partition, offset }
        }
        (Class::Unreadable, During::Fetch { offset }) => {
            LogError::Unreadable { topic, partition, offset, message }
        }
        (Class::Refused, _) => LogError::Refused(format!("{lane}: {message}")),
        _ => LogError::Unavailable(format!("{lane}: {message}")),
    }
}

impl From<WireError> for LogError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::NoCommonVersion { .. } | WireError::Tls { .. } | WireError::Authentication { .. } => {
                Self::Refused(error.to_string())
            }
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

fn one_line(error: &Error) -> String {
    let code = match error {
        Error::ServerError { protocol_error, .. } => return format!("the broker answers {protocol_error:?}"),
        other => other.to_string(),
    };
    code.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use rskafka::client::error::RequestContext;

    use super::*;

    fn server(protocol_error: ProtocolError) -> Failure {
        let request = RequestContext::Topic("t".to_owned());
        Failure::Client(Error::ServerError {
            protocol_error,
            error_message: None,
            request,
            response: None,
            is_virtual: false,
        })
    }

    #[test]
    fn what_may_have_been_appended_is_handed_over_again() {
        for code in [
            ProtocolError::RequestTimedOut,
            ProtocolError::NotEnoughReplicas,
            ProtocolError::NotEnoughReplicasAfterAppend,
            ProtocolError::NotLeaderOrFollower,
            ProtocolError::NetworkException,
            ProtocolError::InvalidTimestamp,
            ProtocolError::UnknownServerError,
            ProtocolError::Unknown(12_345),
        ] {
            let error = log_error(server(code), "t", 0, During::Append);
            assert!(matches!(error, LogError::Unavailable(_)), "{code:?}: {error}");
        }
        let lost = Failure::Client(Error::InvalidResponse("cut off".to_owned()));
        assert!(matches!(log_error(lost, "t", 0, During::Append), LogError::Unavailable(_)));
        let late = Failure::Deadline(std::time::Duration::from_secs(1));
        assert!(matches!(log_error(late, "t", 0, During::Append), LogError::Unavailable(_)));
    }

    #[test]
    fn the_others_say_what_to_do() {
        let of = |code, during| log_error(server(code), "t", 3, during);
        let (large, list, invalid) =
            (ProtocolError::MessageTooLarge, ProtocolError::RecordListTooLarge, ProtocolError::InvalidRecord);
        for code in [large, list, invalid] {
            assert!(matches!(of(code, During::Append), LogError::Rejected { .. }));
        }
        let unknown = of(ProtocolError::UnknownTopicOrPartition, During::Bounds);
        assert!(matches!(unknown, LogError::UnknownTopic { topic } if topic == "t"));
        let range = of(ProtocolError::OffsetOutOfRange, During::Fetch { offset: 9 });
        assert!(matches!(range, LogError::OffsetOutOfRange { partition: 3, offset: 9, .. }));
        let refused = of(ProtocolError::TopicAuthorizationFailed, During::Append);
        assert!(matches!(refused, LogError::Refused(_)));
        let garbled = Failure::Client(Error::InvalidResponse("no timestamp".to_owned()));
        let unreadable = log_error(garbled, "t", 3, During::Fetch { offset: 7 });
        assert!(matches!(unreadable, LogError::Unreadable { offset: 7, .. }));
    }
}
