-- Operations: power prices, what a site allows, curtailment plans, the strike automation, and the schedule.
-- States are checked here as well as in the code; the moves between them are the code's.

-- Every reception is kept, so that what was known when can be told; of the receptions of an interval the newest counts.
create table power_price (
    tenant_id     text        not null,
    market        text        not null check (market ~ '^[A-Za-z0-9._@-]{1,64}$'),
    starts_at     timestamptz not null,
    seconds       int         not null check (seconds in (300, 3600)),
    reception_id  uuid        not null,
    price_usd_mwh numeric     not null check (price_usd_mwh between -100000 and 100000),
    received_at   timestamptz not null,
    primary key (tenant_id, market, starts_at, seconds, reception_id),
    constraint aligned check (extract(epoch from starts_at) % seconds = 0)
);
create index power_price_old on power_price (starts_at, tenant_id);
select hi_protect('power_price', 'hi_app', 'hi_worker');
-- The job ops-price-retention deletes what nobody computes with any more; no grant and no policy lets more go.
create policy no_younger on power_price as restrictive for delete to hi_app using (starts_at < now() - interval '400 days');
grant select, insert, delete on power_price to hi_app;
grant select on power_price to hi_worker;

create view power_price_newest with (security_invoker = true) as
select distinct on (tenant_id, market, starts_at, seconds) *
from power_price order by tenant_id, market, starts_at, seconds, received_at desc, reception_id desc;
comment on view power_price_newest is 'The newest reception of each interval. Where intervals overlap the one received last counts.';
grant select on power_price_newest to hi_app, hi_worker;

