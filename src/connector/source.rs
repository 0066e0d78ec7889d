//! Owns what PostgreSQL must have for Debezium: the publication, and a slot that is made in time.
//! Promises to say what is wrong with the publication, and changes nothing.
//! Called by the roles `connector` and `doctor`.

use std::collections::BTreeSet;

use sqlx::PgConnection;

use super::{PUBLICATION, TABLE};

/// The publication as it is.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Publication {
    pub all_tables: bool,
    pub inserts: bool,
    /// Updates, deletes or truncations as well.
    pub others: bool,
    /// Rows come under the name of the partitioned table.
    pub via_root: bool,
    /// `schema.table` of each.
    pub tables: Vec<String>,
    /// The columns of the first table.
    pub columns: Vec<String>,
}

/// The publication, if it exists.
pub async fn publication(conn: &mut PgConnection) -> Result<Option<Publication>, sqlx::Error> {
    sqlx::query_as(
        "select p.puballtables as all_tables, p.pubinsert as inserts, \
           p.pubupdate or p.pubdelete or p.pubtruncate as others, p.pubviaroot as via_root, \
           array(select t.schemaname || '.' || t.tablename from pg_publication_tables t \
             where t.pubname = p.pubname order by 1) as tables, \
           coalesce((select t.attnames::text[] from pg_publication_tables t where t.pubname = p.pubname \
             order by t.schemaname, t.tablename limit 1), '{}') as columns \
         from pg_publication p where p.pubname = $1",
    )
    .bind(PUBLICATION)
    .fetch_optional(conn)
    .await
}

impl Publication {
    /// What keeps a reader from the outbox or shows it more than that; nothing when all is well.
    pub fn wrong(&self, needed: &BTreeSet<&str>) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.inserts {
            wrong.push("it does not publish inserts".to_owned());
        }
        if self.others {
            wrong.push("it publishes more than inserts".to_owned());
        }
        if !self.via_root {
            wrong.push(
                "publish_via_partition_root is off: rows come under the names of partitions".to_owned(),
            );
        }
        if self.all_tables {
            wrong.push("it publishes all tables".to_owned());
        } else if self.via_root && self.tables != [format!("public.{TABLE}")] {
            wrong.push(format!("its tables are {}, not public.{TABLE} alone", listed(&self.tables)));
        } else {
            let missing: Vec<&str> =
                needed.iter().copied().filter(|name| !self.columns.iter().any(|c| c == name)).collect();
            if !missing.is_empty() {
                wrong.push(format!("its column list lacks {}", missing.join(", ")));
            }
        }
        wrong
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The statement that makes a slot.
pub fn create_statement(name: &str) -> String {
    format!("select pg_create_logical_replication_slot('{name}', 'pgoutput')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_of_the_outbox_alone() {
        let needed = BTreeSet::from(["id", "payload"]);
        let good = || Publication {
            all_tables: false,
            inserts: true,
            others: false,
            via_root: true,
            tables: vec!["public.event_outbox".to_owned()],
            columns: vec!["id".to_owned(), "payload".to_owned(), "position".to_owned()],
        };
        assert_eq!(good().wrong(&needed), [""; 0]);
        type Change = fn(&mut Publication);
        let cases: [(Change, &str); 7] = [
            (|p| p.inserts = false, "does not publish inserts"),
            (|p| p.others = true, "more than inserts"),
            (|p| p.via_root = false, "publish_via_partition_root is off"),
            (|p| p.all_tables = true, "all tables"),
            (|p| p.tables.push("public.miners".to_owned()), "public.event_outbox, public.miners"),
            (|p| p.tables.clear(), "its tables are none"),
            (|p| p.columns.retain(|c| c != "payload"), "lacks payload"),
        ];
        for (change, says) in cases {
            let mut publication = good();
            change(&mut publication);
            let wrong = publication.wrong(&needed).join("; ");
            assert!(wrong.contains(says), "{wrong:?} does not say {says:?}");
        }
    }
}
