//! Readings of a path, alone and beside models of backends.

use std::path::Path;
use std::sync::LazyLock;

use http::uri::PathAndQuery;

use tollgate::config::load::load_policy;
use tollgate::policy::compiled::Policy;
use tollgate::policy::path::Readings;
use tollgate::policy::plan::Plan;

use super::{SETTINGS, get, models};

/// A policy with the rules of the models, each limited, and nothing else.
static LIMITED: LazyLock<Policy> = LazyLock::new(|| limited(&models::RULES));

/// A policy that has a rule for each depth, so that one path may meet as many as it has readings.
static BY_DEPTH: LazyLock<Policy> = LazyLock::new(|| {
    let path = |depth: usize| (0..depth).map(|it| format!("/{{s{it}}}")).collect::<String>();
    limited(&(1..=BY_DEPTH_MAX).map(path).collect::<Vec<_>>())
});
const BY_DEPTH_MAX: usize = 12;

fn limited(paths: &[impl AsRef<str>]) -> Policy {
    let mut text = String::from("endpoints:\n");
    for (index, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        let what = match path {
            path if path == models::RULES[models::EXEMPT] => "exempt: true",
            _ => "limits: {any: {per_minute: 9}}",
        };
        text += &format!("- {{name: r{index}, path: \"{path}\", {what}}}\n");
    }
    let loaded = load_policy(Path::new("tiers.yaml"), text.into_bytes(), &SETTINGS, &|_| None);
    loaded.expect("the rules are valid").policy
}

/// Readings of a path, alone and beside models of backends.
///
/// The input is a target as it may stand in a request, and once more raw material for an honest
/// link: segments that an application would encode.
pub fn path(data: &[u8]) {
    readings_are_sound(data);
    if let Ok(target) = PathAndQuery::try_from(data) {
        no_backend_serves_it_uncounted(target.path());
        every_depth_is_counted(target.path());
    }
    let mut link = Vec::new();
    for segment in data.split(|it| *it == b'/') {
        link.push(b'/');
        for byte in segment {
            let is_pchar = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(byte);
            if is_pchar { link.push(*byte) } else { link.extend(format!("%{byte:02X}").bytes()) }
        }
    }
    let readings = Readings::of(&link);
    assert_eq!(readings.is_err(), models::is_to_be_refused(&link), "{}", link.escape_ascii());
    let link = std::str::from_utf8(&link).expect("it is ASCII");
    no_backend_serves_it_uncounted(link);
    every_depth_is_counted(link);
}

fn readings_are_sound(raw: &[u8]) {
    let end = raw.iter().position(|it| matches!(it, b'?' | b'#')).unwrap_or(raw.len());
    let (path, shown) = (&raw[..end], raw.escape_ascii());
    let Ok(readings) = Readings::of(raw) else {
        let has_reading = path.is_empty() || path == b"*" || path.starts_with(b"/");
        assert!(!has_reading || models::is_to_be_refused(path), "{shown} is refused");
        return;
    };
    if path == b"*" {
        return assert_eq!((readings.strict(), readings.agree()), (path, true));
    }
    assert!(!models::is_to_be_refused(path), "{shown} is not refused");
    // Without its dot segments, a path may climb above the root where disguised ones are left.
    if let Ok(again) = Readings::of(readings.strict()) {
        assert_eq!(again.strict(), readings.strict(), "{shown}: strict twice");
    }
    let two = [readings.strict(), readings.lenient()];
    for reading in two.into_iter().chain(readings.further().iter().map(|it| &*it.path)) {
        assert_eq!(reading.first(), Some(&b'/'), "{shown}");
        assert!(reading.len() <= 3 * raw.len() + 1, "{shown}");
    }
    for reading in two {
        let is_dots = |it: &[u8]| matches!(it, b"." | b"..");
        assert!(!reading.split(|it| *it == b'/').any(is_dots), "{shown}");
    }
    let lenient = readings.lenient();
    assert_eq!(lenient, lenient.to_ascii_lowercase(), "{shown}");
    assert!(!lenient.windows(2).any(|it| it == b"//"), "{shown}");
    assert!(lenient == b"/" || !lenient.ends_with(b"/"), "{shown}");
    assert!(readings.further().len() <= 25, "{shown}");
}

/// The places of the rules whose limits are asked for this path, unless it is refused.
fn checked(policy: &Policy, path: &str) -> Option<Vec<usize>> {
    let facts = get(path, None);
    let plan = policy.plan(&facts, &policy.anonymous(&facts));
    assert_eq!(plan.is_err(), models::is_to_be_refused(path.as_bytes()), "{path:?}");
    let rules = |plan: &Plan<'_>| plan.scopes().filter_map(|it| it.rule).collect::<Vec<_>>();
    Some(rules(&plan.ok()?).into_iter().map(|it| usize::from(it.0)).collect())
}

/// For each resource that a model of a backend serves for this path, tollgate checks its limits, or
/// refuses the path.
pub fn no_backend_serves_it_uncounted(path: &str) {
    let Some(checked) = checked(&LIMITED, path) else { return };
    for (name, model) in models::MODELS {
        for resource in model(path.as_bytes()).into_iter().filter(|it| *it != models::EXEMPT) {
            assert!(
                checked.contains(&resource),
                "{name} serves {} for {path:?}, whose limits are not asked",
                models::RULES[resource],
            );
        }
    }
}

/// However many endpoints a path may be, each is asked for its limits, and it is not refused.
pub fn every_depth_is_counted(path: &str) {
    let checked = checked(&BY_DEPTH, path);
    let (Some(checked), Ok(readings)) = (checked, Readings::of(path.as_bytes())) else { return };
    let further = readings.further().iter().map(|it| &*it.path);
    for reading in [readings.strict(), readings.lenient()].into_iter().chain(further) {
        let segments: Vec<&[u8]> = reading.split(|it| *it == b'/').skip(1).collect();
        let depth = segments.len();
        let has_rule =
            (1..=BY_DEPTH_MAX).contains(&depth) && segments.iter().all(|it| !it.is_empty());
        assert!(
            !has_rule || checked.contains(&(depth - 1)),
            "{path:?}: depth {depth} of {checked:?}"
        );
    }
}
