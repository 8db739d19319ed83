//! What is not built yet: accepted at its default, refused at any other value, never ignored.
//!
//! Building a feature takes its line out of here, and nothing else.

use crate::config_path;

use super::report::{Path, Report};
use super::schema::Config;
use super::schema_tiers::{Endpoint, LimitSpec, TiersFile};
use super::url::not_yet;

/// Of a type, names the fields that nothing obeys yet, as [`in_config`] writes them, and defines a
/// function that refuses each of them that differs from its default.
macro_rules! only_default {
    ($names:ident, $refuse:ident, $type:ty, $under:literal;
     $($first:ident $(.$rest:ident)*),+ $(,)?) => {
        const $names: &[&str] =
            &[$(concat!($under, stringify!($first) $(, ".", stringify!($rest))*)),+];

        fn $refuse(base: Path, found: &$type, report: &mut Report<'_>) {
            let default = <$type>::default();
            $(if found.$first $(.$rest)* != default.$first $(.$rest)* {
                let mut path = base.clone();
                path.extend(config_path![stringify!($first) $(, stringify!($rest))*]);
                report.value(path, not_yet());
            })+
        }
    };
}

only_default!(CONFIG, in_whole, Config, "";
    headers.ietf,
    shedding.mode,
    shedding.max_in_flight,
);
only_default!(ENDPOINT, in_endpoint, Endpoint, "endpoints[]."; enforce_percent);
only_default!(LIMITS, in_limits, LimitSpec, ""; priority);

/// The keys of `tollgate.yaml` that nothing obeys yet, `[]` in place of an index.
pub fn in_config() -> impl Iterator<Item = &'static str> {
    CONFIG.iter().copied()
}

/// The keys of `tiers.yaml` that nothing obeys yet, `NAME` in place of a tier's.
pub fn in_tiers() -> impl Iterator<Item = String> {
    let limits = ["tiers.NAME.", "endpoints[].limits.NAME."].into_iter();
    let limits = limits.flat_map(|under| LIMITS.iter().map(move |key| format!("{under}{key}")));
    ENDPOINT.iter().map(|key| (*key).to_owned()).chain(limits)
}

/// Refuses the keys of `tollgate.yaml` that nothing obeys yet.
pub fn refuse_in_config(config: &Config, report: &mut Report<'_>) {
    in_whole(Path::new(), config, report);
}

/// Refuses the keys of `tiers.yaml` that nothing obeys yet.
pub fn refuse_in_tiers(tiers: &TiersFile, report: &mut Report<'_>) {
    for (name, limits) in tiers.tiers.iter().flat_map(|tiers| tiers.iter()) {
        in_limits(config_path!["tiers", name], limits, report);
    }
    for (index, endpoint) in tiers.endpoints.iter().enumerate() {
        in_endpoint(config_path!["endpoints", index], endpoint, report);
        for (tier, limits) in endpoint.limits.iter() {
            in_limits(config_path!["endpoints", index, "limits", tier], limits, report);
        }
    }
}
