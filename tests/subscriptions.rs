//! The database of subscriptions: a real PostgreSQL and a real Redis that answer, are slow, stand
//! still, go away, come back, and are asked what they cannot answer. Without one of them its tests
//! say that they are skipped.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/relay.rs"]
mod relay;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::clock::monotonic;
use tollgate::config::postgres_url;
use tollgate::config::url;
use tollgate::health::dependency::DependencyStatus;
use tollgate::metrics::labels::{BreakerState, LookupResult};
use tollgate::subscriptions::settings::{
    HashKey, PostgresSettings, RedisSettings, Settings, SourceSettings,
};
use tollgate::subscriptions::{Bought, StartError, Subscriptions};

use postgres::PostgresServer;
use redis::RedisServer;
use relay::Relay;
use support::{Backend, Start, Tollgate, wait_until};
use tokens::{SECRET, hs256, in_seconds};

/// Longest wait of a request here. Wide enough that a busy machine seldom misses it with a healthy
/// server.
const TIMEOUT: Duration = Duration::from_secs(1);
/// What a busy machine may add to a timeout before that is a fault.
const SLACK: Duration = Duration::from_secs(2);
/// By when whatever must happen by itself has happened.
const SOON: Duration = Duration::from_secs(30);

const QUERY: &str = "select subscription from users where id = $1";
const USERS: &str = "create table users (id bigint primary key, subscription text);
    insert into users values (1, 'pro'), (2, 'basic'), (3, null), (4, '');";

fn settings(url: &str, query: &str) -> Settings {
    let read = |file: &str| std::fs::read(file).map_err(|error| error.to_string());
    let target = postgres_url::postgres(url, &read).unwrap();
    Settings {
        source: SourceSettings::Postgres(PostgresSettings { target, query: query.into(), pool: 4 }),
        timeout: TIMEOUT,
        cache_ttl: Duration::from_secs(60),
        slow: Duration::from_millis(100),
    }
}

fn start(settings: Settings) -> Subscriptions {
    Subscriptions::start(settings, 2, Arc::default()).unwrap()
}

fn plan(name: &str) -> Bought {
    Bought::Plan(name.into())
}

