-- What retention looks for, by an index each.

-- A day of the inbox is kept while an event of it waits in the retry queue.
create index event_inbox_parked on event_inbox (event_id) where outcome = 'parked';
-- Foreign ids carry no day: they go by the time of their outcome.
create index event_inbox_default_processed on event_inbox_default (processed_at) where outcome <> 'parked';
create index event_idempotency_created on event_idempotency (created_at);

-- A dump reads the sequences too; those made from here on are granted by default.
do $$
begin
    if exists (select from pg_roles where rolname = 'hi_backup') then
        grant select on all sequences in schema public to hi_backup;
    end if;
end
$$;
