//! The dashboards for Grafana: what is committed is what the one source makes, every panel says what
//! it shows, every expression names what there is, and the JSON is what Grafana's own types allow.
//! Whether the panels have data is seen in `tests/dashboard_data.rs`, with a real Prometheus.
//!
//! `TOLLGATE_UPDATE=1 cargo test --test dashboards` writes the JSON anew.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/dashboards/mod.rs"]
mod dashboards;
#[path = "support/made.rs"]
mod made;
#[path = "support/prometheus.rs"]
mod prometheus;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use serde_json::{Value, json};
use tollgate::metrics::names;

use dashboards::grafana::{self, labels_of};
use dashboards::source::{Board, Panel, Source};
use dashboards::{committed, file, panels_of, promql, queries_of};

#[test]
fn what_is_committed_is_what_the_source_makes() {
    let source = Source::read();
    for board in &source.dashboards {
        let made = grafana::dashboard(&source, board);
        if made::is_to_be_written() {
            let text = serde_json::to_string_pretty(&made).unwrap() + "\n";
            std::fs::write(file(board), text).unwrap();
        }
        let text = std::fs::read_to_string(file(board)).unwrap_or_default();
        let committed: Value = serde_json::from_str(&text).unwrap_or_default();
        assert!(
            committed == made,
            "{} is not what dashboards.yaml makes; run: \
             TOLLGATE_UPDATE=1 cargo test --test dashboards",
            file(board).display()
        );
    }
    let files = std::fs::read_dir("deploy/grafana/dashboards").unwrap().count();
    assert_eq!(files, source.dashboards.len(), "a file that no dashboard of the source makes");
}

// -------------------------------------------------------------------------------- Grafana's types

/// What Grafana's types say, one schema for each kind of panel; tests/grafana/README.md says how they
/// are made.
fn schemas() -> BTreeMap<String, jsonschema::Validator> {
    let text = std::fs::read_to_string("tests/grafana/schema.json").unwrap();
    let all: BTreeMap<String, Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().map(|(kind, it)| (kind, jsonschema::validator_for(&it).unwrap())).collect()
}

/// What is wrong with a dashboard by Grafana's types.
fn misfits(schemas: &BTreeMap<String, jsonschema::Validator>, dashboard: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut hold = |kind: &str, value: &Value| match schemas.get(kind) {
        None => wrong.push(format!("no schema for panels of kind {kind}")),
        Some(schema) => wrong.extend(
            schema
                .iter_errors(value)
                .map(|error| format!("{} at {}: {error}", value["title"], error.instance_path())),
        ),
    };
    hold("dashboard", dashboard);
    for panel in dashboard["panels"].as_array().unwrap() {
        hold(panel["type"].as_str().unwrap_or_default(), panel);
    }
    wrong
}

