//! The tables as they are at the end.

use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tables {
    pub(crate) outbox: Vec<Event>,
    pub(crate) inbox: Vec<Received>,
    pub(crate) parked: Vec<Parked>,
    pub(crate) dead: Vec<Dead>,
    pub(crate) offsets: Vec<Offset>,
    /// Positions of the outbox that the publisher has set aside.
    pub(crate) stuck: Vec<i64>,
    pub(crate) audit: Vec<Audit>,
    pub(crate) miners: Vec<Miner>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// Whole rows, as JSON.
    pub(crate) portfolios: Vec<Value>,
}

/// A row of event_outbox.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Event {
    pub(crate) position: i64,
    pub(crate) id: Uuid,
    pub(crate) aggregate_type: String,
    pub(crate) aggregate_id: String,
    pub(crate) event_key: String,
    pub(crate) event_type: String,
    pub(crate) tenant_id: String,
    pub(crate) user_id: String,
    pub(crate) payload: Value,
}

/// A row of event_inbox.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Received {
    pub(crate) consumer_name: String,
    pub(crate) event_id: Uuid,
    pub(crate) tenant_id: String,
    pub(crate) event_kind: String,
    pub(crate) outcome: String,
}

/// A row of parked_event.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Parked {
    pub(crate) consumer_name: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) log_offset: i64,
    pub(crate) event_id: Uuid,
    pub(crate) tenant_id: String,
    pub(crate) error_message: Option<String>,
}

/// A row of event_dlq.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Dead {
    pub(crate) consumer_name: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) log_offset: i64,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) status: String,
    pub(crate) error_class: String,
    pub(crate) error_message: String,
}

/// A row of consumer_offset.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Offset {
    pub(crate) consumer_name: String,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) next_offset: i64,
    pub(crate) owner_epoch: i64,
}

/// A row of audit_log.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Audit {
    pub(crate) tenant_id: String,
    pub(crate) event_id: Option<Uuid>,
    pub(crate) request_id: Option<String>,
}

/// A row of miners.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Miner {
    pub(crate) tenant_id: String,
    pub(crate) id: Uuid,
    pub(crate) owner_id: String,
    pub(crate) model: String,
    pub(crate) hashrate_ths: Decimal,
    pub(crate) power_w: Decimal,
    pub(crate) quantity: i32,
    pub(crate) location: Option<String>,
    pub(crate) purchase_price_usd: Option<Decimal>,
    pub(crate) electricity_cost_usd_kwh: Option<Decimal>,
    pub(crate) status: String,
    pub(crate) removed: bool,
}

/// A row of network_snapshots, the newest of its tenant first.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub(crate) struct Snapshot {
    pub(crate) tenant_id: String,
    pub(crate) id: Uuid,
    pub(crate) btc_price_usd: Decimal,
    pub(crate) difficulty: Decimal,
    pub(crate) block_height: i64,
    pub(crate) fees_btc_per_block: Decimal,
}

impl Tables {
    /// Reads them as the superuser, whom row security does not filter.
    pub(crate) async fn read(admin: &mut PgConnection) -> Result<Self, sqlx::Error> {
        Ok(Self {
            outbox: sqlx::query_as("select * from event_outbox order by position")
                .fetch_all(&mut *admin)
                .await?,
            inbox: sqlx::query_as("select * from event_inbox").fetch_all(&mut *admin).await?,
            parked: sqlx::query_as("select * from parked_event").fetch_all(&mut *admin).await?,
            dead: sqlx::query_as("select * from event_dlq").fetch_all(&mut *admin).await?,
            offsets: sqlx::query_as("select * from consumer_offset order by 1, 2, 4")
                .fetch_all(&mut *admin)
                .await?,
            stuck: sqlx::query_scalar("select position from outbox_stuck order by 1")
                .fetch_all(&mut *admin)
                .await?,
            audit: sqlx::query_as("select * from audit_log").fetch_all(&mut *admin).await?,
            miners: sqlx::query_as("select *, removed_at is not null as removed from miners order by id")
                .fetch_all(&mut *admin)
                .await?,
            snapshots: sqlx::query_as("select * from network_snapshots order by observed_at desc, id desc")
                .fetch_all(&mut *admin)
                .await?,
            portfolios: sqlx::query_scalar("select to_jsonb(p) from portfolio p order by tenant_id, user_id")
                .fetch_all(&mut *admin)
                .await?,
        })
    }
}

impl Event {
    /// The request that caused it.
    pub(crate) fn request_id(&self) -> &str {
        self.payload["correlation_id"].as_str().unwrap_or_default()
    }

    /// What its order is promised for. The key is part of it: a miner that changes hands goes on in the partition of
    /// its new owner, and between partitions there is no order.
    pub(crate) fn aggregate(&self) -> (&str, &str, &str) {
        (&self.event_key, &self.aggregate_type, &self.aggregate_id)
    }

    /// Owners whose portfolio it changes: its own, and the one that gave the miner away.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &str> {
        let previous = self.payload["data"].pointer("/changes/owner_id/old").and_then(Value::as_str);
        previous.into_iter().chain([self.user_id.as_str()])
    }
}
