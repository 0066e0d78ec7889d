//! What keeps tenants apart, as the catalogue has it: a table that lost it works like any other, for everybody.

use std::fmt;

use sqlx::postgres::PgConnection;

/// What the catalogue says. A list is absent when there is nothing to complain of.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub struct Protection {
    /// Whether the schema was ever made.
    pub migrated: bool,
    /// Tables with tenants whose row security is not forced.
    pub unprotected: Option<String>,
    /// Roles of ours that do not exist.
    pub missing_roles: Option<String>,
    /// Roles of ours that row security does not filter.
    pub too_strong: Option<String>,
    /// Whether the login may take on our roles.
    pub may_switch: bool,
}

/// What a complaint is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Schema,
    RowSecurity,
    Roles,
    Login,
}

/// Something that must be repaired before anything runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    pub about: Subject,
    pub detail: String,
    pub remedy: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.detail, self.remedy)
    }
}

impl Protection {
    /// Reads the catalogue.
    pub async fn read(conn: &mut PgConnection) -> Result<Self, sqlx::Error> {
        sqlx::query_as(
            "with ours as (select r.name, p.oid, coalesce(p.rolsuper or p.rolbypassrls, false) as strong \
               from unnest(array['hi_app', 'hi_worker', 'hi_owner']) r (name) \
               left join pg_roles p on p.rolname = r.name) \
             select to_regclass('event_outbox') is not null as migrated, \
               (select string_agg(c.relname, ', ' order by c.relname) from pg_class c \
                 join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped \
                 where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') \
                 and not (c.relrowsecurity and c.relforcerowsecurity)) as unprotected, \
               (select string_agg(name, ', ') from ours where oid is null) as missing_roles, \
               (select string_agg(name, ', ') from ours where strong) as too_strong, \
               (select coalesce(bool_and(pg_has_role(current_user, oid, 'member')), false) from ours \
                 where oid is not null) as may_switch",
        )
        .fetch_one(conn)
        .await
    }

    /// What is wrong, the gravest first.
    pub fn complaints(&self) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        let mut complain = |about, detail: String, remedy: &str| {
            complaints.push(Complaint { about, detail, remedy: remedy.to_owned() });
        };
        if !self.migrated {
            complain(
                Subject::Schema,
                "the database has no schema yet".to_owned(),
                "run `hashinsight migrate`",
            );
        }
        if let Some(tables) = &self.unprotected {
            complain(
                Subject::RowSecurity,
                format!("row-level security is not forced on {tables}"),
                "run `hashinsight migrate`, or `alter table ... force row level security` as the owner",
            );
        }
        if let Some(roles) = &self.missing_roles {
            complain(Subject::Roles, format!("the roles {roles} do not exist"), "run `hashinsight migrate`");
        }
        if let Some(roles) = &self.too_strong {
            complain(
                Subject::Roles,
                format!("the roles {roles} bypass row-level security"),
                "`alter role ... nosuperuser nobypassrls`",
            );
        }
        if !self.may_switch {
            complain(
                Subject::Login,
                "the login of DATABASE_URL is no member of hi_app, hi_worker and hi_owner".to_owned(),
                "`grant hi_app, hi_worker, hi_owner to <login>`",
            );
        }
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gap_is_a_complaint_with_a_remedy() {
        let good = Protection { migrated: true, may_switch: true, ..Protection::default() };
        assert_eq!(good.complaints(), []);
        let some = |text: &str| Some(text.to_owned());
        for (gap, about, says) in [
            (Protection { migrated: false, ..good.clone() }, Subject::Schema, "hashinsight migrate"),
            (
                Protection { unprotected: some("miners"), ..good.clone() },
                Subject::RowSecurity,
                "forced on miners",
            ),
            (
                Protection { missing_roles: some("hi_app"), ..good.clone() },
                Subject::Roles,
                "hi_app do not exist",
            ),
            (Protection { too_strong: some("hi_app"), ..good.clone() }, Subject::Roles, "nobypassrls"),
            (Protection { may_switch: false, ..good.clone() }, Subject::Login, "grant hi_app"),
        ] {
            let complaints = gap.complaints();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert_eq!(complaints[0].about, about);
            assert!(complaints[0].to_string().contains(says), "{}", complaints[0]);
        }
    }
}
