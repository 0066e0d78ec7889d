//! What a coordinator's error code asks of a member: one pure function.

use kafka_protocol::error::ResponseError;

/// What to do about a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// The coordinator is another broker by now, or not ready: find it again.
    Find,
    /// The coordinator does not know us as we describe ourselves: work stops, then we join anew.
    Rejoin,
    /// The epoch is old: the next heartbeat brings the new one.
    Beat,
    /// A topic is not there: its partitions are left out until the topics were asked for again.
    Refresh,
    /// It may pass: the same again, later.
    Wait,
    /// A mistake of this build or of a configuration: repeating it changes nothing.
    Stop,
}

/// `None`: no error.
pub(super) fn reaction(code: i16) -> Option<Reaction> {
    let error = ResponseError::try_from_code(code)?;
    Some(match error {
        ResponseError::CoordinatorLoadInProgress
        | ResponseError::CoordinatorNotAvailable
        | ResponseError::NotCoordinator => Reaction::Find,
        ResponseError::UnknownMemberId
        | ResponseError::FencedMemberEpoch
        | ResponseError::GroupIdNotFound => Reaction::Rejoin,
        ResponseError::StaleMemberEpoch => Reaction::Beat,
        ResponseError::UnknownTopicOrPartition | ResponseError::UnknownTopicId => Reaction::Refresh,
        ResponseError::UnreleasedInstanceId | ResponseError::GroupMaxSizeReached => Reaction::Wait,
        ResponseError::InvalidRequest | ResponseError::UnsupportedAssignor => Reaction::Stop,
        other if other.is_retriable() => Reaction::Wait,
        _ => Reaction::Stop,
    })
}

/// Whether the answer to a leave says that there is nobody left to leave.
pub(super) fn has_left(code: i16) -> bool {
    reaction(code).is_none_or(|reaction| reaction == Reaction::Rejoin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_protocol_has_its_reaction() {
        assert_eq!(reaction(0), None);
        let table = [
            (&[14, 15, 16][..], Reaction::Find),
            (&[25, 110, 69], Reaction::Rejoin),
            (&[113], Reaction::Beat),
            (&[3, 100], Reaction::Refresh),
            // The instance id is in use; the group is full; a broker that is busy or moving.
            (&[111, 81, 7], Reaction::Wait),
            // Malformed; no such assignor; too old a version; not allowed to use the group, the topic; a bad name.
            (&[42, 112, 35, 30, 29, 24], Reaction::Stop),
            // What is not known is not repeated.
            (&[9_999], Reaction::Stop),
        ];
        for (codes, expected) in table {
            for code in codes {
                assert_eq!(reaction(*code), Some(expected), "{code}");
            }
        }
    }

    #[test]
    fn who_is_not_known_has_left() {
        assert!([0, 25, 69, 110].into_iter().all(has_left));
        assert!(![14, 15, 16, 30, 42].into_iter().any(has_left));
    }
}
