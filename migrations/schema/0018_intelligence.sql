-- What the group intel-group keeps: anomalies of miners with the state of their detectors, and the forecast of the network.

-- When a miner got its status; null: with its first one, or before this release.
alter table miners add column status_changed_at timestamptz;

-- One row for each time that a check found a miner failing.
create table anomaly (
    tenant_id    text        not null,
    id           uuid        not null,
    user_id      text        not null,
    miner_id     uuid        not null,
    kind         text        not null check (kind in ('hashrate', 'peers', 'drift', 'power', 'heat', 'offline')),
    -- What the check itself calls it; null where it has no classes.
    level        text,
    state        text        not null check (state in ('open', 'resolved')),
    -- By the money lost; null without a price.
    severity     text        check (severity in ('low', 'medium', 'high', 'critical')),
    opened_at    timestamptz not null,
    -- The newest window in which the check found it.
    last_seen_at timestamptz not null,
    resolved_at  timestamptz,
    resolution   text        check (resolution in ('recovered', 'out-of-service')),
    -- In the unit of the check: TH/s, W, degrees Celsius, seconds of silence.
    measured     numeric     not null,
    expected     numeric,
    score        double precision,
    lost_usd_day numeric,
    -- The network snapshot behind the loss, and when it was observed.
    snapshot_id  uuid,
    price_as_of  timestamptz,
    warnings     jsonb       not null,
    primary key (tenant_id, id),
    constraint resolved_has_a_time check ((state = 'resolved') = (resolved_at is not null)
        and (state = 'resolved') = (resolution is not null)),
    constraint priced_or_not check ((lost_usd_day is null) = (severity is null)
        and (lost_usd_day is null) = (snapshot_id is null))
);
-- A miner has at most one open anomaly of a kind, whatever the code believes.
create unique index anomaly_open on anomaly (tenant_id, miner_id, kind) where state = 'open';
create index anomaly_user on anomaly (tenant_id, user_id, id);
create index anomaly_miner on anomaly (tenant_id, miner_id, id);
select hi_protect('anomaly', 'hi_app', 'hi_worker');
-- hi_app: the sweep for silent miners is scheduled work.
grant select, insert on anomaly to hi_app, hi_worker;
grant update (level, state, severity, last_seen_at, resolved_at, resolution, measured, expected, score, lost_usd_day,
              snapshot_id, price_as_of, warnings) on anomaly to hi_app, hi_worker;

-- What the checks of a miner remember. The group writes what telemetry tells, the sweep what silence tells.
create table miner_detector (
    tenant_id     text             not null,
    miner_id      uuid             not null,
    -- End of the newest window that was judged.
    judged_to     timestamptz      not null,
    -- The newest point the group has met.
    last_point_at timestamptz      not null,
    -- Mean of the hour up to judged_to, of one machine: what its peers are compared with. Null: it was not judged then.
    hour_mean_ths double precision,
    -- Moving average, power band and hysteresis of the checks.
    state         jsonb            not null,
    -- Hysteresis of the check for silence; null: nothing to remember.
    silence       jsonb,
    -- The newest minute in which the sweep looked.
    swept_to      timestamptz      not null default '-infinity',
    primary key (tenant_id, miner_id)
) with (fillfactor = 70);
create index miner_detector_quiet on miner_detector (tenant_id, last_point_at);
create index miner_detector_silence on miner_detector (tenant_id, miner_id) where silence is not null;
select hi_protect('miner_detector', 'hi_app', 'hi_worker');
grant select, insert on miner_detector to hi_worker;
grant update (judged_to, last_point_at, hour_mean_ths, state) on miner_detector to hi_worker;
grant select on miner_detector to hi_app;
grant update (silence, swept_to) on miner_detector to hi_app;

-- What a plan or the strike automation holds off is no anomaly: the group reads both.
alter policy own_tenant on ops_plan to hi_app, hi_worker;
alter policy own_tenant on ops_strike to hi_app, hi_worker;
grant select on ops_plan, ops_strike to hi_worker;
create index ops_plan_recovered on ops_plan (tenant_id, recovered_at) where recovered_at is not null;

-- The network on a day to come, as it was forecast last. A figure without a basis is null; the warnings say why.
create table forecast_daily (
    tenant_id                 text        not null,
    date                      date        not null,
    version                   bigint      not null,
    btc_price_usd             numeric,
    btc_price_usd_lower       numeric,
    btc_price_usd_upper       numeric,
    btc_price_usd_confidence  numeric,
    network_hashrate_eh       numeric     not null,
    network_hashrate_eh_lower numeric,
    network_hashrate_eh_upper numeric,
    difficulty                numeric     not null,
    difficulty_lower          numeric,
    difficulty_upper          numeric,
    difficulty_confidence     numeric,
    hashprice_usd_ph_day      numeric,
    confidence                numeric,
    -- The newest snapshot behind it, when that was observed, and how many daily closes were looked at.
    snapshot_id               uuid        not null,
    as_of                     timestamptz not null,
    closes                    int         not null check (closes > 0),
    -- Model of the price and why, the next retarget, what is known and what is needed.
    basis                     jsonb       not null,
    warnings                  jsonb       not null,
    -- The event that caused it; null: a new day.
    event_id                  uuid,
    made_at                   timestamptz not null,
    primary key (tenant_id, date)
);
select hi_protect('forecast_daily', 'hi_app', 'hi_worker');
-- hi_app: the forecast of a new day is scheduled work.
grant select, insert on forecast_daily to hi_app, hi_worker;
grant update (version, btc_price_usd, btc_price_usd_lower, btc_price_usd_upper, btc_price_usd_confidence,
              network_hashrate_eh, network_hashrate_eh_lower, network_hashrate_eh_upper, difficulty, difficulty_lower,
              difficulty_upper, difficulty_confidence, hashprice_usd_ph_day, confidence, snapshot_id, as_of, closes,
              basis, warnings, event_id, made_at) on forecast_daily to hi_app, hi_worker;
