//! The two files through their loaders.

use std::path::Path;

use tollgate::config::load::{Overrides, load_policy, look_through_config};
use tollgate::config::report::ConfigErrors;

use super::{SETTINGS, get};

/// `tiers.yaml` through the loader, and what loads through a request.
pub fn tiers(data: &[u8]) {
    let env = |name: &str| (name == "SET").then(|| "7".to_owned());
    let name = "dir/tiers.yaml";
    match load_policy(Path::new(name), data.to_vec(), &SETTINGS, &env) {
        Ok(loaded) => {
            assert_eq!(loaded.policy_hash.len(), 64);
            assert!(!loaded.policy.tiers().is_empty());
            for path in ["/", "/fo/history/2025", "/reports/7/export", "/a%2f..%2fb/../c"] {
                let facts = get(path, Some("a.example"));
                let plan = loaded.policy.plan(&facts, &loaded.policy.anonymous(&facts));
                if let Ok(plan) = plan {
                    assert!(loaded.policy.tier(plan.tier).is_some());
                    assert!(plan.cost > 0);
                }
            }
        }
        Err(errors) => tell_the_place(&errors, name, data),
    }
}

/// `tollgate.yaml` likewise, without looking at the files that it names in `/dev` and the like.
pub fn config(data: &[u8]) {
    if data.windows(4).any(|it| matches!(it, b"/dev" | b"/pro" | b"/sys")) {
        return;
    }
    let env = |name: &str| (name == "SET").then(|| "7".to_owned());
    let name = "dir/tollgate.yaml";
    let looked = look_through_config(Path::new(name), data.to_vec(), &Overrides::default(), &env);
    if let Err(errors) = looked {
        tell_the_place(&errors, name, data);
    }
}

fn tell_the_place(ConfigErrors(errors): &ConfigErrors, name: &str, data: &[u8]) {
    assert!(!errors.is_empty());
    // A carriage return alone may end a line, too.
    let lines = 1 + data.iter().filter(|it| matches!(**it, b'\n' | b'\r')).count();
    for error in errors {
        assert_eq!(error.file.as_deref(), Some(name), "{error}");
        assert!(!error.message.is_empty(), "{error}");
        if let Some(line) = error.line {
            assert!((1..=lines + 1).contains(&line), "{error} of {lines} lines");
            assert!(error.column.is_some_and(|it| it > 0), "{error}");
        }
        let _ = error.to_string();
    }
}
