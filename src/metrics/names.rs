//! The declaration of every metric. No other file contains a metric's name.
//!
//! Names, types and labels are a contract with dashboards and alerts: adding is free, changing is
//! not. What needs explaining is explained in the help, because that is what an operator sees.

use metrics::Unit;

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
    /// Its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// What one unit of its value is.
    pub unit: Unit,
    /// One sentence or two for whoever meets it in a dashboard.
    pub help: &'static str,
    /// What more there is to know: where the number comes from, when it moves, what it is good for.
    /// Empty where the help says it all; `docs/metrics.md` has both.
    pub meaning: &'static str,
}

macro_rules! declare {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $unit:ident $help:literal $meaning:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Desc = Desc {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                unit: Unit::$unit,
                help: $help,
                meaning: $meaning,
            };
        )*
        /// Every metric, in the order of declaration.
        pub const ALL: &[Desc] = &[$($constant),*];
    };
}

declare! {
    // Limits.
    HITS: Counter "rate_limit_hits_total" ["identifier_type", "tier", "endpoint"] Count
        "Requests evaluated against limits, allowed and blocked alike; exempt ones are not counted."
        "";
    BLOCKS: Counter "rate_limit_blocks_total" ["identifier_type", "tier", "endpoint"] Count
        "Requests answered 429; what a limit in shadow mode would have refused is not counted."
        "";
    REMAINING: Gauge "rate_limit_remaining_requests" ["identifier_type", "tier"] Count
        "Lowest remaining quota told to any identity in the last 60 seconds; while none was seen, the tier's own limit."
        "";
    LIMIT_DECISIONS: Counter "tollgate_limit_decisions_total" ["rule", "window", "decision"] Count
        "Verdicts of single limits: one request meets several. Rule 'tier' is the tier's own."
        "";
    DEGRADED: Gauge "rate_limit_degraded" [] Count
        "How limits are decided now: 0 exact, 1 local, 2 open, 3 closed."
        "";
    LIMITER_FALLBACK: Counter "tollgate_limiter_fallback_total" ["mode", "reason"] Count
        "Requests decided by the failure mode because the store did not answer."
        "";
    LIMITER_DURATION: Histogram "tollgate_limiter_duration_seconds" ["backend"] Seconds
        "Time to check all limits of one request."
        "";
    STORE_IDENTITIES: Gauge "tollgate_store_identities" [] Count
        "Identities whose state the store in memory holds."
        "";
    STORE_EVICTIONS: Counter "tollgate_store_evictions_total" [] Count
        "Identities that the store in memory forgot before their time because it was full."
        "";
    IDENTITY_ERRORS: Counter "tollgate_identity_errors_total" ["reason"] Count
        "Credentials and forwarding fields that were not believed."
        "";

    TOKEN_CACHE: Counter "tollgate_token_cache_lookups_total" ["result"] Count
        "Tokens that were known already (hit), and those whose signature had to be checked (miss)."
        "";
    TOKEN_CACHE_ENTRIES: Gauge "tollgate_token_cache_entries" [] Count
        "Tokens whose verdict is remembered."
        "";
    JWKS_FETCHES: Counter "tollgate_jwks_fetches_total" ["result"] Count
        "Fetches of key sets."
        "";
    JWKS_KEYS: Gauge "tollgate_jwks_keys" [] Count
        "Keys of the set that was fetched last."
        "";

    // Requests.
    REQUESTS: Counter "tollgate_requests_total" ["endpoint", "method", "code_class", "outcome"] Count
        "Requests by how they ended; code_class 'none' means that no answer was begun."
        "";
    REQUEST_DURATION: Histogram "tollgate_request_duration_seconds" ["endpoint", "outcome"] Seconds
        "From the request's head to the end of its answer; for an upgrade, to its 101."
        "";
    OVERHEAD: Histogram "tollgate_overhead_seconds" [] Seconds
        "Time a request spent in tollgate itself, waiting for the upstream and for bodies excluded."
        "";
    P95: Gauge "response_time_p95_seconds" ["endpoint"] Seconds
        "95th percentile of this process's response times over the last 60 seconds, within 5 percent; 0 while there were none. Not to be averaged."
        "";
    ERRORS: Counter "error_rate_total" ["error_type", "endpoint"] Count
        "Errors by type, as a count: take its rate. rate_limited and client_abort are no faults of the service."
        "";
    IN_FLIGHT: Gauge "tollgate_requests_in_flight" [] Count
        "Requests whose answer is not finished."
        "";
    BYTES: Counter "tollgate_bytes_total" ["direction"] Bytes
        "Body bytes received from callers (in) and sent to them (out)."
        "";
    WEBSOCKETS: Gauge "websocket_connections_active" ["endpoint"] Count
        "Upgraded connections that are open."
        "";

    // Connections.
    CONNECTIONS_ACTIVE: Gauge "tollgate_connections_active" ["listener"] Count
        "Open connections from callers."
        "";
    CONNECTIONS: Counter "tollgate_connections_total" ["listener"] Count
        "Connections accepted."
        "";
    CONNECTIONS_REFUSED: Counter "tollgate_connections_refused_total" ["reason"] Count
        "Connections closed unread because a bound was reached."
        "";
    HTTP2_CUT: Counter "tollgate_http2_connections_cut_total" ["reason"] Count
        "Connections of HTTP/2 that were cut for what their client sent, or did not read."
        "";
    TLS_HANDSHAKES: Counter "tollgate_tls_handshakes_total" ["result"] Count
        "TLS handshakes with callers by how they ended; 'evicted' made room for newer ones. Absent without TLS."
        "";
    TLS_HANDSHAKES_IN_PROGRESS: Gauge "tollgate_tls_handshakes_in_progress" [] Count
        "TLS handshakes with callers that are under way."
        "";
    TLS_CERTIFICATE_EXPIRY: Gauge "tollgate_tls_certificate_expiry_days" ["listener"] Count
        "Days until the certificate that the listener shows expires; below 0 once it has."
        "";

    // Upstream, Redis, database.
    UPSTREAM_DURATION: Histogram "tollgate_upstream_duration_seconds" ["upstream"] Seconds
        "Time to the head of the upstream's answer."
        "";
    UPSTREAM_CONNECT: Histogram "tollgate_upstream_connect_seconds" ["upstream"] Seconds
        "Time to open a connection to the upstream."
        "";
    POOL_CONNECTIONS: Gauge "tollgate_pool_connections" ["pool", "state"] Count
        "Connections that tollgate keeps, in use and idle."
        "";
    SLOW_QUERIES: Counter "slow_query_count_total" ["query_type"] Count
        "Calls that took longer than their threshold."
        "";
    QUERY_TIMEOUTS: Counter "query_timeout_count_total" ["query_type"] Count
        "Calls cut off by their deadline."
        "";
    REDIS_DURATION: Histogram "tollgate_redis_duration_seconds" [] Seconds
        "Time of one check that Redis answered."
        "";
    REDIS_ERRORS: Counter "tollgate_redis_errors_total" ["kind"] Count
        "Calls to Redis that failed."
        "";
    REDIS_RECONNECTS: Counter "tollgate_redis_reconnects_total" [] Count
        "Connections to Redis that had to be made anew."
        "";
    LOOKUPS: Counter "tollgate_subscription_lookups_total" ["result"] Count
        "Requests that asked what their user has bought, by how they came to know or not to know it."
        "";
    DEPENDENCY_HEALTH: Gauge "dependency_health_status" ["dependency"] Count
        "1 healthy, 0.5 degraded, 0 unhealthy; absent where the dependency is not configured."
        "";
    BREAKER_STATE: Gauge "circuit_breaker_state" ["service"] Count
        "0 closed, 1 half-open, 2 open."
        "";
    BREAKER_TRANSITIONS: Counter "tollgate_circuit_breaker_transitions_total" ["service", "to"] Count
        "Changes of a circuit breaker's state."
        "";

    // Pressure and memory.
    REDIS_QUEUE: Gauge "backpressure_redis_queue_size" [] Count
        "Calls to Redis that are not answered yet."
        "";
    DB_QUEUE: Gauge "backpressure_db_queue_size" [] Count
        "Look-ups that wait for a database connection; 0 where no database is configured."
        "";
    RSS: Gauge "memory_rss_bytes" [] Bytes
        "Resident memory."
        "Field 2 of /proc/self/statm. Holds free pages that the allocator keeps for a while: what the program itself holds is memory_allocator_bytes{kind=\"allocated\"}.";
    VMS: Gauge "memory_vms_bytes" [] Bytes
        "Virtual memory: address space, not use."
        "Field 1 of /proc/self/statm. The allocator keeps address space on purpose: nothing to alert on.";
    MEMORY_LIMIT: Gauge "memory_limit_bytes" [] Bytes
        "Memory that this process may use: the lowest limit of its control groups, else the machine's memory; 0 where neither is known."
        "Control groups of version 1 and 2, its own and all above. Read anew with every scrape.";
    ALLOCATOR: Gauge "memory_allocator_bytes" ["kind"] Bytes
        "The allocator's own account; all 0 where the allocator is not jemalloc."
        "allocated: asked for and not given back. active: pages that hold any of it. resident: those, the allocator's books, and free pages not given back yet. mapped: address space in use. retained: address space kept for later. metadata: the books. resident far above allocated is fragmentation, or a burst just past, and no leak.";
    OBJECTS: Gauge "memory_objects_count" ["type"] Count
        "Live objects that the program counts itself; not a census of the heap."
        "connections: open ones of callers. requests: unfinished ones. buffers: of 16 KiB, two for each upgraded connection; those of plain connections are inside of the HTTP library and not counted. local_cache_entries: identities of the store in memory, tokens and subscriptions that are remembered. leases: parts of a quota held to spend without asking Redis; 0, since none are taken. jwks_keys: of key sets that were fetched. metric_series: those of this answer. websocket_tunnels: upgraded connections.";
    GC_COLLECTIONS: Counter "memory_gc_collections_total" ["generation"] Count
        "Reclaim runs. Generation 0: rounds of the sweep over the store in memory; 1: the allocator's purges of dirty pages; 2: of muzzy pages."
        "There is no garbage collector: these three take back what is no longer used. A round goes over the whole store and takes a second at the least. Purges are as jemalloc counts them, over all arenas; muzzy ones only happen where its muzzy_decay_ms is above 0, which it is not by itself.";
    GC_COLLECTED: Counter "memory_gc_collected_total" ["generation"] Count
        "What those runs reclaimed. Generation 0: expired entries of the store in memory; 1: dirty pages; 2: muzzy pages. The unit differs."
        "Entries that an insertion freed in passing count too.";
    MEMORY_GROWTH: Gauge "memory_growth_rate_bytes_per_second" [] Bytes
        "Growth of resident and swapped memory over the last hour, by a robust slope; 0 until an hour was watched, below 0 where it shrinks."
        "The median of the slopes between any two of 120 medians of a minute (Theil and Sen), found anew every 5 minutes, the first time 70 minutes after the start. docs/memory.md tells a leak from a warm-up.";

    // The process and its signals.
    BUILD_INFO: Gauge "tollgate_build_info" ["version", "commit", "rustc"] Count
        "Always 1; the labels say what is running."
        "";
    CONFIG_HASH: Gauge "tollgate_config_hash_info" ["hash"] Count
        "Always 1; the label changes with the configuration in force."
        "";
    CONFIG_RELOADS: Counter "tollgate_config_reloads_total" ["result"] Count
        "Reloads of the policy and other watched files; after an error what ran before goes on. The start is not counted."
        "";
    CONFIG_LOADED_AT: Gauge "tollgate_config_last_reload_success_timestamp_seconds" [] Seconds
        "Unix time of the last reload that took effect; before the first, of the start."
        "";
    CONFIG_RELOAD_OK: Gauge "tollgate_config_last_reload_successful" [] Count
        "1 while every watched file is in force as it stands, 0 while one of them was refused."
        "";
    RESTART_PENDING: Gauge "tollgate_config_restart_pending" [] Count
        "1 while tollgate.yaml differs from what runs, which takes a restart; else 0."
        "";
    SERIES: Gauge "tollgate_metric_series" [] Count
        "Series in this very answer."
        "";
    SERIES_DROPPED: Counter "tollgate_metric_series_dropped_total" ["metric"] Count
        "Label values folded into 'other' because the bound of distinct ones was reached."
        "";
    PROCESS_CPU: Counter "process_cpu_seconds_total" [] Seconds
        "User and system CPU time."
        "";
    PROCESS_START: Gauge "process_start_time_seconds" [] Seconds
        "Unix time at which the process started."
        "";
    PROCESS_FDS: Gauge "process_open_fds" [] Count
        "Open file descriptors."
        "";
    PROCESS_FDS_MAX: Gauge "process_max_fds" [] Count
        "Most file descriptors that may be open."
        "";
    PROCESS_RSS: Gauge "process_resident_memory_bytes" [] Bytes
        "Resident memory, by its conventional name."
        "";
    PROCESS_VMS: Gauge "process_virtual_memory_bytes" [] Bytes
        "Virtual memory, by its conventional name."
        "";
    PROCESS_VMS_MAX: Gauge "process_virtual_memory_max_bytes" [] Bytes
        "Most virtual memory there may be; 0 where there is no limit."
        "";
    PROCESS_THREADS: Gauge "process_threads" [] Count
        "Threads of the operating system."
        "";
}
