-- Customers and what is sold to them: leads, accounts, deals, contracts, invoices, payments, tickets, assets.
-- States are checked here as well as in the code; the moves between them are the code's.
-- Amounts are exact US dollars of at most eight decimals.

create table crm_account (
    tenant_id         text        not null,
    id                uuid        not null,
    name              text        not null check (length(name) between 1 and 200),
    email             text        check (length(email) <= 254),
    phone             text        check (length(phone) <= 50),
    notes             text        check (length(notes) <= 2000),
    owner_id          text        not null,
    -- The user whose portfolio holds the miners of this account; the Kafka key of everything about the account.
    portfolio_user_id text        not null check (portfolio_user_id ~ '^[A-Za-z0-9._@-]{1,64}$'),
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    primary key (tenant_id, id)
);
select hi_protect('crm_account', 'hi_app', 'hi_worker');
grant select, insert on crm_account to hi_app;
grant update (name, email, phone, notes, owner_id, updated_at) on crm_account to hi_app;
grant select on crm_account to hi_worker;

create table crm_lead (
    tenant_id    text        not null,
    id           uuid        not null,
    name         text        not null check (length(name) between 1 and 200),
    company      text        check (length(company) <= 200),
    email        text        check (length(email) <= 254),
    phone        text        check (length(phone) <= 50),
    source       text        check (length(source) <= 100),
    notes        text        check (length(notes) <= 2000),
    owner_id     text        not null,
    state        text        not null
        check (state in ('NEW', 'CONTACTED', 'QUALIFIED', 'UNQUALIFIED', 'CONVERTED', 'LOST')),
    state_reason text        check (length(state_reason) <= 500),
    -- What it became.
    account_id   uuid,
    deal_id      uuid,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    constraint converted_has_account_and_deal check (
        (state = 'CONVERTED') = (account_id is not null) and (account_id is null) = (deal_id is null))
);
create index crm_lead_state on crm_lead (tenant_id, state, id);
create index crm_lead_account on crm_lead (tenant_id, account_id) where account_id is not null;
select hi_protect('crm_lead', 'hi_app');
grant select, insert on crm_lead to hi_app;
grant update (name, company, email, phone, source, notes, owner_id, state, state_reason, account_id, deal_id, updated_at)
    on crm_lead to hi_app;

create table crm_deal (
    tenant_id           text        not null,
    id                  uuid        not null,
    account_id          uuid        not null,
    name                text        not null check (length(name) between 1 and 200),
    value_usd           numeric     not null
        check (value_usd between 0 and 1000000000000 and value_usd = round(value_usd, 8)),
    probability_percent int         not null check (probability_percent between 0 and 100),
    notes               text        check (length(notes) <= 2000),
    owner_id            text        not null,
    state               text        not null check (state in
        ('PROSPECTING', 'QUALIFICATION', 'PROPOSAL', 'NEGOTIATION', 'CLOSED_WON', 'CLOSED_LOST')),
    state_reason        text        check (length(state_reason) <= 500),
    closed_at           timestamptz,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    constraint lost_has_a_reason check (state <> 'CLOSED_LOST' or state_reason is not null)
);
create index crm_deal_account on crm_deal (tenant_id, account_id, id);
create index crm_deal_state on crm_deal (tenant_id, state, id);
alter table crm_lead add foreign key (tenant_id, deal_id) references crm_deal (tenant_id, id);
select hi_protect('crm_deal', 'hi_app', 'hi_worker');
grant select, insert on crm_deal to hi_app;
grant update (name, value_usd, probability_percent, notes, owner_id, state, state_reason, closed_at, updated_at)
    on crm_deal to hi_app;
grant select on crm_deal to hi_worker;

