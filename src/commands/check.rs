//! `tollgate check`: both files, every error at once, and the policy's own tests.

use serde_json::{Value, json};

use crate::config::compile_tiers::PolicyTest;
use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Loaded, Overrides, examine};
use crate::config::report::ConfigError;
use crate::config::schema_tiers::DispositionSpec;
use crate::config::url::RedisUrl;
use crate::policy::caller::Caller;
use crate::policy::compiled::Policy;
use crate::policy::facts::RequestFacts;
use crate::policy::plan::Disposition;
use crate::redis::target::Form;

use super::{CheckArgs, Failure, Format, print};

/// One of the policy's tests, run.
struct TestResult {
    path: String,
    line: Option<usize>,
    request: String,
    /// What was found where something else was expected.
    differences: Vec<String>,
}

/// Validates both files and runs the policy's tests.
///
/// # Errors
/// Errors in a file, or a test that fails.
pub fn check(args: &CheckArgs) -> Result<(), Failure> {
    let examined = examine(&LoadRequest {
        config: args.files.config.as_deref(),
        tiers: args.files.tiers.as_deref(),
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|name| std::env::var(name).ok(),
    });
    let mut notes = Vec::new();
    let (errors, warnings, tests) = match &examined {
        Ok(Loaded { policy, warnings, tests, settings, .. }) => {
            let results: Vec<TestResult> = tests.iter().map(|it| run_test(policy, it)).collect();
            notes.extend(settings.redis.as_ref().into_iter().flat_map(|it| redis_notes(&it.url)));
            (&[][..], warnings.as_slice(), results)
        }
        Err(rejected) => (rejected.errors.0.as_slice(), rejected.warnings.as_slice(), Vec::new()),
    };
    match args.format {
        Format::Human => {
            for note in &notes {
                print(format_args!("note: {note}\n"));
            }
            print_human(errors, warnings, &tests);
        }
        Format::Json => {
            let mut found = as_json(errors, warnings, &tests);
            if let Some(found) = found.as_object_mut().filter(|_| !notes.is_empty()) {
                found.insert("notes".to_owned(), json!(notes));
            }
            print(found);
        }
    }
    let is_fine = errors.is_empty() && tests.iter().all(|test| test.differences.is_empty());
    if is_fine { Ok(()) } else { Err(Failure::Reported) }
}

/// What differs from one server, and is nobody's fault.
fn redis_notes(url: &RedisUrl) -> Vec<&'static str> {
    const LOST: &str = "store.redis.url: replication is asynchronous, so that what was counted in \
        the last moments before a failover may be lost";
    match url.form {
        Form::Single(_) => Vec::new(),
        Form::Sentinel { .. } => vec![LOST],
        Form::Cluster { .. } => vec![
            "store.redis.url: of a cluster, all limits of a request are decided as one, for they \
             are of one identity, which has one slot; overrides and usage records have each a \
             slot of their own, and are never changed in one with a limit",
            LOST,
        ],
    }
}

fn run_test(policy: &Policy, test: &PolicyTest) -> TestResult {
    let facts = RequestFacts::of(&test.method, &test.target, None, &test.headers, test.ip);
    let mut differences = Vec::new();
    let caller = Caller { credential: test.credential.clone(), ..policy.anonymous(&facts) };
    match policy.plan(&facts, &caller) {
        Err(error) => differences.push(format!("the request is refused with 400: {error}")),
        Ok(plan) => {
            let mut compare = |what: &str, found: String, expected: &Option<String>| {
                if expected.as_ref().is_some_and(|expected| *expected != found) {
                    let expected = expected.as_deref().unwrap_or_default();
                    differences.push(format!("{what} is {found}, expected {expected}"));
                }
            };
            let tier = policy.tier(plan.tier).map_or("?", |tier| &tier.name);
            compare("tier", tier.to_owned(), &test.tier);
            let endpoint = policy.endpoint_name(plan.endpoint);
            compare("endpoint", endpoint.to_owned(), &test.endpoint);
            compare("identity", plan.identity.to_string(), &test.identity);
            compare("cost", plan.cost.to_string(), &test.cost.map(|cost| cost.to_string()));
            let expected = test.disposition.map(|it| disposition(expected_disposition(it)));
            compare("disposition", disposition(plan.disposition), &expected);
        }
    }
    TestResult {
        path: test.path.clone(),
        line: test.mark.map(|mark| mark.line),
        request: format!("{} {}", test.method, test.target),
        differences,
    }
}

fn disposition(disposition: Disposition) -> String {
    let word = match disposition {
        Disposition::Limited => "limited",
        Disposition::Exempt => "exempt",
        Disposition::Unlimited => "unlimited",
        Disposition::Refused => "refused",
    };
    word.to_owned()
}

fn expected_disposition(spec: DispositionSpec) -> Disposition {
    match spec {
        DispositionSpec::Limited => Disposition::Limited,
        DispositionSpec::Exempt => Disposition::Exempt,
        DispositionSpec::Unlimited => Disposition::Unlimited,
        DispositionSpec::Refused => Disposition::Refused,
    }
}

fn print_human(errors: &[ConfigError], warnings: &[ConfigError], tests: &[TestResult]) {
    for error in errors {
        print(format_args!("error: {error}\n"));
    }
    for warning in warnings {
        print(format_args!("warning: {warning}\n"));
    }
    for test in tests.iter().filter(|test| !test.differences.is_empty()) {
        let line = test.line.map(|line| format!(" (line {line})")).unwrap_or_default();
        print(format_args!("test failed: {}{line}: {}", test.path, test.request));
        for difference in &test.differences {
            print(format_args!("  {difference}"));
        }
    }
    let passed = tests.iter().filter(|test| test.differences.is_empty()).count();
    let tests = if errors.is_empty() {
        format!("{passed} of {} passed", counted(tests.len(), "test"))
    } else {
        "tests not run".to_owned()
    };
    print(format_args!(
        "{}, {}, {tests}",
        counted(errors.len(), "error"),
        counted(warnings.len(), "warning")
    ));
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn as_json(errors: &[ConfigError], warnings: &[ConfigError], tests: &[TestResult]) -> Value {
    let entry = |error: &ConfigError| {
        json!({
            "file": error.file,
            "line": error.line,
            "column": error.column,
            "path": error.path,
            "message": error.message,
            "expected": error.expected,
            "suggestion": error.suggestion,
        })
    };
    let tests: Vec<Value> = tests
        .iter()
        .map(|test| {
            json!({
                "path": test.path,
                "line": test.line,
                "request": test.request,
                "passed": test.differences.is_empty(),
                "differences": test.differences,
            })
        })
        .collect();
    json!({
        "errors": errors.iter().map(entry).collect::<Vec<_>>(),
        "warnings": warnings.iter().map(entry).collect::<Vec<_>>(),
        "tests": tests,
    })
}
