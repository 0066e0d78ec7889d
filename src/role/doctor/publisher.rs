//! The publisher: who leads, and how much is not published.

use super::Check;
use crate::outbox::{MOST_COUNTED, Progress};

/// Events that wait longer than this are not on their way any more.
const LATE_SECONDS: f64 = 60.0;

pub(super) fn judge(facts: &Progress, debezium: bool) -> Check {
    let name = "publisher";
    let count = if facts.backlog == MOST_COUNTED {
        format!("{MOST_COUNTED} or more")
    } else {
        facts.backlog.to_string()
    };
    let oldest = facts.oldest_seconds.unwrap_or(0.0);
    let waits = format!("{count} events wait, the oldest for {oldest:.0} s");
    let late = facts.backlog > 0 && oldest > LATE_SECONDS;
    if !facts.same_cluster {
        return Check::failed(
            name,
            "the cursor was written in another cluster: this database was restored from a dump, and new events would \
             silently never be published",
            "`hashinsight publish --rebase`",
        );
    }
    if let (Some(led_on), Some(timeline)) = (facts.led_on, facts.timeline)
        && led_on != timeline
    {
        return Check::warning(
            name,
            format!(
                "the server was promoted, or restored to a point in time, since somebody led: timeline {led_on} is now \
                 {timeline}; {count} events wait"
            ),
            "start `hashinsight publish`, and see \"Failover\" in the README",
        );
    }
    match (facts.leads, debezium) {
        (true, _) if facts.observes && late => Check::failed(
            name,
            format!("Debezium is to publish, but {waits}"),
            "`hashinsight connector status`, or `hashinsight publish --source poll` in place of it",
        ),
        (true, _) if facts.observes => Check::ok(name, "Debezium publishes, the cursor follows it"),
        (true, true) => Check::warning(
            name,
            "`hashinsight publish` and Debezium both publish: every event is in Kafka twice, and applied once",
            "stop one of the two",
        ),
        (true, false) if late => Check::warning(
            name,
            format!("a publisher leads, but {waits}"),
            "see its log: is it busy with a backlog, or does Kafka not take the records?",
        ),
        (true, false) if facts.stuck > 0 => Check::warning(
            name,
            format!("{} events wait for a topic or partition that does not take them", facts.stuck),
            "see the lines about kafka and topics",
        ),
        (true, false) => Check::ok(name, format!("one leads, {count} events wait")),
        (false, true) => Check::warning(
            name,
            "Debezium publishes, but nobody moves the cursor behind it: nothing old is dropped from the outbox",
            "start `hashinsight publish --source debezium` beside it",
        ),
        (false, false) if late => {
            Check::failed(name, format!("none leads, and {waits}"), "start `hashinsight publish`")
        }
        (false, false) => {
            Check::warning(name, format!("none leads, {count} events wait"), "start `hashinsight publish`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn somebody_must_publish_and_only_one() {
        let facts = Progress {
            leads: true,
            observes: false,
            same_cluster: true,
            led_on: Some(2),
            timeline: Some(2),
            backlog: 0,
            oldest_seconds: None,
            stuck: 0,
        };
        let late = Progress { backlog: 2, oldest_seconds: Some(61.0), ..facts.clone() };
        for (facts, debezium, status, says) in [
            (facts.clone(), false, Status::Ok, "one leads, 0 events"),
            (facts.clone(), true, Status::Warning, "twice"),
            (late.clone(), false, Status::Warning, "2 events wait, the oldest for 61 s"),
            (Progress { stuck: 3, ..facts.clone() }, false, Status::Warning, "3 events"),
            (Progress { leads: false, ..facts.clone() }, false, Status::Warning, "none leads"),
            (Progress { leads: false, ..late.clone() }, false, Status::Failed, "none leads, and 2 events"),
            (Progress { leads: false, ..late.clone() }, true, Status::Warning, "nobody moves the cursor"),
            (Progress { observes: true, ..facts.clone() }, true, Status::Ok, "the cursor follows"),
            (Progress { observes: true, ..late }, true, Status::Failed, "is to publish, but 2"),
            (Progress { led_on: Some(1), ..facts.clone() }, false, Status::Warning, "timeline 1 is now 2"),
            (Progress { led_on: None, ..facts.clone() }, false, Status::Ok, "one leads"),
            (Progress { same_cluster: false, ..facts.clone() }, false, Status::Failed, "another cluster"),
        ] {
            let check = judge(&facts, debezium);
            assert_eq!(check.status, status, "{check:?}");
            assert!(check.detail.contains(says), "{check:?}");
            assert_eq!(check.remedy.is_none(), status == Status::Ok, "{check:?}");
        }
    }
}