create table crm_contract (
    tenant_id         text        not null,
    id                uuid        not null,
    account_id        uuid        not null,
    deal_id           uuid        not null,
    title             text        not null check (length(title) between 1 and 200),
    value_usd         numeric     not null
        check (value_usd > 0 and value_usd <= 1000000000000 and value_usd = round(value_usd, 8)),
    -- What the invoice is over that signing issues.
    first_invoice_usd numeric     not null check (
        first_invoice_usd > 0 and first_invoice_usd <= value_usd and first_invoice_usd = round(first_invoice_usd, 8)),
    notes             text        check (length(notes) <= 2000),
    state             text        not null check (state in ('draft', 'sent', 'signed', 'expired', 'cancelled')),
    state_reason      text        check (length(state_reason) <= 500),
    signed_at         timestamptz,
    created_at        timestamptz not null,
    updated_at        timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    foreign key (tenant_id, deal_id) references crm_deal (tenant_id, id)
);
create index crm_contract_account on crm_contract (tenant_id, account_id, id);
create index crm_contract_deal on crm_contract (tenant_id, deal_id);
create index crm_contract_state on crm_contract (tenant_id, state, id);
select hi_protect('crm_contract', 'hi_app');
grant select, insert on crm_contract to hi_app;
grant update (title, value_usd, first_invoice_usd, notes, state, state_reason, signed_at, updated_at)
    on crm_contract to hi_app;

create table crm_invoice (
    tenant_id     text        not null,
    id            uuid        not null,
    account_id    uuid        not null,
    contract_id   uuid,
    description   text        check (length(description) <= 500),
    total_usd     numeric     not null
        check (total_usd > 0 and total_usd <= 1000000000000 and total_usd = round(total_usd, 8)),
    -- The sum of its payments.
    paid_usd      numeric     not null default 0 check (paid_usd between 0 and total_usd),
    due_at        timestamptz not null,
    state         text        not null
        check (state in ('DRAFT', 'SENT', 'ISSUED', 'PARTIAL', 'PAID', 'OVERDUE', 'CANCELLED')),
    state_reason  text        check (length(state_reason) <= 500),
    -- The days after which the last reminder went out.
    reminded_days int         not null default 0,
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    foreign key (tenant_id, contract_id) references crm_contract (tenant_id, id),
    constraint paid_is_what_the_state_says check (case state
        when 'PAID' then paid_usd = total_usd
        when 'PARTIAL' then paid_usd > 0 and paid_usd < total_usd
        when 'OVERDUE' then paid_usd < total_usd
        else paid_usd = 0 end)
);
create index crm_invoice_account on crm_invoice (tenant_id, account_id, id);
create index crm_invoice_contract on crm_invoice (tenant_id, contract_id) where contract_id is not null;
create index crm_invoice_state on crm_invoice (tenant_id, state, id);
create index crm_invoice_due on crm_invoice (tenant_id, due_at) where state in ('SENT', 'ISSUED', 'PARTIAL', 'OVERDUE');
select hi_protect('crm_invoice', 'hi_app', 'hi_worker');
grant select, insert on crm_invoice to hi_app;
grant update (description, total_usd, paid_usd, due_at, state, state_reason, reminded_days, updated_at)
    on crm_invoice to hi_app;
grant select on crm_invoice to hi_worker;

create table crm_payment (
    tenant_id   text        not null,
    id          uuid        not null,
    account_id  uuid        not null,
    invoice_id  uuid        not null,
    amount_usd  numeric     not null
        check (amount_usd > 0 and amount_usd <= 1000000000000 and amount_usd = round(amount_usd, 8)),
    method      text        check (length(method) <= 50),
    reference   text        check (length(reference) <= 200),
    received_at timestamptz not null,
    created_at  timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    foreign key (tenant_id, invoice_id) references crm_invoice (tenant_id, id)
);
create index crm_payment_account on crm_payment (tenant_id, account_id, id);
create index crm_payment_invoice on crm_payment (tenant_id, invoice_id, id);
select hi_protect('crm_payment', 'hi_app');
grant select, insert on crm_payment to hi_app;

