-- The version with which a row of a read model begins that `hashinsight rebuild` makes anew: beyond that of any copy of the
-- one that was lost, so that no cache takes the copy for the newer one.
create function hi_version_anew() returns bigint language sql volatile as $$
    select (extract(epoch from clock_timestamp()) * 1000)::bigint
$$;

-- The windows of the hour up to judged_to, {start: [points, sum of TH/s]}: the next window is judged without reading them again.
alter table miner_detector add column hour jsonb;
grant update (hour) on miner_detector to hi_worker;

-- Few are open of all that ever were; those that are over go after `anomalies.retention_days`.
create index anomaly_open_of_tenant on anomaly (tenant_id, id) where state = 'open';
create index anomaly_resolved on anomaly (resolved_at) where state = 'resolved';
