-- The domain of this release: miners, the model catalogue, the network, and who did what.

create table miner_model (
    name_key      text    primary key,
    name          text    not null unique,
    manufacturer  text    not null,
    algorithm     text    not null,
    hashrate_ths  numeric not null check (hashrate_ths > 0),
    power_w       numeric not null check (power_w > 0),
    efficiency_j_th numeric not null,
    released      text,
    cooling       text,
    core          boolean not null,
    confidence    text    not null
);
comment on table miner_model is 'The catalogue; filled by `hashinsight migrate`. name_key is the name without case, spaces and brand.';
grant select on miner_model to hi_app, hi_worker;

create table miners (
    tenant_id                text        not null,
    id                       uuid        not null,
    owner_id                 text        not null,
    model                    text        not null check (length(model) between 1 and 100),
    hashrate_ths             numeric     not null check (hashrate_ths > 0 and hashrate_ths <= 10000),
    power_w                  numeric     not null check (power_w > 0 and power_w <= 100000),
    quantity                 int         not null check (quantity between 1 and 100000),
    location                 text        check (length(location) <= 200),
    purchase_price_usd       numeric     check (purchase_price_usd >= 0),
    electricity_cost_usd_kwh numeric     check (electricity_cost_usd_kwh between 0 and 10),
    status                   text        not null
        check (status in ('online', 'offline', 'maintenance', 'pending', 'decommissioned')),
    status_reason            text        check (length(status_reason) <= 500),
    created_at               timestamptz not null default now(),
    updated_at               timestamptz not null default now(),
    removed_at               timestamptz,
    primary key (tenant_id, id)
);
create index miners_owner on miners (tenant_id, owner_id) where removed_at is null;
select hi_protect('miners', 'hi_app', 'hi_worker');
grant select, insert, update on miners to hi_app;
grant select on miners to hi_worker;

create table network_snapshots (
    tenant_id          text        not null,
    id                 uuid        not null,
    btc_price_usd      numeric     not null check (btc_price_usd > 0),
    difficulty         numeric     not null check (difficulty > 0),
    block_height       bigint      not null check (block_height >= 0),
    fees_btc_per_block numeric     not null default 0 check (fees_btc_per_block >= 0),
    observed_at        timestamptz not null,
    created_at         timestamptz not null default now(),
    primary key (tenant_id, id)
);
create index network_snapshots_newest on network_snapshots (tenant_id, observed_at desc, id desc);
select hi_protect('network_snapshots', 'hi_app', 'hi_worker');
grant select, insert on network_snapshots to hi_app;
grant select on network_snapshots to hi_worker;

create table audit_log (
    tenant_id   text        not null,
    id          uuid        not null,
    at          timestamptz not null default now(),
    actor       text        not null,
    action      text        not null,
    entity_id   text        not null,
    event_id    uuid,
    request_id  text,
    detail      jsonb       not null,
    primary key (tenant_id, id)
);
create index audit_log_entity on audit_log (tenant_id, entity_id, at);
select hi_protect('audit_log', 'hi_app');
grant select, insert on audit_log to hi_app;
