-- The treasury: what a user holds, what is sold and bought of it, and what it looks like. Bitcoin are whole satoshi.
-- Amounts are exact US dollars of at most eight decimals; prices are US dollars per BTC. An account is (tenant_id, user_id).

-- One row an account, made with its first lot, trade or setting.
create table treasury_settings (
    tenant_id          text        not null,
    user_id            text        not null check (user_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    -- What was at hand at that moment; fills from then on are added when it is asked for.
    cash_usd           numeric     not null default 0
        check (cash_usd between -1000000000000 and 1000000000000 and cash_usd = round(cash_usd, 8)),
    cash_set_at        timestamptz not null default clock_timestamp(),
    opex_usd_month     numeric     not null default 0
        check (opex_usd_month between 0 and 1000000000000 and opex_usd_month = round(opex_usd_month, 8)),
    -- A trade worth more needs a second person. Until somebody says otherwise every trade does.
    approval_limit_usd numeric     not null default 0
        check (approval_limit_usd between 0 and 1000000000000 and approval_limit_usd = round(approval_limit_usd, 8)),
    lot_method         text        not null default 'fifo' check (lot_method in ('fifo', 'lifo', 'hifo', 'average')),
    fee_share          numeric     not null default 0.001 check (fee_share >= 0 and fee_share < 1),
    max_share_day      numeric     not null default 0.25 check (max_share_day between 0 and 1),
    min_reserve_sat    bigint      not null default 0 check (min_reserve_sat >= 0),
    min_order_sat      bigint      not null default 10000 check (min_order_sat >= 0),
    -- The strategies with their parameters, and when their cycle began.
    strategies         jsonb       not null default '[]' check (jsonb_typeof(strategies) = 'array'),
    cycle_started_at   timestamptz not null default clock_timestamp(),
    updated_at         timestamptz not null default clock_timestamp(),
    primary key (tenant_id, user_id)
);
select hi_protect('treasury_settings', 'hi_app', 'hi_worker');
grant select, insert on treasury_settings to hi_app;
grant update (cash_usd, cash_set_at, opex_usd_month, approval_limit_usd, lot_method, fee_share, max_share_day,
              min_reserve_sat, min_order_sat, strategies, cycle_started_at, updated_at) on treasury_settings to hi_app;
grant select on treasury_settings to hi_worker;

create table treasury_trade (
    tenant_id          text        not null,
    id                 uuid        not null,
    user_id            text        not null,
    submitted_by       text        not null,
    trade_type         text        not null check (trade_type in ('buy', 'sell', 'hedge')),
    asset              text        not null check (asset = 'BTC'),
    sat                bigint      not null check (sat between 1 and 2100000000000000),
    execution_strategy text        not null check (execution_strategy in ('market', 'limit', 'twap', 'vwap')),
    target_price_usd   numeric     check (target_price_usd > 0 and target_price_usd <= 1000000000),
    venue              text        not null check (length(venue) between 1 and 50),
    -- The strategy whose signal a sale follows; null: by hand.
    strategy           text        check (length(strategy) <= 50),
    notes              text        check (length(notes) <= 2000),
    -- The lots a sale takes, in this order; null: by the method of the account.
    lot_ids            uuid[]      check (cardinality(lot_ids) between 1 and 100),
    state              text        not null check (state in
        ('submitted', 'approved', 'executing', 'partially_filled', 'executed', 'cancelled', 'failed')),
    state_reason       text        check (length(state_reason) <= 500),
    -- What it was worth when it was submitted; null: no price was known.
    value_usd          numeric,
    needs_approval     boolean     not null,
    decided_by         text,
    decided_at         timestamptz,
    -- When the venue took it: slices count from here.
    started_at         timestamptz,
    -- Sums of its fills.
    filled_sat         bigint      not null default 0 check (filled_sat between 0 and sat),
    proceeds_usd       numeric     not null default 0,
    fee_usd            numeric     not null default 0,
    gain_usd           numeric     not null default 0,
    fills              int         not null default 0,
    filled_at          timestamptz,
    -- What it waits for beyond its own rule: a price that is missing or too old.
    waiting            text        check (waiting in ('no-price', 'stale-price')),
    created_at         timestamptz not null,
    updated_at         timestamptz not null,
    primary key (tenant_id, id),
    constraint limit_has_a_target check (execution_strategy <> 'limit' or target_price_usd is not null),
    constraint second_person check (decided_by is null or decided_by <> submitted_by),
    constraint filled_is_what_the_state_says check (case state
        when 'submitted' then filled_sat = 0 and started_at is null
        when 'approved' then filled_sat = 0 and started_at is null and decided_by is not null
        when 'executing' then filled_sat = 0 and started_at is not null
        when 'partially_filled' then filled_sat > 0 and filled_sat < sat
        when 'executed' then filled_sat = sat
        else filled_sat < sat end)
);
create index treasury_trade_user on treasury_trade (tenant_id, user_id, id);
create index treasury_trade_open on treasury_trade (tenant_id, user_id)
    where state in ('submitted', 'approved', 'executing', 'partially_filled');
select hi_protect('treasury_trade', 'hi_app', 'hi_worker');
grant select, insert on treasury_trade to hi_app;
-- The group moves trades when prices come, the API when the clock does: both fill them.
grant update (state, state_reason, decided_by, decided_at, started_at, filled_sat, proceeds_usd, fee_usd, gain_usd, fills,
              filled_at, waiting, updated_at) on treasury_trade to hi_app, hi_worker;
grant select on treasury_trade to hi_worker;

create table treasury_lot (
    tenant_id     text        not null,
    id            uuid        not null,
    user_id       text        not null,
    source        text        not null check (source in ('mined', 'bought', 'trade')),
    acquired_at   timestamptz not null,
    sat           bigint      not null check (sat between 1 and 2100000000000000),
    cost_usd      numeric     not null
        check (cost_usd between 0 and 100000000000000000 and cost_usd = round(cost_usd, 8)),
    -- What sales have left of the two.
    left_sat      bigint      not null check (left_sat between 0 and sat),
    left_cost_usd numeric     not null check (left_cost_usd >= 0 and left_cost_usd = round(left_cost_usd, 8)),
    -- The purchase that made it.
    trade_id      uuid,
    notes         text        check (length(notes) <= 2000),
    created_at    timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, trade_id) references treasury_trade (tenant_id, id),
    constraint traded_has_a_trade check ((source = 'trade') = (trade_id is not null)),
    constraint sold_out_costs_nothing check (left_sat > 0 or left_cost_usd = 0)
);
create index treasury_lot_user on treasury_lot (tenant_id, user_id, id);
create index treasury_lot_held on treasury_lot (tenant_id, user_id) where left_sat > 0;
create index treasury_lot_trade on treasury_lot (tenant_id, trade_id) where trade_id is not null;
select hi_protect('treasury_lot', 'hi_app', 'hi_worker');
grant select, insert on treasury_lot to hi_app, hi_worker;
grant update (left_sat, left_cost_usd) on treasury_lot to hi_app, hi_worker;

