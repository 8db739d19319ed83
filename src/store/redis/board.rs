//! A small table in Redis that every replica reads, and a log of its changes: how what an operator
//! does on one replica reaches the others. What the fields mean is not known here.

use std::time::Duration;

use fred::bytes::Bytes;
use fred::types::Value;

use crate::metrics::labels::RedisErrorKind;
use crate::policy::identity::Identity;

use super::RedisStore;
use super::error::CheckError;
use super::further::Kind;

const SCRIPT: &str = include_str!("board.lua");
/// How long one call may take. Nobody's request waits for it.
const BUDGET: Duration = Duration::from_secs(1);
/// Keys that are deleted in one call.
const KEYS_AT_ONCE: usize = 1_000;

/// What the table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Which table, and how often it was changed; `None`: there is none.
    pub version: Option<Version>,
    /// Fields and values.
    pub fields: Vec<(String, Bytes)>,
    /// Lines of the log, newest first.
    pub log: Vec<Bytes>,
}

/// The state of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The table's own name.
    pub table: Box<str>,
    /// Its changes.
    pub changes: u64,
}

/// A change of the table.
#[derive(Clone, Debug)]
pub struct Change {
    /// What the table is called if this begins it.
    pub table: String,
    /// The most fields that it may have.
    pub fields_max: usize,
    /// The most lines that the log keeps.
    pub log_max: usize,
    /// A line for the log.
    pub line: Option<Bytes>,
    /// Fields with their new values; `None` deletes.
    pub fields: Vec<(String, Option<Bytes>)>,
}

/// Why a table was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// It has as many fields as it may have.
    #[error("the table is full")]
    Full,
    /// Redis did not do it, or did not say that it has.
    #[error(transparent)]
    Redis(#[from] CheckError),
}

impl RedisStore {
    /// The table's version, which is all that has to be asked for most of the time.
    ///
    /// # Errors
    /// Redis does not say.
    pub async fn board_version(&self) -> Result<Option<Version>, CheckError> {
        Ok(version(&self.board_call(vec![Bytes::from_static(b"version")]).await?))
    }

    /// All of the table and its log.
    ///
    /// # Errors
    /// Redis does not say.
    pub async fn board(&self) -> Result<Board, CheckError> {
        let reply = self.board_call(vec![Bytes::from_static(b"read")]).await?;
        read(reply)
    }

    /// Changes the table, all of it or nothing. An error but [`ChangeError::Full`] leaves open
    /// whether it was changed.
    ///
    /// # Errors
    /// It is full, or Redis did not say that it was changed.
    pub async fn change_board(&self, change: &Change) -> Result<(), ChangeError> {
        let number = |number: usize| Bytes::from(number.to_string());
        let mut arguments = vec![
            Bytes::from_static(b"change"),
            Bytes::from(change.table.clone()),
            number(change.fields_max),
            number(change.log_max),
            change.line.clone().unwrap_or_default(),
        ];
        for (field, value) in &change.fields {
            arguments.push(Bytes::from(field.clone()));
            arguments.push(value.clone().unwrap_or_default());
        }
        match self.board_call(arguments).await {
            Ok(_) => Ok(()),
            Err(error) if error.detail.contains("tollgate table full") => Err(ChangeError::Full),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets what an identity has used of these scopes, by their names.
    ///
    /// # Errors
    /// Redis does not say that it has.
    pub async fn reset(&self, identity: &Identity, scopes: &[&str]) -> Result<(), CheckError> {
        let names = &self.shared().settings().names;
        let hash = names.identity_hash(identity);
        for scopes in scopes.chunks(KEYS_AT_ONCE) {
            // Places stay: the requests that hold them are still there.
            let quota = Kind::Calendar.letter();
            let keys = scopes
                .iter()
                .flat_map(|scope| [names.scope(&hash, scope), names.further(&hash, quota, scope)]);
            let keys = keys.collect();
            self.link().delete(keys, BUDGET).await?;
        }
        Ok(())
    }

    async fn board_call(&self, arguments: Vec<Bytes>) -> Result<Value, CheckError> {
        let keys = self.shared().settings().names.board().to_vec();
        let [table, _] = self.shared().settings().names.board();
        self.link().wait_for(&table, BUDGET).await;
        self.link().eval(SCRIPT, keys, arguments, BUDGET).await
    }
}

/// The table that a reply tells of.
///
/// # Errors
/// It is none that the script gives.
pub fn read(reply: Value) -> Result<Board, CheckError> {
    let parts = array(reply)?;
    let [of_version, fields, log] = <[Value; 3]>::try_from(parts).map_err(|_| odd())?;
    let mut board = Board { version: version(&of_version), ..Board::default() };
    let mut fields = array(fields)?.into_iter();
    while let (Some(field), Some(value)) = (fields.next(), fields.next()) {
        let (Some(field), Some(value)) = (field.into_string(), bytes(&value)) else { continue };
        if field != "v" && field != "e" {
            board.fields.push((field, value));
        }
    }
    board.log = array(log)?.iter().filter_map(bytes).collect();
    Ok(board)
}

/// The version that a reply tells of; `None`: there is no table.
pub fn version(value: &Value) -> Option<Version> {
    let text = value.as_str()?;
    let (table, changes) = text.rsplit_once(':')?;
    Some(Version { table: table.into(), changes: changes.parse().ok()? })
}

fn bytes(value: &Value) -> Option<Bytes> {
    value.as_bytes().map(Bytes::copy_from_slice)
}

fn array(value: Value) -> Result<Vec<Value>, CheckError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(odd()),
    }
}

fn odd() -> CheckError {
    CheckError::new(RedisErrorKind::Protocol, "a reply that the script does not give")
}
