//! Records in a Redis: a hash for each minute and each hour, all of them with an end.
//!
//! A batch is taken in parts, each by one call of a script that first looks whether it has come
//! before: parts are small because Redis does nothing else meanwhile, a check of a limit neither.

use std::sync::Arc;
use std::time::Duration;

use fred::types::Value;
use tokio::time::timeout;

use crate::clock::{Clock, monotonic};
use crate::health::tasks::watched;
use crate::metrics::labels::TaskType;
use crate::redis::servers::{Nobody, Servers};
use crate::redis::target::{CONNECT_MAX, RedisTarget};

use super::file::MINUTES_KEPT;
use super::page::{Collector, Page};
use super::record::{COLUMNS, Counts, HOUR, Period, Query, Row, minute_of};
use super::segment::SegmentId;
use super::sink::{Batch, SinkError, Totals};

const SCRIPT: &str = include_str!("apply.lua");
/// Rows of one call: some hundred microseconds of Redis's time.
const ROWS_PER_CALL: usize = 100;
/// Calls for one batch: every one of its parts, each twice.
const CALLS_MAX: usize = 4_096;
/// For one answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Commands that the client may hold; there is one at a time.
const COMMANDS_MAX: usize = 64;
/// Fields of one answer of a scan.
const SCAN_COUNT: &str = "1000";
/// Between the names in a field. No name has one in it.
const SEPARATOR: char = '\u{1f}';
/// How much longer than its records a stream is remembered.
const DAY_SECONDS: u64 = 86_400;

/// The sink in Redis.
pub struct RedisSink {
    servers: Arc<Servers>,
    prefix: Box<str>,
    retention: Duration,
    is_started: bool,
}

impl RedisSink {
    /// Connects to nothing yet. `prefix`: what every key begins with.
    pub fn new(target: &RedisTarget, prefix: &str, retention: Duration) -> Self {
        let servers = Arc::new(Servers::new(target.clone(), ANSWER_MAX, COMMANDS_MAX));
        RedisSink { servers, prefix: prefix.into(), retention, is_started: false }
    }

    /// See [`Sink::take`](super::sink::Sink::take).
    ///
    /// # Errors
    /// Redis does not answer, or refuses.
    pub async fn take(&mut self, batch: Batch<'_>) -> Result<bool, SinkError> {
        self.connected().await?;
        let rows = &batch.parsed.rows;
        let (mut offset, mut is_new) = (0_usize, false);
        for _ in 0..CALLS_MAX {
            let Some(rest) = rows.get(offset..).filter(|rest| !rest.is_empty()) else {
                return Ok(is_new);
            };
            let minute = rest.first().map_or(0, |row| row.minute);
            let part = rest.iter().take(ROWS_PER_CALL).take_while(|row| row.minute == minute);
            let part = rest.get(..part.count()).unwrap_or_default();
            let taken = self.call(batch.id, offset, part, batch.kept_from).await?;
            let Ok(taken) = usize::try_from(taken) else { return Ok(is_new) };
            is_new |= taken == offset.saturating_add(part.len());
            offset = taken;
        }
        Err(SinkError("Redis forgets what it has taken".to_owned()))
    }

