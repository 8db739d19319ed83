//! The declaration of every metric. No other file contains a metric's name.
//!
//! Names, types and labels are a contract with dashboards and alerts: adding is free, changing is
//! not. What needs explaining is explained in the help, because that is what an operator sees.

use metrics::Unit;

use super::edge_labels::{
    AdminChange, AdminRefusal, CacheResult, CutReason, HandshakeResult, IdentifierTypes,
    IdentityError, LeaseResult, LeaseTokens, OverrideKind, Periods, PoolState, RefusalReason,
    RetryReason, SelfServiceResult, ShedReason, TunnelEvent,
};
use super::labels::{
    AllocatorKind, Attempt, BreakerState, CheckResult, CodeClass, Dependency, Direction, ErrorType,
    FallbackMode, FallbackReason, Generation, LimitDecision, LimiterBackend, LookupResult,
    MethodLabel, ObjectType, Outcome, QueryType, RedisErrorKind, TaskType, Values,
};

/// What kind of series a metric has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

/// The declaration of one metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Desc {
    /// The family's name, suffix and all.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// What it is grouped under in the documentation.
    pub group: &'static str,
    /// Its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// For each label the values that it may have; none where configuration names them.
    pub values: &'static [Values],
    /// What one unit of its value is.
    pub unit: Unit,
    /// One sentence or two for whoever meets it in a dashboard.
    pub help: &'static str,
    /// What more there is to know: where the number comes from, when it moves, what it is good for.
    /// Empty where the help says it all; `docs/metrics.md` has both.
    pub meaning: &'static str,
}

/// The names that will never change: dashboards and alerts may rely on them, whatever the version.
pub const CORE: [&str; 20] = [
    "backpressure_async_tasks_pending",
    "backpressure_db_queue_size",
    "backpressure_event_loop_lag_seconds",
    "backpressure_redis_queue_size",
    "circuit_breaker_state",
    "dependency_health_status",
    "error_rate_total",
    "memory_gc_collected_total",
    "memory_gc_collections_total",
    "memory_growth_rate_bytes_per_second",
    "memory_objects_count",
    "memory_rss_bytes",
    "memory_vms_bytes",
    "query_timeout_count_total",
    "rate_limit_blocks_total",
    "rate_limit_hits_total",
    "rate_limit_remaining_requests",
    "response_time_p95_seconds",
    "slow_query_count_total",
    "websocket_connections_active",
];

macro_rules! values {
    () => {
        &[]
    };
    ($set:ident) => {
        $set::VALUES
    };
}

/// A label whose values are a closed set is followed by the set's name.
macro_rules! declare {
    ($(
        # $group:literal
        $(
            $constant:ident: $kind:ident $name:literal
                [$($label:literal $(: $set:ident)?),*] $unit:ident
                $help:literal
                $meaning:literal;
        )*
    )*) => {
        $($(
            #[doc = $help]
            pub const $constant: Desc = Desc {
                name: $name,
                kind: Kind::$kind,
                group: $group,
                labels: &[$($label),*],
                values: &[$(values!($($set)?)),*],
                unit: Unit::$unit,
                help: $help,
                meaning: $meaning,
            };
        )*)*
        /// Every metric, in the order of declaration.
        pub const ALL: &[Desc] = &[$($($constant),*),*];
    };
}

