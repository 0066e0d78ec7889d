-- The pipeline: outbox, cursor, log, offsets, inbox, retries, dead letters.
-- Runs as hi_owner. Tables with a tenant have row-level security, forced, from their first moment.

-- Row security of a table: the owner sees all (a guard that saw nothing would call everything
-- published), `roles` see the tenant of the transaction. A missing tenant gives NULL: no rows.
create function hi_protect(protected regclass, variadic roles text[] default '{}') returns void
language plpgsql set search_path = pg_catalog, public as $$
begin
    execute format('alter table %s enable row level security', protected);
    execute format('alter table %s force row level security', protected);
    execute format('create policy owner_all on %s to hi_owner using (true) with check (true)', protected);
    if cardinality(roles) > 0 then
        execute format(
            'create policy own_tenant on %s to %s '
            'using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), ''''))) '
            'with check (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))',
            protected, array_to_string(roles, ', '));
    end if;
end
$$;
revoke execute on function hi_protect(regclass, text[]) from public;

-- ---------------------------------------------------------------- outbox
create table event_outbox (
    position        bigint    not null generated always as identity (cache 1),
    xid             xid8      not null default pg_current_xact_id(),
    id              uuid      not null,
    aggregate_type  text      not null check (aggregate_type in ('miner', 'treasury', 'ops', 'crm')),
    aggregate_id    text      not null check (aggregate_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    event_key       text      not null,
    event_type      text      not null check (event_type ~ '^[a-z]+\.[a-z0-9_.]{1,100}$'),
    tenant_id       text      not null check (tenant_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    user_id         text      not null check (user_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    payload         jsonb     not null,
    schema_version  int       not null default 1,
    traceparent     text      not null default '',
    occurred_at     timestamp not null default (statement_timestamp() at time zone 'UTC'),
    idempotency_key text,
    constraint payload_is_of_the_row check (
        payload ->> 'event_id' is not distinct from id::text
        and payload ->> 'kind' is not distinct from event_type
        and payload ->> 'tenant_id' is not distinct from tenant_id
        and payload ->> 'user_id' is not distinct from user_id),
    constraint key_is_of_the_owner check (event_key in (tenant_id || ':' || user_id, tenant_id || ':network')),
    constraint kind_is_of_the_aggregate check (
        aggregate_type = case split_part(event_type, '.', 1)
            when 'network' then 'ops' when 'anomaly' then 'ops' else split_part(event_type, '.', 1) end)
) partition by range (occurred_at);
comment on table event_outbox is 'Append-only. Published in the order of position within an aggregate; see publisher_cursor.';
create index event_outbox_xid on event_outbox (xid);
create index event_outbox_position on event_outbox (position);
create index event_outbox_id on event_outbox (id);

select hi_protect('event_outbox', 'hi_app');
create policy pipeline on event_outbox to hi_worker using (true);
create policy own_tenant_append on event_outbox for insert to hi_worker
    with check (tenant_id = (select nullif(current_setting('app.tenant_id', true), '')));
-- position, xid and occurred_at are PostgreSQL's to set.
grant insert (id, aggregate_type, aggregate_id, event_key, event_type, tenant_id, user_id, payload,
              schema_version, traceparent, idempotency_key) on event_outbox to hi_app, hi_worker;
grant select on event_outbox to hi_app, hi_worker;

-- A partitioned table cannot have a unique key without its partition key.
create table event_idempotency (
    tenant_id       text not null,
    idempotency_key text not null check (length(idempotency_key) between 1 and 255),
    event_id        uuid not null,
    created_at      timestamptz not null default now(),
    primary key (tenant_id, idempotency_key)
);
select hi_protect('event_idempotency', 'hi_app', 'hi_worker');
grant select, insert on event_idempotency to hi_app, hi_worker;

-- ---------------------------------------------------------------- publisher
-- One row. Everything visible in `published` is in the log; `reading` is a window that was begun,
-- handed over up to `last_position`.
create table publisher_cursor (
    name              text        primary key,
    published         pg_snapshot not null,
    reading           pg_snapshot,
    last_position     bigint      not null default 0,
    floor_position    bigint      not null default 0,
    epoch             bigint      not null default 0,
    beat              bigint      not null default 0,
    leader_pid        int,
    system_identifier bigint      not null
) with (fillfactor = 50);
grant select, update on publisher_cursor to hi_worker;
insert into publisher_cursor (name, published, system_identifier)
    select 'publisher', '1:1:'::pg_snapshot, system_identifier from pg_control_system();

-- ---------------------------------------------------------------- log in PostgreSQL
create table log_partition (
    topic        text   not null,
    partition    int    not null,
    topic_id     uuid   not null,
    start_offset bigint not null default 0,
    end_offset   bigint not null default 0,
    retention    interval not null,
    primary key (topic, partition)
) with (fillfactor = 50);

create table log_record (
    topic         text        not null,
    partition     int         not null,
    log_offset    bigint      not null,
    key           bytea,
    value         bytea,
    header_names  text[]      not null,
    header_values bytea[]     not null,
    record_time   timestamptz not null,
    appended_at   timestamptz not null default now(),
    primary key (topic, partition, log_offset)
);
grant select, insert, update on log_partition to hi_worker;
grant select, insert, delete on log_record to hi_worker;

-- ---------------------------------------------------------------- groups
create table group_member (
    consumer_name text   not null,
    member_id     text   not null,
    counter       bigint not null default 0,
    host          text   not null,
    primary key (consumer_name, member_id)
) with (fillfactor = 50);
grant select, insert, update, delete on group_member to hi_worker;

-- The truth of progress: a batch commits by moving next_offset under its epoch.
create table consumer_offset (
    consumer_name text   not null,
    topic         text   not null,
    topic_id      uuid,
    partition     int    not null,
    next_offset   bigint not null default 0,
    owner_epoch   bigint not null default 0,
    owner_id      text,
    primary key (consumer_name, topic, partition)
) with (fillfactor = 50);
grant select, insert, update on consumer_offset to hi_worker;

-- ---------------------------------------------------------------- inbox
-- Partitioned by the day inside the UUIDv7, so that old days are dropped whole; foreign ids go to
-- the default partition.
create table event_inbox (
    consumer_name text        not null,
    event_id      uuid        not null,
    tenant_id     text        not null,
    event_kind    text        not null,
    outcome       text        not null check (outcome in ('applied', 'parked', 'dead', 'superseded', 'discarded')),
    processed_at  timestamptz not null default statement_timestamp(),
    primary key (consumer_name, event_id)
) partition by range (event_id);
create table event_inbox_default partition of event_inbox default;
select hi_protect('event_inbox', 'hi_app');
select hi_protect('event_inbox_default');
create policy pipeline on event_inbox to hi_worker using (true) with check (true);
grant select on event_inbox to hi_app;
grant select, insert, update on event_inbox to hi_worker;

-- ---------------------------------------------------------------- retries and dead letters
-- Events of a key wait here while an earlier one of it is retried; the lowest offset of a key is its head.
create table parked_event (
    consumer_name   text        not null,
    topic           text        not null,
    partition       int         not null,
    log_offset      bigint      not null,
    event_id        uuid        not null,
    event_kind      text        not null,
    tenant_id       text        not null,
    user_id         text        not null,
    raw_key         bytea       not null,
    raw_value       bytea       not null,
    headers         jsonb       not null,
    record_time     timestamptz not null,
    attempts        int         not null default 0,
    next_attempt_at timestamptz not null default now(),
    error_class     text,
    error_message   text,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    parked_at       timestamptz not null default now(),
    primary key (consumer_name, topic, partition, log_offset)
);
create index parked_event_key on parked_event (consumer_name, topic, partition, raw_key, log_offset);
select hi_protect('parked_event');
create policy pipeline on parked_event to hi_worker using (true) with check (true);
grant select, insert, update, delete on parked_event to hi_worker;

create table event_dlq (
    id              uuid        primary key default gen_random_uuid(),
    consumer_name   text        not null,
    event_id        uuid,
    event_kind      text,
    tenant_id       text,
    user_id         text,
    topic           text        not null,
    partition       int         not null,
    log_offset      bigint      not null,
    payload         jsonb,
    raw_key         bytea,
    raw_value       bytea,
    headers         jsonb       not null,
    error_class     text        not null,
    error_message   text        not null,
    retry_count     int         not null,
    first_failed_at timestamptz not null,
    last_failed_at  timestamptz not null,
    created_at      timestamptz not null default now(),
    status          text        not null default 'dead' check (status in ('dead', 'replaying', 'resolved', 'discarded')),
    resolved_at     timestamptz,
    dlq_offset      bigint,
    unique (consumer_name, topic, partition, log_offset)
);
create unique index event_dlq_event on event_dlq (consumer_name, event_id) where event_id is not null;
create index event_dlq_tenant on event_dlq (tenant_id, created_at);
create index event_dlq_open on event_dlq (consumer_name, event_kind) where status in ('dead', 'replaying');
select hi_protect('event_dlq', 'hi_app');
create policy pipeline on event_dlq to hi_worker using (true) with check (true);
grant select on event_dlq to hi_app;
grant select, insert, update on event_dlq to hi_worker;