create table crm_ticket (
    tenant_id    text        not null,
    id           uuid        not null,
    account_id   uuid        not null,
    subject      text        not null check (length(subject) between 1 and 200),
    description  text        check (length(description) <= 2000),
    priority     text        not null check (priority in ('low', 'normal', 'high', 'urgent')),
    owner_id     text        not null,
    state        text        not null check (state in ('open', 'in_progress', 'waiting', 'resolved', 'closed')),
    state_reason text        check (length(state_reason) <= 500),
    resolved_at  timestamptz,
    created_at   timestamptz not null,
    updated_at   timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id)
);
create index crm_ticket_account on crm_ticket (tenant_id, account_id, id);
create index crm_ticket_state on crm_ticket (tenant_id, state, id);
select hi_protect('crm_ticket', 'hi_app', 'hi_worker');
grant select, insert on crm_ticket to hi_app;
grant update (subject, description, priority, owner_id, state, state_reason, resolved_at, updated_at)
    on crm_ticket to hi_app;
grant select on crm_ticket to hi_worker;

create table crm_asset (
    tenant_id                text        not null,
    id                       uuid        not null,
    account_id               uuid        not null,
    model                    text        not null check (length(model) between 1 and 100),
    hashrate_ths             numeric     not null check (hashrate_ths > 0 and hashrate_ths <= 10000),
    power_w                  numeric     not null check (power_w > 0 and power_w <= 100000),
    quantity                 int         not null check (quantity between 1 and 100000),
    serial_number            text        check (length(serial_number) <= 100),
    location                 text        check (length(location) <= 200),
    purchase_price_usd       numeric     check (purchase_price_usd >= 0),
    electricity_cost_usd_kwh numeric     check (electricity_cost_usd_kwh between 0 and 10),
    notes                    text        check (length(notes) <= 2000),
    state                    text        not null check (state in ('ORDERED', 'IN_TRANSIT', 'RECEIVED', 'IN_STORAGE',
        'DEPLOYED', 'MINING', 'MAINTENANCE', 'DELAYED', 'CANCELLED', 'DECOMMISSIONED')),
    state_reason             text        check (length(state_reason) <= 500),
    -- The miner that deployment made.
    miner_id                 uuid,
    created_at               timestamptz not null,
    updated_at               timestamptz not null,
    primary key (tenant_id, id),
    foreign key (tenant_id, account_id) references crm_account (tenant_id, id),
    foreign key (tenant_id, miner_id) references miners (tenant_id, id),
    constraint deployed_is_linked check (state not in ('DEPLOYED', 'MINING', 'MAINTENANCE') or miner_id is not null)
);
create index crm_asset_account on crm_asset (tenant_id, account_id, id);
create index crm_asset_state on crm_asset (tenant_id, state, id);
create index crm_asset_miner on crm_asset (tenant_id, miner_id) where miner_id is not null;
select hi_protect('crm_asset', 'hi_app');
grant select, insert on crm_asset to hi_app;
grant update (model, hashrate_ths, power_w, quantity, serial_number, location, purchase_price_usd,
              electricity_cost_usd_kwh, notes, state, state_reason, miner_id, updated_at) on crm_asset to hi_app;

-- The read model that the group crm-sync-group keeps: an account's figures, from the tables above.
create table crm_account_summary (
    tenant_id             text        not null,
    account_id            uuid        not null,
    version               bigint      not null,
    deals_open            bigint      not null,
    pipeline_usd          numeric     not null,
    pipeline_weighted_usd numeric     not null,
    billed_usd            numeric     not null,
    paid_usd              numeric     not null,
    overdue_usd           numeric     not null,
    tickets_open          bigint      not null,
    event_id              uuid        not null,
    computed_at           timestamptz not null,
    primary key (tenant_id, account_id)
);
select hi_protect('crm_account_summary', 'hi_app', 'hi_worker');
grant select on crm_account_summary to hi_app;
grant select, insert, update on crm_account_summary to hi_worker;
