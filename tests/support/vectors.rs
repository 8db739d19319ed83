//! Runs `tests/vectors/*.yaml` against anything that checks a plan: the pure limiter, the store in
//! memory, the script in Redis. The same file has the same answers everywhere.
//!
//! A file names the scopes that its requests meet, then the requests in order. Times are relative
//! to `start_us`, which is a whole hour; `reset` is in seconds after it. What a step leaves out is
//! not looked at, but for `retry_after`: absent means that there must be none.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use tollgate::limiter::check::Limits;
use tollgate::limiter::decision::{Decision, LimitStatus, Verdict};
use tollgate::limiter::quota::{Bucket, LimitSet, Mode};
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::policy::identity::Identity;
use tollgate::policy::plan::{Plan, Scope, TierId, TierSource};

/// One file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// What it shows, in a sentence.
    #[allow(dead_code)]
    pub law: String,
    /// Microseconds since the epoch that every other time is relative to.
    pub start_us: u64,
    /// `tier` and rules by name.
    pub scopes: BTreeMap<String, ScopeSpec>,
    /// Requests in order.
    pub steps: Vec<Step>,
}

/// The limits of one scope.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeSpec {
    per_second: Option<NonZeroU32>,
    burst: Option<NonZeroU32>,
    per_minute: Option<NonZeroU32>,
    per_hour: Option<NonZeroU32>,
    per_day: Option<NonZeroU32>,
    per_month: Option<NonZeroU32>,
    concurrency: Option<NonZeroU32>,
    #[serde(default)]
    shadow: bool,
}

/// One request, or several of the same kind; `shown` and the rest are those of the last.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    at_us: i64,
    #[serde(default = "one")]
    cost: u32,
    #[serde(default = "one")]
    times: u32,
    #[serde(default)]
    every_us: i64,
    /// Which scopes it meets, the tier's first; absent: all of the file.
    meets: Option<Vec<String>>,
    /// New limits of scopes, from this request on.
    reload: Option<BTreeMap<String, ScopeSpec>>,
    verdict: ExpectedVerdict,
    shown: Option<Shown>,
    wait_us: Option<u64>,
    retry_after: Option<u64>,
    shadow_denied: Option<bool>,
    #[serde(default)]
    limits: Vec<ExpectedStatus>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ExpectedVerdict {
    Allow,
    Deny,
}

/// What the answer's fields say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shown {
    scope: Option<String>,
    period: String,
    limit: u32,
    remaining: u32,
    reset: i64,
}

/// The state of one limit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedStatus {
    #[serde(default = "tier")]
    scope: String,
    period: String,
    remaining: u32,
    wait_us: Option<u64>,
    whole_at_us: Option<i64>,
}

fn one() -> u32 {
    1
}

fn tier() -> String {
    "tier".to_owned()
}

