-- What miners report. Points go by day; the figures of an hour are kept up with every point and stay longer.

create table miner_telemetry (
    tenant_id     text             not null,
    miner_id      uuid             not null,
    at            timestamptz      not null,
    hashrate_ths  double precision not null check (hashrate_ths between 0 and 10000),
    power_w       double precision check (power_w between 0 and 100000),
    temperature_c double precision check (temperature_c between -100 and 300),
    primary key (tenant_id, miner_id, at)
) partition by range (at);
comment on table miner_telemetry is 'Points as reported, of one machine each; a second point of the same miner and moment is ignored.';
select hi_protect('miner_telemetry', 'hi_app', 'hi_worker');
grant select, insert on miner_telemetry to hi_app;
grant select on miner_telemetry to hi_worker;

-- Sums rather than means: they add up however late a point comes.
create table miner_telemetry_hourly (
    tenant_id         text             not null,
    miner_id          uuid             not null,
    hour              timestamptz      not null,
    points            int              not null check (points > 0),
    hashrate_ths_sum  double precision not null,
    hashrate_ths_min  double precision not null,
    hashrate_ths_max  double precision not null,
    power_points      int              not null,
    power_w_sum       double precision not null,
    temperature_c_max double precision,
    primary key (tenant_id, miner_id, hour)
) with (fillfactor = 70);
-- Hours come in their order, so a few pages tell which of them are old.
create index miner_telemetry_hourly_hour on miner_telemetry_hourly using brin (hour);
select hi_protect('miner_telemetry_hourly', 'hi_app', 'hi_worker');
grant select, insert, update on miner_telemetry_hourly to hi_app;
grant select on miner_telemetry_hourly to hi_worker;
