-- What the history checker wants to know of every commit. The functions run with the rights of the superuser that
-- made them: the roles of the product need, and get, no right here.
create schema witness;

create table witness.moved (
    seq bigint generated always as identity, xid text not null, login text not null,
    consumer_name text not null, topic text not null, partition int not null,
    old_offset bigint not null, new_offset bigint not null, old_epoch bigint not null, new_epoch bigint not null);
create table witness.admitted (
    seq bigint generated always as identity, xid text not null, login text not null,
    consumer_name text not null, event_id uuid not null, outcome text not null);
create table witness.settled (
    seq bigint generated always as identity, xid text not null,
    consumer_name text not null, event_id uuid not null, old_outcome text not null, new_outcome text not null);
create table witness.recomputed (
    seq bigint generated always as identity, xid text not null, login text not null,
    tenant_id text not null, user_id text not null, version bigint not null, event_id uuid not null,
    snapshot_id uuid, by_model jsonb not null, at timestamptz not null default clock_timestamp());

create function witness.moved() returns trigger language plpgsql security definer as $$
begin
    insert into witness.moved (xid, login, consumer_name, topic, partition, old_offset, new_offset, old_epoch, new_epoch)
    values (pg_current_xact_id()::text, session_user, new.consumer_name, new.topic, new.partition,
            old.next_offset, new.next_offset, old.owner_epoch, new.owner_epoch);
    return null;
end
$$;
create function witness.admitted() returns trigger language plpgsql security definer as $$
begin
    insert into witness.admitted (xid, login, consumer_name, event_id, outcome)
    values (pg_current_xact_id()::text, session_user, new.consumer_name, new.event_id, new.outcome);
    return null;
end
$$;
create function witness.settled() returns trigger language plpgsql security definer as $$
begin
    insert into witness.settled (xid, consumer_name, event_id, old_outcome, new_outcome)
    values (pg_current_xact_id()::text, new.consumer_name, new.event_id, old.outcome, new.outcome);
    return null;
end
$$;
create function witness.recomputed() returns trigger language plpgsql security definer as $$
begin
    insert into witness.recomputed (xid, login, tenant_id, user_id, version, event_id, snapshot_id, by_model)
    values (pg_current_xact_id()::text, session_user, new.tenant_id, new.user_id, new.version, new.event_id,
            new.snapshot_id, new.by_model);
    return null;
end
$$;

create trigger witness_moved after update on consumer_offset for each row execute function witness.moved();
create trigger witness_admitted after insert on event_inbox for each row execute function witness.admitted();
create trigger witness_settled after update on event_inbox for each row execute function witness.settled();
create trigger witness_recomputed after insert or update on portfolio
    for each row execute function witness.recomputed();
