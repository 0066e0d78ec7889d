-- The portfolio as it was: of each hour the last recalculation, written with it. Without the parts by model and location,
-- which grow with the fleet; deleted after `portfolio_history.retention_days`.
create table portfolio_history (
    tenant_id   text        not null,
    user_id     text        not null,
    hour        timestamptz not null,
    version     bigint      not null,
    computed_at timestamptz not null,
    figures     jsonb       not null,
    primary key (tenant_id, user_id, hour)
) with (fillfactor = 70);
-- Hours come in their order, so a few pages tell which of them are old.
create index portfolio_history_hour on portfolio_history using brin (hour);
select hi_protect('portfolio_history', 'hi_app', 'hi_worker');
grant select on portfolio_history to hi_app;
grant select, insert, update on portfolio_history to hi_worker;