/// Runs every file, each with an identity of its own.
pub fn run_all(check: &mut dyn FnMut(&Plan<'_>, Timestamp) -> Decision) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(files.len() >= 10, "the vectors are gone");
    for file in files {
        run(&file, check);
    }
}

/// Runs one file.
pub fn run(file: &Path, check: &mut dyn FnMut(&Plan<'_>, Timestamp) -> Decision) {
    let name = file.file_stem().unwrap().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(file).unwrap();
    let vector: Vector =
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let identity = Identity::User(format!("vector {name}").into());
    let mut scopes = vector.scopes;
    for (index, step) in vector.steps.iter().enumerate() {
        scopes.extend(step.reload.clone().unwrap_or_default());
        let meets = step.meets.clone().unwrap_or_else(|| names(&scopes));
        let keys: Vec<String> = meets.iter().map(|name| scope_key(name)).collect();
        for nth in 0..step.times {
            let at_us = step.at_us + i64::from(nth) * step.every_us;
            let now = Timestamp::from_micros(vector.start_us.checked_add_signed(at_us).unwrap());
            let mut plan = Plan::new(identity.clone(), TierId(0), TierSource::Default);
            plan.cost = step.cost;
            for (name, key) in meets.iter().zip(&keys) {
                let limits = limits(&scopes[name]);
                plan.push(Scope { rule: None, key, key_hash: fnv1a(key), limits });
            }
            let decision = check(&plan, now);
            let case = Case {
                place: format!("{name}, step {index}, request {nth} at {at_us} us"),
                start_us: vector.start_us,
                meets: &meets,
                decision: &decision,
            };
            case.sound(now);
            case.verdict(step);
            if nth + 1 == step.times {
                case.details(step);
            }
        }
    }
}

struct Case<'v> {
    place: String,
    start_us: u64,
    meets: &'v [String],
    decision: &'v Decision,
}

impl Case<'_> {
    /// What holds for every decision.
    fn sound(&self, now: Timestamp) {
        for status in self.decision.statuses() {
            assert!(status.remaining <= status.limit, "{}: {status:?}", self.place);
            if !status.wait.is_zero() && status.wait < Micros::NEVER {
                let whole_in = status.whole_at.since(now);
                assert!(status.wait <= whole_in, "{}: waits past {status:?}", self.place);
            }
        }
    }

    fn verdict(&self, step: &Step) {
        let expected = match step.verdict {
            ExpectedVerdict::Allow => Verdict::Allow,
            ExpectedVerdict::Deny => Verdict::Deny,
        };
        assert_eq!(self.decision.verdict, expected, "{}: {:?}", self.place, self.decision.shown());
    }

    fn details(&self, step: &Step) {
        let place = &self.place;
        assert_eq!(self.decision.retry_after(), step.retry_after, "{place}: retry_after");
        if let Some(wait_us) = step.wait_us {
            let shown = self.decision.shown().unwrap();
            assert_eq!(shown.wait.as_micros(), wait_us, "{place}: wait");
        }
        if let Some(expected) = &step.shown {
            let shown = self.decision.shown().unwrap();
            let reset = shown.whole_at.as_secs_ceil() as i64 - (self.start_us / 1_000_000) as i64;
            let found = (self.scope(shown), shown.period.as_str(), shown.limit, shown.remaining);
            let scope = expected.scope.as_deref().unwrap_or("tier");
            let wanted = (scope, expected.period.as_str(), expected.limit, expected.remaining);
            assert_eq!((found, reset), (wanted, expected.reset), "{place}: shown");
        }
        if let Some(shadow_denied) = step.shadow_denied {
            assert_eq!(self.decision.shadow_denied(), shadow_denied, "{place}: shadow_denied");
        }
        for expected in &step.limits {
            self.status(expected);
        }
    }

    fn status(&self, expected: &ExpectedStatus) {
        let is_it = |status: &&LimitStatus| {
            self.scope(status) == expected.scope && status.period.as_str() == expected.period
        };
        let place = format!("{}: {} {}", self.place, expected.scope, expected.period);
        let found = self.decision.statuses().iter().find(is_it);
        let found = found.unwrap_or_else(|| panic!("{place}: not there"));
        assert_eq!(found.remaining, expected.remaining, "{place}: remaining");
        if let Some(wait_us) = expected.wait_us {
            assert_eq!(found.wait.as_micros(), wait_us, "{place}: wait");
        }
        if let Some(whole_at_us) = expected.whole_at_us {
            let whole_at_found = found.whole_at.as_micros() as i64 - self.start_us as i64;
            assert_eq!(whole_at_found, whole_at_us, "{place}: whole_at");
        }
    }

    fn scope(&self, status: &LimitStatus) -> &str {
        &self.meets[usize::from(status.scope)]
    }
}

/// The tier's scope first, as a plan has it.
fn names(scopes: &BTreeMap<String, ScopeSpec>) -> Vec<String> {
    let mut names: Vec<String> = scopes.keys().cloned().collect();
    names.sort_by_key(|name| name != "tier");
    names
}

fn scope_key(name: &str) -> String {
    if name == "tier" { "i".to_owned() } else { format!("e:{name}") }
}

fn limits(spec: &ScopeSpec) -> Limits {
    let bucket = |rate| Bucket { rate, burst: spec.burst.unwrap_or(rate) };
    let set = LimitSet {
        second: spec.per_second.map(bucket),
        minute: spec.per_minute,
        hour: spec.per_hour,
        day: spec.per_day,
        month: spec.per_month,
        concurrency: spec.concurrency,
    };
    Limits { set, mode: if spec.shadow { Mode::Shadow } else { Mode::Enforce } }
}

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