/// Looks a user up, and holds the look-up to its timeout.
async fn of(subscriptions: &Subscriptions, user: &str) -> Bought {
    let started = monotonic();
    let bought = subscriptions.of(user).await;
    let took = started.elapsed();
    assert!(took < TIMEOUT + SLACK, "{took:?} for a look-up with a timeout of {TIMEOUT:?}");
    bought
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = monotonic() + SOON;
    while !condition().await {
        assert!(monotonic() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks for one user after the other until the breaker is open; none of them waits too long.
async fn opened(subscriptions: &Subscriptions) {
    let mut user = 1_000_000;
    until("the breaker is open", async || {
        user += 1;
        assert_eq!(of(subscriptions, &user.to_string()).await, Bought::Unknown);
        subscriptions.breaker_state() != BreakerState::Closed
    })
    .await;
}

fn results(subscriptions: &Subscriptions, result: LookupResult) -> u64 {
    subscriptions.stats().results(result)
}

// ------------------------------------------------------------------------------------- normally

#[tokio::test]
async fn a_user_is_looked_up_once_and_remembered() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    for url in [server.url(), server.socket_url()] {
        let subscriptions = start(settings(&url, QUERY));
        assert_eq!(subscriptions.remembered("1"), None);
        assert_eq!(of(&subscriptions, "1").await, plan("pro"));
        assert_eq!(subscriptions.remembered("1"), Some(plan("pro")));
        assert_eq!(of(&subscriptions, "2").await, plan("basic"));
        // NULL, nothing, nobody, and what cannot be anybody: no errors.
        for user in ["3", "4", "5", "anna", "99999999999999999999", "1; drop table users"] {
            assert_eq!(of(&subscriptions, user).await, Bought::None, "{user}");
            assert_eq!(subscriptions.remembered(user), Some(Bought::None), "{user}");
        }
        assert_eq!(subscriptions.status(), DependencyStatus::Healthy);
        assert_eq!(results(&subscriptions, LookupResult::Found), 2);
        assert_eq!(results(&subscriptions, LookupResult::None), 6);
        assert_eq!(results(&subscriptions, LookupResult::Hit), 7);
        let (active, idle) = subscriptions.connections();
        assert_eq!((active, idle), (0, 1), "one after the other takes one connection");
    }
}

#[tokio::test]
async fn users_and_plans_may_be_of_every_type_that_can_hold_them() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(
        "create type plan as enum ('pro', 'basic');
         create domain short as varchar(10) check (value <> '');
         create domain number as int4;
         create table u (i2 int2, i4 int4, i8 int8, dn number, t text, v varchar(20), c char(12),
            n name, u uuid, e plan, p_t text, p_v varchar(9), p_c char(9), p_n name, p_e plan,
            p_d short);
         insert into u values (7, 7, 7, 7, 'anna', 'anna', 'anna', 'anna',
            '123e4567-e89b-12d3-a456-426614174000', 'pro', 'pro', 'pro', 'pro', 'pro', 'pro',
            'pro');",
    );
    let uuid = "123e4567-e89b-12d3-a456-426614174000";
    let users = [
        ("i2", "7"),
        ("i4", "7"),
        ("i8", "7"),
        ("dn", "7"),
        ("t", "anna"),
        ("v", "anna"),
        ("c", "anna"),
        ("n", "anna"),
        ("u", uuid),
        ("e", "pro"),
    ];
    for (column, user) in users {
        let query = format!("select p_t from u where {column} = $1");
        let subscriptions = start(settings(&server.url(), &query));
        assert_eq!(of(&subscriptions, user).await, plan("pro"), "{query}");
        for other in ["8", "bert", "00000000-0000-0000-0000-000000000000", "'", "-"] {
            assert_eq!(of(&subscriptions, other).await, Bought::None, "{query}: {other}");
        }
        assert_eq!(subscriptions.status(), DependencyStatus::Healthy, "{query}");
    }
    for column in ["p_t", "p_v", "p_c", "p_n", "p_e", "p_d"] {
        let query = format!("select {column} from u where i8 = $1");
        let subscriptions = start(settings(&server.url(), &query));
        assert_eq!(of(&subscriptions, "7").await, plan("pro"), "{query}");
    }
}

#[tokio::test]
async fn many_who_ask_for_one_user_ask_once() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql("create sequence asked");
    let query = "select 'plan' || nextval('asked') || pg_sleep(0.05) from (select $1::text) u";
    let subscriptions = Arc::new(start(settings(&server.url(), query)));
    // The look at the start asks for nobody, which counts here.
    let before: u64 = server.sql("select last_value from asked")[0].parse().unwrap();
    let all: Vec<_> = (0..200)
        .map(|index| {
            let subscriptions = Arc::clone(&subscriptions);
            let task = tokio::spawn(async move { of(&subscriptions, "anna").await });
            // Some of them go away again, the first one too.
            if index % 10 == 0 {
                let abort = task.abort_handle();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    abort.abort();
                });
            }
            task
        })
        .collect();
    let mut answers = Vec::new();
    for one in all {
        answers.extend(one.await.ok());
    }
    assert!(answers.len() >= 180, "{}", answers.len());
    let expected = plan(&format!("plan{}", before + 1));
    assert!(answers.iter().all(|it| *it == expected), "{answers:?}");
    assert_eq!(of(&subscriptions, "anna").await, expected);
}

#[tokio::test]
async fn a_stale_answer_is_given_at_once_while_a_new_one_is_fetched() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let mut settings = settings(&server.url(), QUERY);
    settings.cache_ttl = Duration::from_millis(200);
    let subscriptions = start(settings);
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    assert_eq!(of(&subscriptions, "5").await, Bought::None);
    server.sql("update users set subscription = 'business' where id = 1");
    server.sql("insert into users values (5, 'basic')");
    let before = results(&subscriptions, LookupResult::Stale);
    until("the new plans are known", async || {
        // Never waited for: it is remembered, whatever its age.
        let known = subscriptions.remembered("1").zip(subscriptions.remembered("5"));
        known.unwrap() == (plan("business"), plan("basic"))
    })
    .await;
    assert!(results(&subscriptions, LookupResult::Stale) > before);
    assert_eq!(results(&subscriptions, LookupResult::Found), 1);
}

