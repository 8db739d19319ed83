//! The alerts that ship, in `deploy/`: that there are those that were promised, that Prometheus's
//! own tools are content, that each alert is tested both ways, and that no rule asks for a metric,
//! a label or a value that tollgate does not have. What really running servers make of them is in
//! `alerts_end_to_end.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/made.rs"]
mod made;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/promql.rs"]
mod promql;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;
use tollgate::metrics::names::{self, Kind};

use prometheus::{program, run};
use promql::{Matcher, Selector};

/// The six groups and their eighteen alerts.
const EIGHTEEN: [(&str, &[&str]); 6] = [
    (
        "tollgate.backpressure",
        &[
            "HighEventLoopLag",
            "CriticalEventLoopLag",
            "DatabasePoolExhaustion",
            "HighAsyncTaskCount",
        ],
    ),
    ("tollgate.memory", &["HighMemoryUsage", "MemoryLeakSuspected", "HighGCRate"]),
    (
        "tollgate.api-performance",
        &["HighAPILatency", "CriticalAPILatency", "HighErrorRate", "SlowQueryDetected"],
    ),
    ("tollgate.rate-limiting", &["HighRateLimitBlockRate", "PossibleDDoSAttack"]),
    ("tollgate.dependencies", &["DatabaseUnhealthy", "RedisUnhealthy", "CircuitBreakerOpen"]),
    ("tollgate.websockets", &["HighWebSocketConnections", "WebSocketConnectionSpike"]),
];

/// Files with alerts.
const ALERTS: [&str; 3] = ["alerts.yml", "extra_alerts.yml", "slo_alerts.yml"];
/// Files with rules.
const RULES: [&str; 4] =
    ["alerts.yml", "extra_alerts.yml", "recording_rules.yml", "slo_alerts.yml"];
/// Their tests.
const TESTS: [&str; 5] = [
    "alerts.yml",
    "extra_alerts.yml",
    "extra_alerts_of_days.yml",
    "slo_alerts.yml",
    "slo_alerts_of_days.yml",
];

/// Labels that Prometheus gives to every series, and that of buckets.
const TARGET_LABELS: [&str; 3] = ["job", "instance", "le"];

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Every rule of a file of `deploy/prometheus`, with the name of its group.
fn rules(file: &str) -> Vec<(String, Value)> {
    let read = yaml(&format!("deploy/prometheus/{file}"));
    let mut rules = Vec::new();
    for group in list(&read["groups"]) {
        for rule in list(&group["rules"]) {
            rules.push((text(&group["name"]).to_owned(), rule.clone()));
        }
    }
    assert!(!rules.is_empty(), "{file} has no rules");
    rules
}

/// Every alert that ships.
fn alerts() -> Vec<Value> {
    let all = ALERTS.iter().flat_map(|file| rules(file));
    all.map(|(_, rule)| rule).filter(|rule| !rule["alert"].is_null()).collect()
}

/// The cases of every file of tests.
fn cases() -> Vec<Value> {
    let files = TESTS.iter().map(|file| yaml(&format!("deploy/prometheus/tests/{file}")));
    files.flat_map(|file| list(&file["tests"]).to_vec()).collect()
}

/// Fails, and says all that was found.
fn none(wrong: &[String], promise: &str) {
    assert!(wrong.is_empty(), "{promise}:\n{}", wrong.join("\n"));
}