-- What the venue filled. A fact: it is not changed. The number of a fill within its trade cannot come twice.
create table treasury_fill (
    tenant_id    text        not null,
    trade_id     uuid        not null,
    number       int         not null check (number > 0),
    user_id      text        not null,
    trade_type   text        not null check (trade_type in ('buy', 'sell', 'hedge')),
    strategy     text,
    sat          bigint      not null check (sat > 0),
    price_usd    numeric     not null check (price_usd > 0),
    proceeds_usd numeric     not null,
    fee_usd      numeric     not null check (fee_usd >= 0),
    basis_usd    numeric     not null,
    gain_usd     numeric     not null,
    -- The lots a sale consumed: [{lot_id, sat, basis_usd}].
    lots         jsonb       not null,
    -- The price behind it, and from when it is.
    snapshot_id  uuid        not null,
    price_at     timestamptz not null,
    filled_at    timestamptz not null,
    primary key (tenant_id, trade_id, number),
    foreign key (tenant_id, trade_id) references treasury_trade (tenant_id, id)
);
create index treasury_fill_user on treasury_fill (tenant_id, user_id, filled_at);
select hi_protect('treasury_fill', 'hi_app', 'hi_worker');
grant select, insert on treasury_fill to hi_app, hi_worker;

-- The read models that the group treasury-group keeps: an account's figures, and what its strategies say.
create table treasury_overview (
    tenant_id          text        not null,
    user_id            text        not null,
    version            bigint      not null,
    sat                bigint      not null,
    reserved_sat       bigint      not null,
    hedged_sat         bigint      not null,
    lots               bigint      not null,
    cost_usd           numeric     not null,
    average_cost_usd   numeric,
    market_value_usd   numeric,
    unrealised_usd     numeric,
    unrealised_percent numeric,
    hedge_gain_usd     numeric,
    realised_gain_usd  numeric     not null,
    fees_usd           numeric     not null,
    sold_sat           bigint      not null,
    bought_sat         bigint      not null,
    cash_usd           numeric     not null,
    opex_usd_month     numeric     not null,
    runway_days        numeric,
    open_trades        bigint      not null,
    -- Strategies that lack an input: [{strategy, field}].
    unevaluated        jsonb       not null,
    btc_price_usd      numeric,
    snapshot_id        uuid,
    -- From when the price is.
    as_of              timestamptz,
    event_id           uuid        not null,
    computed_at        timestamptz not null,
    primary key (tenant_id, user_id)
);
select hi_protect('treasury_overview', 'hi_app', 'hi_worker');
grant select on treasury_overview to hi_app;
grant select, insert, update on treasury_overview to hi_worker;

create table treasury_signal (
    tenant_id   text        not null,
    user_id     text        not null,
    strategy    text        not null,
    -- 0: it has nothing to sell at present.
    sat         bigint      not null,
    wanted_sat  bigint      not null,
    reason      text        not null,
    limited_by  text,
    -- What the last event about it said.
    told_sat    bigint      not null,
    told_limit  text,
    told_at     timestamptz not null,
    event_id    uuid        not null,
    computed_at timestamptz not null,
    primary key (tenant_id, user_id, strategy)
);
select hi_protect('treasury_signal', 'hi_app', 'hi_worker');
grant select on treasury_signal to hi_app;
grant select, insert, update on treasury_signal to hi_worker;
