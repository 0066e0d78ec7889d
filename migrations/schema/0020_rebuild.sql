-- A row of a read model that was lost and is computed anew by `hashinsight rebuild` names no event until the next one.
alter table portfolio alter column event_id drop not null;
alter table crm_account_summary alter column event_id drop not null;
alter table treasury_overview alter column event_id drop not null;
alter table ops_schedule alter column event_id drop not null;