#[test]
fn eighteen_alerts_in_six_groups() {
    let mut found = Vec::<(String, Vec<String>)>::new();
    for (group, rule) in rules("alerts.yml") {
        let name = text(&rule["alert"]).to_owned();
        match found.last_mut() {
            Some((last, names)) if *last == group => names.push(name),
            _ => found.push((group, vec![name])),
        }
    }
    let expected: Vec<(String, Vec<String>)> = EIGHTEEN
        .iter()
        .map(|(group, names)| {
            ((*group).to_owned(), names.iter().map(|it| (*it).to_owned()).collect())
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(found.iter().map(|(_, names)| names.len()).sum::<usize>(), 18);
}

#[test]
fn alerts_say_what_their_readers_need() {
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = text(&alert["alert"]);
        let (labels, annotations) = (&alert["labels"], &alert["annotations"]);
        let mut expect = |holds: bool, what: &str| {
            if !holds {
                wrong.push(format!("{name}: {what}"));
            }
        };
        expect(names.insert(name.to_owned()), "is there twice");
        expect(matches!(text(&labels["severity"]), "warning" | "critical"), "its severity");
        expect(!text(&labels["category"]).is_empty(), "its category");
        expect(labels["team"] == "platform", "its team");
        expect(labels.as_object().unwrap().len() == 3, "has labels beside these three");
        let summary = text(&annotations["summary"]);
        expect(!summary.is_empty() && summary.len() < 90, "its summary is one short line");
        expect(!summary.ends_with('.'), "its summary is no sentence");
        let description = text(&annotations["description"]);
        expect(description.ends_with('.'), "its description ends as sentences do");
        expect(!description.contains('\n'), "its description is one line");
        let runbook = format!("docs/runbooks/{name}.md");
        expect(annotations["runbook_url"] == runbook.as_str(), "its runbook");
        expect(annotations["dashboard"] == "tollgate-overview", "its dashboard");
        // A bare value is seven digits and no unit.
        for part in [summary, description] {
            expect(!part.contains("{{ $value }}"), "shows a value that is not made readable");
        }
    }
    none(&wrong, "alerts carry what routes and people rely on");
}

#[test]
fn every_alert_is_tested_both_ways() {
    let cases = cases();
    let mut wrong = Vec::new();
    for alert in alerts() {
        let name = text(&alert["alert"]).to_owned();
        let checks = |case: &Value| -> Vec<Value> {
            let all = list(&case["alert_rule_test"]).iter();
            all.filter(|it| it["alertname"] == name.as_str()).cloned().collect()
        };
        let named = |how: &str| {
            let start = format!("{name} {how}");
            let all = cases.iter().filter(move |it| text(&it["name"]).starts_with(&start));
            all.flat_map(checks).collect::<Vec<_>>()
        };
        let fires = named("fires");
        if !fires
            .iter()
            .any(|it| list(&it["exp_alerts"]).iter().any(|it| it["exp_annotations"].is_object()))
        {
            wrong.push(format!("{name}: no case that fires it, with labels and annotations"));
        }
        let quiet = named("stays quiet: ");
        if quiet.is_empty() || quiet.iter().any(|it| !list(&it["exp_alerts"]).is_empty()) {
            wrong.push(format!("{name}: no near miss that must not fire it"));
        }
    }
    // A case without a check passes whatever happens.
    for case in &cases {
        let count = list(&case["alert_rule_test"]).len() + list(&case["promql_expr_test"]).len();
        if count == 0 {
            wrong.push(format!("{}: checks nothing", case["name"]));
        }
    }
    none(&wrong, "every alert fires when it should and at no other time");
}

#[test]
fn promtool_finds_nothing_wrong() {
    let Some(promtool) = program("promtool") else { return };
    let files = RULES.map(|file| format!("deploy/prometheus/{file}"));
    let mut arguments = vec!["check", "rules", "--lint=all", "--lint-fatal"];
    arguments.extend(files.iter().map(String::as_str));
    let (is_good, said) = run(&promtool, &arguments);
    assert!(is_good, "{said}");
    assert!(said.contains("SUCCESS: 18 rules found"), "{said}");
    let (is_good, said) = run(&promtool, &["check", "config", "deploy/prometheus/prometheus.yml"]);
    assert!(is_good, "{said}");
    assert!(said.contains("SUCCESS: 4 rule files found"), "{said}");
}

#[test]
fn alerts_fire_and_stay_quiet_as_tested() {
    let Some(promtool) = program("promtool") else { return };
    let shipped = std::fs::read_dir("deploy/prometheus/tests").unwrap();
    let shipped = shipped.map(|it| it.unwrap().file_name().into_string().unwrap());
    assert_eq!(shipped.collect::<BTreeSet<_>>(), TESTS.map(str::to_owned).into());
    std::thread::scope(|scope| {
        for file in TESTS {
            let promtool = &promtool;
            scope.spawn(move || {
                let path = format!("deploy/prometheus/tests/{file}");
                let (is_good, said) = run(promtool, &["test", "rules", &path]);
                assert!(is_good, "{said}");
            });
        }
    });
}

/// What the registry knows of a series' name: its labels, with the values of closed sets.
fn registered(series: &str) -> Option<&'static names::Desc> {
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| {
        let family = series.strip_suffix(part)?;
        names::ALL.iter().find(|it| it.name == family && it.kind == Kind::Histogram)
    });
    let plain = || names::ALL.iter().find(|it| it.name == series && it.kind != Kind::Histogram);
    of_histogram.or_else(plain)
}

