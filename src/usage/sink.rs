//! Where batches go, and where records are read.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::limiter::time::Timestamp;
use crate::redis::target::RedisTarget;
use crate::subscriptions::settings::PostgresTarget;

use super::file::FileSink;
use super::page::Page;
use super::postgres::PostgresSink;
use super::record::{Counts, Query, minute_of};
use super::redis::RedisSink;
use super::segment::{Parsed, SegmentId};

/// How usage is metered.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where records go.
    pub place: Place,
    /// How often; above zero.
    pub flush: Duration,
    /// Where the journal is.
    pub directory: PathBuf,
    /// How long records are kept; above zero.
    pub retention: Duration,
    /// The most that the journal may take of its disk, in bytes.
    pub journal_bytes_max: u64,
}

/// Where records are.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// Files below this directory.
    File(PathBuf),
    /// A Redis, with what the keys begin with.
    Redis(RedisTarget, Box<str>),
    /// A PostgreSQL.
    Postgres(PostgresTarget),
}

/// What a sink takes at once.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Which.
    pub id: SegmentId,
    /// What it says.
    pub parsed: &'a Parsed<'a>,
    /// The same as it is written.
    pub bytes: &'a [u8],
    /// The first minute that is kept.
    pub kept_from: u32,
}

/// Why a sink did not do what was asked; nothing secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// Sums of all that a process has had taken, by tier.
pub type Totals = BTreeMap<Box<str>, Counts>;

/// A sink.
#[derive(Debug)]
pub enum Sink {
    /// Files.
    File(FileSink),
    /// A Redis.
    Redis(RedisSink),
    /// A PostgreSQL.
    Postgres(Box<PostgresSink>),
}

impl Sink {
    /// Connects to nothing yet. `epoch`: who writes.
    ///
    /// # Errors
    /// There is nothing to check a server's certificate against.
    pub fn new(place: &Place, epoch: u128, retention: Duration) -> Result<Self, SinkError> {
        Ok(match place {
            Place::File(directory) => Sink::File(FileSink::new(directory, epoch)),
            Place::Redis(target, prefix) => Sink::Redis(RedisSink::new(target, prefix, retention)),
            Place::Postgres(target) => Sink::Postgres(Box::new(PostgresSink::new(target)?)),
        })
    }

    /// Takes a batch, once. Of one stream they have to come in their order, each when the one before
    /// is known to be taken. Returns whether it was new.
    ///
    /// # Errors
    /// It is not known whether it was taken: it may come again.
    pub async fn take(&mut self, batch: Batch<'_>, now: Timestamp) -> Result<bool, SinkError> {
        match self {
            Sink::File(sink) => sink.take(batch, now),
            Sink::Redis(sink) => sink.take(batch).await,
            Sink::Postgres(sink) => sink.take(batch).await,
        }
    }

    /// Makes sure of all that was taken so far.
    ///
    /// # Errors
    /// It may be lost with the machine's power.
    pub async fn commit(&mut self) -> Result<(), SinkError> {
        match self {
            Sink::File(sink) => sink.commit(),
            Sink::Redis(_) | Sink::Postgres(_) => Ok(()),
        }
    }

    /// Adds up what is old, and deletes what is too old; a part of it, if it is much.
    ///
    /// # Errors
    /// It will be tried again.
    pub async fn tidy(&mut self, now: Timestamp, retention: Duration) -> Result<(), SinkError> {
        match self {
            Sink::File(sink) => sink.tidy(now, kept_from(now, retention)),
            // Its keys have their time.
            Sink::Redis(_) => Ok(()),
            Sink::Postgres(sink) => sink.tidy(now, kept_from(now, retention)).await,
        }
    }

    /// A page of records.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn page(&mut self, query: &Query) -> Result<Page, SinkError> {
        match self {
            Sink::File(sink) => sink.page(query),
            Sink::Redis(sink) => sink.page(query).await,
            Sink::Postgres(sink) => sink.page(query).await,
        }
    }

    /// What this process has had taken, by tier.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn totals(&mut self, epoch: u128) -> Result<Totals, SinkError> {
        match self {
            Sink::File(sink) => sink.totals(epoch),
            Sink::Redis(sink) => sink.totals(epoch).await,
            Sink::Postgres(sink) => sink.totals(epoch).await,
        }
    }
}

/// The first minute that is kept.
pub fn kept_from(now: Timestamp, retention: Duration) -> u32 {
    let minutes = u32::try_from(retention.as_secs() / 60).unwrap_or(u32::MAX);
    minute_of(now).saturating_sub(minutes)
}