#[test]
fn the_json_is_what_grafanas_types_allow() {
    let schemas = schemas();
    for (uid, dashboard) in committed() {
        let wrong = misfits(&schemas, &dashboard);
        assert!(wrong.is_empty(), "{uid}: {wrong:#?}");
    }
    let wrong = misfits(&schemas, &yaml("deploy/grafana/optional/tollgate-top.json"));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_grafanas_types_do_not_allow_is_found() {
    let schemas = schemas();
    let (_, good) = committed().remove(0);
    let first = |kind: &str| {
        let panels = good["panels"].as_array().unwrap();
        let at = panels.iter().position(|it| it["type"] == kind).unwrap();
        format!("/panels/{at}")
    };
    let lies = [
        ("/schemaVersion".to_owned(), json!("39")),
        ("/refresh".to_owned(), json!(30)),
        ("/templating/list/0/type".to_owned(), json!("list")),
        ("/annotations/list/1/iconColor".to_owned(), Value::Null),
        (first("timeseries") + "/gridPos", json!({ "x": 0, "y": 0, "w": 8 })),
        (first("timeseries") + "/options/legend/placement", json!("below")),
        (first("timeseries") + "/fieldConfig/defaults/custom/drawStyle", json!("curve")),
        (first("timeseries") + "/fieldConfig/defaults/thresholds/mode", json!("relative")),
        (first("timeseries") + "/targets/0/expr", json!(1)),
        (first("stat") + "/options/graphMode", json!("bars")),
        (first("stat") + "/options/unheardOf", json!(true)),
        (first("heatmap") + "/options/color/steps", json!("64")),
        (first("table") + "/options/showHeader", Value::Null),
        (first("text") + "/options/mode", json!("md")),
        (first("state-timeline") + "/options/showValue", json!("often")),
    ];
    for (place, lie) in lies {
        let mut bad = good.clone();
        match bad.pointer_mut(&place) {
            Some(value) => *value = lie.clone(),
            None => {
                let (parent, name) = place.rsplit_once('/').unwrap();
                bad.pointer_mut(parent).unwrap()[name] = lie.clone();
            }
        }
        assert!(!misfits(&schemas, &bad).is_empty(), "{place} may be {lie}");
    }
}

// ------------------------------------------------------------------------------ the panels' manners

/// Calls `check` for every panel of the source, and fails with all that it found.
fn for_each_panel(mut check: impl FnMut(&Board, &Panel) -> Vec<String>) {
    let source = Source::read();
    let mut wrong = Vec::new();
    for board in &source.dashboards {
        for panel in board.rows.iter().flat_map(|row| &row.panels) {
            let found = check(board, panel);
            wrong.extend(found.iter().map(|it| format!("{}, {}: {it}", board.uid, panel.title)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Grafana's names of units that panels here use.
const UNITS: [&str; 13] = [
    "reqps",
    "ops",
    "cps",
    "pps",
    "percentunit",
    "s",
    "d",
    "short",
    "bytes",
    "Bps",
    "suffix: x",
    "none",
    "dateTimeAsIso",
];

#[test]
fn every_panel_says_what_it_shows() {
    for_each_panel(|_, panel| {
        let mut wrong = Vec::new();
        let mut must = |is_so: bool, what: &str| {
            if !is_so {
                wrong.push(what.to_owned());
            }
        };
        must(!panel.title.is_empty() && panel.title.len() <= 40, "a title of a few words");
        must(panel.description.trim().ends_with('.'), "a description of whole sentences");
        must(panel.description.len() >= 20, "a description");
        let queries = panel.all_queries();
        if panel.kind == "text" {
            must(panel.content.is_some() && queries.is_empty(), "content, and no queries");
            return wrong;
        }
        must(UNITS.contains(&panel.unit.as_str()), "a unit that Grafana knows");
        must(!queries.is_empty(), "a query");
        let is_drawn = matches!(panel.kind.as_str(), "timeseries" | "state-timeline" | "table");
        must(!is_drawn || queries.iter().all(|it| !it.legend.is_empty()), "a legend");
        let rising = panel.thresholds.windows(2).all(|pair| pair[0].0 < pair[1].0);
        must(rising, "thresholds that rise");
        // A legend tells apart what the query does.
        for query in queries.iter().filter(|_| panel.kind != "table") {
            let mut rest = query.legend.as_str();
            while let Some((_, after)) = rest.split_once("{{") {
                let (label, after) = after.split_once("}}").unwrap();
                let is_grouped = promql::names(&query.expr).grouped.iter().any(|it| it == label);
                must(is_grouped, &format!("{label} of the legend is no label of {}", query.expr));
                rest = after;
            }
        }
        wrong
    });
}

#[test]
fn expressions_name_what_there_is() {
    let others = stand_ins();
    for_each_panel(|_, panel| {
        let mut wrong = Vec::new();
        for query in panel.all_queries() {
            let found = promql::names(&query.expr);
            let mut known: BTreeSet<String> = BTreeSet::new();
            for selector in &found.selectors {
                let Some(mut labels) = known_labels(&selector.name, &others) else {
                    wrong.push(format!("{} is no metric", selector.name));
                    continue;
                };
                labels.extend(["job", "instance"].map(str::to_owned));
                let named = selector.matchers.iter().map(|it| &it.label);
                for label in named.filter(|it| !labels.contains(*it)) {
                    wrong.push(format!("{} has no label {label}", selector.name));
                }
                known.extend(labels);
            }
            for label in found.grouped.iter().filter(|label| !known.contains(*label)) {
                wrong.push(format!("nothing in {} has a label {label}", query.expr));
            }
        }
        wrong
    });
}

#[test]
fn counters_are_asked_for_their_rate_and_rates_over_the_interval() {
    for_each_panel(|_, panel| {
        let mut wrong = Vec::new();
        for query in panel.all_queries() {
            for selector in promql::names(&query.expr).selectors {
                let name = &selector.name;
                let is_histogram = ["_bucket", "_sum", "_count"]
                    .iter()
                    .any(|part| name.strip_suffix(part).is_some_and(|it| labels_of(it).is_some()));
                let is_counter =
                    name.ends_with("_total") || name.starts_with("node_netstat_") || is_histogram;
                let function = selector.function.as_str();
                let is_rated = matches!(function, "rate" | "increase");
                // Labels that were folded together are told once, at the start.
                let is_level = name == "tollgate_metric_series_dropped_total";
                let is_counted = function == "count" || is_level;
                if is_counter != is_rated && !(is_counted && is_counter) {
                    wrong.push(format!("{name} under {:?}", selector.function));
                }
                let is_usual = selector.range.as_deref().is_none_or(|it| it == "$__rate_interval");
                if !is_usual && panel.fixed_window.is_none() {
                    wrong.push(format!("{name} over {:?}, and no reason", selector.range));
                }
            }
        }
        wrong
    });
}

#[test]
fn where_latency_is_drawn_are_p50_p95_and_p99() {
    for_each_panel(|_, panel| {
        let queries = panel.all_queries();
        let count = |share: &str| {
            let begin = format!("histogram_quantile({share},");
            queries.iter().filter(|it| it.expr.contains(&begin)).count()
        };
        let all = queries.iter().filter(|it| it.expr.contains("histogram_quantile")).count();
        let three = ["0.5", "0.95", "0.99"].map(count);
        let is_so = three == [all / 3; 3] && all % 3 == 0;
        if is_so { Vec::new() } else { vec![format!("{three:?} of P50, P95 and P99")] }
    });
}

#[test]
fn panels_fill_the_grid_and_do_not_overlap() {
    for (uid, dashboard) in committed() {
        let (mut taken, mut ids) = (BTreeMap::new(), BTreeSet::new());
        let place = |panel: &Value| {
            ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap())
        };
        for panel in dashboard["panels"].as_array().unwrap() {
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{uid}: an id twice");
            let [x, y, w, h] = place(panel);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(cell.0 < 24, "{uid}: {} is too wide", panel["title"]);
                let other = taken.insert(cell, &panel["title"]);
                assert!(other.is_none(), "{uid}: {} lies on {other:?}", panel["title"]);
            }
        }
        let bottom = taken.keys().map(|(_, y)| y + 1).max().unwrap();
        let cells = usize::try_from(24 * bottom).unwrap();
        assert_eq!(taken.len(), cells, "{uid}: a gap between panels");
    }
}

#[test]
fn dashboards_are_templated_linked_and_not_to_be_edited() {
    let ids: Vec<_> = committed().into_iter().map(|(uid, _)| uid).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    for (uid, dashboard) in committed() {
        assert_eq!(dashboard["uid"], uid.as_str());
        assert_eq!(dashboard["editable"], false);
        let text = dashboard.to_string();
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().map(|it| it["name"].as_str().unwrap()).collect();
        for needed in ["datasource", "job", "instance"] {
            assert!(names.contains(&needed), "{uid} has no variable {needed}");
        }
        for name in &names {
            let is_used =
                text.contains(&format!("${name}")) || text.contains(&format!("${{{name}}}"));
            assert!(is_used, "{uid}: nothing uses the variable {name}");
        }
        let annotations = dashboard["annotations"]["list"].as_array().unwrap();
        assert_eq!(annotations.len(), 3, "{uid}: Grafana's own, reloads and alerts");
        let links = dashboard["links"].as_array().unwrap();
        assert!(links.iter().any(|it| it["type"] == "dashboards"));
        assert!(links.iter().any(|it| it["url"] == "${admin}/#callers"));
        for panel in panels_of(&dashboard).filter(|panel| panel["type"] != "text") {
            let title = &panel["title"];
            let is_templated = |it: &Value| *it == grafana::datasource();
            assert!(is_templated(&panel["datasource"]), "{uid}, {title}");
            let targets = panel["targets"].as_array().unwrap();
            assert!(targets.iter().all(|it| is_templated(&it["datasource"])), "{uid}, {title}");
            let letters: BTreeSet<_> = queries_of(panel).map(|(letter, _)| letter).collect();
            assert_eq!(letters.len(), targets.len(), "{uid}, {title}: letters");
            for (_, expression) in queries_of(panel) {
                for selector in promql::names(expression).selectors {
                    let is_ours = labels_of(&selector.name).is_some() || selector.name == "up";
                    let needed: &[&str] = if is_ours { &["job", "instance"] } else { &[] };
                    let has = |it: &&str| selector.matchers.iter().any(|own| own.label == *it);
                    let all = needed.iter().all(has);
                    assert!(all, "{uid}, {title}: {expression}");
                }
            }
        }
        assert!(!text.contains("{top.") && !text.contains("{slow."), "{uid}: a link not filled in");
    }
}

/// Metrics of node_exporter and cAdvisor that panels use, with the labels that panels may use.
fn stand_ins() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        ("node_cpu_seconds_total", &["mode", "cpu"] as &[_]),
        ("node_load1", &[]),
        ("node_memory_", &[]),
        ("node_filesystem_", &["mountpoint", "fstype", "device"]),
        ("node_disk_", &["device"]),
        ("node_network_", &["device"]),
        ("node_netstat_", &[]),
        ("node_sockstat_", &[]),
        ("container_", &["name"]),
    ])
}

fn known_labels(
    name: &str,
    others: &BTreeMap<&'static str, &'static [&'static str]>,
) -> Option<BTreeSet<String>> {
    let owned = |labels: &[&str]| labels.iter().map(|it| (*it).to_owned()).collect();
    if name == "up" || name.starts_with("job:slo_") {
        return Some(BTreeSet::new());
    }
    if name == "ALERTS" {
        return Some(owned(&["alertname", "alertstate", "severity"]));
    }
    let stand_in = others.iter().find(|(begin, _)| name.starts_with(**begin));
    labels_of(name).map(|it| owned(&it)).or_else(|| stand_in.map(|(_, labels)| owned(labels)))
}

// ------------------------------------------------------------------------ Prometheus and its alerts

fn yaml(name: &str) -> Value {
    serde_yaml::from_str(&std::fs::read_to_string(name).unwrap()).unwrap()
}

/// The eighteen alerts, each with the numbers that it compares with.
fn alerts() -> BTreeMap<String, Vec<f64>> {
    let rules = yaml("deploy/prometheus/alerts.yml");
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let numbers = |expression: &str| {
        let sides = expression.split(['<', '>', '=']).skip(1);
        let first = |it: &str| -> Option<f64> {
            it.split_whitespace().next()?.trim_end_matches(')').parse().ok()
        };
        sides.filter_map(first).collect()
    };
    rules
        .map(|rule| {
            let name = rule["alert"].as_str().unwrap().to_owned();
            (name, numbers(rule["expr"].as_str().unwrap()))
        })
        .collect()
}

/// Alerts whose numbers are no line on a panel, and why.
const NO_LINE: &[(&str, &str)] =
    &[("WebSocketConnectionSpike", "compares with the last hour, and not with a number")];

#[test]
fn panels_show_the_thresholds_of_the_alerts_that_they_name() {
    let (alerts, source) = (alerts(), Source::read());
    assert_eq!(alerts.len(), 18);
    let mut shown = BTreeSet::new();
    for_each_panel(|_, panel| {
        let named: Vec<_> =
            alerts.iter().filter(|(name, _)| panel.description.contains(*name)).collect();
        let states = panel.states.iter().flat_map(|it| &source.states[it]);
        let mut lines: Vec<f64> = panel.thresholds.iter().map(|it| it.0).collect();
        lines.extend(states.map(|it| it.value));
        for query in &panel.queries {
            lines.extend(query.thresholds.iter().map(|it| it.0));
        }
        let fits = |numbers: &[f64]| numbers.iter().any(|it| lines.contains(it));
        shown.extend(named.iter().filter(|it| fits(it.1)).map(|it| it.0.clone()));
        let is_without = |name: &str| NO_LINE.iter().any(|it| it.0 == name);
        named
            .iter()
            .filter(|(name, numbers)| !fits(numbers) && !is_without(name))
            .map(|(name, numbers)| format!("{name} compares with {numbers:?}, not {lines:?}"))
            .collect()
    });
    let absent: Vec<_> = alerts
        .keys()
        .filter(|name| !shown.contains(*name) && !NO_LINE.iter().any(|it| it.0 == *name))
        .collect();
    assert!(absent.is_empty(), "on no panel is the threshold of {absent:?}");
}

#[test]
fn prometheus_keeps_what_the_panels_ask_for() {
    let config = yaml("deploy/prometheus/prometheus.yml");
    let mut kept = BTreeSet::new();
    for job in config["scrape_configs"].as_array().unwrap() {
        for rule in job["metric_relabel_configs"].as_array().into_iter().flatten() {
            kept.extend(rule["regex"].as_str().unwrap().split('|').map(str::to_owned));
        }
    }
    let dropped: BTreeSet<String> = committed()
        .iter()
        .flat_map(|(_, dashboard)| panels_of(dashboard).collect::<Vec<_>>())
        .flat_map(|panel| queries_of(panel).collect::<Vec<_>>())
        .flat_map(|(_, expression)| promql::names(expression).selectors)
        .map(|selector| selector.name)
        .filter(|name| name.starts_with("node_") || name.starts_with("container_"))
        .filter(|name| !kept.contains(name))
        .collect();
    assert!(dropped.is_empty(), "deploy/prometheus/prometheus.yml drops {dropped:?}");
}

/// Expressions as they are asked, the variables filled in.
fn asked(expression: &str) -> String {
    expression.replace("$__rate_interval", "1m").replace('$', "")
}

#[test]
fn prometheus_understands_every_expression() {
    let Some(promtool) = prometheus::program("promtool") else { return };
    let mut rules = Vec::new();
    for (uid, dashboard) in committed() {
        let annotations = dashboard["annotations"]["list"].as_array().unwrap();
        let marks = annotations.iter().filter_map(|it| it["expr"].as_str());
        let panels = panels_of(&dashboard).flat_map(|panel| queries_of(panel).map(|(_, it)| it));
        for expression in panels.chain(marks) {
            let name = format!("{}:{}", uid.replace('-', "_"), rules.len());
            rules.push(json!({ "record": name, "expr": asked(expression) }));
        }
    }
    assert!(rules.len() > 180, "{}", rules.len());
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", json!({ "groups": [{ "name": "panels", "rules": rules }] })).unwrap();
    let (is_content, said) =
        prometheus::run(&promtool, &["check", "rules", file.path().to_str().unwrap()]);
    assert!(is_content, "{said}");
}

#[test]
fn most_of_what_tollgate_exports_is_on_a_panel() {
    let text: String = committed().iter().map(|(_, dashboard)| dashboard.to_string()).collect();
    let absent: Vec<_> = names::ALL
        .iter()
        .map(|desc| desc.name)
        .filter(|name| !text.contains(name) && !NOT_DRAWN.iter().any(|(it, _)| it == name))
        .collect();
    assert!(absent.is_empty(), "on no panel, and not in NOT_DRAWN: {absent:?}");
    for (name, reason) in NOT_DRAWN {
        assert!(!text.contains(name), "{name} is on a panel");
        assert!(reason.len() > 10);
    }
}

/// Metrics that are on no panel, and why.
const NOT_DRAWN: &[(&str, &str)] = &[
    ("tollgate_usage_flush_lag_seconds", "for the alert: without a sink there is nothing to see"),
    ("tollgate_usage_requests_total", "for `usage reconcile`; requests are drawn by outcome"),
    ("tollgate_usage_denied_total", "for `usage reconcile`; refusals are drawn by tier already"),
    ("tollgate_usage_rows_written_total", "says how busy the sink is, and nothing of its health"),
    ("tollgate_usage_flush_errors_total", "for the alert's runbook; the log says why"),
    ("tollgate_usage_journal_bytes", "grows with the lag, which has an alert"),
    ("tollgate_usage_lost_total", "stands still; each loss is in the log"),
    ("tollgate_admin_refused_total", "for the alert: nobody guesses at tokens all day"),
    ("tollgate_admin_changes_total", "a few a day: the status page and the log say who and what"),
    ("tollgate_overrides", "the status page lists them, with who set each"),
    ("tollgate_self_service_total", "callers who look at their own limits take none of the load"),
    ("tollgate_redis_late_replies_total", "each is made good; slow checks are drawn"),
    ("tollgate_replicas", "instances that are scraped are drawn"),
    ("tollgate_lease_tokens_held", "a quarter of a second at a time, and within the limits"),
    ("process_resident_memory_bytes", "memory_rss_bytes by another name"),
    ("process_virtual_memory_bytes", "memory_vms_bytes by another name"),
    ("process_virtual_memory_max_bytes", "not limited anywhere"),
];

#[test]
fn provisioning_names_the_folders_and_the_data_source() {
    let read = |name: &str| yaml(&format!("deploy/grafana/provisioning/{name}"));
    let source = read("datasources/prometheus.yml");
    assert_eq!(source["datasources"][0]["type"], "prometheus");
    assert_eq!(source["datasources"][0]["editable"], false);
    let boards = read("dashboards/tollgate.yml");
    assert_eq!(boards["providers"][0]["options"]["path"], "/var/lib/grafana/dashboards");
}
