create table if not exists tollgate_usage_minutes (
    period timestamptz not null,
    identity text not null,
    tier text not null,
    endpoint text not null,
    requests bigint not null,
    units bigint not null,
    denied bigint not null,
    bytes_in bigint not null,
    bytes_out bigint not null,
    primary key (period, identity, tier, endpoint)
);
create table if not exists tollgate_usage_hours (
    like tollgate_usage_minutes including all
);
create table if not exists tollgate_usage_streams (
    replica text not null,
    worker integer not null,
    sequence bigint not null,
    updated timestamptz not null default now(),
    primary key (replica, worker)
);
create table if not exists tollgate_usage_totals (
    replica text not null,
    tier text not null,
    requests bigint not null,
    units bigint not null,
    denied bigint not null,
    bytes_in bigint not null,
    bytes_out bigint not null,
    updated timestamptz not null default now(),
    primary key (replica, tier)
);
