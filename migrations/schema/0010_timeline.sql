-- Which history of its server the cursor was written in.

-- A standby that is promoted, or a server restored to a point in time, keeps the system identifier and begins another
-- timeline. Null: a standby. From the position of the next record, since the control file learns it only at a checkpoint.
create function hi_timeline() returns int language sql volatile as $$
    select case when not pg_is_in_recovery()
           then ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int end
$$;
comment on function hi_timeline() is 'The timeline of this server; null on a standby.';

-- Null until somebody leads.
alter table publisher_cursor add column timeline int;
