-- When the snapshot behind the figures was observed: how old they are can be told without it.
alter table portfolio add column as_of timestamptz;