/// What is wrong with what an expression asks for.
fn misses(expression: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    let asked = promql::names(expression);
    let mut wrong = Vec::new();
    let mut known: BTreeSet<&str> = TARGET_LABELS.into();
    for Selector { name: series, matchers, .. } in &asked.selectors {
        if recorded.contains(series) {
            // `job_tier:what:how` has the labels that its name begins with.
            known.extend(series.split(':').next().unwrap().split('_'));
            continue;
        }
        if series == "up" {
            continue;
        }
        let Some(desc) = registered(series) else {
            wrong.push(format!("there is no {series}"));
            continue;
        };
        known.extend(desc.labels);
        for Matcher { label, operator, value } in matchers {
            let Some(index) = desc.labels.iter().position(|it| it == label) else {
                let is_edge = label == "le" && desc.kind == Kind::Histogram;
                if !is_edge && !matches!(label.as_str(), "job" | "instance") {
                    wrong.push(format!("{series} has no label {label}"));
                }
                continue;
            };
            // Sets that the configuration makes are empty here; a pattern may be no list of values.
            let closed = desc.values[index];
            for value in value.split('|').filter(|_| !closed.is_empty()) {
                let is_there = closed.iter().any(|(it, _)| match value.strip_suffix(".*") {
                    Some(start) if operator.contains('~') => it.starts_with(start),
                    _ => *it == value,
                });
                if !is_there {
                    wrong.push(format!("{series}: {label} is never {value}"));
                }
            }
        }
    }
    for label in asked.grouped.iter().filter(|it| !known.contains(it.as_str())) {
        wrong.push(format!("no series has a label {label}"));
    }
    if asked.selectors.is_empty() {
        wrong.push("it asks for nothing".to_owned());
    }
    wrong
}

#[test]
fn rules_ask_only_for_what_there_is() {
    let all: Vec<Value> = RULES.iter().flat_map(|it| rules(it)).map(|(_, rule)| rule).collect();
    let recorded = all.iter().map(|it| text(&it["record"]).to_owned());
    let recorded: BTreeSet<String> = recorded.filter(|it| !it.is_empty()).collect();
    let mut wrong = Vec::new();
    for rule in &all {
        let name = [text(&rule["alert"]), text(&rule["record"])].concat();
        for what in misses(text(&rule["expr"]), &recorded) {
            wrong.push(format!("{name}: {what}"));
        }
    }
    for case in cases() {
        for series in list(&case["input_series"]) {
            for what in misses(text(&series["series"]), &recorded) {
                wrong.push(format!("{}: {what}", case["name"]));
            }
        }
    }
    none(&wrong, "every metric, label and value of a rule is one of docs/metrics.md");
    // And this would be found.
    for (expression, expected) in [
        ("rate(rate_limit_hit_total[5m]) > 1", "there is no rate_limit_hit_total"),
        ("sum by (endpont) (rate(error_rate_total[5m]))", "no series has a label endpont"),
        ("error_rate_total{kind=\"shed\"}", "error_rate_total has no label kind"),
        (
            "error_rate_total{error_type!~\"shed|late\"}",
            "error_rate_total: error_type is never late",
        ),
        ("tollgate_overhead_seconds > 1", "there is no tollgate_overhead_seconds"),
    ] {
        assert_eq!(misses(expression, &recorded), [expected]);
    }
}

