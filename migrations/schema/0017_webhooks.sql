-- Webhooks: where a tenant wants its CRM's events, and each delivery of one to such an endpoint.

create table webhook_endpoint (
    tenant_id             text        not null,
    id                    uuid        not null,
    url                   text        not null check (length(url) between 1 and 2000),
    description           text        check (length(description) <= 200),
    owner_id              text        not null,
    -- Sealed with webhooks.key: who reads the database cannot sign.
    secret                bytea       not null,
    -- Signs as well until then, so that the receiver has time to take over the new one.
    previous_secret       bytea,
    previous_secret_until timestamptz,
    enabled               boolean     not null default true,
    disabled_at           timestamptz,
    disabled_reason       text        check (length(disabled_reason) <= 500),
    -- Since when every attempt has failed; null: the last one did not.
    failing_since         timestamptz,
    created_at            timestamptz not null,
    updated_at            timestamptz not null,
    primary key (tenant_id, id),
    check (enabled = (disabled_at is null)),
    check ((previous_secret is null) = (previous_secret_until is null))
);
select hi_protect('webhook_endpoint', 'hi_app', 'hi_worker');
grant select, insert, update, delete on webhook_endpoint to hi_app;
grant select, update (failing_since) on webhook_endpoint to hi_worker;

-- An event goes to an endpoint once: the group writes the row in the transaction that admits the event. The request
-- itself comes once or more.
create table webhook_delivery (
    tenant_id       text        not null,
    endpoint_id     uuid        not null,
    event_id        uuid        not null,
    id              uuid        not null default gen_random_uuid(),
    event_kind      text        not null,
    -- The envelope as it stands in the log.
    body            text        not null,
    state           text        not null default 'pending' check (state in ('pending', 'delivered', 'failed')),
    -- Attempts that began.
    attempts        int         not null default 0,
    -- Grows with every claim: whoever holds an older one writes nothing down.
    claims          bigint      not null default 0,
    next_attempt_at timestamptz not null default statement_timestamp(),
    -- Somebody is at it; a process that is gone loses it then.
    lease_until     timestamptz,
    last_attempt_at timestamptz,
    last_status     int,
    last_error      text        check (length(last_error) <= 500),
    delivered_at    timestamptz,
    created_at      timestamptz not null default statement_timestamp(),
    primary key (tenant_id, endpoint_id, event_id),
    unique (tenant_id, id),
    foreign key (tenant_id, endpoint_id) references webhook_endpoint on delete cascade
) with (fillfactor = 70);
create index webhook_delivery_due on webhook_delivery (next_attempt_at, tenant_id) where state = 'pending';
create index webhook_delivery_of_endpoint on webhook_delivery (tenant_id, endpoint_id, next_attempt_at) where state = 'pending';
create index webhook_delivery_old on webhook_delivery (created_at, tenant_id) where state <> 'pending';
select hi_protect('webhook_delivery', 'hi_app', 'hi_worker');
grant select, update (state, attempts, next_attempt_at, last_error), delete on webhook_delivery to hi_app;
grant select, insert, update (state, attempts, claims, next_attempt_at, lease_until, last_attempt_at, last_status,
                              last_error, delivered_at) on webhook_delivery to hi_worker;
