//! What moves each metric: one line for every metric, of what the story in `tests/metrics.rs` does
//! and what is seen of it. A new metric needs a line here.
#![allow(dead_code, reason = "one test binary uses it")]

use std::collections::BTreeMap;

/// What one reading of `/metrics` said.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// The text.
    pub text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Takes the text apart.
    pub fn of(text: String) -> Self {
        let series = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(series, value)| (series.to_owned(), value.parse().unwrap()))
            .collect();
        Scrape { text, series }
    }

    /// The sum of all series of a name that have these labels, `name{label="value",…}`; a name
    /// alone sums up all of them.
    pub fn sum(&self, selector: &str) -> f64 {
        self.matching(selector).map(|(_, value)| value).sum()
    }

    /// How many such series there are.
    pub fn count(&self, selector: &str) -> usize {
        self.matching(selector).count()
    }

    /// Such series, with their values.
    pub fn matching(&self, selector: &str) -> impl Iterator<Item = (&str, f64)> {
        let (name, labels) = selector.split_once('{').unwrap_or((selector, ""));
        let labels: Vec<&str> =
            labels.trim_end_matches('}').split(',').filter(|it| !it.is_empty()).collect();
        self.series.iter().filter_map(move |(series, value)| {
            let (its_name, its_labels) = series.split_once('{').unwrap_or((series, ""));
            let fits = its_name == name && labels.iter().all(|label| its_labels.contains(label));
            fits.then_some((series.as_str(), *value))
        })
    }
}

/// Readings of one story: a tollgate with everything that can be configured, and one alone.
#[derive(Debug, Default)]
pub struct Story {
    /// Before the first request.
    pub start: Scrape,
    /// While a lease is held.
    pub leased: Scrape,
    /// While a request, a tunnel and a handshake are open.
    pub busy: Scrape,
    /// While look-ups wait for the one connection to the database.
    pub waiting: Scrape,
    /// While Redis stands still and checks wait for it.
    pub stalled: Scrape,
    /// While Redis stands still and is not asked any more.
    pub outage: Scrape,
    /// At the end, with nothing open.
    pub end: Scrape,
    /// A tollgate with limits in memory and 205 rules, before its first request.
    pub alone_start: Scrape,
    /// The same, after more callers than its memory has room for, and refused reloads.
    pub alone: Scrape,
}

impl Story {
    /// By how much it rose from the start to the end.
    fn rose(&self, selector: &str) -> f64 {
        self.end.sum(selector) - self.start.sum(selector)
    }
}

/// A metric, what was done, and whether that is seen.
pub type Move = (&'static str, &'static str, fn(&Story) -> bool);

