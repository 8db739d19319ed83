//! Asks a PostgreSQL: a pool of connections, one prepared query, every error sorted by whom it
//! concerns.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Object, Pool, PoolError};
use futures_util::TryStreamExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::{DbError, ErrorPosition, SqlState};
use tokio_postgres::{Client, Config, Error, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::parameter::{Parameter, Plan, Shape};
use super::settings::PostgresSettings;
use super::stats::Waiting;
use super::{Failure, PLAN_BYTES_MAX, WORK_MAX};

/// For telling the server that nobody waits for a query any more.
const CANCEL_MAX: Duration = Duration::from_secs(1);

/// A PostgreSQL that is asked.
#[derive(Debug)]
pub struct Postgres {
    pool: Pool,
    query: Box<str>,
    cancel: Cancel,
    /// Whether it was said that a user has several rows.
    has_warned: AtomicBool,
}

impl Postgres {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// There are no authorities to check the server's certificate against.
    pub fn new(settings: &PostgresSettings) -> Result<Self, String> {
        let (config, tls) = settings.target.connecting()?;
        let manager = Manager::from_connect(config, Dial(tls.clone()), ManagerConfig::default());
        // No timeouts of its own: whoever takes a connection has one for all that it does.
        let pool = Pool::builder(manager).max_size(settings.pool).build();
        Ok(Postgres {
            pool: pool.map_err(|error| error.to_string())?,
            query: settings.query.clone(),
            cancel: Cancel(tls),
            has_warned: AtomicBool::new(false),
        })
    }

    /// Connections in use, and idle ones.
    pub fn connections(&self) -> (usize, usize) {
        let status = self.pool.status();
        (status.size.saturating_sub(status.available), status.available)
    }

    /// Looks a user up. Cancelled, it gives its connection up.
    pub async fn ask(&self, user: &str, waiting: Waiting) -> Result<Option<Arc<str>>, Failure> {
        let mut was_kept = false;
        match self.ask_once(user, waiting, &mut was_kept).await {
            // A connection that was kept may have died unseen, or know the tables as they were:
            // what it says is no verdict. To read twice does no harm.
            Err(Failure::Lost(_) | Failure::Query(_)) if was_kept => {
                self.pool.retain(|_, _| false);
                self.ready(None, &mut was_kept).await?.ask(self, user).await
            }
            result => result,
        }
    }

    async fn ask_once(
        &self,
        user: &str,
        waiting: Waiting,
        was_kept: &mut bool,
    ) -> Result<Option<Arc<str>>, Failure> {
        self.ready(Some(waiting), was_kept).await?.ask(self, user).await
    }

    /// Looks a user up, or anything, to see whether that works. Only the query itself has to be
    /// answered within `budget`: to connect may take longer.
    pub async fn probe(
        &self,
        user: Option<&str>,
        budget: Duration,
    ) -> Result<Option<Option<Arc<str>>>, Failure> {
        let mut was_kept = false;
        let ready = timeout(WORK_MAX, self.ready(None, &mut was_kept));
        let ready = ready.await.map_err(|_| Failure::Timeout)??;
        let answer = async {
            match user {
                Some(user) => ready.ask(self, user).await.map(Some),
                None => ready.greet().await.map(|()| None),
            }
        };
        timeout(budget, answer).await.map_err(|_| Failure::Timeout)?
    }

    /// Whether the query can be asked at all: its words, its types, the right to ask it.
    pub async fn check(&self) -> Result<(), Failure> {
        self.ready(None, &mut false).await?.ask_for_nobody().await
    }

    /// A connection that knows the query.
    async fn ready(
        &self,
        waiting: Option<Waiting>,
        was_kept: &mut bool,
    ) -> Result<Ready<'_>, Failure> {
        self.pool.retain(|client, _| !client.is_closed());
        let object = self.pool.get().await.map_err(|error| match error {
            PoolError::Backend(error) => Failure::Lost(described(&error)),
            other => Failure::Lost(other.to_string()),
        })?;
        drop(waiting);
        *was_kept = Object::metrics(&object).recycle_count > 0;
        let lease = Lease { object: Some(object), is_asking: false, cancel: &self.cancel };
        let statement = lease.client()?.prepare_cached(&self.query).await;
        let statement = statement.map_err(|error| failure(&error))?;
        let shape = Shape::of(&statement).map_err(Failure::Query)?;
        Ok(Ready { lease, statement, shape })
    }
}

/// A connection that knows the query, and what it takes.
struct Ready<'p> {
    lease: Lease<'p>,
    statement: Statement,
    shape: Shape,
}

