//! What tiers and rules have in common: names and limits.
//!
//! Owns what a name may look like, and which limits make sense.

use std::collections::HashMap;
use std::num::NonZeroU32;

use crate::limiter::quota::{Bucket, LIMIT_MAX, LimitSet, Mode};

use super::compile::not_defined;
use super::report::{Path, Problem, Report, Step};
use super::schema_tiers::{LimitSpec, ModeSpec};
use super::url::quoted;
use super::value::Ordered;
use super::warnings;

/// They are label values, and parts of Redis keys.
const NAME_BYTES_MAX: usize = 64;
/// Tiers by name, in the order of the file.
pub struct Names<'a> {
    /// In the order of the file.
    pub list: Vec<&'a str>,
    /// Each name's place.
    pub index: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    /// The names of a file's tiers.
    pub fn new(specs: &'a Ordered<LimitSpec>) -> Self {
        let list: Vec<&str> = specs.iter().map(|(name, _)| name).collect();
        let index = list.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        Names { list, index }
    }

    /// The place of a tier that the field at `path` names; reported, where there is none.
    pub fn find(&self, path: Path, name: &str, report: &mut Report<'_>) -> Option<usize> {
        let index = self.index.get(name).copied();
        if index.is_none() {
            report.value(path, not_defined("tier", name, self.list.iter().copied()));
        }
        index
    }
}

/// The mode, in the limiter's words.
pub fn mode(mode: ModeSpec) -> Mode {
    match mode {
        ModeSpec::Enforce => Mode::Enforce,
        ModeSpec::Shadow => Mode::Shadow,
    }
}

/// The limits of a tier, or of a rule for one tier.
pub fn limit_set(path: &[Step], spec: &LimitSpec, report: &mut Report<'_>) -> LimitSet {
    let below = |key: &str| [path, &[Step::from(key)]].concat();
    let mut window = |key: &str, number: Option<u32>| {
        match number {
            Some(0) => report.value(below(key), Problem::new("0").expected("at least 1")),
            Some(number) if number > LIMIT_MAX => report.value(below(key), too_large(number)),
            _ => {}
        }
        number.filter(|number| *number <= LIMIT_MAX).and_then(NonZeroU32::new)
    };
    let rate = window("per_second", spec.per_second);
    let burst = window("burst", spec.burst);
    let minute = window("per_minute", spec.per_minute);
    let hour = window("per_hour", spec.per_hour);
    let day = window("per_day", spec.per_day);
    let month = window("per_month", spec.per_month);
    let concurrency = window("concurrency", spec.concurrency);
    if burst.is_some() && spec.per_second.is_none() {
        let problem = Problem::new("burst without per_second").expected("both, or neither");
        report.key(below("burst"), problem);
    }
    let second = rate.map(|rate| Bucket { rate, burst: burst.unwrap_or(rate) });
    let set = LimitSet { second, minute, hour, day, month, concurrency };
    warnings::limits(path, &set, burst.is_some(), report);
    set
}

/// What is wrong with a limit or a cost above [`LIMIT_MAX`].
pub fn too_large(number: u32) -> Problem {
    Problem::new(number.to_string()).expected(format!("at most {LIMIT_MAX}"))
}

/// What is wrong with a name of a tier or a rule: it becomes a label and a part of keys.
pub fn bad_name(name: &str, reserved: &[&str]) -> Option<Problem> {
    if reserved.contains(&name) {
        let problem = Problem::new(format!("{} is a reserved name", quoted(name)));
        return Some(problem.expected("another name"));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let is_good = begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain);
    let expected = "up to 64 letters, digits, and any of _-. behind the first";
    (!is_good).then(|| Problem::new(quoted(name)).expected(expected))
}
