-- Dead letters that are replayed, discarded, and put on events.dlq.

-- ---------------------------------------------------------------- the retry queue has an order of its own
-- A replayed letter goes to the tail of its key, though its offset is older than what waits there. The numbers are drawn
-- in transactions that hold the partition's offset row, so within a partition their order is the order of the commits.
alter table parked_event
    add column queue_position bigint,
    -- The dead letter that this is a replay of.
    add column letter_id uuid;
update parked_event p set queue_position = o.n
    from (select consumer_name, topic, partition, log_offset,
                 row_number() over (order by consumer_name, topic, partition, log_offset) as n from parked_event) o
    where (p.consumer_name, p.topic, p.partition, p.log_offset) = (o.consumer_name, o.topic, o.partition, o.log_offset);
alter table parked_event alter column queue_position set not null;
alter table parked_event alter column queue_position add generated always as identity (cache 1);
select setval(pg_get_serial_sequence('parked_event', 'queue_position'), coalesce(max(queue_position), 0) + 1, false)
    from parked_event;
-- An offset says nothing here once a letter of a topic that grew or was made anew stands in the queue.
alter table parked_event drop constraint parked_event_pkey, add primary key (queue_position);
-- Without the key: it may be longer than an index takes.
drop index parked_event_key;
create index parked_event_queue on parked_event (consumer_name, topic, partition, queue_position);
create unique index parked_event_letter on parked_event (letter_id) where letter_id is not null;

-- ---------------------------------------------------------------- dead letters
alter table event_dlq
    -- Of the record; null in letters from before, and where PostgreSQL does not take it.
    add column record_time    timestamptz,
    -- Somebody asked for a replay that nobody has picked up yet. Also the order of the replays.
    add column requested_at   timestamptz,
    -- Who asked for the last replay, or discarded it. The audit log has it too, where the letter has a tenant.
    add column last_actor     text,
    add column discard_reason text,
    -- events.dlq did not take it: not again before.
    add column dlq_retry_at   timestamptz;
update event_dlq set requested_at = now() where status = 'replaying';
alter table event_dlq add constraint requested_while_replaying check (requested_at is null or status = 'replaying');
create index event_dlq_requested on event_dlq (consumer_name, requested_at, id) where requested_at is not null;
create index event_dlq_key on event_dlq (consumer_name, topic, sha256(raw_key)) where status = 'dead';
create index event_dlq_unrelayed on event_dlq (consumer_name, topic, partition, created_at, id)
    where dlq_offset is null;

-- The API asks for replays and discards, in its tenant; what happens then is the consumer's.
grant update (status, requested_at, resolved_at, last_actor, discard_reason) on event_dlq to hi_app;
grant update (outcome, processed_at) on event_inbox to hi_app;

-- The command line settles letters of any tenant, each in that tenant's name.
create policy own_tenant_entry on audit_log for insert to hi_worker
    with check (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
grant insert on audit_log to hi_worker;
