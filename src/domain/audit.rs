//! Owns the audit log: who did what to which entity, through which request.
//! Promises a row for every change, in the transaction of the change; nobody may update or delete one.
//! Called by the commands of this folder.

use serde_json::Value;
use uuid::Uuid;

use super::Caller;
use crate::db::Tenanted;
use crate::identifier::EntityId;

/// Records one action. `detail` is what the event tells, too.
pub(super) async fn record<T: Tenanted>(
    tx: &mut T,
    caller: Caller<'_>,
    action: &str,
    entity: &EntityId,
    event_id: Uuid,
    detail: &Value,
) -> Result<(), sqlx::Error> {
    let tenant = tx.tenant().clone();
    sqlx::query(
        "insert into audit_log (tenant_id, id, actor, action, entity_id, event_id, request_id, detail) \
         values ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(tenant.as_str())
    .bind(Uuid::now_v7())
    .bind(caller.actor.as_str())
    .bind(action)
    .bind(entity.as_str())
    .bind(event_id)
    .bind(caller.request_id)
    .bind(detail)
    .execute(tx.conn())
    .await
    .map(drop)
}
