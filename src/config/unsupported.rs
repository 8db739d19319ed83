//! What is not built yet: accepted at its default, refused at any other value, never ignored.
//!
//! Building a feature takes its line out of here, and nothing else.

use crate::config_path;

use super::report::{Path, Report};
use super::schema::{Config, IdentityEntry, ListenerTls, RedisConfig, Server};
use super::schema_tiers::{Endpoint, LimitSpec, TiersFile};
use super::url::not_yet;

/// Refuses each of the fields that differs from its default.
macro_rules! only_default {
    ($report:expr, $base:expr, $found:expr, $default:expr;
     $($($field:ident).+),+ $(,)?) => { $(
        if $found.$($field).+ != $default.$($field).+ {
            let mut path: Path = $base.to_vec();
            path.extend(config_path![$(stringify!($field)),+]);
            $report.value(path, not_yet());
        }
    )+ };
}

/// The keys of `tollgate.yaml` that nothing obeys yet.
pub fn refuse_in_config(config: &Config, report: &mut Report<'_>) {
    let default = Config::default();
    only_default!(report, config_path![], config, default;
        server.proxy_protocol,
        server.max_connections_per_ip,
        upstream.urls,
        headers.ietf,
        shedding.mode,
        shedding.max_in_flight,
        self_service.path,
        usage.sink,
        usage.flush,
        usage.dir,
        usage.retention,
        usage.postgres,
        usage.postgres_file,
    );
    if config.upstream.retries > 1 {
        report.value(config_path!["upstream", "retries"], not_yet().hint("0 and 1 are"));
    }
    refuse_in_listeners(&config.server, report);
    if let Some(redis) = &config.store.redis {
        only_default!(report, config_path!["store", "redis"], redis, RedisConfig::default();
            expected_replicas,
            tls.ca,
            tls.client_cert,
            tls.client_key,
        );
    }
    for (index, entry) in config.identity.iter().enumerate() {
        only_default!(report, config_path!["identity", index], entry, IdentityEntry::default();
            mtls,
        );
    }
}

/// The keys of `tiers.yaml` that nothing obeys yet.
pub fn refuse_in_tiers(tiers: &TiersFile, report: &mut Report<'_>) {
    for (name, limits) in tiers.tiers.iter().flat_map(|tiers| tiers.iter()) {
        refuse_in_limits(config_path!["tiers", name], limits, report);
    }
    let default = Endpoint::default();
    for (index, endpoint) in tiers.endpoints.iter().enumerate() {
        only_default!(report, config_path!["endpoints", index], endpoint, default;
            enforce_percent,
        );
        for (tier, limits) in endpoint.limits.iter() {
            refuse_in_limits(config_path!["endpoints", index, "limits", tier], limits, report);
        }
    }
}

fn refuse_in_limits(path: Path, limits: &LimitSpec, report: &mut Report<'_>) {
    only_default!(report, path, limits, LimitSpec::default();
        per_day,
        per_month,
        concurrency,
        priority,
    );
}

fn refuse_in_listeners(server: &Server, report: &mut Report<'_>) {
    for (index, listener) in server.listeners.iter().flatten().enumerate() {
        if let Some(tls) = &listener.tls {
            let path = config_path!["server", "listeners", index, "tls"];
            only_default!(report, path, tls, ListenerTls::default();
                sni,
                client_ca,
            );
        }
    }
}
