//! Records in a PostgreSQL: a batch is a transaction, and the number of the last one of each stream
//! is a row that is changed in the same transaction.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::health::tasks::watched;
use crate::limiter::time::Timestamp;
use crate::metrics::labels::TaskType;
use crate::subscriptions::settings::PostgresTarget;

use super::file::MINUTES_KEPT;
use super::page::Page;
use super::record::{Counts, Key, Period, Query, Record, Row, minute_of};
use super::sink::{Batch, SinkError, Totals};

/// The tables, as the documentation shows them.
pub const TABLES: &str = include_str!("tables.sql");
/// Rows of one statement.
const ROWS_PER_STATEMENT: usize = 1_000;
/// For a connection with all that it needs.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Rows that are added up or deleted by one statement, and statements at a time.
const TIDY_ROWS: i64 = 5_000;
const TIDY_STATEMENTS: usize = 20;

/// The sink in PostgreSQL.
pub struct PostgresSink {
    target: PostgresTarget,
    config: Config,
    tls: MakeRustlsConnect,
    client: Option<Client>,
}

impl PostgresSink {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// There are no authorities to check the server's certificate against.
    pub fn new(target: &PostgresTarget) -> Result<Self, SinkError> {
        let (config, tls) = target.connecting().map_err(SinkError)?;
        Ok(PostgresSink { target: target.clone(), config, tls, client: None })
    }

    /// See [`Sink::take`](super::sink::Sink::take).
    ///
    /// # Errors
    /// The database cannot be asked, or refuses.
    pub async fn take(&mut self, batch: Batch<'_>) -> Result<bool, SinkError> {
        // Cancelled or failed, the connection is given up: nobody knows what is under way on it.
        let mut client = self.connected().await?;
        let taken = take_in(&mut client, batch).await.map_err(|it| error(&it))?;
        self.client = Some(client);
        Ok(taken)
    }

    /// Adds minutes up to hours after two days, and deletes what is not kept.
    ///
    /// # Errors
    /// The database cannot be asked, or refuses.
    pub async fn tidy(&mut self, now: Timestamp, kept_from: u32) -> Result<(), SinkError> {
        let client = self.connected().await?;
        let minutes_from = Period::Hour.start(minute_of(now).saturating_sub(MINUTES_KEPT));
        let steps: [(&str, i64); 5] = [
            (ADD_UP, seconds(minutes_from)),
            (
                "delete from tollgate_usage_hours where ctid = any(array(select ctid from tollgate_usage_hours where period < to_timestamp($1::bigint) limit $2))",
                seconds(kept_from),
            ),
            (
                "delete from tollgate_usage_minutes where ctid = any(array(select ctid from tollgate_usage_minutes where period < to_timestamp($1::bigint) limit $2))",
                seconds(kept_from),
            ),
            // What comes again later than that is too old to be kept.
            (
                "delete from tollgate_usage_streams where ctid = any(array(select ctid from tollgate_usage_streams where updated < to_timestamp($1::bigint) limit $2))",
                seconds(kept_from) - 86_400,
            ),
            (
                "delete from tollgate_usage_totals where ctid = any(array(select ctid from tollgate_usage_totals where updated < to_timestamp($1::bigint) limit $2))",
                seconds(kept_from) - 86_400,
            ),
        ];
        for (statement, before) in steps {
            for _ in 0..TIDY_STATEMENTS {
                let done = client.execute(statement, &[&before, &TIDY_ROWS]).await;
                if done.map_err(|it| error(&it))? == 0 {
                    break;
                }
            }
        }
        self.client = Some(client);
        Ok(())
    }