#[tokio::test]
async fn an_error_for_one_user_is_no_error_for_others() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    // The cast fails for whoever is no number, and the sum is NULL for nobody.
    let query = "select subscription from users where id = ($1::text)::bigint";
    let subscriptions = start(settings(&server.url(), query));
    for user in 0..20 {
        assert_eq!(of(&subscriptions, &format!("anna{user}")).await, Bought::Unknown);
    }
    assert_eq!(subscriptions.remembered("anna19"), Some(Bought::Unknown), "not asked every time");
    assert_eq!(subscriptions.breaker_state(), BreakerState::Closed);
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    assert_eq!(subscriptions.status(), DependencyStatus::Healthy);

    let query = "select subscription from users where id > $1 order by id";
    let subscriptions = start(settings(&server.url(), query));
    assert_eq!(of(&subscriptions, "0").await, plan("pro"), "of several rows the first");
    let query = "select repeat('x', 300) from users where id = $1";
    let subscriptions = start(settings(&server.url(), query));
    assert_eq!(of(&subscriptions, "1").await, Bought::Unknown, "no name is as long");
    assert_eq!(of(&subscriptions, "7").await, Bought::None);
}

// ----------------------------------------------------------------------------- the wrong question

#[tokio::test]
async fn a_wrong_query_is_refused_at_the_start() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    server.sql("create role guest login password 'pa55word'");
    let refused = |url: &str, query: &str| match Subscriptions::start(
        settings(url, query),
        1,
        Arc::default(),
    ) {
        Err(StartError::Query(why)) => why,
        other => panic!("{query}: {other:?}"),
    };
    let cases = [
        ("select subscriptoin from users where id = $1", "column \"subscriptoin\" does not exist"),
        ("select subscription from user_s where id = $1", "relation \"user_s\" does not exist"),
        ("select subscription from users where id == $1", "operator does not exist"),
        ("selec subscription from users where id = $1", "syntax error at or near \"selec\""),
        (
            "select id from users where id = $1",
            "it gives a column of type int8, expected text: cast it, ::text",
        ),
        ("select * from users where id = $1", "it gives 2 columns, expected one"),
        ("delete from users where id = $1", "it gives 0 columns, expected one"),
        (
            "select subscription from users where id = $1 and $2",
            "it takes 2 parameters, expected $1 alone",
        ),
        (
            "select subscription from users where '$1' <> ''",
            "it takes 0 parameters, expected $1 alone",
        ),
        (
            "select subscription from users where id = $1::numeric",
            "$1 is of type numeric, expected a text, an integer or a uuid: cast it, $1::text",
        ),
    ];
    for (query, expected) in cases {
        let why = refused(&server.url(), query);
        assert!(why.starts_with(expected), "{query}: {why}");
    }
    let why = refused(&server.url(), "select subscriptoin from users where id = $1");
    assert!(why.contains("SQLSTATE 42703, at character 8 of the query"), "{why}");
    assert!(why.contains("users.subscription"), "Postgres's own hint: {why}");
    let as_guest = server.url().replace("tollgate:", "guest:");
    assert!(refused(&as_guest, QUERY).starts_with("permission denied for table users"));
}

