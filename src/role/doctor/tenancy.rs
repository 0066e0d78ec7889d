//! What keeps tenants apart: row security, roles, login, policies.

use sqlx::PgConnection;

use super::Check;
use crate::db::{Protection, Subject};

/// Row security, roles and login by what the database refuses to open without.
pub(super) fn judge(protection: &Protection) -> Vec<Check> {
    let complaints = protection.complaints();
    let judged = |about: Subject, name: &'static str, good: &str| {
        complaints.iter().find(|complaint| complaint.about == about).map_or_else(
            || Check::ok(name, good),
            |complaint| Check::failed(name, complaint.detail.clone(), complaint.remedy.clone()),
        )
    };
    vec![
        judged(
            Subject::RowSecurity,
            "row security",
            "forced on every table with tenants, and its partitions",
        ),
        judged(Subject::Roles, "roles", "hi_app, hi_worker and hi_owner are bound by row security"),
        judged(Subject::Login, "membership", "the login may take on our roles"),
    ]
}

/// The login itself: a superuser works, but nothing stops it.
pub(super) async fn login(conn: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let (login, strong): (String, bool) = sqlx::query_as(
        "select rolname::text, rolsuper or rolbypassrls from pg_roles where rolname = current_user",
    )
    .fetch_one(conn)
    .await?;
    Ok(vec![if strong {
        Check::warning(
            "login",
            format!(
                "{login} bypasses row-level security: every transaction of ours gives that right up, but whoever gets \
                 at this login or its connections sees all tenants"
            ),
            "use a login without SUPERUSER and BYPASSRLS that is a member of hi_app, hi_worker and hi_owner",
        )
    } else {
        Check::ok("login", format!("{login} is bound by row security"))
    }])
}

/// Row security without the right policies hides rows from their owner, or shows them to strangers.
pub(super) async fn policies(conn: &mut PgConnection) -> Result<Vec<Check>, sqlx::Error> {
    let blind: Option<String> = sqlx::query_scalar(
        "select string_agg(c.relname, ', ' order by c.relname) from pg_class c \
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and c.relforcerowsecurity \
         and not exists (select from pg_policies p where p.schemaname = 'public' and p.tablename = c.relname \
           and 'hi_owner' = any (p.roles) and p.cmd = 'ALL' and p.qual = 'true')",
    )
    .fetch_one(&mut *conn)
    .await?;
    let open: Option<String> = sqlx::query_scalar(
        "select string_agg(tablename || '.' || policyname, ', ' order by tablename, policyname) from pg_policies \
         where schemaname = 'public' and permissive = 'PERMISSIVE' and roles && array['hi_app', 'public']::name[] \
         and (coalesce(qual, 'app.tenant_id') !~ 'app\\.tenant_id' \
           or coalesce(with_check, 'app.tenant_id') !~ 'app\\.tenant_id')",
    )
    .fetch_one(conn)
    .await?;
    let name = "policies";
    Ok(vec![match (open, blind) {
        (Some(open), _) => Check::failed(
            name,
            format!("the API sees more than its tenant through {open}"),
            "`drop policy ... on ...`, then run `hashinsight migrate`",
        ),
        (None, Some(blind)) => Check::failed(
            name,
            format!("hi_owner sees nothing of {blind}: what guards unpublished rows is blind"),
            "`create policy owner_all on ... to hi_owner using (true) with check (true)`",
        ),
        (None, None) => Check::ok(name, "each tenant sees its own rows, the owner all"),
    }])
}
