-- A trade may turn out to need a second person at its first step: when it is worth more by then than its account's limit.
grant update (needs_approval, value_usd) on treasury_trade to hi_app, hi_worker;

-- `out-of-range`: the figures could not be computed from what is stored, and those in the row are of before.
alter table treasury_overview add column warnings text[] not null default '{}';

-- What is due is asked of each endpoint, by webhook_delivery_of_endpoint.
drop index webhook_delivery_due;