#[tokio::test]
async fn a_wrong_query_is_found_out_later_and_may_be_mended() {
    let Some(mut server) = PostgresServer::spawn() else { return };
    server.stop();
    let subscriptions = start(settings(&server.url(), QUERY));
    assert_eq!(subscriptions.status(), DependencyStatus::Unhealthy);
    assert_eq!(of(&subscriptions, "1").await, Bought::Unknown);
    assert_eq!(results(&subscriptions, LookupResult::CircuitOpen), 1, "nobody has to wait");
    server.start();
    // There, but without the table.
    let deadline = monotonic() + Duration::from_secs(2);
    while monotonic() < deadline {
        assert_ne!(subscriptions.status(), DependencyStatus::Healthy);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.sql(USERS);
    until("it works", async || of(&subscriptions, "1").await == plan("pro")).await;
    until("it is well", async || subscriptions.status() == DependencyStatus::Healthy).await;
    // What was prepared is overtaken by events.
    server.sql("alter table users alter column subscription type varchar(20)");
    until("it is prepared anew", async || of(&subscriptions, "2").await == plan("basic")).await;
    server.sql("drop table users");
    opened(&subscriptions).await;
    assert_eq!(of(&subscriptions, "1").await, plan("pro"), "remembered");
}

// --------------------------------------------------------------------------- slow, stopped, away

#[tokio::test]
async fn a_slow_database_holds_nobody_up_and_its_late_answers_count() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let relay = Relay::spawn(server.port()).await;
    let url = server.url().replace(&server.port().to_string(), &relay.address().port().to_string());
    // Off this runtime, which the relay needs.
    let start_here = settings(&url, QUERY);
    let subscriptions = tokio::task::spawn_blocking(|| start(start_here)).await.unwrap();
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    relay.delay(TIMEOUT * 2);
    assert_eq!(of(&subscriptions, "2").await, Bought::Unknown);
    assert_eq!(results(&subscriptions, LookupResult::Timeout), 1);
    // Who waits looks at a clock of its own.
    until("it is counted", async || subscriptions.stats().timeouts() == 1).await;
    assert_eq!(of(&subscriptions, "1").await, plan("pro"), "remembered");
    until("the late answer is there", async || {
        subscriptions.remembered("2") == Some(plan("basic"))
    })
    .await;
    assert!(subscriptions.stats().slow() >= 1);
    opened(&subscriptions).await;
    assert_eq!(of(&subscriptions, "nobody so far").await, Bought::Unknown);
    assert!(results(&subscriptions, LookupResult::CircuitOpen) >= 1);
    relay.delay(Duration::ZERO);
    until("it works again", async || {
        subscriptions.status() == DependencyStatus::Healthy
            && of(&subscriptions, "3").await == Bought::None
    })
    .await;
}

#[tokio::test]
async fn a_database_that_stands_still_holds_nobody_up() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let mut settings = settings(&server.url(), QUERY);
    settings.cache_ttl = Duration::from_millis(100);
    let subscriptions = start(settings);
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    server.pause();
    opened(&subscriptions).await;
    until("it is unhealthy", async || subscriptions.status() == DependencyStatus::Unhealthy).await;
    for _ in 0..50 {
        assert_eq!(subscriptions.remembered("1"), Some(plan("pro")), "stale goes on to hold");
    }
    server.resume();
    until("it works again", async || of(&subscriptions, "2").await == plan("basic")).await;
    until("it is well", async || subscriptions.status() == DependencyStatus::Healthy).await;
}

#[tokio::test]
async fn a_database_that_was_away_is_asked_again() {
    let Some(mut server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let subscriptions = start(settings(&server.url(), QUERY));
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    // Restarted while nobody asks: the connection that was kept is dead.
    server.stop();
    server.start();
    until("it works", async || of(&subscriptions, "2").await == plan("basic")).await;
    server.stop();
    // Without a request it is noticed as well.
    until("it is unhealthy", async || subscriptions.status() == DependencyStatus::Unhealthy).await;
    assert_eq!(of(&subscriptions, "3").await, Bought::Unknown);
    assert_eq!(of(&subscriptions, "1").await, plan("pro"), "remembered");
    server.start();
    until("it works again", async || of(&subscriptions, "3").await == Bought::None).await;
    assert_eq!(subscriptions.breaker_state(), BreakerState::Closed);
    let stats = subscriptions.stats();
    assert_eq!(stats.transitions(BreakerState::Closed), 1);
    assert!(stats.transitions(BreakerState::Open) >= 1);
}

#[tokio::test]
async fn a_connection_over_which_nothing_comes_back_is_replaced() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let relay = Relay::spawn(server.port()).await;
    let url = server.url().replace(&server.port().to_string(), &relay.address().port().to_string());
    let start_here = settings(&url, QUERY);
    let subscriptions = tokio::task::spawn_blocking(|| start(start_here)).await.unwrap();
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    relay.swallow();
    let mut user = 100;
    until("another connection is used", async || {
        user += 1;
        of(&subscriptions, &user.to_string()).await == Bought::None
    })
    .await;
}

