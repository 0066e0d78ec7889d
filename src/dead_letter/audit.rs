//! Who replayed or discarded which letter, in the audit log of the letter's tenant.

use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

/// Who acts, and through which request of the API.
#[derive(Debug, Clone, Copy)]
pub struct Actor<'a> {
    pub name: &'a str,
    pub request_id: Option<&'a str>,
}

/// What was done to a letter.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    Replay,
    Discard,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Replay => "dlq.replay",
            Self::Discard => "dlq.discard",
        }
    }
}

/// Records an action on letters of the tenant that the transaction works for, a row for each.
pub async fn record(
    conn: &mut PgConnection,
    tenant: &str,
    actor: Actor<'_>,
    action: Action,
    letters: &[Uuid],
    detail: &Value,
) -> Result<(), sqlx::Error> {
    let entries: Vec<Uuid> = letters.iter().map(|_| Uuid::now_v7()).collect();
    sqlx::query(
        "insert into audit_log (tenant_id, id, actor, action, entity_id, event_id, request_id, detail) \
         select $1, a.entry, $2, $3, d.id::text, d.event_id, $4, \
           $5::jsonb || jsonb_build_object('consumer_name', d.consumer_name, 'event_kind', d.event_kind) \
         from unnest($6::uuid[], $7::uuid[]) a(entry, letter) join event_dlq d on d.id = a.letter \
         where d.tenant_id = $1",
    )
    .bind(tenant)
    .bind(actor.name)
    .bind(action.as_str())
    .bind(actor.request_id)
    .bind(detail)
    .bind(entries)
    .bind(letters)
    .execute(conn)
    .await
    .map(drop)
}