    /// See [`Sink::page`](super::sink::Sink::page).
    ///
    /// # Errors
    /// The database cannot be asked, or refuses.
    pub async fn page(&mut self, query: &Query) -> Result<Page, SinkError> {
        let client = self.connected().await?;
        let limit = query.limit.clamp(1, super::page::RECORDS_MAX);
        let after = query.after.clone().unwrap_or_default();
        let after_start = if query.after.is_some() { seconds(after.start) } else { -1 };
        let (from, to) = (seconds(query.from), seconds(query.to));
        let (identity, tier) = (query.identity.as_deref(), query.tier.as_deref());
        let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let unit = query.by.as_str();
        let parameters: [&(dyn ToSql + Sync); 10] = [
            &unit,
            &from,
            &to,
            &identity,
            &tier,
            &after_start,
            &&*after.identity,
            &&*after.tier,
            &&*after.endpoint,
            &one_more,
        ];
        let rows = client.query(PAGE, &parameters).await.map_err(|it| error(&it))?;
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            let record = record_of(row).map_err(|it| error(&it))?;
            records.push(record);
        }
        let has_more = records.len() > limit;
        records.truncate(limit);
        let next = records.last().filter(|_| has_more).map(|it: &Record| it.key.clone());
        records.retain(|it| !it.counts.is_zero());
        self.client = Some(client);
        Ok(Page { records, next })
    }

    /// See [`Sink::totals`](super::sink::Sink::totals).
    ///
    /// # Errors
    /// The database cannot be asked, or refuses.
    pub async fn totals(&mut self, epoch: u128) -> Result<Totals, SinkError> {
        let client = self.connected().await?;
        let replica = format!("{epoch:032x}");
        let query = "select tier, requests, units, denied, bytes_in, bytes_out \
                     from tollgate_usage_totals where replica = $1";
        let rows = client.query(query, &[&replica]).await.map_err(|it| error(&it))?;
        let mut totals = Totals::new();
        for row in &rows {
            let tier: &str = row.try_get(0).map_err(|it| error(&it))?;
            totals.insert(tier.into(), counts_of(row, 1).map_err(|it| error(&it))?);
        }
        self.client = Some(client);
        Ok(totals)
    }

    /// The connection, or a new one. Who does not give it back has given it up.
    async fn connected(&mut self) -> Result<Client, SinkError> {
        if let Some(client) = self.client.take().filter(|client| !client.is_closed()) {
            return Ok(client);
        }
        let connecting = async {
            let (client, connection) = self.config.connect(self.tls.clone()).await?;
            // Why it ended is said by the call that meets it.
            let driver = async move { connection.await.unwrap_or(()) };
            tokio::spawn(watched(TaskType::UsageFlush, driver));
            make_tables(&client).await?;
            Ok(client)
        };
        match timeout(CONNECT_MAX, connecting).await {
            Ok(client) => client.map_err(|it: Error| error(&it)),
            Err(_) => Err(SinkError(format!("no connection to {} in time", self.target))),
        }
    }
}

impl std::fmt::Debug for PostgresSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSink").field("target", &self.target).finish_non_exhaustive()
    }
}

/// Those who may not make tables can use such as are there.
async fn make_tables(client: &Client) -> Result<(), Error> {
    let known = "select to_regclass('tollgate_usage_minutes') is not null \
                 and to_regclass('tollgate_usage_hours') is not null \
                 and to_regclass('tollgate_usage_streams') is not null \
                 and to_regclass('tollgate_usage_totals') is not null";
    if client.query_one(known, &[]).await?.try_get(0)? {
        return Ok(());
    }
    // Two replicas that start at once wait for one another.
    let locked = format!("begin; select pg_advisory_xact_lock(7161905421); {TABLES} commit;");
    client.batch_execute(&locked).await
}

