-- What a worker of a partition leaves behind for the next one.

-- After an unclean exit events are tried one by one, each attempt written down before it begins: an event whose attempts
-- began and never ended takes the process with it.
alter table consumer_offset
    add column suspect_offset   bigint,
    add column suspect_attempts int not null default 0,
    -- Why the partition stands still; null while it does not. `hashinsight lag` shows it.
    add column trouble          text;

alter table parked_event
    add column crashes int not null default 0;
comment on column parked_event.log_offset is
    'Below zero: the record is not in the log any more; the event was taken from the outbox, or the topic was made anew.';