create table ops_settings (
    tenant_id           text        not null,
    owner_id            text        not null check (owner_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    -- Whose prices the site pays; without one there is no schedule.
    market              text        check (market ~ '^[A-Za-z0-9._@-]{1,64}$'),
    -- Length of a step of the owner's schedules; ramp and minimum times count in steps.
    step_seconds        int         not null check (step_seconds in (300, 3600)),
    cap_kw              numeric     check (cap_kw >= 0),
    ramp_kw             numeric     check (ramp_kw >= 0),
    min_online_share    numeric     not null check (min_online_share between 0 and 1),
    start_cost_usd      numeric     not null check (start_cost_usd >= 0),
    min_up_steps        int         not null check (min_up_steps between 0 and 288),
    min_down_steps      int         not null check (min_down_steps between 0 and 288),
    -- Null: the pool_fee of the configuration.
    pool_fee            numeric     check (pool_fee between 0 and 1),
    delivery_usd_mwh    numeric     not null check (delivery_usd_mwh between -100000 and 100000),
    -- Who goes off first when a cut spans several customers.
    tier                text        not null check (tier in ('standard', 'enterprise', 'vip')),
    strike_low_usd_mwh  numeric,
    strike_high_usd_mwh numeric,
    -- How long after a plan its miners take to be back.
    recovery_minutes    int         not null check (recovery_minutes between 0 and 1440),
    updated_at          timestamptz not null,
    primary key (tenant_id, owner_id),
    constraint strikes_are_a_pair check ((strike_low_usd_mwh is null) = (strike_high_usd_mwh is null)),
    constraint strikes_are_in_order check (strike_low_usd_mwh <= strike_high_usd_mwh)
);
create index ops_settings_market on ops_settings (tenant_id, market, owner_id);
select hi_protect('ops_settings', 'hi_app', 'hi_worker');
grant select, insert on ops_settings to hi_app;
grant update (market, step_seconds, cap_kw, ramp_kw, min_online_share, start_cost_usd, min_up_steps, min_down_steps,
              pool_fee, delivery_usd_mwh, tier, strike_low_usd_mwh, strike_high_usd_mwh, recovery_minutes, updated_at)
    on ops_settings to hi_app;
grant select on ops_settings to hi_worker;

create table ops_plan (
    tenant_id       text        not null,
    id              uuid        not null,
    owner_id        text        not null check (owner_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    kind            text        not null check (kind in ('optimum', 'cut')),
    -- A cut of everybody's machines: the owner's site and its cap are not the measure.
    all_users       boolean     not null default false,
    status          text        not null check (status in
        ('pending', 'approved', 'executing', 'recovery_pending', 'completed', 'cancelled')),
    status_reason   text        check (length(status_reason) <= 500),
    starts_at       timestamptz not null,
    ends_at         timestamptz not null,
    -- Most power of its rows.
    peak_kw         numeric     not null check (peak_kw >= 0),
    value_usd       numeric,
    -- How it came about: the figures of the optimum, or the miners of a cut.
    detail          jsonb       not null,
    -- Whether it has miners off at this moment.
    curtailing      boolean     not null default false,
    -- Given up before its end: it is cancelled when its miners are back, not completed.
    stopped         boolean     not null default false,
    -- When its miners are back.
    recovered_at    timestamptz,
    created_by      text        not null,
    -- Who approved it.
    approved_by     text,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    primary key (tenant_id, id),
    constraint ends_after_its_start check (ends_at > starts_at),
    constraint curtails_while_it_executes check (not curtailing or status = 'executing'),
    constraint recovers_by_a_time check (status <> 'recovery_pending' or recovered_at is not null),
    constraint second_person check (approved_by <> created_by)
);
create index ops_plan_owner on ops_plan (tenant_id, owner_id, id);
create index ops_plan_open on ops_plan (tenant_id, status, starts_at)
    where status in ('pending', 'approved', 'executing', 'recovery_pending');
select hi_protect('ops_plan', 'hi_app');
grant select, insert on ops_plan to hi_app;
grant update (status, status_reason, curtailing, stopped, recovered_at, approved_by, updated_at) on ops_plan to hi_app;

create table ops_plan_row (
    tenant_id      text        not null,
    plan_id        uuid        not null,
    starts_at      timestamptz not null,
    seconds        int         not null check (seconds > 0),
    miners_online  bigint      not null check (miners_online >= 0),
    miners_offline bigint      not null check (miners_offline >= 0),
    kw             numeric     not null check (kw >= 0),
    -- What follows is null for a cut, which follows no price.
    price_usd_mwh  numeric,
    power_cost_usd numeric,
    revenue_usd    numeric,
    start_cost_usd numeric,
    is_peak        boolean,
    primary key (tenant_id, plan_id, starts_at),
    foreign key (tenant_id, plan_id) references ops_plan (tenant_id, id)
);
select hi_protect('ops_plan_row', 'hi_app');
grant select, insert on ops_plan_row to hi_app;

-- What the strike automation remembers of an owner's site on a market.
create table ops_strike (
    tenant_id   text        not null,
    owner_id    text        not null,
    market      text        not null,
    phase       text        not null check (phase in ('running', 'curtailed')),
    -- Windows towards the next switch.
    windows     smallint    not null check (windows >= 0),
    -- Number of the newest window seen: its start in Unix seconds / 300.
    last_window bigint      not null check (last_window >= 0),
    -- When the phase began.
    since       timestamptz not null,
    primary key (tenant_id, owner_id, market)
);
select hi_protect('ops_strike', 'hi_app');
grant select, insert, update on ops_strike to hi_app;

-- The read model that intel-group keeps: the optimum of an owner's fleet over the next hours. Figures are null where there
-- is no schedule; the warnings say why.
create table ops_schedule (
    tenant_id      text        not null,
    user_id        text        not null,
    version        bigint      not null,
    market         text,
    starts_at      timestamptz,
    ends_at        timestamptz,
    step_seconds   int,
    value_usd      numeric,
    bound_usd      numeric,
    gap_percent    numeric,
    method         text,
    always_on_usd  numeric,
    greedy_usd     numeric,
    starts         bigint,
    classes        jsonb       not null,
    groups         jsonb       not null,
    rows           jsonb       not null,
    warnings       jsonb       not null,
    prices_as_of   timestamptz,
    network_as_of  timestamptz,
    snapshot_id    uuid,
    event_id       uuid        not null,
    computed_at    timestamptz not null,
    primary key (tenant_id, user_id)
);
select hi_protect('ops_schedule', 'hi_app', 'hi_worker');
grant select, insert, update on ops_schedule to hi_app, hi_worker;

-- Schedules that a batch left to the job ops-schedules, because it asked for more than are computed in one transaction.
create table ops_schedule_due (
    tenant_id text        not null,
    user_id   text        not null,
    -- The newest event that asks for it.
    event_id  uuid        not null,
    since     timestamptz not null,
    primary key (tenant_id, user_id)
);
select hi_protect('ops_schedule_due', 'hi_app', 'hi_worker');
grant select, delete on ops_schedule_due to hi_app;
grant select, insert, update on ops_schedule_due to hi_worker;
