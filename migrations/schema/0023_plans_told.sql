-- The row of a plan of which the clock has told what is off; null: none yet.
alter table ops_plan add column told_row timestamptz;
grant update (told_row) on ops_plan to hi_app;

-- A schedule that was asked for again while it was computed is left anew: it is the next run's.
grant update (since) on ops_schedule_due to hi_app;

-- Since when an owner's automation has been on, on its market; null: it is off, or was set before this release. Prices from
-- before it say nothing to it.
alter table ops_settings add column strike_since timestamptz;
grant update (strike_since) on ops_settings to hi_app;