    async fn call(
        &self,
        id: SegmentId,
        offset: usize,
        rows: &[Row<'_>],
        kept_from: u32,
    ) -> Result<i64, SinkError> {
        let minute = rows.first().map_or(0, |row| row.minute);
        let hour = Period::Hour.start(minute);
        let (epoch, worker) = (id.stream.epoch, id.stream.worker);
        let keys = vec![
            self.key(&format!("s:{epoch:032x}-{worker}")),
            self.key(&format!("t:{epoch:032x}")),
            self.key(&format!("m:{minute}")),
            self.key(&format!("h:{hour}")),
        ];
        let now = minute_of(Clock::System.now());
        let seconds = |minute: u32| u64::from(minute).saturating_mul(60);
        let retention = self.retention.as_secs();
        let is_kept = minute >= kept_from;
        let minute_end = minute.saturating_add(MINUTES_KEPT).saturating_add(2 * HOUR);
        let hour_end = seconds(hour.saturating_add(HOUR)).saturating_add(retention);
        let upto = offset.saturating_add(rows.len());
        let mut arguments = vec![SCRIPT.to_owned(), keys.len().to_string()];
        arguments.extend(keys);
        arguments.extend([
            id.sequence.to_string(),
            offset.to_string(),
            upto.to_string(),
            // Whatever comes again after that is too old to be kept.
            retention.saturating_add(DAY_SECONDS).to_string(),
            seconds(now).saturating_add(retention).saturating_add(DAY_SECONDS).to_string(),
            if is_kept && minute_end > now { seconds(minute_end) } else { 0 }.to_string(),
            if is_kept { hour_end } else { 0 }.to_string(),
        ]);
        for row in rows {
            let Row { identity, tier, endpoint, .. } = row;
            arguments.push(format!("{tier}{SEPARATOR}{endpoint}{SEPARATOR}{identity}"));
            arguments.push((*tier).to_owned());
            arguments.extend(row.counts.to_array().iter().map(ToString::to_string));
        }
        let reply = self.answered("EVAL", arguments).await?;
        reply.as_i64().ok_or_else(|| SinkError("Redis's answer is no number".to_owned()))
    }

    /// See [`Sink::page`](super::sink::Sink::page).
    ///
    /// # Errors
    /// Redis does not answer, or refuses.
    pub async fn page(&mut self, query: &Query) -> Result<Page, SinkError> {
        self.connected().await?;
        let mut collector = Collector::new(query);
        let now = minute_of(Clock::System.now());
        // Minutes are there for a while only; before that, hours stand for them.
        let minutes_from = match query.by {
            Period::Minute => Period::Hour.start(now.saturating_sub(MINUTES_KEPT)),
            Period::Hour | Period::Day => u32::MAX,
        };
        for (kind, minute) in self.kept().await? {
            let is_wanted = match kind {
                'm' => minute >= minutes_from,
                _ => minute < minutes_from,
            };
            if is_wanted && query.takes_minute(minute) {
                self.scan(&self.key(&format!("{kind}:{minute}")), &mut |field, counts| {
                    let mut names = field.splitn(3, SEPARATOR);
                    if let (Some(tier), Some(endpoint), Some(identity)) =
                        (names.next(), names.next(), names.next())
                    {
                        collector.add(&Row { minute, identity, tier, endpoint, counts });
                    }
                })
                .await?;
            }
        }
        Ok(collector.finish())
    }

    /// See [`Sink::totals`](super::sink::Sink::totals).
    ///
    /// # Errors
    /// Redis does not answer, or refuses.
    pub async fn totals(&mut self, epoch: u128) -> Result<Totals, SinkError> {
        self.connected().await?;
        let mut totals = Totals::new();
        let key = self.key(&format!("t:{epoch:032x}"));
        self.scan(&key, &mut |tier, counts| {
            totals.insert(tier.into(), counts);
        })
        .await?;
        Ok(totals)
    }

    /// Every hash of records: `m` or `h`, and its first minute.
    async fn kept(&self) -> Result<Vec<(char, u32)>, SinkError> {
        let mut kept = Vec::new();
        let (prefix, pattern) = (self.key(""), self.key("[mh]:*"));
        let mut cursor = "0".to_owned();
        loop {
            let arguments = ["0", "MATCH", &pattern, "COUNT", SCAN_COUNT].map(str::to_owned);
            let mut arguments = Vec::from(arguments);
            if let Some(first) = arguments.first_mut() {
                first.clone_from(&cursor);
            }
            let (next, found) = self.scanned("SCAN", arguments).await?;
            for key in found {
                let Some(rest) = key.strip_prefix(&prefix) else { continue };
                let minute = rest.get(2..).and_then(|it| it.parse().ok());
                kept.extend(rest.chars().next().zip(minute));
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        // A scan may name a key twice.
        kept.sort_unstable_by_key(|(kind, minute)| (*minute, *kind));
        kept.dedup();
        Ok(kept)
    }

    /// Every field of a hash with its numbers, each once.
    async fn scan(
        &self,
        key: &str,
        each: &mut (dyn FnMut(&str, Counts) + Send),
    ) -> Result<(), SinkError> {
        // While a hash grows a scan may give a field twice.
        let mut seen = std::collections::HashSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let arguments = vec![key.to_owned(), cursor, "COUNT".into(), SCAN_COUNT.into()];
            let (next, found) = self.scanned("HSCAN", arguments).await?;
            for pair in found.chunks(2) {
                let [field, numbers] = pair else { continue };
                if let Some(counts) = counts_of(numbers)
                    && seen.insert(hash_of(field))
                {
                    each(field, counts);
                }
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }

    async fn scanned(
        &self,
        command: &'static str,
        arguments: Vec<String>,
    ) -> Result<(String, Vec<String>), SinkError> {
        let reply = self.answered(command, arguments).await?;
        let (cursor, found): (String, Vec<String>) = reply.convert().map_err(|it| error(&it))?;
        Ok((cursor, found))
    }

    /// Asks whoever keeps the records.
    async fn answered(
        &self,
        command: &'static str,
        arguments: Vec<String>,
    ) -> Result<Value, SinkError> {
        let key = self.key("");
        let arguments = arguments.into_iter().map(Value::from).collect();
        let deadline = monotonic() + ANSWER_MAX;
        let asking = self.servers.run(key.as_bytes(), command, arguments, deadline);
        match timeout(ANSWER_MAX, asking).await {
            Ok(answer) => answer.map_err(|it| error(&it)),
            Err(_) => {
                // A connection over which nothing comes back is not noticed by the client.
                if let Some(route) = self.servers.route(key.as_bytes()) {
                    self.servers.give_up(route.node()).await;
                }
                Err(SinkError("Redis does not answer in time".to_owned()))
            }
        }
    }

    async fn connected(&mut self) -> Result<(), SinkError> {
        if !self.is_started {
            self.is_started = true;
            let servers = Arc::clone(&self.servers);
            let drive = async move { servers.drive(&Nobody).await };
            tokio::spawn(watched(TaskType::UsageFlush, drive));
        }
        match self.servers.wait_for(self.key("").as_bytes(), CONNECT_MAX).await {
            true => Ok(()),
            false => Err(SinkError("no connection to Redis".to_owned())),
        }
    }

    /// All of them in one slot of a cluster, for a script touches several.
    fn key(&self, rest: &str) -> String {
        format!("{}:{{usage}}:{rest}", self.prefix)
    }
}

impl std::fmt::Debug for RedisSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSink").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

fn hash_of(field: &str) -> u128 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, field).hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(0) << 64 | half(1)
}

fn counts_of(numbers: &str) -> Option<Counts> {
    let mut array = [0; COLUMNS];
    let mut words = numbers.split(' ');
    for number in &mut array {
        *number = words.next()?.parse().ok()?;
    }
    Some(Counts::from_array(array))
}

fn error(error: &fred::error::Error) -> SinkError {
    SinkError(format!("Redis: {}", error.details()))
}
