-- The read model that the group portfolio-recalc-group keeps. Figures that need a network snapshot
-- are null without one.

create table portfolio (
    tenant_id                 text        not null,
    user_id                   text        not null,
    version                   bigint      not null,
    miners_total              bigint      not null,
    miners_online             bigint      not null,
    hashrate_ths              numeric     not null,
    effective_hashrate_ths    numeric     not null,
    power_kw                  numeric     not null,
    efficiency_j_th           numeric     not null,
    gross_btc_day             numeric,
    net_btc_day               numeric,
    revenue_usd_day           numeric,
    power_cost_usd_day        numeric     not null,
    profit_usd_day            numeric,
    hashprice_usd_ph_day      numeric,
    break_even_tariff_usd_kwh numeric,
    break_even_btc_price_usd  numeric,
    capex_usd                 numeric     not null,
    payback_days              numeric,
    dynamic_payback_days      numeric,
    roi_percent               numeric,
    by_model                  jsonb       not null,
    by_location               jsonb       not null,
    warnings                  jsonb       not null,
    snapshot_id               uuid,
    event_id                  uuid        not null,
    computed_at               timestamptz not null,
    primary key (tenant_id, user_id)
);
select hi_protect('portfolio', 'hi_app', 'hi_worker');
grant select on portfolio to hi_app;
grant select, insert, update on portfolio to hi_worker;
