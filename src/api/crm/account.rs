//! Owns the reading of one account, which shows the read model beside the record.
//! Promises that an answer to `after` holds the event.
//! Called by the router.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Value, json};

use super::Api;
use crate::api::auth::{Allowed, CrmRead};
use crate::api::extract::{Params, PathId};
use crate::api::problem::Problem;
use crate::api::visible::{After, ReadModel};
use crate::domain::crm::{self, Account};
use crate::read_model::crm::{self as read_model, AccountSummary, GROUP, KINDS};

const MODEL: ReadModel = ReadModel { group: GROUP, kinds: KINDS, name: "an account" };

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    account: Account,
    summary: Option<AccountSummary>,
}

/// GET /api/crm/accounts/{id}?after=&wait=: {data}, with the account's figures as `summary`.
pub(super) async fn get(
    State(api): State<Api>,
    Allowed { who, .. }: Allowed<CrmRead>,
    PathId(id): PathId,
    params: Params,
) -> Result<Json<Value>, Problem> {
    let after = After::of(&params)?;
    after.wait(&api, &who.tenant, &MODEL).await?;
    let mut tx = api.db.tenant(&who.tenant).await?;
    let account: Account = crm::get(&mut tx, id).await?;
    let summary = read_model::account(&mut tx, id).await?;
    tx.commit().await?;
    Ok(Json(json!({"data": Shown { account, summary }})))
}
