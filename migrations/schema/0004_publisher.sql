-- What the publisher cannot hand over now.

-- Rows behind the cursor that are not in the log: a lane (a partition of a topic) that failed for too long leaves them
-- here, so that the others flow. Newer rows of the lane queue behind them until all are handed over.
create table outbox_stuck (
    position    bigint      primary key,
    -- Names the partition of the outbox: a row's partition is kept while the row is here.
    occurred_at timestamp   not null,
    topic       text        not null,
    -- -1: the topic does not exist, so its partitions are not known.
    partition   int         not null,
    stuck_at    timestamptz not null default now()
);
create index outbox_stuck_lane on outbox_stuck (topic, partition, position);
grant select, insert, delete on outbox_stuck to hi_worker;
