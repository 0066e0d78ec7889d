//! Owns the telling of curtailment: that a user's machines are to be off, or what still holds them when a source lets go.
//! Promises that of two sources which let go at once the later one is told of neither.
//! Called by the plans and by the strike automation, each after it has stored what it tells.

use serde_json::{Value, json};

use crate::db::{TenantTx, serial};
use crate::domain::{Caller, CommandError, emit};
use crate::event::kind;
use crate::identifier::{EntityId, UserId};

/// What holds off machines of a user at this moment: `strike`, `plan`. An `all_users` plan holds those whose machines it has.
const HELD_BY: &str = "select array_remove(array[ \
       case when exists (select from ops_strike where owner_id = $1 and phase = 'curtailed') then 'strike' end, \
       case when exists (select from ops_plan p where p.status = 'executing' and p.curtailing and case \
         when not p.all_users then p.owner_id = $1 \
         else exists (select from jsonb_to_recordset(p.detail -> 'by_customer') c (customer text, cut_kw numeric) \
           where c.customer = $1 and c.cut_kw > 0) end) then 'plan' end], null)";

/// Tells `owner` that machines are off from now on: `ops.curtailment_started` with `data`.
pub(super) async fn started(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    entity: EntityId,
    data: Value,
) -> Result<(), CommandError> {
    emit(tx, caller, kind::OPS_CURTAILMENT_STARTED, owner, entity, data).await.map(drop)
}

/// Tells `owner` that a source has let go: `ops.curtailment_ended` with `data` and what still holds as `held_by`.
pub(super) async fn ended(
    tx: &mut TenantTx,
    caller: Caller<'_>,
    owner: &UserId,
    entity: EntityId,
    mut data: Value,
) -> Result<(), CommandError> {
    // Two sources that let go at once would each name the other, and nobody would tell that the machines may run.
    let key = format!("ops_curtailed:{}", tx.tenant());
    serial::take_turn(tx.conn(), &key).await?;
    let held_by: Vec<String> = sqlx::query_scalar(HELD_BY).bind(owner).fetch_one(tx.conn()).await?;
    data["held_by"] = json!(held_by);
    emit(tx, caller, kind::OPS_CURTAILMENT_ENDED, owner, entity, data).await.map(drop)
}