/// Numbers of `le` that a rule names, which must be edges: between two edges a share is a guess.
#[test]
fn edges_in_rules_are_edges_of_their_histograms() {
    let backend = support::Backend::ok();
    let tollgate = support::Tollgate::in_front_of(backend.address);
    let page = tollgate.admin("/metrics").text();
    let mut count = 0;
    for (_, rule) in RULES.iter().flat_map(|it| rules(it)) {
        for Selector { name: series, matchers, .. } in promql::names(text(&rule["expr"])).selectors
        {
            for Matcher { value: edge, .. } in matchers.iter().filter(|it| it.label == "le") {
                count += 1;
                let is_there = page.lines().any(|line| {
                    line.starts_with(&series) && line.contains(&format!("le=\"{edge}\""))
                });
                assert!(is_there, "{series} has no bucket up to {edge}");
            }
        }
    }
    assert!(count > 0);
}

#[test]
fn every_alert_has_its_runbook() {
    let mut wrong = Vec::new();
    for alert in alerts() {
        let path = text(&alert["annotations"]["runbook_url"]).to_owned();
        match std::fs::read_to_string(&path) {
            Ok(page) if page.starts_with(&format!("# {}", text(&alert["alert"]))) => {}
            Ok(_) => wrong.push(format!("{path} does not begin with the alert's name")),
            Err(error) => wrong.push(format!("{path}: {error}")),
        }
    }
    none(&wrong, "every alert has its runbook");
}

// ------------------------------------------------------------------------------------ Alertmanager

const ALERTMANAGER: &str = "deploy/alertmanager/alertmanager.yml";