async fn take_in(client: &mut Client, batch: Batch<'_>) -> Result<bool, Error> {
    let transaction = client.transaction().await?;
    let replica = format!("{:032x}", batch.id.stream.epoch);
    let worker = i32::try_from(batch.id.stream.worker).unwrap_or(i32::MAX);
    let sequence = i64::try_from(batch.id.sequence).unwrap_or(i64::MAX);
    let is_new = transaction.execute(TAKE, &[&replica, &worker, &sequence]).await? > 0;
    if !is_new {
        transaction.rollback().await?;
        return Ok(false);
    }
    let mut totals = Totals::new();
    for row in &batch.parsed.rows {
        *totals.entry(row.tier.into()).or_default() += row.counts;
    }
    for (tier, counts) in &totals {
        let [requests, units, denied, bytes_in, bytes_out] = counts.to_array();
        let tier: &str = tier;
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&replica, &tier, &requests, &units, &denied, &bytes_in, &bytes_out];
        transaction.execute(ADD_TOTALS, &parameters).await?;
    }
    // In one order for all replicas, so that none waits for another in a circle.
    let mut rows: Vec<&Row<'_>> =
        batch.parsed.rows.iter().filter(|row| row.minute >= batch.kept_from).collect();
    rows.sort_by_key(|row| (row.minute, row.identity, row.tier, row.endpoint));
    for part in rows.chunks(ROWS_PER_STATEMENT) {
        let minutes: Vec<i64> = part.iter().map(|row| seconds(row.minute)).collect();
        let names = |name: fn(&Row<'_>) -> String| -> Vec<String> {
            part.iter().map(|row| name(row)).collect()
        };
        let identities = names(|row| row.identity.to_owned());
        let tiers = names(|row| row.tier.to_owned());
        let endpoints = names(|row| row.endpoint.to_owned());
        let numbers: Vec<[i64; 5]> = part.iter().map(|row| row.counts.to_array()).collect();
        let column = |index: usize| -> Vec<i64> {
            numbers.iter().map(|it| it.get(index).copied().unwrap_or(0)).collect()
        };
        let columns: [Vec<i64>; 5] = std::array::from_fn(column);
        let [requests, units, denied, bytes_in, bytes_out] = &columns;
        let parameters: [&(dyn ToSql + Sync); 9] = [
            &minutes,
            &identities,
            &tiers,
            &endpoints,
            requests,
            units,
            denied,
            bytes_in,
            bytes_out,
        ];
        transaction.execute(ADD, &parameters).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

const TAKE: &str = "insert into tollgate_usage_streams as it (replica, worker, sequence) \
    values ($1, $2, $3) on conflict (replica, worker) \
    do update set sequence = excluded.sequence, updated = now() \
    where it.sequence < excluded.sequence";

const ADD: &str = "insert into tollgate_usage_minutes as it \
    (period, identity, tier, endpoint, requests, units, denied, bytes_in, bytes_out) \
    select to_timestamp(period), identity, tier, endpoint, requests, units, denied, bytes_in, bytes_out \
    from unnest($1::bigint[], $2::text[], $3::text[], $4::text[], \
    $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[]) \
    as new (period, identity, tier, endpoint, requests, units, denied, bytes_in, bytes_out) \
    on conflict (period, identity, tier, endpoint) do update set \
    requests = it.requests + excluded.requests, units = it.units + excluded.units, \
    denied = it.denied + excluded.denied, bytes_in = it.bytes_in + excluded.bytes_in, \
    bytes_out = it.bytes_out + excluded.bytes_out";

const ADD_TOTALS: &str = "insert into tollgate_usage_totals as it \
    (replica, tier, requests, units, denied, bytes_in, bytes_out) \
    values ($1, $2, $3, $4, $5, $6, $7) on conflict (replica, tier) do update set \
    requests = it.requests + excluded.requests, units = it.units + excluded.units, \
    denied = it.denied + excluded.denied, bytes_in = it.bytes_in + excluded.bytes_in, \
    bytes_out = it.bytes_out + excluded.bytes_out, updated = now()";

const ADD_UP: &str = "with moved as (delete from tollgate_usage_minutes where ctid = any(array( \
    select ctid from tollgate_usage_minutes where period < to_timestamp($1::bigint) \
    order by period, identity, tier, endpoint limit $2 for update skip locked)) \
    returning *) \
    insert into tollgate_usage_hours as it \
    (period, identity, tier, endpoint, requests, units, denied, bytes_in, bytes_out) \
    select date_trunc('hour', period, 'UTC'), identity, tier, endpoint, sum(requests)::bigint, \
    sum(units)::bigint, sum(denied)::bigint, sum(bytes_in)::bigint, sum(bytes_out)::bigint \
    from moved group by 1, 2, 3, 4 order by 1, 2, 3, 4 \
    on conflict (period, identity, tier, endpoint) do update set \
    requests = it.requests + excluded.requests, units = it.units + excluded.units, \
    denied = it.denied + excluded.denied, bytes_in = it.bytes_in + excluded.bytes_in, \
    bytes_out = it.bytes_out + excluded.bytes_out";

const PAGE: &str = "select (extract(epoch from start) / 60)::bigint, identity, tier, endpoint, \
    requests, units, denied, bytes_in, bytes_out from ( \
    select date_trunc($1, period, 'UTC') as start, identity collate \"C\" as identity, \
    tier collate \"C\" as tier, endpoint collate \"C\" as endpoint, \
    sum(requests)::bigint as requests, sum(units)::bigint as units, \
    sum(denied)::bigint as denied, sum(bytes_in)::bigint as bytes_in, \
    sum(bytes_out)::bigint as bytes_out from ( \
    select * from tollgate_usage_minutes union all select * from tollgate_usage_hours) as rows \
    where period >= to_timestamp($2::bigint) and period < to_timestamp($3::bigint) \
    and ($4::text is null or identity = $4) and ($5::text is null or tier = $5) \
    group by 1, 2, 3, 4) as sums \
    where (start, identity, tier, endpoint) > (to_timestamp($6::bigint), $7::text, $8::text, $9::text) \
    order by start, identity, tier, endpoint limit $10";

fn record_of(row: &tokio_postgres::Row) -> Result<Record, Error> {
    let start: i64 = row.try_get(0)?;
    let text = |index| row.try_get::<_, &str>(index).map(Box::from);
    let key = Key {
        start: u32::try_from(start).unwrap_or(0),
        identity: text(1)?,
        tier: text(2)?,
        endpoint: text(3)?,
    };
    Ok(Record { key, counts: counts_of(row, 4)? })
}

fn counts_of(row: &tokio_postgres::Row, first: usize) -> Result<Counts, Error> {
    let number = |index: usize| row.try_get(first.saturating_add(index));
    Ok(Counts::from_array([number(0)?, number(1)?, number(2)?, number(3)?, number(4)?]))
}

fn seconds(minute: u32) -> i64 {
    i64::from(minute).saturating_mul(60)
}

/// An error with its causes. The URL is in none of them.
fn error(error: &Error) -> SinkError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let text: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect();
    SinkError(text)
}
