-- Members of the groups in Kafka, as they prove to each other that they live.

-- A process takes the first slot of its group that is free and holds it by an advisory lock (0x6869736c, slot_id) of a
-- session of its own, which dies with it. What Kafka knows as the member's id is made of the group, the host, the slot
-- and the incarnation.
create table group_slot (
    slot_id     int    generated always as identity primary key,
    -- As Kafka names it: with the prefix.
    group_id    text   not null,
    slot        int    not null check (slot >= 0),
    host        text   not null,
    -- Counted up by whoever evicts the holder, before Kafka hears of it: from then on the old id is nobody's.
    incarnation bigint not null default 0,
    -- Counted up by the holder while it lives. No time: clocks of hosts differ.
    counter     bigint not null default 0,
    -- Null: nobody is a member under this slot.
    member_id   text,
    -- Ids that were evicted and that Kafka has perhaps not been told about.
    departed    text[] not null default '{}',
    -- The session that holds the lock, for people who look.
    backend_pid int,
    unique (group_id, slot)
) with (fillfactor = 50);
grant select, insert, update on group_slot to hi_worker;