declare! {
    # "Limits"
    HITS: Counter "rate_limit_hits_total" ["identifier_type": IdentifierTypes, "tier", "endpoint"] Count
        "Requests evaluated against limits, allowed and blocked alike; exempt ones are not counted."
        "Counted when the request is over, under the rule that names it; a limit of several periods counts once. The ratio of blocks to hits lies between 0 and 1. An allowed request that the upstream then fails is in here, and so is what the failure modes `open` and `closed` decided. Not the traffic: exempt requests, and those refused before the limits (malformed, denied, a credential that is rejected), are in tollgate_requests_total alone.";
    BLOCKS: Counter "rate_limit_blocks_total" ["identifier_type": IdentifierTypes, "tier", "endpoint"] Count
        "Requests answered 429; what a limit in shadow mode would have refused is not counted."
        "A part of the hits. One request is blocked once, however many limits refused it; which they were is in tollgate_limit_decisions_total.";
    REMAINING: Gauge "rate_limit_remaining_requests" ["identifier_type": IdentifierTypes, "tier"] Count
        "Lowest remaining quota told to any identity in the last 60 seconds; while none was seen, the tier's own limit."
        "A minimum over identities, because there is no such thing as the remaining quota of all: of each decision, the limit that the answer speaks of (the tightest), in a window that slides in steps of 10 seconds. 0 says that at least one identity of the tier was out of requests. No reading resets it, so all scrapers see the same low. It says nothing of how many identities are short: tollgate_remaining_ratio does.";
    REMAINING_RATIO: Histogram "tollgate_remaining_ratio" ["tier"] Count
        "Share of the tightest limit that a decision left, from 0 to 1."
        "One value for each request whose limits were checked: of all limits that refuse, the tier's and the rules', the smallest share that is left after the request, as a part of the window or of the burst. How the callers of a tier are spread, where rate_limit_remaining_requests tells of the worst alone: `rate(tollgate_remaining_ratio_bucket{le=\"0.1\"}[5m])` against the count is the share of requests that came within a tenth of a limit. It weighs by requests, so one busy caller weighs much. Refused requests are in it, mostly in the bucket of 0.";
    LIMIT_DECISIONS: Counter "tollgate_limit_decisions_total" ["rule", "window": Periods, "decision": LimitDecision] Count
        "Verdicts of single limits: one request meets several. Rule 'tier' is the tier's own."
        "One increment for each limit of each request: a tier with three windows makes three. `allow`, `block` and `shadow_block` add up to all verdicts; `near` is an early warning beside them, a part of `allow`. Good for finding out which limit is too tight, and what a rule in shadow mode would do. A rule's own limits stand beside the tier's under the rule's name.";
    DEGRADED: Gauge "rate_limit_degraded" [] Count
        "How limits are decided now: 0 exact, 1 local, 2 open, 3 closed."
        "Seen by this process at the time of the scrape: 0 means that the configured store, Redis or memory, answers. Any other value is the failure mode of the file that holds while Redis does not answer; a tier or rule with an `on_failure` of its own may differ.";
    LIMITER_FALLBACK: Counter "tollgate_limiter_fallback_total" ["mode": FallbackMode, "reason": FallbackReason] Count
        "Requests decided by the failure mode because the store did not answer."
        "Each is one request whose limits were not exact. Moves only with Redis configured. A timeout counts here once for the request, and in tollgate_redis_errors_total once for the call.";
    LIMITER_DURATION: Histogram "tollgate_limiter_duration_seconds" ["backend": LimiterBackend] Seconds
        "Time to check all limits of one request."
        "From the plan being made to the decision being there, all limits of a request together, taken around the call on the worker that serves it: with Redis it includes the wait for its answer, with memory it is less than a microsecond or two. Requests without limits are not in it.";
    OVER_ADMISSION: Gauge "tollgate_over_admission_estimate" [] Count
        "Most requests that this process may have let pass beyond limits in the last 60 seconds, because it decided without the store."
        "0 as long as decisions are exact, so always with the store in memory. While Redis does not answer, each request that the modes `local` and `open` admit counts, for a minute: replicas do not see each other then. A bound, and a wide one: with `local` each keeps to its share, so that next to none of them is one too many. Add it up over replicas. Limits of an hour may be exceeded for longer than it shows. Leases are exact, and add nothing to it.";
    SHED: Counter "tollgate_shed_total" ["reason": ShedReason] Count
        "Requests refused with 503 because there was too much to do."
        "There is no shedding in this version (`shedding.mode: off`), so it stays 0; it is there for the dashboards.";
    CONCURRENCY_LIMIT: Gauge "tollgate_concurrency_limit" [] Count
        "Most requests that may be in flight before further ones are shed; 0: no limit."
        "There is no shedding in this version (`shedding.mode: off`), so it stays 0. Compare it to tollgate_requests_in_flight.";
    STORE_IDENTITIES: Gauge "tollgate_store_identities" [] Count
        "Identities whose state the store in memory holds."
        "Entries of the table in memory, bounded by `store.memory.max_identities`; with Redis it holds only what the mode `local` needs. State that has run out is swept away a shard at a time, so it falls some seconds after the traffic.";
    STORE_EVICTIONS: Counter "tollgate_store_evictions_total" [] Count
        "Identities that the store in memory forgot before their time because it was full."
        "Should stand still: whoever is forgotten starts again with a full quota. A rise means that more identities are alive than `store.memory.max_identities` has room for, or that somebody makes identities up.";
    IDENTITY_ERRORS: Counter "tollgate_identity_errors_total" ["reason": IdentityError] Count
        "Credentials and forwarding fields that were not believed."
        "A sign of attack, or of a mistake in the configuration (a key set that lacks a key, a proxy that is not in `server.trusted_proxies`). One request may count under two reasons. Whether such requests are refused is `on_invalid`'s matter; here they count either way.";

    ADMIN_REFUSED: Counter "tollgate_admin_refused_total" ["reason": AdminRefusal] Count
        "Calls of the admin API that were turned away."
        "A call without a token counts, too: the status page makes one before its user has signed in. A standing rate of `throttled` is somebody who guesses.";
    ADMIN_CHANGES: Counter "tollgate_admin_changes_total" ["action": AdminChange] Count
        "Changes that operators made by the admin API of this replica."
        "Those that came from other replicas are not in it. Each is a line of the log, too, with who and from where.";
    SELF_SERVICE: Counter "tollgate_self_service_total" ["result": SelfServiceResult] Count
        "Questions of callers for their own tier and limits, at `self_service.path`."
        "They cost no quota and are in no other metric of requests. A rate of `throttled` is somebody who asks more often than five times a second.";
    OVERRIDES: Gauge "tollgate_overrides" ["kind": OverrideKind] Count
        "Identities that an operator has given another tier, or put on the deny list."
        "The same on all replicas that share a Redis, within a second. What has expired is not counted. Entries of the policy's file are not in it.";

    TOKEN_CACHE: Counter "tollgate_token_cache_lookups_total" ["result": CacheResult] Count
        "Tokens that were known already (hit), and those whose signature had to be checked (miss)."
        "Moves with every token that is looked at. A miss costs the check of a signature, so a falling share of hits costs CPU. Tokens that are turned away before that (not a token at all, throttled) are in neither.";
    TOKEN_CACHE_ENTRIES: Gauge "tollgate_token_cache_entries" [] Count
        "Tokens whose verdict is remembered."
        "Of all workers together; taken at the scrape. Bounded, and not a count of users: one user may have many tokens.";
    JWKS_FETCHES: Counter "tollgate_jwks_fetches_total" ["result": Attempt] Count
        "Fetches of key sets."
        "One for each attempt on each configured URL, absent where none is. An error leaves the keys that were there in force, so a few of them are harmless and a standing rate is not.";
    JWKS_KEYS: Gauge "tollgate_jwks_keys" [] Count
        "Keys of the set that was fetched last."
        "After a failed fetch it stays what it was. 0 means that no token of this issuer can be verified.";

    # "Requests"
    REQUESTS: Counter "tollgate_requests_total" ["endpoint", "method": MethodLabel, "code_class": CodeClass, "outcome": Outcome] Count
        "Requests by how they ended; code_class 'none' means that no answer was begun."
        "Every request with a head that could be read, once, when its answer is over. `outcome` tells whose doing the end was: use it for error budgets, and `code_class` for what callers saw. Methods that callers make up are `OTHER`. Series of combinations that are usual are there from the start, rarer ones from the first such request on; see above. Not in it: requests for tollgate's own pages on the data port, and what the parser refused before there was a request.";
    REQUEST_DURATION: Histogram "tollgate_request_duration_seconds" ["endpoint", "outcome": Outcome] Seconds
        "From the request's head to the end of its answer; for an upgrade, to its 101."
        "What a caller waits, the network aside: the time in which the caller reads slowly is in it, and so is the upstream's. Requests that end as `allowed` and `limited` are there from the start for every endpoint, the other outcomes once they happen.";
    OVERHEAD: Histogram "tollgate_overhead_seconds" [] Seconds
        "Time a request spent in tollgate itself, waiting for the upstream and for bodies excluded."
        "The whole time to the head of the answer less the wait for the upstream. It holds the check of the limits, a wait for Redis or the database included, and time in which the worker was busy with others. Its p99 is the promise of the product.";
    P95: Gauge "response_time_p95_seconds" ["endpoint"] Seconds
        "95th percentile of this process's response times over the last 60 seconds, within 5 percent; 0 while there were none. Not to be averaged."
        "From buckets that are 9 % apart, over six slots of ten seconds. For people and for alerts on one process (`max by (endpoint)`). What cannot be done with it is any arithmetic over processes: for that there is tollgate_request_duration_seconds.";
    ERRORS: Counter "error_rate_total" ["error_type": ErrorType, "endpoint"] Count
        "Errors by type, as a count: take its rate. rate_limited and client_abort are no faults of the service."
        "Each request counts at most once, by its end; a credential that was passed over under `on_invalid: ip` counts as auth_invalid although the request goes on. What the upstream answered with 4xx, and malformed requests, are no errors here.";
    IN_FLIGHT: Gauge "tollgate_requests_in_flight" [] Count
        "Requests whose answer is not finished."
        "Of all workers, at the time of the scrape. Rises with load and with a slow upstream. Upgraded connections are not in it once they are upgraded.";
    BYTES: Counter "tollgate_bytes_total" ["direction": Direction] Bytes
        "Body bytes received from callers (in) and sent to them (out)."
        "Bodies only, as they pass; no heads, no chunk framing, nothing of upgraded connections, and not the cost of TLS. Counted when the request is over, so that a long download appears at its end.";
    USAGE_UNITS: Counter "tollgate_usage_units_total" ["tier"] Count
        "Cost of the requests that were admitted: 1 each, or the `cost` of their rule."
        "Counted when the request is over, whatever the upstream answered. Not counted: what was refused, what is exempt, and what got its cost back because nothing of it reached the upstream. For a look at who uses how much by tier; the figures by identity are no metric.";
    USAGE_REQUESTS: Counter "tollgate_usage_requests_total" ["tier"] Count
        "Requests that were let through to the upstream, exempt ones too."
        "Counted when the request is over, with or without a sink of usage records. Not counted: what was refused, and what got its cost back because nothing of it reached the upstream. `tollgate usage reconcile` compares it with the records.";
    USAGE_DENIED: Counter "tollgate_usage_denied_total" ["tier"] Count
        "Requests that a limit refused."
        "Counted when the request is over, whether its caller waited for the answer or not. `tollgate usage reconcile` compares it with the records.";
    USAGE_FLUSH_LAG: Gauge "tollgate_usage_flush_lag_seconds" [] Seconds
        "Age of the oldest count that the sink of usage records has not taken; 0 where nothing waits, or without a sink."
        "Between 0 and a little more than `usage.flush` while requests come. It rises with the time while the sink is away: nothing is lost then, for the journal keeps it.";
    USAGE_WRITTEN: Counter "tollgate_usage_rows_written_total" [] Count
        "Rows of usage that the sink has taken: a minute of an identity, a tier and an endpoint, as one worker counted it."
        "Several rows add up to one record.";
    USAGE_ERRORS: Counter "tollgate_usage_flush_errors_total" [] Count
        "Batches of usage that the sink did not take when they were handed to it, and the like."
        "Each is tried again until it is taken, so that a few are harmless. The log says why, once a minute.";
    USAGE_JOURNAL: Gauge "tollgate_usage_journal_bytes" [] Bytes
        "Size of the usage journal's files: what is being counted, and what the sink has not taken."
        "Looked at every five seconds. Some hundred KiB for each worker; more says that the sink is behind. At 16 GiB the oldest batches give way.";
    USAGE_LOST: Counter "tollgate_usage_lost_total" [] Count
        "Counts of usage that found no room on the journal's disk, and requests in batches that had to give way."
        "Should stand still. Each is in the log as well.";
    WEBSOCKETS: Gauge "websocket_connections_active" ["endpoint"] Count
        "Upgraded connections that are open."
        "From the upstream's 101 to the end of the tunnel, whatever protocol was upgraded to. The upgrade itself is a request and counted as such, with the time to its 101: an open tunnel is not a slow request.";

    TUNNEL_EVENTS: Counter "tollgate_websocket_events_total" ["event": TunnelEvent] Count
        "Upgraded connections that were opened, that ended by whose doing, and that a limit refused."
        "`open` less the four ends is what is open now. Who said goodbye first decides: over WebSocket the first Close frame, or else whose side of the connection ended first. What no upgrade came of although both agreed counts as an end like any other.";
    TUNNEL_MESSAGES: Counter "tollgate_websocket_messages_total" ["direction": Direction] Count
        "WebSocket messages passed on, from clients (in) and to them (out)."
        "Text and binary messages by their last frame, however many frames they have; no pings, pongs or Close frames. Other protocols that a connection was upgraded to have no messages that tollgate would know.";
    TUNNEL_DURATION: Histogram "tollgate_websocket_duration_seconds" [] Seconds
        "How long upgraded connections were open."
        "Counted at their end, so that what is open still is not in it. The time of the request that opened it is in tollgate_request_duration_seconds, and ends with its 101.";

    # "Connections"
    CONNECTIONS_ACTIVE: Gauge "tollgate_connections_active" ["listener"] Count
        "Open connections from callers."
        "TCP connections, those of HTTP/2 with many requests at a time as one; idle ones and tunnels included.";
    CONNECTIONS: Counter "tollgate_connections_total" ["listener"] Count
        "Connections accepted."
        "Those that were handed to a worker. Together with tollgate_requests_total it says how well callers reuse connections.";
    CONNECTIONS_REFUSED: Counter "tollgate_connections_refused_total" ["reason": RefusalReason] Count
        "Connections closed unread: a bound was reached, or it is not known whom one is for."
        "The caller saw its connection closed without an answer. Any rate says that a bound of the configuration or of the system is too low for the traffic, or is doing its work against a flood.";
    HTTP2_CUT: Counter "tollgate_http2_connections_cut_total" ["reason": CutReason] Count
        "Connections of HTTP/2 that were cut for what their client sent, or did not read."
        "Should stand still. Floods are attacks; the other reasons may be clients on bad networks.";
    TLS_HANDSHAKES: Counter "tollgate_tls_handshakes_total" ["result": HandshakeResult] Count
        "TLS handshakes with callers by how they ended; 'evicted' made room for newer ones. Absent without TLS."
        "Each handshake counts once, at its end. Resumed ones are `ok` as well.";
    TLS_HANDSHAKES_IN_PROGRESS: Gauge "tollgate_tls_handshakes_in_progress" [] Count
        "TLS handshakes with callers that are under way."
        "Rises when handshakes come faster than they are made, or when clients open connections and say nothing.";
    TLS_CERTIFICATE_EXPIRY: Gauge "tollgate_tls_certificate_expiry_days" ["listener"] Count
        "Days until the certificate that the listener shows expires; below 0 once it has."
        "From the certificate that is in force now, which a reload changes; of several by server name the one that is over first. Absent on listeners without TLS.";

    # "Upstream, Redis, database"
    UPSTREAM_DURATION: Histogram "tollgate_upstream_duration_seconds" ["upstream"] Seconds
        "Time to the head of the upstream's answer."
        "From sending the request to the head of the answer, on a connection that is there already or opened for it. What fails before a head comes is not in it: see error_rate_total.";
    UPSTREAM_CONNECT: Histogram "tollgate_upstream_connect_seconds" ["upstream"] Seconds
        "Time to open a connection to the upstream."
        "TCP and TLS together. Moves only where no idle connection was at hand, so its count against that of the requests says how well the pool works.";
    UPSTREAM_MEMBER_HEALTHY: Gauge "tollgate_upstream_member_healthy" ["upstream"] Count
        "Whether requests are sent to this one of several upstreams: 1, or 0 while its circuit is not closed."
        "One for each of `upstream.urls`, under the host and port or the path that is written there. Absent with one backend, whose circuit_breaker_state says the same.";
    UPSTREAM_MEMBER_IN_FLIGHT: Gauge "tollgate_upstream_member_requests_in_flight" ["upstream"] Count
        "Requests and tunnels under way at this one of several upstreams."
        "At the time of the scrape, of all workers. The next request goes to the lowest, so that a slow one has about as many under way as the others, and answers fewer. Absent with one backend.";
    UPSTREAM_RETRIES: Counter "tollgate_upstream_retries_total" ["reason": RetryReason] Count
        "Requests asked of another upstream after one came to nothing."
        "By try. `connect`: nothing of the request was sent, whatever its method; the others are requests that may be repeated. A second connection to the same upstream, where an idle one turned out to be closed, is none.";
    UPSTREAM_RETRIES_SKIPPED: Counter "tollgate_upstream_retries_skipped_total" [] Count
        "Retries that were not made because upstream.retry_budget was spent."
        "Their requests failed as the try before had. Rises when much fails at several upstreams at once: then retries would only add to their load.";
    POOL_CONNECTIONS: Gauge "tollgate_pool_connections" ["pool", "state": PoolState] Count
        "Connections that tollgate keeps, in use and idle."
        "At the time of the scrape, over all workers. `upstream`: `active` ones carry a request, `idle` ones wait for one. `database`: as its pool says.";
    SLOW_QUERIES: Counter "slow_query_count_total" ["query_type": QueryType] Count
        "Calls that took longer than their threshold."
        "The thresholds are those of `slow_thresholds`. upstream: time to the head of the answer, against the rule's own `slow_threshold` where it has one; redis: one check; database and jwks: one look-up, one fetch. What does not answer at all is in query_timeout_count_total.";
    QUERY_TIMEOUTS: Counter "query_timeout_count_total" ["query_type": QueryType] Count
        "Calls cut off by their deadline."
        "Each call that tollgate gave up. upstream: connect and response timeouts, and bodies that stalled; for redis the request is then decided by the failure mode, for the database by the tier that is known.";
    REDIS_DURATION: Histogram "tollgate_redis_duration_seconds" [] Seconds
        "Time of one check that Redis answered."
        "Round trip of one check as the worker sees it, queueing in the client and in the worker included. Calls without an answer are not in it.";
    REDIS_ERRORS: Counter "tollgate_redis_errors_total" ["kind": RedisErrorKind] Count
        "Calls to Redis that failed."
        "By call. `noscript` after a restart of Redis is harmless, once for each worker; `readonly` says that a demoted primary was met.";
    REDIS_RECONNECTS: Counter "tollgate_redis_reconnects_total" [] Count
        "Connections to Redis that had to be made anew."
        "Each worker has a connection of its own. The first ones of the start do not count.";
    LATE_REPLIES: Counter "tollgate_redis_late_replies_total" [] Count
        "Answers of Redis that came after their request had been decided without them."
        "Within a second: what comes later is not waited for. Each is made good: what Redis has counted is not charged again, what was refused is given back there. Many of them say that `store.redis.timeout` is too short for this network.";
    REPLICAS: Gauge "tollgate_replicas" [] Count
        "Replicas that share this Redis, as this one knows."
        "Each tells Redis every two seconds that it is there, and counts for ten seconds more unless it drains; or `store.redis.expected_replicas`, if that is more. While Redis is away the last number holds: of callers that this replica has not seen it lets one part in so many pass. 0 without Redis.";
    OUTAGE_ADMITTED: Counter "tollgate_outage_admitted_total" [] Count
        "Requests that were let pass by this replica's share of the limits, without Redis."
        "Under `on_failure: local`: while Redis is away, for a moment after that, and wherever a single check was not answered in time. Redis is told of all of them: see tollgate_outage_charged_total.";
    OUTAGE_CHARGED: Counter "tollgate_outage_charged_total" [] Count
        "Times that Redis was told what one caller was let pass without it."
        "One for each caller and scope, however many requests that were, shortly after Redis is back. What Redis does not confirm is told again and counts here only once it does.";
    DENY_CACHE_HITS: Counter "tollgate_deny_cache_hits_total" [] Count
        "Requests that were refused by what Redis had said a moment ago, without asking it again."
        "What Redis denies is remembered until the request could pass, for a second at most: a flood of one caller costs Redis a call a second, not one for each request. They are counted like all refusals, and in tollgate_limiter_duration_seconds under `cache`. Against rate_limit_blocks_total it is the share of refusals that Redis was spared.";
    LEASES: Counter "tollgate_leases_total" ["result": LeaseResult] Count
        "Calls of Redis that asked for several tokens at once, for a busy caller of a tier that allows 100 requests a second or more."
        "`granted`: requests spend them for up to a quarter of a second without asking, which tollgate_limiter_duration_seconds counts under `cache`. `refused`: an ordinary check was made, because there was too little left to share, or the answer was a denial, or there was none. Stands still with `store.redis.leases: off`.";
    LEASE_TOKENS: Counter "tollgate_lease_tokens_total" ["outcome": LeaseTokens] Count
        "Tokens of leases that are over, by where they went."
        "`returned` is normal, some per cent of `spent`: what a caller did not ask for in time goes back, and can be spent by others. `lost` is charged to the caller and was of use to nobody: a reset, a reload or an override came between, Redis was away, or did not answer in time.";
    LEASE_TOKENS_HELD: Gauge "tollgate_lease_tokens_held" [] Count
        "Tokens that this process holds and that no request has spent yet."
        "They are charged in Redis already: it is by how many requests callers may find less left than there is, for a quarter of a second. By no request more than the limits allow.";
    LOOKUPS: Counter "tollgate_subscription_lookups_total" ["result": LookupResult] Count
        "Requests that asked what their user has bought, by how they came to know or not to know it."
        "One for each request whose user may have a subscription. `hit` and `stale` cost nothing; the others wait for the database or go on without it.";
    DEPENDENCY_HEALTH: Gauge "dependency_health_status" ["dependency": Dependency] Count
        "1 healthy, 0.5 degraded, 0 unhealthy; absent where the dependency is not configured."
        "As `/health` says it. Of 0.5, one kind of evidence is bad: calls (the last one, or a tenth of the last ten seconds) or a check of the upstream; connections or writes of redis; the last answer of the database; the last fetch of jwks, while older keys hold. 0: the circuit breaker is open, no worker has a connection to Redis, or there are no keys. A scrape sees a state, not what happened in between: for that there are the counters.";
    HEALTHCHECKS: Counter "tollgate_healthcheck_total" ["dependency": Dependency, "result": CheckResult] Count
        "Checks of a dependency that tollgate makes by itself, requests aside."
        "upstream: a GET of `upstream.health_check.path`, absent without one; redis: PINGs of each worker, and a script that writes; database: its own query, or an empty one, while it is doubtful or nobody asked for a while; jwks: every fetch of a key set.";
    HEALTHCHECK_DURATION: Histogram "tollgate_healthcheck_duration_seconds" ["dependency": Dependency] Seconds
        "Time of one check of a dependency, however it ended."
        "For the upstream it includes a new connection, TLS too: each check makes its own.";
    BREAKER_STATE: Gauge "circuit_breaker_state" ["service": Dependency] Count
        "0 closed, 1 half-open, 2 open."
        "Ordered by severity, so that `max by (service)` finds the worst replica. Absent where the service is not configured.";
    BREAKER_TRANSITIONS: Counter "tollgate_circuit_breaker_transitions_total" ["service": Dependency, "to": BreakerState] Count
        "Changes of a circuit breaker's state."
        "A breaker that flaps is invisible in the gauge; here it is a rate. `to=\"open\"` counts how often it tripped, failed probes included.";

    # "Pressure and memory"
    EVENT_LOOP_LAG: Gauge "backpressure_event_loop_lag_seconds" [] Seconds
        "Longest time in the last 15 seconds for which any worker's event loop did not come round."
        "The larger of two: how late a timer of each worker fired (every 50 ms, less the timer's own 2 ms), and how long the poll has lasted that runs now, which a thread beside the workers looks at every 20 ms. A worker that is blocked is seen while it is blocked. Reading it changes nothing: every scraper sees the same peak.";
    ASYNC_TASKS: Gauge "backpressure_async_tasks_pending" ["task_type": TaskType] Count
        "Tasks of tollgate's runtimes that have not ended, by what they are for."
        "connection: one for each connection of a caller and for what drives each to the upstream. request: streams of HTTP/2, either side; a request over HTTP/1.1 is part of its connection's task. websocket: upgraded connections. Not among them: tasks that a library starts by itself, as Redis's client does, and those of the thread that asks the database, whose look-ups backpressure_db_queue_size shows.";
    UPSTREAM_WAITING: Gauge "tollgate_upstream_waiting" [] Count
        "Requests that wait for a connection to the upstream, or for a stream on one."
        "A request that finds an idle connection does not wait. More than a few for long: the upstream accepts slowly, or allows fewer streams than there are requests.";
    POOL_WAIT: Histogram "tollgate_pool_wait_seconds" ["pool"] Seconds
        "Time for which calls waited for a connection."
        "upstream: only requests that found no idle connection are counted; to connect is part of the wait, and one that came to nothing counts too. database: every look-up.";
    RUNTIME_LAG: Histogram "tollgate_runtime_lag_seconds" ["worker"] Seconds
        "How late a timer fired that every worker sets each 50 ms, less the timer's own 2 ms."
        "A worker that hangs adds nothing until it comes round again: the gauges tell of it meanwhile. Worker 'control' is the thread of the admin port, which a scrape itself keeps busy for milliseconds.";
    WORKERS_STUCK: Gauge "tollgate_runtime_workers_stuck" [] Count
        "Workers whose present poll has lasted a second or longer, or whose heart has not beaten for 5 seconds."
        "Their connections stand still; other workers go on.";
    BUSY_RATIO: Gauge "tollgate_runtime_busy_ratio" ["worker"] Count
        "Share of the last whole span of 5 seconds that the worker's runtime spent running tasks, 0 to 1."
        "What is left, the worker waited for something to do. By the clock, not by CPU time: near 1 with little CPU time means that something blocks, or that others use the cores.";
    REDIS_QUEUE: Gauge "backpressure_redis_queue_size" [] Count
        "Calls to Redis that are not answered yet."
        "Submitted on any worker's connection and not answered, at the time of the scrape. Some for each worker are normal under load; a growing number means that Redis or the way to it is slow.";
    DB_QUEUE: Gauge "backpressure_db_queue_size" [] Count
        "Look-ups that wait for a database connection; 0 where no database is configured."
        "Look-ups beyond the pool's connections. Should be 0 nearly always: requests wait for it.";
    RSS: Gauge "memory_rss_bytes" [] Bytes
        "Resident memory."
        "VmRSS of /proc/self/status, at the time of the scrape: what the machine is short of when it is short. The allocator keeps free pages for a while, so it need not fall when the traffic does; what the program itself holds is memory_allocator_bytes{kind=\"allocated\"}.";
    VMS: Gauge "memory_vms_bytes" [] Bytes
        "Virtual memory: address space, not use."
        "VmSize of /proc/self/status. Large by design (the allocator reserves address space), and no reason for an alert.";
    MEMORY_LIMIT: Gauge "memory_limit_bytes" [] Bytes
        "Memory that this process may use: the lowest limit of its control groups, else the machine's memory; 0 where neither is known."
        "Control groups of version 1 and 2, its own and all above. Read anew with every scrape.";
    ALLOCATOR: Gauge "memory_allocator_bytes" ["kind": AllocatorKind] Bytes
        "The allocator's own account; all 0 where the allocator is not jemalloc."
        "Added up over all arenas for each scrape. resident far above allocated is fragmentation, or a burst just past, and no leak.";
    OBJECTS: Gauge "memory_objects_count" ["type": ObjectType] Count
        "Live objects that the program counts itself; not a census of the heap."
        "Taken at the scrape. Whatever rises here beside memory_rss_bytes tells what the memory is for. What is remembered of denials is among the local_cache_entries, 65,536 of them at most. Buffers inside of the HTTP library are not counted; two of 16 KiB for each upgraded connection are. Leases are those that have something left.";
    GC_COLLECTIONS: Counter "memory_gc_collections_total" ["generation": Generation] Count
        "Reclaim runs. Generation 0: rounds of the sweep over the store in memory; 1: the allocator's purges of dirty pages; 2: of muzzy pages."
        "There is no garbage collector: these three take back what is no longer used. A round goes over the whole store and takes a second at the least. Purges are as jemalloc counts them, over all arenas; muzzy ones only happen where its muzzy_decay_ms is above 0, which it is not by itself.";
    GC_COLLECTED: Counter "memory_gc_collected_total" ["generation": Generation] Count
        "What those runs reclaimed. Generation 0: expired entries of the store in memory; 1: dirty pages; 2: muzzy pages. The unit differs."
        "Entries that an insertion freed in passing count too.";
    MEMORY_GROWTH: Gauge "memory_growth_rate_bytes_per_second" [] Bytes
        "Growth of resident and swapped memory over the last hour, by a robust slope; 0 until an hour was watched, below 0 where it shrinks."
        "The median of the slopes between any two of 120 medians of a minute (Theil and Sen), found anew every 5 minutes, the first time 70 minutes after the start. docs/memory.md tells a leak from a warm-up.";

    # "The process and its signals"
    BUILD_INFO: Gauge "tollgate_build_info" ["version", "commit", "rustc"] Count
        "Always 1; the labels say what is running."
        "Multiply by it to get the version beside another metric.";
    CONFIG_HASH: Gauge "tollgate_config_hash_info" ["hash"] Count
        "Always 1; the label changes with the configuration in force."
        "The first digits of the hash of the policy in force, as in `/health`. Two replicas with different hashes run different policies.";
    CONFIG_RELOADS: Counter "tollgate_config_reloads_total" ["result": Attempt] Count
        "Reloads of the policy and other watched files; after an error what ran before goes on. The start is not counted."
        "Moves when a watched file changes and at SIGHUP. `error` means that the new file was refused; the log says why.";
    CONFIG_LOADED_AT: Gauge "tollgate_config_last_reload_success_timestamp_seconds" [] Seconds
        "Unix time of the last reload that took effect; before the first, of the start."
        "`time()` less this is the age of the policy in force. `changes()` of it marks reloads in a dashboard.";
    CONFIG_RELOAD_OK: Gauge "tollgate_config_last_reload_successful" [] Count
        "1 while every watched file is in force as it stands, 0 while one of them was refused."
        "The thing to alert on: it stays 0 until the mistake is corrected, where a rate of errors would be forgotten.";
    RESTART_PENDING: Gauge "tollgate_config_restart_pending" [] Count
        "1 while tollgate.yaml differs from what runs, which takes a restart; else 0."
        "Only the policy and files like keys and certificates are reloaded; what else changes waits for a restart.";
    ACCESS_LINES: Counter "tollgate_access_log_lines_total" [] Count
        "Lines of the access log that were written."
        "Counted once the operating system has taken them. Lines that wait are in neither this nor the dropped ones; 0 without `log.access`.";
    ACCESS_DROPPED: Counter "tollgate_access_log_dropped_total" [] Count
        "Lines of the access log that were lost because they came faster than they could be written."
        "A full disk, a folder that is gone, a pipe that nobody reads: 4 MiB wait, and 256 KiB with each worker; no request does.";
    LOG_SUPPRESSED: Counter "tollgate_log_lines_suppressed_total" [] Count
        "Lines of tollgate's own log that were left out because there were too many of one kind."
        "Of one place in the code 100 lines are written at once, and 10 a second from then on. What was left out is told every 5 seconds.";
    LOG_DROPPED: Counter "tollgate_log_lines_dropped_total" [] Count
        "Lines of tollgate's own log that were lost because standard error did not take them."
        "A pipe that nobody reads holds up the thread that writes, and no other: 1,024 lines wait, of 1 MiB at most.";
    TRACES_EXPORTED: Counter "tollgate_trace_requests_exported_total" [] Count
        "Recorded requests whose spans the collector has taken."
        "A request makes up to three spans, which are sent together. 0 without `tracing.otlp_endpoint`.";
    TRACES_DROPPED: Counter "tollgate_trace_requests_dropped_total" [] Count
        "Recorded requests whose spans were lost."
        "The queue of 4,096 was full because the collector is slow, broken or away; or it refused them.";
    SERIES: Gauge "tollgate_metric_series" [] Count
        "Series in this very answer."
        "Buckets, sums and counts of histograms count as series each, as Prometheus stores them. For planning its memory; it is bounded by the configuration and never by what callers send.";
    SERIES_DROPPED: Counter "tollgate_metric_series_dropped_total" ["metric"] Count
        "Label values folded into 'other' because the bound of distinct ones was reached."
        "0 but for configurations with more than 200 rules: the rules beyond are counted together, in every metric that has the label.";
    PROCESS_CPU: Counter "process_cpu_seconds_total" [] Seconds
        "User and system CPU time."
        "From the operating system; `rate()` of it is the number of cores in use.";
    PROCESS_START: Gauge "process_start_time_seconds" [] Seconds
        "Unix time at which the process started."
        "A change is a restart.";
    PROCESS_FDS: Gauge "process_open_fds" [] Count
        "Open file descriptors."
        "Each connection needs one, each request to the upstream another. Alert on its share of process_max_fds.";
    PROCESS_FDS_MAX: Gauge "process_max_fds" [] Count
        "Most file descriptors that may be open."
        "The soft limit, which tollgate raises to the hard one at its start.";
    PROCESS_RSS: Gauge "process_resident_memory_bytes" [] Bytes
        "Resident memory, by its conventional name."
        "The same number as memory_rss_bytes.";
    PROCESS_VMS: Gauge "process_virtual_memory_bytes" [] Bytes
        "Virtual memory, by its conventional name."
        "The same number as memory_vms_bytes.";
    PROCESS_VMS_MAX: Gauge "process_virtual_memory_max_bytes" [] Bytes
        "Most virtual memory there may be; 0 where there is no limit."
        "The limit of the operating system (`ulimit -v`), not the machine's memory.";
    PROCESS_THREADS: Gauge "process_threads" [] Count
        "Threads of the operating system."
        "Fixed after the start but for the few helpers of file and name look-ups: workers, the acceptor, and the control thread.";
}

/// Those of logs and traces, which have no labels.
pub const OF_LOGS: [&Desc; 6] = [
    &ACCESS_LINES,
    &ACCESS_DROPPED,
    &LOG_SUPPRESSED,
    &LOG_DROPPED,
    &TRACES_EXPORTED,
    &TRACES_DROPPED,
];