impl Ready<'_> {
    async fn ask(mut self, postgres: &Postgres, user: &str) -> Result<Option<Arc<str>>, Failure> {
        let Some(parameter) = self.shape.parameter(user) else {
            self.lease.keep();
            return Ok(None);
        };
        self.lease.is_asking = true;
        let answer = self.first_row(parameter).await;
        // An error of the server's is the end of its work.
        let has_ended = match &answer {
            Ok((_, has_more)) => !has_more,
            Err(error) => error.as_db_error().is_some(),
        };
        self.lease.is_asking = !has_ended;
        let (row, has_more) = match answer.map_err(|error| failure(&error)) {
            Ok(answer) => answer,
            Err(error) => {
                if has_ended && matches!(error, Failure::User(_)) {
                    self.lease.keep();
                }
                return Err(error);
            }
        };
        if has_more && !postgres.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "tier_lookup.postgres.query gives several rows for a user, of which the first \
                 counts: end it with order by … limit 1"
            );
        }
        // What is left of many rows is not worth waiting for.
        if has_ended {
            self.lease.keep();
        }
        row.as_ref().map_or(Ok(None), plan_in)
    }

    /// The first row, if there is one, and whether there are more.
    async fn first_row(&self, parameter: Parameter) -> Result<(Option<Row>, bool), Error> {
        let Some(client) = &self.lease.object else { return Ok((None, false)) };
        let mut rows = pin!(client.query_raw(&self.statement, [parameter]).await?);
        let row = rows.try_next().await?;
        let has_more = row.is_some() && rows.try_next().await?.is_some();
        Ok((row, has_more))
    }

    /// There and back.
    async fn greet(mut self) -> Result<(), Failure> {
        self.lease.client()?.simple_query("").await.map_err(|error| failure(&error))?;
        self.lease.keep();
        Ok(())
    }

    /// The right to read a table is asked for when it is read, not when the query is prepared.
    async fn ask_for_nobody(mut self) -> Result<(), Failure> {
        self.lease.is_asking = true;
        match self.lease.client()?.query(&self.statement, &[&Parameter::Null]).await {
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                Err(failure(&error))
            }
            // A query that cannot do with nobody may do very well with somebody.
            Err(_) => Ok(()),
            Ok(_) => {
                self.lease.keep();
                Ok(())
            }
        }
    }
}

/// The name of a subscription, as a row has it.
fn plan_in(row: &Row) -> Result<Option<Arc<str>>, Failure> {
    let plan: Result<Option<Plan<'_>>, Error> = row.try_get(0);
    match plan {
        Err(_) => Err(Failure::User("a subscription that is no text".to_owned())),
        Ok(Some(Plan(name))) if name.len() > PLAN_BYTES_MAX => {
            Err(Failure::User("a subscription with far too long a name".to_owned()))
        }
        Ok(plan) => Ok(plan.filter(|plan| !plan.0.is_empty()).map(|plan| Arc::from(plan.0))),
    }
}

/// A connection in use. Unless it is kept it is given up: what is still under way on it would
/// stand before the next query.
struct Lease<'p> {
    object: Option<Object>,
    is_asking: bool,
    cancel: &'p Cancel,
}

impl Lease<'_> {
    fn client(&self) -> Result<&Object, Failure> {
        self.object.as_ref().ok_or_else(|| Failure::Lost("given up".to_owned()))
    }

    /// It goes back into the pool.
    fn keep(&mut self) {
        self.object = None;
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        let client = Object::take(object);
        if self.is_asking && !client.is_closed() {
            self.cancel.send(&client);
        }
    }
}

/// Tells the server that nobody waits for a query any more: closing the connection does not, it
/// would work on to the end.
#[derive(Clone)]
struct Cancel(MakeRustlsConnect);

impl Cancel {
    fn send(&self, client: &Client) {
        let (token, tls) = (client.cancel_token(), self.0.clone());
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                // Nothing depends on it.
                let _ = timeout(CANCEL_MAX, token.cancel_query(tls)).await;
            });
        }
    }
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cancel")
    }
}

/// Makes the pool's connections.
struct Dial(MakeRustlsConnect);

impl Connect for Dial {
    fn connect(
        &self,
        config: &Config,
    ) -> Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + '_>> {
        let (config, tls) = (config.clone(), self.0.clone());
        Box::pin(async move {
            let (client, connection) = config.connect(tls).await?;
            // Why it ended is said by the look-up that meets it.
            let driver = tokio::spawn(async move {
                let _ = connection.await;
            });
            Ok((client, driver))
        })
    }
}

/// Whom an error concerns.
fn failure(error: &Error) -> Failure {
    let Some(answer) = error.as_db_error() else { return Failure::Lost(described(error)) };
    let code = answer.code().code();
    match code.get(..2).unwrap_or_default() {
        // The server says what it thinks of the user's name, which is nobody's business: the
        // number of the error has to do.
        "21" | "22" | "38" | "39" | "P0" => {
            Failure::User(format!("an error of the query for this user, SQLSTATE {code}"))
        }
        "0A" | "2F" | "3F" | "42" => Failure::Query(of_the_query(answer)),
        _ => Failure::Lost(described(error)),
    }
}

fn of_the_query(error: &DbError) -> String {
    let mut text = format!("{} (SQLSTATE {}", error.message(), error.code().code());
    if let Some(ErrorPosition::Original(position)) = error.position() {
        text.push_str(&format!(", at character {position} of the query"));
    }
    text.push(')');
    if let Some(hint) = error.hint() {
        text.push_str(&format!("; {hint}"));
    }
    one_line(&text)
}

/// An error with its causes. The URL is in none of them.
fn described(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    one_line(&text)
}

/// What a server says, as a line of ours bears it.
fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 500;
    text.chars().take(CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