#[tokio::test]
async fn what_waits_is_counted_and_bounded() {
    let Some(server) = PostgresServer::spawn() else { return };
    let query = "select 'pro' || pg_sleep(1.5) from (select $1::text) u where $1 <> ''";
    let mut settings = settings(&server.url(), query);
    settings.timeout = Duration::from_secs(20);
    if let SourceSettings::Postgres(postgres) = &mut settings.source {
        postgres.pool = 2;
    }
    let subscriptions = Arc::new(start(settings));
    let ask = |user: String| {
        let subscriptions = Arc::clone(&subscriptions);
        tokio::spawn(async move { subscriptions.of(&user).await })
    };
    let all: Vec<_> = (0..6).map(|user| ask(user.to_string())).collect();
    until("four wait for two connections", async || subscriptions.stats().queue() == 4).await;
    assert_eq!(subscriptions.connections(), (2, 0));
    for one in all {
        assert_eq!(one.await.unwrap(), plan("pro"));
    }
    assert_eq!(subscriptions.stats().queue(), 0);
    assert_eq!(subscriptions.connections(), (0, 2));
    // More users at once than there is room for: some go without, at once.
    let all: Vec<_> = (0..3_000).map(|user| ask(format!("user {user}"))).collect();
    until("some went without", async || results(&subscriptions, LookupResult::Overload) > 0).await;
    assert!(subscriptions.stats().queue() <= 1_024, "{}", subscriptions.stats().queue());
    for one in all {
        one.abort();
    }
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_is_ended_in_the_server() {
    let Some(server) = PostgresServer::spawn() else { return };
    let query = "select 'pro' || pg_sleep(600) from (select $1::text) u where $1 <> ''";
    let subscriptions = start(settings(&server.url(), query));
    assert_eq!(of(&subscriptions, "anna").await, Bought::Unknown);
    // One query of one connection: the look after the database begins others.
    let query = "select pid || ' ' || query_start from pg_stat_activity
        where state = 'active' and query like '%pg_sleep%' and pid <> pg_backend_pid()";
    let mut begun = Vec::new();
    until("one is seen", async || {
        begun = server.sql(query);
        !begun.is_empty()
    })
    .await;
    until("it is ended", async || !server.sql(query).contains(&begun[0])).await;
}

// ------------------------------------------------------------------------------------------- TLS

#[tokio::test]
async fn tls_is_what_libpq_makes_of_it() {
    let Some(server) = PostgresServer::spawn_with_tls() else { return };
    server.sql(USERS);
    let authority = server.authority().display().to_string();
    let other = server.other_authority().display().to_string();
    // What the server says of its connections: whether they are encrypted.
    let query = "select case when ssl then 'tls' else 'plain' end from pg_stat_ssl
        where pid = pg_backend_pid() and $1::text <> ''";
    let (by_name, by_address) = (server.url_by_name(), server.url());
    let fine = [
        (&by_name, "disable", None, "plain"),
        (&by_name, "prefer", None, "tls"),
        (&by_name, "require", None, "tls"),
        (&by_name, "require", Some(&authority), "tls"),
        (&by_name, "verify-ca", Some(&authority), "tls"),
        (&by_name, "verify-full", Some(&authority), "tls"),
        // The certificate is for the name.
        (&by_address, "verify-ca", Some(&authority), "tls"),
    ];
    let wrong = [
        (&by_name, "require", Some(&other)),
        (&by_name, "verify-ca", Some(&other)),
        (&by_name, "verify-full", Some(&other)),
        (&by_address, "verify-full", Some(&authority)),
        // The machine's authorities know nothing of ours.
        (&by_name, "verify-full", None),
        (&by_name, "verify-ca", None),
    ];
    let url = |base: &str, mode: &str, root: Option<&String>| match root {
        Some(root) => format!("{base}?sslmode={mode}&sslrootcert={root}"),
        None => format!("{base}?sslmode={mode}"),
    };
    for (base, mode, root, expected) in fine {
        let subscriptions = start(settings(&url(base, mode, root), query));
        let what = format!("{expected} is seen: {base} {mode} {root:?}");
        until(&what, async || of(&subscriptions, "anna").await == plan(expected)).await;
    }
    for (base, mode, root) in wrong {
        match Subscriptions::start(settings(&url(base, mode, root), query), 1, Arc::default()) {
            Ok(subscriptions) => {
                assert_eq!(subscriptions.status(), DependencyStatus::Unhealthy, "{mode} {root:?}");
                assert_eq!(of(&subscriptions, "anna").await, Bought::Unknown, "{mode} {root:?}");
            }
            // A machine without any authorities.
            Err(error) => assert!(matches!(error, StartError::Authorities(_)), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    for (mode, expected) in [("prefer", plan("pro")), ("require", Bought::Unknown)] {
        let subscriptions = start(settings(&format!("{}?sslmode={mode}", server.url()), QUERY));
        assert_eq!(of(&subscriptions, "1").await, expected, "{mode}");
    }
}

// ----------------------------------------------------------------------------------------- Redis

fn redis_settings(server: &RedisServer) -> Settings {
    Settings {
        source: SourceSettings::Redis(RedisSettings {
            target: url::redis(&server.tcp_url()).unwrap().target(),
            hash: HashKey::parse("user:{id}").unwrap(),
            field: "subscription".into(),
        }),
        timeout: TIMEOUT,
        cache_ttl: Duration::from_millis(200),
        slow: Duration::from_millis(100),
    }
}

#[tokio::test]
async fn a_hash_of_redis_will_do_as_well() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    server.words("HSET user:1 subscription pro");
    server.words("HSET user:2 other x");
    server.words("SET user:3 pro");
    let subscriptions = start(redis_settings(&server));
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    assert_eq!(of(&subscriptions, "2").await, Bought::None);
    assert_eq!(of(&subscriptions, "3").await, Bought::Unknown, "no hash");
    assert_eq!(of(&subscriptions, "4").await, Bought::None);
    assert_eq!(of(&subscriptions, "with space\r\nand more").await, Bought::None);
    assert_eq!(subscriptions.status(), DependencyStatus::Healthy);
    server.words("HSET user:1 subscription business");
    until("the new plan is known", async || {
        subscriptions.remembered("1") == Some(plan("business"))
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_stands_still_or_is_away_holds_nobody_up() {
    let Some(mut server) = RedisServer::spawn_tcp() else { return };
    server.words("HSET user:1 subscription pro");
    let subscriptions = start(redis_settings(&server));
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    server.pause();
    opened(&subscriptions).await;
    assert_eq!(subscriptions.remembered("1"), Some(plan("pro")), "stale goes on to hold");
    server.resume();
    until("it works again", async || of(&subscriptions, "2").await == Bought::None).await;
    server.kill();
    until("it is unhealthy", async || subscriptions.status() == DependencyStatus::Unhealthy).await;
    assert_eq!(of(&subscriptions, "3").await, Bought::Unknown);
    server.start();
    server.words("HSET user:3 subscription basic");
    until("it works again", async || of(&subscriptions, "3").await == plan("basic")).await;
}

#[tokio::test]
async fn a_redis_that_is_slow_holds_nobody_up() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    server.words("HSET user:1 subscription pro");
    let relay = Relay::spawn(server.port()).await;
    let mut settings = redis_settings(&server);
    if let SourceSettings::Redis(redis) = &mut settings.source {
        redis.target = url::redis(&format!("redis://{}", relay.address())).unwrap().target();
    }
    let subscriptions = tokio::task::spawn_blocking(|| start(settings)).await.unwrap();
    assert_eq!(of(&subscriptions, "1").await, plan("pro"));
    relay.delay(TIMEOUT * 2);
    opened(&subscriptions).await;
    assert_eq!(subscriptions.remembered("1"), Some(plan("pro")));
    relay.delay(Duration::ZERO);
    until("it works again", async || of(&subscriptions, "2").await == Bought::None).await;
    relay.swallow();
    let mut user = 100;
    until("another connection is used", async || {
        user += 1;
        of(&subscriptions, &user.to_string()).await == Bought::None
    })
    .await;
}

#[test]
fn whoever_is_remembered_is_not_waited_for() {
    // A future that has to be polled once is no future: `of` is ready at once on a hit.
    let Some(server) = RedisServer::spawn_tcp() else { return };
    server.words("HSET user:1 subscription pro");
    let subscriptions = start(redis_settings(&server));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(of(&subscriptions, "1")), plan("pro"));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let future = std::pin::pin!(subscriptions.of("1"));
    assert_eq!(future.poll(&mut context), std::task::Poll::Ready(plan("pro")));
}

// --------------------------------------------------------------------------- the whole of tollgate

const TIERS: &str = "
default_tier: free
tiers: { free: { per_minute: 3000 }, premium: { per_minute: 5000 }, business: { per_minute: 7000 } }
subscriptions: { pro: premium }
identities: { 'user:8': business }
";

/// The file, with a secret for tokens.
fn config(lookup: &str) -> String {
    format!(
        "identity: [{{ jwt: {{ secret: '{SECRET}' }} }}, {{ ip: {{}} }}]\ntier_lookup:\n{lookup}\n"
    )
}

fn run(lookup: &str, backend: &Backend) -> Tollgate {
    Start::default().upstream(backend.address).config(&config(lookup)).tiers(TIERS).run()
}

/// The limit of a user by name: of a token that says nothing more, or of one with more claims.
fn limit(tollgate: &Tollgate, user: &str, tier: Option<&str>) -> u64 {
    let mut claims = json!({"sub": user, "exp": in_seconds(600)});
    if let Some(tier) = tier {
        claims["tier"] = json!(tier);
    }
    let head =
        format!("GET / HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\n\r\n", hs256(&claims));
    let answer = tollgate.connect().send(head).answer();
    assert_eq!(answer.status, 200);
    answer.number("x-ratelimit-limit")
}

fn health(tollgate: &Tollgate) -> Value {
    serde_json::from_slice(&tollgate.admin("/health").body).unwrap()
}

#[test]
fn the_tier_of_a_user_is_what_the_database_says() {
    let Some(mut server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    server.sql(
        "insert into users values (5, 'BUSINESS'), (6, 'gold'), (8, 'basic'), (9, 'pro'), (10, 'pro');",
    );
    let backend = Backend::ok();
    let lookup = format!(
        "  postgres: {{ url: '{}', timeout: 2s }}\n  cache_ttl: 300ms\nslow_thresholds: {{ database: 1us }}",
        server.url()
    );
    let tollgate = run(&lookup, &backend);
    assert_eq!(limit(&tollgate, "1", None), 5000, "pro is premium");
    assert_eq!(limit(&tollgate, "1", None), 5000, "remembered");
    assert_eq!(limit(&tollgate, "5", None), 7000, "a tier's own name");
    assert_eq!(limit(&tollgate, "6", None), 3000, "no tier of that name");
    assert_eq!(limit(&tollgate, "3", None), 3000, "NULL");
    assert_eq!(limit(&tollgate, "7", None), 3000, "nobody");
    assert_eq!(limit(&tollgate, "anna", None), 3000, "no number");
    assert_eq!(limit(&tollgate, "8", None), 7000, "identities come first");
    assert_eq!(limit(&tollgate, "9", Some("free")), 3000, "the token comes first");
    let address = tollgate.get("/");
    assert_eq!(address.number("x-ratelimit-limit"), 3000, "no user, no look-up");

    let lookups = |result: &str| {
        let series = format!("tollgate_subscription_lookups_total{{result=\"{result}\"}}");
        tollgate.metric(&series)
    };
    assert_eq!((lookups("found"), lookups("none")), (3.0, 3.0));
    assert_eq!((lookups("timeout"), lookups("error"), lookups("overload")), (0.0, 0.0, 0.0));
    assert!(lookups("hit") + lookups("stale") >= 1.0);
    let database =
        |name: &str, label: &str| tollgate.metric(&format!("{name}{{{label}=\"database\"}}"));
    assert!(database("slow_query_count_total", "query_type") >= 5.0);
    assert_eq!(database("query_timeout_count_total", "query_type"), 0.0);
    assert_eq!(database("dependency_health_status", "dependency"), 1.0);
    assert_eq!(database("circuit_breaker_state", "service"), 0.0);
    assert_eq!(tollgate.metric("backpressure_db_queue_size"), 0.0);
    let pool = "tollgate_pool_connections{pool=\"database\",state=\"idle\"}";
    assert!(tollgate.metric(pool) >= 1.0);
    assert!(tollgate.metric("tollgate_pool_wait_seconds_count{pool=\"database\"}") >= 5.0);
    assert_eq!(health(&tollgate)["backpressure"]["db_queue_size"], 0);
    assert_eq!(health(&tollgate)["dependencies"]["database"], "healthy");
    assert_eq!(health(&tollgate)["circuit_breakers"]["database"], "closed");

    server.stop();
    wait_until("it is unhealthy", || health(&tollgate)["dependencies"]["database"] == "unhealthy");
    assert_eq!(health(&tollgate)["status"], "degraded");
    assert_eq!(tollgate.admin("/readyz").status, 200);
    assert_eq!(health(&tollgate)["circuit_breakers"]["database"], "open");
    assert_eq!(limit(&tollgate, "1", None), 5000, "the last answer holds");
    assert_eq!(limit(&tollgate, "10", None), 3000, "of whom there is none, the default tier");
    assert!(lookups("circuit_open") >= 1.0 && lookups("stale") >= 1.0);
    assert_eq!(database("dependency_health_status", "dependency"), 0.0);
    assert_eq!(database("circuit_breaker_state", "service"), 2.0);
    server.start();
    wait_until("it is asked again", || limit(&tollgate, "10", None) == 5000);
    assert_eq!(health(&tollgate)["dependencies"]["database"], "healthy");
    let log = tollgate.log();
    assert!(log.contains("the database of subscriptions is unavailable"), "{log}");
    assert!(log.contains("the database of subscriptions is back"), "{log}");
    assert!(!log.contains("pa55word"), "{log}");
}

#[test]
fn a_wrong_query_keeps_tollgate_from_starting() {
    let Some(server) = PostgresServer::spawn() else { return };
    server.sql(USERS);
    let failed = |query: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tollgate.yaml");
        let lookup = format!("  postgres:\n    url: '{}'\n    query: {query}", server.url());
        std::fs::write(&file, config(&lookup)).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["run", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream"]);
        command.args(["http://127.0.0.1:1", "--config"]).arg(&file);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("pa55word"), "{said}");
        said.replace(&format!("{}/", directory.path().display()), "")
    };
    let said = failed("select subscriptoin from users where id = $1");
    let expected = "tollgate.yaml:5:12: tier_lookup.postgres.query: the database refuses the query: \
        column \"subscriptoin\" does not exist (SQLSTATE 42703, at character 8 of the query)";
    assert!(said.contains(expected), "{said}");
    assert!(said.contains("\n  5 |     query: select subscriptoin from"), "{said}");
    let said = failed("select id from users where id = $1");
    assert!(
        said.contains("it gives a column of type int8, expected text: cast it, ::text"),
        "{said}"
    );
}

#[test]
fn a_database_that_is_not_there_keeps_nobody_from_starting() {
    let backend = Backend::ok();
    let port = support::nobody().port();
    let lookup = format!("  postgres: {{ url: 'postgres://me:pa55word@127.0.0.1:{port}/plans' }}");
    let tollgate = run(&lookup, &backend);
    assert_eq!(limit(&tollgate, "1", None), 3000);
    assert_eq!(health(&tollgate)["dependencies"]["database"], "unhealthy");
    let log = tollgate.log();
    let expected = "the database of subscriptions is not there yet, the default tier holds";
    assert!(log.contains(expected) && log.contains("Connection refused"), "{log}");
    assert!(log.contains(&format!("postgres://127.0.0.1:{port}/plans")), "{log}");
    assert!(!log.contains("pa55word"), "{log}");
}

#[test]
fn the_hash_may_live_in_the_stores_redis() {
    let Some(server) = RedisServer::spawn_tcp() else { return };
    server.words("HSET plan-of-1 name pro");
    let backend = Backend::ok();
    let lookup = format!(
        "  redis: {{ hash: 'plan-of-{{id}}', field: name, timeout: 2s }}\nstore: {{ redis: {{ url: '{}', timeout: 1s }} }}",
        server.tcp_url()
    );
    let tollgate = run(&lookup, &backend);
    assert_eq!(limit(&tollgate, "1", None), 5000);
    assert_eq!(limit(&tollgate, "2", None), 3000);
    assert_eq!(health(&tollgate)["dependencies"]["database"], "healthy");
    assert_eq!(tollgate.metric("dependency_health_status{dependency=\"database\"}"), 1.0);
}