/// Every metric that the story moves.
pub const MOVES: &[Move] = &[
    ("rate_limit_hits_total", "requests with limits; not the exempt one", |it| {
        it.rose("rate_limit_hits_total{endpoint=\"tight\",tier=\"free\",identifier_type=\"ip\"}")
            == 4.0
            && it.rose("rate_limit_hits_total{tier=\"premium\",identifier_type=\"user\"}") >= 2.0
            && it.rose("rate_limit_hits_total{endpoint=\"exempt\"}") == 0.0
    }),
    ("rate_limit_blocks_total", "two requests above a limit of two; shadow refuses nobody", |it| {
        it.rose("rate_limit_blocks_total{endpoint=\"tight\"}") == 2.0
            && it.rose("rate_limit_blocks_total{endpoint=\"shadow\"}") == 0.0
    }),
    ("rate_limit_remaining_requests", "one caller used up a limit", |it| {
        let series = "rate_limit_remaining_requests{identifier_type=\"ip\",tier=\"free\"}";
        it.start.sum(series) == 10_000.0 && it.busy.sum(series) == 0.0
    }),
    ("tollgate_remaining_ratio", "allowed and refused requests: much is left, and nothing", |it| {
        let below = |edge: &str| {
            it.rose(&format!("tollgate_remaining_ratio_bucket{{le=\"{edge}\",tier=\"free\"}}"))
        };
        let count = it.rose("tollgate_remaining_ratio_count{tier=\"free\"}");
        below("0") >= 3.0 && below("0.9") < count && below("1") == count
    }),
    (
        "tollgate_limit_decisions_total",
        "two allowed, one of them the last, two refused; shadow",
        |it| {
            let of = |rule: &str, decision: &str| {
                it.rose(&format!("tollgate_limit_decisions_total{{rule=\"{rule}\",window=\"minute\",decision=\"{decision}\"}}"))
            };
            of("tight", "allow") == 2.0
                && of("tight", "near") == 1.0
                && of("tight", "block") == 2.0
                && of("shadow", "shadow_block") == 1.0
                && of("shadow", "block") == 0.0
                && of("tier", "allow") >= 10.0
        },
    ),
    ("rate_limit_degraded", "Redis stood still, and came back", |it| {
        [&it.start, &it.outage, &it.end].map(|at| at.sum("rate_limit_degraded")) == [0.0, 1.0, 0.0]
    }),
    (
        "tollgate_limiter_fallback_total",
        "Redis stood still: timeouts, then its open circuit",
        |it| {
            it.rose("tollgate_limiter_fallback_total{mode=\"local\",reason=\"timeout\"}") >= 1.0
                && it
                    .rose("tollgate_limiter_fallback_total{mode=\"local\",reason=\"circuit_open\"}")
                    >= 1.0
                && it.rose("tollgate_limiter_fallback_total{mode=\"open\"}") == 0.0
        },
    ),
    ("tollgate_limiter_duration_seconds", "checks by Redis, and locally without it", |it| {
        it.rose("tollgate_limiter_duration_seconds_count{backend=\"redis\"}") >= 10.0
            && it.rose("tollgate_limiter_duration_seconds_count{backend=\"local\"}") >= 1.0
            && it.alone.sum("tollgate_limiter_duration_seconds_count{backend=\"memory\"}") >= 1.0
    }),
    ("tollgate_deny_cache_hits_total", "a caller who was refused asked once more", |it| {
        it.start.sum("tollgate_deny_cache_hits_total") == 0.0
            && it.rose("tollgate_deny_cache_hits_total") >= 1.0
            && it.rose("tollgate_limiter_duration_seconds_count{backend=\"cache\"}") >= 1.0
            && it.alone.sum("tollgate_deny_cache_hits_total") == 0.0
    }),
    ("tollgate_leases_total", "a caller of a generous tier asked often", |it| {
        it.start.sum("tollgate_leases_total") == 0.0
            && it.rose("tollgate_leases_total{result=\"granted\"}") >= 1.0
            && it.alone.sum("tollgate_leases_total") == 0.0
    }),
    ("tollgate_lease_tokens_total", "it spent some of them; the rest went back", |it| {
        it.rose("tollgate_lease_tokens_total{outcome=\"spent\"}") >= 1.0
            && it.rose("tollgate_lease_tokens_total{outcome=\"returned\"}") >= 1.0
    }),
    ("tollgate_lease_tokens_held", "what it had left a moment later", |it| {
        it.start.sum("tollgate_lease_tokens_held") == 0.0
            && it.leased.sum("tollgate_lease_tokens_held") >= 1.0
            && it.leased.sum("memory_objects_count{type=\"leases\"}") >= 1.0
            && it.end.sum("tollgate_lease_tokens_held") == 0.0
    }),
    ("tollgate_over_admission_estimate", "requests let pass while Redis stood still", |it| {
        it.busy.sum("tollgate_over_admission_estimate") == 0.0
            && it.outage.sum("tollgate_over_admission_estimate") >= 5.0
            && it.alone.sum("tollgate_over_admission_estimate") == 0.0
    }),
    ("tollgate_store_identities", "callers where limits are in memory", |it| {
        it.alone_start.sum("tollgate_store_identities") == 0.0
            && it.alone.sum("tollgate_store_identities") >= 1.0
    }),
    ("tollgate_store_evictions_total", "more callers than there is room for", |it| {
        it.alone.sum("tollgate_store_evictions_total") >= 1.0
    }),
    ("tollgate_identity_errors_total", "a token that is none; one of an unknown key", |it| {
        it.rose("tollgate_identity_errors_total{reason=\"malformed\"}") >= 1.0
            && it.rose("tollgate_identity_errors_total{reason=\"unknown_kid\"}") >= 1.0
            && it.rose("tollgate_identity_errors_total{reason=\"expired\"}") == 0.0
    }),
    ("tollgate_admin_refused_total", "calls that named another host", |it| {
        it.rose("tollgate_admin_refused_total{reason=\"forbidden\"}") == 2.0
            && it.rose("tollgate_admin_refused_total") == 2.0
    }),
    ("tollgate_admin_changes_total", "what an operator did, once each; another tier twice", |it| {
        let of =
            |action: &str| it.rose(&format!("tollgate_admin_changes_total{{action=\"{action}\"}}"));
        let actions =
            ["override_set", "override_removed", "deny_set", "deny_removed", "reset", "reload"];
        actions.map(of) == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    }),
    ("tollgate_overrides", "another tier, which stays; a denial, which is taken back", |it| {
        let of = |kind: &str| {
            let series = format!("tollgate_overrides{{kind=\"{kind}\"}}");
            [&it.start, &it.busy, &it.end].map(|at| at.sum(&series))
        };
        of("override") == [0.0, 1.0, 1.0] && of("deny") == [0.0, 1.0, 0.0]
    }),
    ("tollgate_self_service_total", "a caller asked for their own limits", |it| {
        it.rose("tollgate_self_service_total{result=\"ok\"}") == 1.0
            && it.rose("tollgate_self_service_total") == 1.0
    }),
    ("tollgate_token_cache_lookups_total", "one token, twice", |it| {
        it.rose("tollgate_token_cache_lookups_total{result=\"miss\"}") >= 1.0
            && it.rose("tollgate_token_cache_lookups_total{result=\"hit\"}") >= 1.0
    }),
    ("tollgate_token_cache_entries", "tokens", |it| it.rose("tollgate_token_cache_entries") >= 1.0),
    ("tollgate_jwks_fetches_total", "the key set was fetched", |it| {
        it.end.sum("tollgate_jwks_fetches_total{result=\"ok\"}") >= 1.0
    }),
    ("tollgate_jwks_keys", "the key set holds one key", |it| {
        it.end.sum("tollgate_jwks_keys") == 1.0
    }),
    ("tollgate_requests_total", "each way of ending", |it| {
        let of = |labels: &str| it.rose(&format!("tollgate_requests_total{{{labels}}}"));
        of("endpoint=\"tight\",method=\"GET\",code_class=\"4xx\",outcome=\"limited\"") == 2.0
            && of("endpoint=\"other\",method=\"POST\",code_class=\"2xx\",outcome=\"allowed\"")
                == 1.0
            && of("endpoint=\"other\",method=\"OTHER\",code_class=\"2xx\",outcome=\"allowed\"")
                == 1.0
            && of("code_class=\"5xx\",outcome=\"upstream_error\"") == 3.0
            && of("outcome=\"client_abort\"") == 1.0
            && of("endpoint=\"exempt\",outcome=\"allowed\"") == 1.0
    }),
    ("tollgate_request_duration_seconds", "a slow request among quick ones; no tunnel", |it| {
        let of = |le: &str| {
            it.rose(&format!("tollgate_request_duration_seconds_bucket{{endpoint=\"other\",outcome=\"allowed\",le=\"{le}\"}}"))
        };
        // The tunnel was open for longer than its request took.
        of("+Inf") - of("0.1") >= 1.0
            && it.rose(
                "tollgate_request_duration_seconds_count{endpoint=\"ws\",outcome=\"allowed\"}",
            ) == 2.0
            && it.rose("tollgate_request_duration_seconds_sum{endpoint=\"ws\",outcome=\"allowed\"}")
                < it.rose("tollgate_websocket_duration_seconds_sum")
    }),
    (
        "tollgate_overhead_seconds",
        "requests, but the three that waited in vain for the backend",
        |it| it.rose("tollgate_overhead_seconds_count") == it.rose("tollgate_requests_total") - 3.0,
    ),
    ("response_time_p95_seconds", "a request that took a second", |it| {
        it.start.sum("response_time_p95_seconds") == 0.0
            && it.busy.sum("response_time_p95_seconds{endpoint=\"other\"}") > 0.2
    }),
    ("error_rate_total", "each kind of error", |it| {
        let of = |kind: &str| it.rose(&format!("error_rate_total{{error_type=\"{kind}\"}}"));
        ["upstream_5xx", "upstream_connect", "upstream_timeout", "client_abort"].map(of) == [1.0; 4]
            && of("rate_limited") == 3.0
            && of("auth_invalid") >= 2.0
            && of("proxy_error") == 0.0
    }),
    ("tollgate_requests_in_flight", "a request that waits", |it| {
        [&it.start, &it.busy, &it.end].map(|at| at.sum("tollgate_requests_in_flight"))
            == [0.0, 1.0, 0.0]
    }),
    ("tollgate_bytes_total", "a body of five bytes, and answers", |it| {
        it.rose("tollgate_bytes_total{direction=\"in\"}") == 5.0
            && it.rose("tollgate_bytes_total{direction=\"out\"}") >= 20.0
    }),
    ("tollgate_usage_units_total", "a request that costs five; nothing for refused ones", |it| {
        it.rose("tollgate_usage_units_total{tier=\"free\"}")
            >= 4.0 + it.rose("rate_limit_hits_total{tier=\"free\"}")
                - it.rose("rate_limit_blocks_total{tier=\"free\"}")
            && it.rose("tollgate_usage_units_total{tier=\"unused\"}") == 0.0
    }),
    ("tollgate_usage_requests_total", "requests that were let through, an exempt one too", |it| {
        it.rose("tollgate_usage_requests_total{tier=\"free\"}")
            > it.rose("rate_limit_hits_total{tier=\"free\"}")
                - it.rose("rate_limit_blocks_total{tier=\"free\"}")
            && it.rose("tollgate_usage_requests_total{tier=\"unused\"}") == 0.0
    }),
    ("tollgate_usage_denied_total", "two requests above a limit of two", |it| {
        it.rose("tollgate_usage_denied_total{tier=\"free\"}")
            == it.rose("rate_limit_blocks_total{tier=\"free\"}")
    }),
    ("tollgate_usage_flush_lag_seconds", "Redis, the sink, stood still, and came back", |it| {
        it.outage.sum("tollgate_usage_flush_lag_seconds") >= 0.5
            && it.end.sum("tollgate_usage_flush_lag_seconds") < 60.0
    }),
    ("tollgate_usage_rows_written_total", "requests, written down", |it| {
        it.rose("tollgate_usage_rows_written_total") >= 5.0
            && it.alone.sum("tollgate_usage_rows_written_total") == 0.0
    }),
    ("tollgate_usage_flush_errors_total", "Redis, the sink, stood still", |it| {
        it.rose("tollgate_usage_flush_errors_total") >= 1.0
    }),
    ("tollgate_usage_journal_bytes", "a journal for each worker, and none without a sink", |it| {
        it.end.sum("tollgate_usage_journal_bytes") >= 65_536.0
            && it.alone.sum("tollgate_usage_journal_bytes") == 0.0
    }),
    ("websocket_connections_active", "a tunnel", |it| {
        let series = "websocket_connections_active{endpoint=\"ws\"}";
        [&it.start, &it.busy, &it.end].map(|at| at.sum(series)) == [0.0, 1.0, 0.0]
    }),
    ("tollgate_websocket_events_total", "two tunnels, one ended by each side; one refused", |it| {
        let of =
            |event: &str| it.rose(&format!("tollgate_websocket_events_total{{event=\"{event}\"}}"));
        ["open", "close_client", "close_upstream", "refused_limit", "idle_timeout", "drain"].map(of)
            == [2.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    }),
    ("tollgate_websocket_messages_total", "two messages there, one back", |it| {
        ["in", "out"].map(|way| {
            it.rose(&format!("tollgate_websocket_messages_total{{direction=\"{way}\"}}"))
        }) == [2.0, 1.0]
    }),
    ("tollgate_websocket_duration_seconds", "two tunnels that have ended", |it| {
        it.busy.sum("tollgate_websocket_duration_seconds_count") == 1.0
            && it.rose("tollgate_websocket_duration_seconds_count") == 2.0
    }),
    ("tollgate_connections_active", "callers who stay", |it| {
        it.busy.sum("tollgate_connections_active") >= 3.0
            && it.end.sum("tollgate_connections_active") == 0.0
    }),
    ("tollgate_connections_total", "callers", |it| it.rose("tollgate_connections_total") >= 15.0),
    ("tollgate_connections_refused_total", "more connections than server.max_connections", |it| {
        it.rose("tollgate_connections_refused_total{reason=\"max_connections\"}") >= 1.0
    }),
    ("tollgate_http2_connections_cut_total", "a flood of pings", |it| {
        it.rose("tollgate_http2_connections_cut_total{reason=\"flood\"}") >= 1.0
    }),
    ("tollgate_tls_handshakes_total", "one that was made, one that was no TLS", |it| {
        it.rose("tollgate_tls_handshakes_total{result=\"ok\"}") == 1.0
            && it.rose("tollgate_tls_handshakes_total{result=\"failed\"}") >= 1.0
    }),
    ("tollgate_tls_handshakes_in_progress", "a caller who connects and says nothing", |it| {
        it.busy.sum("tollgate_tls_handshakes_in_progress") == 1.0
            && it.end.sum("tollgate_tls_handshakes_in_progress") == 0.0
    }),
    ("tollgate_tls_certificate_expiry_days", "a certificate for ninety days", |it| {
        (88.0..=90.0).contains(&it.end.sum("tollgate_tls_certificate_expiry_days"))
    }),
    ("tollgate_upstream_duration_seconds", "answers of the backend, a slow one too", |it| {
        it.rose("tollgate_upstream_duration_seconds_count") >= 10.0
            && it.rose("tollgate_upstream_duration_seconds_sum") > 0.2
    }),
    ("tollgate_upstream_connect_seconds", "connections to the backend", |it| {
        it.rose("tollgate_upstream_connect_seconds_count") >= 2.0
    }),
    ("tollgate_upstream_member_healthy", "three backends, of which one is not there", |it| {
        let healthy = "tollgate_upstream_member_healthy";
        (it.alone_start.sum(healthy), it.alone.sum(healthy)) == (3.0, 2.0)
            && it.alone.count(healthy) == 3
    }),
    ("tollgate_upstream_member_requests_in_flight", "a request and a tunnel are open", |it| {
        let in_flight = "tollgate_upstream_member_requests_in_flight";
        it.busy.sum(in_flight) >= 2.0
            && it.end.sum(in_flight) == 0.0
            && it.end.count(in_flight) == 2
    }),
    ("tollgate_upstream_retries_total", "one was not there, one was late, one broke off", |it| {
        ["connect", "timeout", "broken"].iter().all(|reason| {
            let of = format!("tollgate_upstream_retries_total{{reason=\"{reason}\"}}");
            it.alone_start.sum(&of) == 0.0 && it.alone.sum(&of) >= 1.0
        })
    }),
    ("tollgate_upstream_retries_skipped_total", "more broke off than there may be retries", |it| {
        it.end.sum("tollgate_upstream_retries_skipped_total") == 0.0
            && it.alone.sum("tollgate_upstream_retries_skipped_total") >= 1.0
    }),
    ("tollgate_pool_connections", "calls under way, and connections that wait for one", |it| {
        it.busy.sum("tollgate_pool_connections{pool=\"upstream\",state=\"active\"}") >= 2.0
            && it.end.sum("tollgate_pool_connections{pool=\"upstream\",state=\"idle\"}") >= 1.0
            && it.busy.sum("tollgate_pool_connections{pool=\"database\",state=\"idle\"}") >= 1.0
    }),
    ("slow_query_count_total", "a slow answer, a slow look-up, a slow fetch, a slow check", |it| {
        it.rose("slow_query_count_total{query_type=\"upstream\"}") >= 1.0
            && it.rose("slow_query_count_total{query_type=\"database\"}") >= 1.0
            && it.rose("slow_query_count_total{query_type=\"redis\"}") >= 1.0
            && it.end.sum("slow_query_count_total{query_type=\"jwks\"}") >= 1.0
    }),
    ("query_timeout_count_total", "an answer, a check and a look-up that did not come", |it| {
        it.rose("query_timeout_count_total{query_type=\"upstream\"}") == 1.0
            && it.rose("query_timeout_count_total{query_type=\"redis\"}") >= 1.0
            && it.rose("query_timeout_count_total{query_type=\"database\"}") >= 1.0
            && it.rose("query_timeout_count_total{query_type=\"jwks\"}") == 0.0
    }),
    ("tollgate_redis_duration_seconds", "checks that Redis answered", |it| {
        it.rose("tollgate_redis_duration_seconds_count") >= 10.0
    }),
    ("tollgate_redis_errors_total", "checks that Redis did not answer", |it| {
        it.rose("tollgate_redis_errors_total{kind=\"timeout\"}") >= 1.0
            && it.rose("tollgate_redis_errors_total{kind=\"readonly\"}") == 0.0
    }),
    ("tollgate_redis_late_replies_total", "Redis paused for longer than a check waits", |it| {
        it.start.sum("tollgate_redis_late_replies_total") == 0.0
            && it.rose("tollgate_redis_late_replies_total") >= 1.0
    }),
    ("tollgate_replicas", "one process told Redis that it is there; one has no Redis", |it| {
        it.outage.sum("tollgate_replicas") == 1.0 && it.alone.sum("tollgate_replicas") == 0.0
    }),
    ("tollgate_outage_admitted_total", "requests while Redis stood still", |it| {
        it.start.sum("tollgate_outage_admitted_total") == 0.0
            && it.outage.sum("tollgate_outage_admitted_total") >= 8.0
    }),
    ("tollgate_outage_charged_total", "Redis was told of them when it was back", |it| {
        it.rose("tollgate_outage_charged_total") >= 1.0
    }),
    ("tollgate_redis_reconnects_total", "Redis was killed and started again", |it| {
        it.rose("tollgate_redis_reconnects_total") >= 1.0
    }),
    ("tollgate_subscription_lookups_total", "a user asked for, remembered, and too slow", |it| {
        it.rose("tollgate_subscription_lookups_total{result=\"found\"}") >= 1.0
            && it.rose("tollgate_subscription_lookups_total{result=\"hit\"}") >= 1.0
            && it.rose("tollgate_subscription_lookups_total{result=\"timeout\"}") >= 1.0
    }),
    ("dependency_health_status", "Redis stood still, and came back", |it| {
        it.busy.count("dependency_health_status") == 4
            && it.busy.sum("dependency_health_status{dependency=\"redis\"}") == 1.0
            && it.outage.sum("dependency_health_status{dependency=\"redis\"}") < 1.0
            && it.end.sum("dependency_health_status{dependency=\"redis\"}") == 1.0
            && it.alone.count("dependency_health_status{dependency=\"redis\"}") == 0
    }),
    ("tollgate_healthcheck_total", "checks of the backend's path", |it| {
        it.rose("tollgate_healthcheck_total{dependency=\"upstream\",result=\"ok\"}") >= 1.0
    }),
    ("tollgate_healthcheck_duration_seconds", "checks of the backend's path", |it| {
        it.rose("tollgate_healthcheck_duration_seconds_count{dependency=\"upstream\"}") >= 1.0
    }),
    ("circuit_breaker_state", "Redis stood still, and came back", |it| {
        [&it.busy, &it.outage, &it.end].map(|at| at.sum("circuit_breaker_state{service=\"redis\"}"))
            == [0.0, 2.0, 0.0]
    }),
    ("tollgate_circuit_breaker_transitions_total", "Redis stood still, and came back", |it| {
        ["open", "half_open", "closed"].iter().all(|to| {
            it.rose(&format!(
                "tollgate_circuit_breaker_transitions_total{{service=\"redis\",to=\"{to}\"}}"
            )) >= 1.0
        })
    }),
    (
        "backpressure_event_loop_lag_seconds",
        "threads that run: late by something, not by seconds",
        |it| {
            let lag = it.end.sum("backpressure_event_loop_lag_seconds");
            it.end.count("backpressure_event_loop_lag_seconds") == 1 && (0.0..5.0).contains(&lag)
        },
    ),
    ("backpressure_async_tasks_pending", "a tunnel and connections that are open", |it| {
        let of = |at: &Scrape, kind: &str| {
            at.sum(&format!("backpressure_async_tasks_pending{{task_type=\"{kind}\"}}"))
        };
        of(&it.start, "websocket") == 0.0
            && of(&it.busy, "websocket") == 1.0
            && of(&it.end, "websocket") == 0.0
            && of(&it.busy, "connection") > of(&it.start, "connection")
    }),
    ("tollgate_pool_wait_seconds", "requests that found no idle connection", |it| {
        it.rose("tollgate_pool_wait_seconds_count{pool=\"upstream\"}") >= 1.0
    }),
    ("tollgate_runtime_lag_seconds", "timers of every worker", |it| {
        it.rose("tollgate_runtime_lag_seconds_count{worker=\"0\"}") >= 1.0
            && it.rose("tollgate_runtime_lag_seconds_count{worker=\"1\"}") >= 1.0
    }),
    ("tollgate_runtime_busy_ratio", "work, for some of the time", |it| {
        it.end
            .matching("tollgate_runtime_busy_ratio")
            .all(|(_, share)| (0.0..=1.0).contains(&share))
            && it.end.sum("tollgate_runtime_busy_ratio") > 0.0
    }),
    ("backpressure_redis_queue_size", "checks while Redis stood still", |it| {
        it.stalled.sum("backpressure_redis_queue_size") >= 1.0
            && it.end.sum("backpressure_redis_queue_size") == 0.0
    }),
    ("backpressure_db_queue_size", "look-ups behind one that takes long", |it| {
        it.waiting.sum("backpressure_db_queue_size") >= 1.0
            && it.end.sum("backpressure_db_queue_size") == 0.0
    }),
    ("memory_rss_bytes", "a process", |it| it.end.sum("memory_rss_bytes") > 1e6),
    ("memory_vms_bytes", "a process", |it| {
        it.end.sum("memory_vms_bytes") > it.end.sum("memory_rss_bytes")
    }),
    ("memory_limit_bytes", "a machine or container", |it| {
        it.end.sum("memory_limit_bytes") > it.end.sum("memory_rss_bytes")
    }),
    ("memory_allocator_bytes", "allocations", |it| {
        it.end.sum("memory_allocator_bytes{kind=\"allocated\"}") > 1e5
            && it.end.sum("memory_allocator_bytes{kind=\"active\"}")
                >= it.end.sum("memory_allocator_bytes{kind=\"allocated\"}")
    }),
    ("memory_objects_count", "what is open", |it| {
        let of =
            |at: &Scrape, kind: &str| at.sum(&format!("memory_objects_count{{type=\"{kind}\"}}"));
        of(&it.busy, "websocket_tunnels") == 1.0
            && of(&it.end, "websocket_tunnels") == 0.0
            && of(&it.busy, "requests") == 1.0
            && of(&it.end, "metric_series") == it.end.sum("tollgate_metric_series")
    }),
    ("memory_gc_collections_total", "rounds of the sweep", |it| {
        it.rose("memory_gc_collections_total{generation=\"0\"}") >= 1.0
    }),
    ("tollgate_build_info", "a build", |it| {
        it.end.sum(&format!("tollgate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")))
            == 1.0
    }),
    ("tollgate_config_hash_info", "another policy", |it| {
        let hash =
            |at: &Scrape| at.matching("tollgate_config_hash_info").next().unwrap().0.to_owned();
        it.end.count("tollgate_config_hash_info") == 1 && hash(&it.start) != hash(&it.end)
    }),
    ("tollgate_config_reloads_total", "a good policy, and a bad one", |it| {
        it.rose("tollgate_config_reloads_total{result=\"ok\"}") >= 1.0
            && it.rose("tollgate_config_reloads_total{result=\"error\"}") == 0.0
            && it.alone.sum("tollgate_config_reloads_total{result=\"error\"}") >= 1.0
    }),
    ("tollgate_config_last_reload_success_timestamp_seconds", "another policy", |it| {
        it.rose("tollgate_config_last_reload_success_timestamp_seconds") > 0.0
    }),
    ("tollgate_config_last_reload_successful", "a bad policy", |it| {
        [&it.end, &it.alone_start, &it.alone]
            .map(|at| at.sum("tollgate_config_last_reload_successful"))
            == [1.0, 1.0, 0.0]
    }),
    ("tollgate_config_restart_pending", "another tollgate.yaml", |it| {
        [&it.end, &it.alone_start, &it.alone].map(|at| at.sum("tollgate_config_restart_pending"))
            == [0.0, 0.0, 1.0]
    }),
    ("tollgate_access_log_lines_total", "requests", |it| {
        it.rose("tollgate_access_log_lines_total") >= 15.0
            && it.alone.sum("tollgate_access_log_lines_total") == 0.0
    }),
    ("tollgate_trace_requests_exported_total", "requests, and a collector", |it| {
        it.rose("tollgate_trace_requests_exported_total") >= 1.0
            && it.alone.sum("tollgate_trace_requests_exported_total") == 0.0
    }),
    ("tollgate_metric_series", "samples, and more with more rules", |it| {
        let lines =
            |at: &Scrape| at.text.lines().filter(|line| !line.starts_with('#')).count() as f64;
        it.end.sum("tollgate_metric_series") == lines(&it.end)
            && it.alone.sum("tollgate_metric_series") > it.end.sum("tollgate_metric_series")
    }),
    ("tollgate_metric_series_dropped_total", "205 rules, where 200 have series", |it| {
        let of = |at: &Scrape| {
            at.sum("tollgate_metric_series_dropped_total{metric=\"rate_limit_hits_total\"}")
        };
        [of(&it.end), of(&it.alone_start)] == [0.0, 5.0]
    }),
    ("process_cpu_seconds_total", "work", |it| it.rose("process_cpu_seconds_total") > 0.0),
    ("process_start_time_seconds", "a start", |it| {
        it.end.sum("process_start_time_seconds") > 1.7e9
            && it.rose("process_start_time_seconds") == 0.0
    }),
    ("process_open_fds", "connections", |it| {
        it.busy.sum("process_open_fds") > it.start.sum("process_open_fds")
    }),
    ("process_max_fds", "a limit", |it| {
        it.end.sum("process_max_fds") > it.busy.sum("process_open_fds")
    }),
    ("process_resident_memory_bytes", "a process", |it| {
        it.end.sum("process_resident_memory_bytes") > 1e6
    }),
    ("process_virtual_memory_bytes", "a process", |it| {
        it.end.sum("process_virtual_memory_bytes") > it.end.sum("process_resident_memory_bytes")
    }),
    ("process_virtual_memory_max_bytes", "a limit, or none", |it| {
        it.end.count("process_virtual_memory_max_bytes") == 1
    }),
    ("process_threads", "workers, acceptor, control", |it| it.end.sum("process_threads") >= 4.0),
];

/// Metrics that the story does not move, and why. This list may only become shorter.
pub const NOT_MOVED: &[(&str, &str)] = &[
    ("tollgate_shed_total", "nothing is shed yet"),
    ("tollgate_concurrency_limit", "nothing is shed yet"),
    ("tollgate_usage_lost_total", "needs a disk without room: src/usage/journal.rs"),
    ("tollgate_upstream_waiting", "needs a backend that does not accept: tests/pressure.rs"),
    ("tollgate_runtime_workers_stuck", "needs a worker that hangs: tests/pressure.rs"),
    ("memory_gc_collected_total", "needs entries that expire in a second: tests/memory.rs"),
    (
        "memory_growth_rate_bytes_per_second",
        "0 until an hour is over: src/health/trend.rs, tests/leak_drill.rs",
    ),
    ("tollgate_access_log_dropped_total", "needs a disk that takes nothing: tests/logs.rs"),
    ("tollgate_log_lines_suppressed_total", "needs hundreds of faults of one kind: tests/logs.rs"),
    ("tollgate_log_lines_dropped_total", "needs a standard error that nobody reads: tests/logs.rs"),
    ("tollgate_trace_requests_dropped_total", "needs a collector that is away: tests/logs.rs"),
];
