-- Scheduled work: when each job is due, who runs it, and how it went. Times are the database's.

create table scheduled_job (
    name              text        primary key check (name ~ '^[a-z0-9-]{1,64}$'),
    schedule          text        not null,
    next_run_at       timestamptz not null,
    -- Tenants that failed are tried again then, and no others; null where none failed.
    retry_at          timestamptz,
    -- Grows with every claim: whoever holds an older one has lost it.
    epoch             bigint      not null default 0,
    -- Null while nobody runs it. A process that is gone does not renew, and loses it at `lease_until`.
    owner             text,
    lease_until       timestamptz,
    started_at        timestamptz,
    finished_at       timestamptz,
    -- Visited by the last run that ended.
    tenants           int         not null default 0,
    -- The tenants that failed last, those that wait to be tried again included. The error stays while there are any.
    tenants_failed    int         not null default 0,
    failures_in_a_row int         not null default 0,
    error             text        check (length(error) <= 1000),
    check ((owner is null) = (lease_until is null))
) with (fillfactor = 50);
grant select, insert, update on scheduled_job to hi_worker;

-- The tenants for which a job failed last, each with a pause of its own.
create table scheduled_job_failure (
    tenant_id       text        not null,
    job             text        not null references scheduled_job,
    failures        int         not null,
    retry_at        timestamptz not null,
    error           text        not null check (length(error) <= 1000),
    first_failed_at timestamptz not null default clock_timestamp(),
    last_failed_at  timestamptz not null default clock_timestamp(),
    primary key (tenant_id, job)
);
create index scheduled_job_failure_retry on scheduled_job_failure (job, retry_at);
select hi_protect('scheduled_job_failure', 'hi_worker');
grant select, insert, update, delete on scheduled_job_failure to hi_worker;

-- What the clock does to invoices asks across tenants whose invoices are due, and is answered by these.
create index crm_invoice_clock_due on crm_invoice (due_at, tenant_id) where state in ('SENT', 'ISSUED', 'PARTIAL');
create index crm_invoice_clock_reminder on crm_invoice (due_at, tenant_id) where state = 'OVERDUE' and reminded_days < 30;
create index crm_invoice_clock_draft on crm_invoice (created_at, tenant_id) where state = 'DRAFT';
