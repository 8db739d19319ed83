//! Two files given in each other's place: a key that the other file knows says so.

use super::report::ConfigError;

/// The keys of `tollgate.yaml`.
const OF_CONFIG: [&str; 15] = [
    "server",
    "admin",
    "upstream",
    "store",
    "identity",
    "identity_hash_secret",
    "identity_hash_secret_file",
    "tier_lookup",
    "headers",
    "shedding",
    "slow_thresholds",
    "self_service",
    "usage",
    "log",
    "tracing",
];
/// The keys of `tiers.yaml`.
const OF_TIERS: [&str; 8] = [
    "default_tier",
    "tiers",
    "subscriptions",
    "networks",
    "identities",
    "endpoints",
    "mode",
    "tests",
];

/// Adds the hint to what is wrong with `tollgate.yaml`.
pub fn hint_in_config(errors: &mut [ConfigError]) {
    hint(errors, &OF_TIERS, "a key of the policy, which --tiers names");
}

/// Adds the hint to what is wrong with `tiers.yaml`.
pub fn hint_in_tiers(errors: &mut [ConfigError]) {
    hint(errors, &OF_CONFIG, "a key of the configuration, which --config names");
}

fn hint(errors: &mut [ConfigError], keys: &[&str], sentence: &str) {
    let is_unknown = |error: &&mut ConfigError| {
        error.message.starts_with("unknown key") && keys.contains(&error.path.as_str())
    };
    for error in errors.iter_mut().filter(is_unknown) {
        error.suggestion = Some(sentence.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::json_schema;

    #[test]
    fn the_keys_are_those_of_the_files() {
        for (schema, keys) in
            [(json_schema::of_config(), &OF_CONFIG[..]), (json_schema::of_tiers(), &OF_TIERS[..])]
        {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            let mut known: Vec<&String> =
                schema["properties"].as_object().unwrap().keys().collect();
            known.sort_unstable();
            assert_eq!(keys, known);
        }
    }
}