/// The file with every receiver that stands in a comment switched on.
fn with_all_receivers(shipped: &str) -> String {
    let mut text = String::new();
    for line in shipped.lines() {
        let inside = line.trim_start();
        let content = inside.strip_prefix("# ").unwrap_or_default();
        let first = content.trim_start().trim_start_matches("- ");
        let is_key = first.split_once(':').is_some_and(|(key, rest)| {
            key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
                && (rest.is_empty() || rest.starts_with(' '))
        });
        if line.starts_with("  ") && (is_key || first.starts_with("{{")) {
            let indent = line.len() - inside.len();
            let _ = writeln!(text, "{:indent$}{content}", "");
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[test]
fn amtool_finds_nothing_wrong() {
    let Some(amtool) = program("amtool") else { return };
    let (is_good, said) = run(&amtool, &["check-config", ALERTMANAGER]);
    assert!(is_good, "{said}");

    let shipped = std::fs::read_to_string(ALERTMANAGER).unwrap();
    let all = with_all_receivers(&shipped);
    let read: Value = serde_yaml::from_str(&all).unwrap();
    let kinds: BTreeSet<&str> = list(&read["receivers"])
        .iter()
        .flat_map(|it| it.as_object().unwrap().keys().map(String::as_str))
        .collect();
    let expected =
        ["email_configs", "name", "pagerduty_configs", "slack_configs", "webhook_configs"];
    assert_eq!(kinds, expected.into());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("alertmanager.yml");
    std::fs::write(&path, &all).unwrap();
    let (is_good, said) = run(&amtool, &["check-config", path.to_str().unwrap()]);
    assert!(is_good, "{said}\n{all}");

    // Whatever is secret is named by its file.
    for key in
        ["api_url", "routing_key", "service_key", "password", "credentials", "secret", "token"]
    {
        let inline = all
            .lines()
            .find(|it| it.trim().trim_start_matches("- ").starts_with(&format!("{key}:")));
        assert_eq!(inline, None);
    }
}

#[test]
fn alerts_go_to_whom_they_concern() {
    let Some(amtool) = program("amtool") else { return };
    let option = format!("--config.file={ALERTMANAGER}");
    let mut expected = BTreeMap::new();
    for alert in alerts() {
        let labels = &alert["labels"];
        let (severity, category) = (text(&labels["severity"]), text(&labels["category"]));
        let is_attack = matches!(category, "ratelimit" | "security");
        let receivers = match (severity, is_attack) {
            ("critical", true) => "security,pager",
            ("critical", false) => "pager",
            (_, true) => "security",
            _ => "default",
        };
        expected.insert((severity.to_owned(), category.to_owned()), receivers);
    }
    expected.insert(("info".to_owned(), "anything".to_owned()), "default");
    let kinds: BTreeSet<&str> = expected.values().copied().collect();
    assert_eq!(kinds, ["default", "pager", "security", "security,pager"].into());
    for ((severity, category), receivers) in &expected {
        let (severity, category) = (format!("severity={severity}"), format!("category={category}"));
        let verify = format!("--verify.receivers={receivers}");
        let (is_good, said) =
            run(&amtool, &["config", "routes", "test", &option, &verify, &severity, &category]);
        assert!(is_good, "{severity} {category}: {said}");
    }
    // The check can fail.
    let wrong = "--verify.receivers=default";
    let (is_good, _) =
        run(&amtool, &["config", "routes", "test", &option, wrong, "severity=critical"]);
    assert!(!is_good);
}

/// The labels that an alert has when it fires, of its test.
fn labels_of(cases: &[Value], alert: &str) -> BTreeMap<String, String> {
    let checks = cases.iter().flat_map(|it| list(&it["alert_rule_test"]).to_vec());
    let of_alert = checks.filter(|it| it["alertname"] == alert);
    let labels = of_alert.flat_map(|it| list(&it["exp_alerts"]).to_vec()).next().unwrap();
    let labels = labels["exp_labels"].as_object().unwrap().clone();
    labels.into_iter().map(|(name, value)| (name, text(&value).to_owned())).collect()
}

/// A label under `equal` that neither alert has counts as equal, and silences what it should not.
#[test]
fn what_is_silenced_has_the_labels_that_must_be_equal() {
    let cases = cases();
    let known: Vec<String> = alerts().iter().map(|it| text(&it["alert"]).to_owned()).collect();
    let config = yaml(ALERTMANAGER);
    let mut count = 0;
    for rule in list(&config["inhibit_rules"]) {
        let mut alerts = Vec::new();
        for side in ["source_matchers", "target_matchers"] {
            let matchers = list(&rule[side]);
            let named = text(&matchers[0]).strip_prefix("alertname=").unwrap();
            let pattern = named.trim_start_matches('~').trim_matches('"');
            let names = alternatives(pattern);
            for name in &names {
                assert!(known.contains(name), "{side}: there is no alert {name}");
                let labels = labels_of(&cases, name);
                for matcher in &matchers[1..] {
                    let (label, _) = text(matcher).split_once('=').unwrap();
                    assert!(labels.contains_key(label), "{name} has no label {label}");
                }
            }
            alerts.push(names);
        }
        for name in alerts.iter().flatten() {
            for label in list(&rule["equal"]) {
                let has = labels_of(&cases, name).contains_key(text(label));
                assert!(has, "{name} has no label {label}, which counts as equal to no label");
            }
        }
        assert!(list(&rule["equal"]).iter().any(|it| it == "job"), "{rule}: whatever the job");
        count += 1;
    }
    assert!(count > 10);
}

/// The names that `A|B`, `A(B|C)` or `A` stands for.
fn alternatives(pattern: &str) -> Vec<String> {
    match pattern.split_once('(') {
        Some((start, rest)) => {
            let rest = rest.trim_end_matches(')').split('|');
            rest.map(|it| format!("{start}{it}")).collect()
        }
        None => pattern.split('|').map(str::to_owned).collect(),
    }
}

// ---------------------------------------------------------------------------------- what is scraped

/// Names of other programs' series in a text.
fn foreign(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("node_") || word.starts_with("container_"))
        .filter(|word| word.matches('_').count() > 1 || word.starts_with("node_load"))
        .collect()
}

#[test]
fn what_dashboards_show_is_kept() {
    let config = yaml("deploy/prometheus/prometheus.yml");
    let kept = list(&config["scrape_configs"]).iter().flat_map(|job| {
        let keeps = list(&job["metric_relabel_configs"]).iter().filter(|it| it["action"] == "keep");
        keeps.flat_map(|it| text(&it["regex"]).split('|')).collect::<Vec<_>>()
    });
    let kept: BTreeSet<&str> = kept.collect();
    let folder = Path::new("deploy/grafana/dashboards");
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        let Ok(dashboard) = std::fs::read_to_string(entry.path()) else { continue };
        for name in foreign(&dashboard).difference(&kept) {
            wrong.push(format!("{}: {name} is thrown away", entry.path().display()));
        }
    }
    none(&wrong, "what a dashboard shows is stored");
}

// ------------------------------------------------------------------------------------- the document

const DOCUMENT: &str = "docs/alerts.md";
const BEGIN: &str = "<!-- made from the files: begin -->\n";
const END: &str = "<!-- made from the files: end -->\n";

/// The threshold that an alert's description names, else the first number it is compared with.
fn threshold(alert: &Value) -> String {
    let description = text(&alert["annotations"]["description"]);
    if let Some((_, rest)) = description.split_once("threshold ") {
        let end = rest.find([';', ')']).unwrap();
        return rest[..end].split(", and").next().unwrap().to_owned();
    }
    let words: Vec<&str> = text(&alert["expr"]).split_whitespace().collect();
    let at = words.iter().position(|it| matches!(*it, ">" | "<" | "==")).unwrap();
    let product = words.get(at + 2) == Some(&"*");
    words[at..at + if product { 4 } else { 2 }].join(" ").trim_end_matches(')').to_owned()
}

/// The list of all alerts, by file and group.
fn listed() -> String {
    let mut made = String::new();
    for file in ALERTS {
        let _ = writeln!(made, "### `deploy/prometheus/{file}`\n");
        let mut groups = Vec::<(String, Vec<Value>)>::new();
        for (group, rule) in rules(file) {
            match groups.last_mut() {
                Some((last, alerts)) if *last == group => alerts.push(rule),
                _ => groups.push((group, vec![rule])),
            }
        }
        for (group, alerts) in groups {
            let _ = writeln!(made, "**{group}**\n");
            let _ = writeln!(made, "| alert, with its runbook | severity | threshold | for |");
            let _ = writeln!(made, "|---|---|---|---|");
            for alert in &alerts {
                let (name, severity) = (text(&alert["alert"]), text(&alert["labels"]["severity"]));
                let held = if alert["for"].is_null() { "at once" } else { text(&alert["for"]) };
                let _ = writeln!(
                    made,
                    "| [{name}](runbooks/{name}.md) | {severity} | {} | {held} |",
                    threshold(alert)
                );
            }
            let _ = writeln!(made, "\n```promql");
            for (index, alert) in alerts.iter().enumerate() {
                let gap = if index == 0 { "" } else { "\n" };
                let (name, expression) = (text(&alert["alert"]), text(&alert["expr"]).trim_end());
                let _ = writeln!(made, "{gap}# {name}\n{expression}");
            }
            let _ = writeln!(made, "```\n");
        }
    }
    made
}

#[test]
fn the_document_lists_what_ships() {
    made::expect_part(DOCUMENT, (BEGIN, END), &format!("\n{}", listed()));
}
