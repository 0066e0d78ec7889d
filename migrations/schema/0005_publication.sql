-- What logical replication sends of the outbox: inserts, whatever partition they go to, as inserts into the root.
-- The columns of the record and of its envelope that Debezium reads; not the transaction id, not idempotency keys.
-- On a server with wal_level = replica this only warns: the publication is there when the level is raised.
create publication hashinsight_outbox
    for table event_outbox (position, id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, payload,
                            schema_version, traceparent, occurred_at)
    with (publish = 'insert', publish_via_partition_root = true);
