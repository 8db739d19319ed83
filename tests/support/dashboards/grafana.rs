//! The JSON of a dashboard: places, variables, annotations, links. Made for Grafana 11 and later.

use serde_json::{Value, json};
use tollgate::metrics::names;

use super::panels;
use super::promql::{self, Selector};
use super::source::{Board, Source};

/// The data source of every query, as the variable says it.
pub fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// Labels of a metric that tollgate exports: its own, of histograms `le` as well.
pub fn labels_of(name: &str) -> Option<Vec<&'static str>> {
    let parts = ["_bucket", "_sum", "_count"];
    let desc = names::ALL.iter().find(|desc| desc.name == name).or_else(|| {
        let family = parts.iter().find_map(|part| name.strip_suffix(part))?;
        let of = |desc: &&names::Desc| desc.kind == names::Kind::Histogram && desc.name == family;
        names::ALL.iter().find(of)
    })?;
    let mut labels = desc.labels.to_vec();
    labels.extend(name.ends_with("_bucket").then_some("le"));
    Some(labels)
}

/// What the variables choose of a metric.
pub fn matchers(board: &Board, selector: &Selector) -> String {
    let name = selector.name.as_str();
    if name.starts_with("node_") {
        return "instance=~\"$node\"".to_owned();
    }
    if name.starts_with("container_") {
        return "name!=\"\",name=~\"$container\"".to_owned();
    }
    // Recorded series and alerts are of a job as a whole.
    if name.contains(':') || name == "ALERTS" {
        return "job=~\"$job\"".to_owned();
    }
    let mut matchers = "job=~\"$job\",instance=~\"$instance\"".to_owned();
    let labels = labels_of(name).unwrap_or_default();
    for variable in &board.variables {
        if labels.contains(&variable.as_str()) {
            matchers += &format!(",{variable}=~\"${variable}\"");
        }
    }
    matchers
}

/// The whole dashboard.
pub fn dashboard(source: &Source, board: &Board) -> Value {
    json!({
        "annotations": { "list": annotations() },
        "description": board.description,
        "editable": false,
        "graphTooltip": 1,
        "id": null,
        "links": links(source),
        "panels": placed(source, board),
        "refresh": "30s",
        "schemaVersion": 39,
        "tags": ["tollgate"],
        "templating": { "list": variables(source, board) },
        "time": { "from": "now-1h", "to": "now" },
        "timezone": "browser",
        "title": board.title,
        "uid": board.uid,
        "version": 1,
    })
}

/// Rows and panels with their numbers and places: from left to right, and then down.
fn placed(source: &Source, board: &Board) -> Vec<Value> {
    let (mut all, mut id, mut y) = (Vec::new(), 0, 0);
    let mut next = || {
        id += 1;
        id
    };
    for row in &board.rows {
        let mut heading = json!({
            "type": "row", "id": next(), "title": row.title, "collapsed": row.collapsed,
            "gridPos": { "x": 0, "y": y, "w": 24, "h": 1 }, "panels": [],
        });
        y += 1;
        let (mut inside, mut x, mut height) = (Vec::new(), 0, 0);
        for panel in &row.panels {
            if x + panel.width > 24 {
                (x, y, height) = (0, y + height, 0);
            }
            let own = panel.height.unwrap_or(row.height);
            let mut made = panels::panel(source, panel);
            made["id"] = json!(next());
            made["gridPos"] = json!({ "x": x, "y": y, "w": panel.width, "h": own });
            let targets = made.get_mut("targets").and_then(Value::as_array_mut);
            for target in targets.into_iter().flatten() {
                let expression = target["expr"].as_str().unwrap();
                let chosen = promql::with_matchers(expression, |it| matchers(board, it));
                target["expr"] = json!(chosen);
            }
            inside.push(made);
            (x, height) = (x + panel.width, height.max(own));
        }
        y += height;
        if row.collapsed {
            heading["panels"] = json!(inside);
            inside = Vec::new();
        }
        all.push(heading);
        all.append(&mut inside);
    }
    all
}

