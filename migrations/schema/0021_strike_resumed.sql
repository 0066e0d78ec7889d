-- When the strike automation last let an owner's site run again; null: it never held it off. A phase that begins with the
-- first look begins without a switch: nobody's miners start because of it.
alter table ops_strike add column resumed_at timestamptz;
