-- The roles belong to the cluster, not to a database: `migrate` runs this first, under a lock in the
-- database `postgres`, as the login of DATABASE_URL. Running it again changes nothing.
do $$
begin
    if not exists (select from pg_roles where rolname = 'hi_owner') then
        create role hi_owner nologin nosuperuser nobypassrls;
    end if;
    if not exists (select from pg_roles where rolname = 'hi_app') then
        create role hi_app nologin nosuperuser nobypassrls;
    end if;
    if not exists (select from pg_roles where rolname = 'hi_worker') then
        create role hi_worker nologin nosuperuser nobypassrls;
    end if;
    -- pg_dump needs a role that row security does not filter; only a superuser may create one.
    if not exists (select from pg_roles where rolname = 'hi_backup')
       and (select rolsuper from pg_roles where rolname = current_user) then
        create role hi_backup nologin bypassrls;
    end if;
    if not pg_has_role(current_user, 'hi_owner', 'member') then
        execute format('grant hi_owner to %I', current_user);
    end if;
    if not pg_has_role(current_user, 'hi_app', 'member') then
        execute format('grant hi_app to %I', current_user);
    end if;
    if not pg_has_role(current_user, 'hi_worker', 'member') then
        execute format('grant hi_worker to %I', current_user);
    end if;
end
$$;

grant usage, create on schema public to hi_owner;
grant usage on schema public to hi_app, hi_worker;

-- A publication belongs to a database, and to make one takes the right to create there.
do $$
begin
    execute format('grant create on database %I to hi_owner', current_database());
end
$$;

do $$
begin
    if exists (select from pg_roles where rolname = 'hi_backup') then
        grant usage on schema public to hi_backup;
        execute 'alter default privileges for role hi_owner in schema public grant select on tables to hi_backup';
        execute 'alter default privileges for role hi_owner in schema public grant select on sequences to hi_backup';
    end if;
end
$$;
