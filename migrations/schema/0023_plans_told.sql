-- A schedule that was asked for again while it was computed is left anew: it is the next run's.
grant update (since) on ops_schedule_due to hi_app;