fn annotations() -> Vec<Value> {
    let built_in = json!({
        "builtIn": 1, "datasource": { "type": "grafana", "uid": "-- Grafana --" }, "enable": true,
        "hide": true, "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts",
        "type": "dashboard",
    });
    let of = |name: &str, colour: &str, expr: &str, title: &str, text: &str| {
        json!({
            "datasource": datasource(), "enable": true, "expr": expr, "iconColor": colour,
            "name": name, "step": "30s", "titleFormat": title, "textFormat": text,
        })
    };
    vec![
        built_in,
        of(
            "Reloads and starts",
            "blue",
            "changes(tollgate_config_last_reload_success_timestamp_seconds\
             {job=~\"$job\",instance=~\"$instance\"}[1m]) > 0",
            "Reload",
            "{{instance}} has a new policy in force",
        ),
        of(
            "Firing alerts",
            "red",
            "ALERTS{job=~\"$job\",alertstate=\"firing\"}",
            "{{alertname}}",
            "{{severity}} {{instance}} {{tier}} {{endpoint}}",
        ),
    ]
}

fn links(source: &Source) -> Vec<Value> {
    let mut links = vec![json!({
        "asDropdown": true, "icon": "external link", "includeVars": true, "keepTime": true,
        "tags": ["tollgate"], "targetBlank": false, "title": "tollgate", "tooltip": "",
        "type": "dashboards",
    })];
    for name in ["top", "slow", "health"] {
        let link = &source.links[name];
        links.push(json!({
            "asDropdown": false, "icon": "external link", "includeVars": false, "keepTime": false,
            "tags": [], "targetBlank": true, "title": link.title,
            "tooltip": "From tollgate's admin port", "type": "link", "url": link.url,
        }));
    }
    links
}

/// A variable whose values come from a metric's label; `all` is what All stands for, where it is not
/// the list of all values.
fn query(name: &str, label: &str, query: &str, all: Option<&str>) -> Value {
    let mut variable = json!({
        "name": name, "label": label, "type": "query", "datasource": datasource(),
        "query": { "query": query, "refId": "StandardVariableQuery" },
        "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "options": [], "regex": "",
        "current": { "text": ["All"], "value": ["$__all"] }, "hide": 0, "skipUrlSync": false,
    });
    if let Some(all) = all {
        variable["allValue"] = json!(all);
    }
    variable
}

fn variables(source: &Source, board: &Board) -> Vec<Value> {
    let mut variables = vec![json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        "refresh": 1, "multi": false, "includeAll": false, "options": [], "regex": "", "hide": 0,
        "skipUrlSync": false,
    })];
    // Not `.*` for all: process_… and up are there for other jobs too.
    variables.push(query("job", "Job", "label_values(tollgate_build_info, job)", None));
    let of_job = "label_values(tollgate_build_info{job=~\"$job\"}, instance)";
    variables.push(query("instance", "Instance", of_job, None));
    for name in &board.variables {
        variables.push(match name.as_str() {
            // Of very many, a list would make every expression long.
            "endpoint" => query(
                name,
                "Endpoint",
                "label_values(tollgate_requests_total{job=~\"$job\"}, endpoint)",
                Some(".*"),
            ),
            "tier" => query(
                name,
                "Tier",
                "label_values(rate_limit_hits_total{job=~\"$job\"}, tier)",
                Some(".*"),
            ),
            "node" => query(name, "Host", "label_values(node_load1, instance)", Some(".*")),
            "container" => query(
                name,
                "Container",
                "label_values(container_start_time_seconds{name!=\"\"}, name)",
                Some(".*"),
            ),
            other => panic!("{}: there is no variable {other}", board.uid),
        });
    }
    let admin = json!({ "text": source.admin, "value": source.admin, "selected": true });
    variables.push(json!({
        "name": "admin", "label": "Admin port", "type": "textbox", "query": source.admin,
        "description": "Where your browser reaches tollgate's admin port, for the links",
        "current": admin, "options": [admin], "hide": 0, "skipUrlSync": false,
    }));
    variables
}
