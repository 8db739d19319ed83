//! The JSON of one panel: what all have, and what each kind of panel asks for on top.

use serde_json::{Value, json};

use super::grafana::datasource;
use super::source::{Panel, Query, Source};

/// The release whose options these are.
const MADE_FOR: &str = "11.6.0";

/// A panel without its number and place.
pub fn panel(source: &Source, panel: &Panel) -> Value {
    let mut made = json!({
        "type": panel.kind,
        "title": panel.title,
        "description": source.fill(panel.description.trim()),
        "pluginVersion": MADE_FOR,
        "options": options(source, panel),
    });
    if panel.kind == "text" {
        return made;
    }
    made["datasource"] = datasource();
    made["fieldConfig"] =
        json!({ "defaults": defaults(source, panel), "overrides": overrides(panel) });
    let queries = panel.all_queries();
    made["targets"] = queries.iter().enumerate().map(|(at, it)| target(panel, at, it)).collect();
    if panel.kind == "table" {
        made["transformations"] = transformations(&queries);
    }
    made
}

fn letter(at: usize) -> String {
    char::from(b'A' + u8::try_from(at).unwrap()).to_string()
}

fn target(panel: &Panel, at: usize, query: &Query) -> Value {
    let is_table = panel.kind == "table";
    let format = match panel.kind.as_str() {
        "table" => "table",
        "heatmap" => "heatmap",
        _ => "time_series",
    };
    let mut target = json!({
        "refId": letter(at), "datasource": datasource(), "editorMode": "code", "expr": query.expr,
        "format": format, "instant": is_table, "range": !is_table,
    });
    if !is_table {
        target["legendFormat"] = json!(query.legend);
    }
    target
}

fn steps(base: &str, thresholds: &[(f64, String)]) -> Value {
    let mut steps = vec![json!({ "color": base, "value": null })];
    steps.extend(thresholds.iter().map(|(value, color)| json!({ "color": color, "value": value })));
    json!({ "mode": "absolute", "steps": steps })
}

fn defaults(source: &Source, panel: &Panel) -> Value {
    let is_by_threshold = matches!(panel.kind.as_str(), "stat" | "state-timeline" | "table");
    let mode = if is_by_threshold { "thresholds" } else { "palette-classic" };
    let mut defaults = json!({
        "unit": panel.unit,
        "color": { "mode": mode },
        "thresholds": steps(&panel.base, &panel.thresholds),
        "mappings": [],
    });
    if let Some(states) = &panel.states {
        let states = &source.states[states];
        let options: serde_json::Map<_, _> = states
            .iter()
            .enumerate()
            .map(|(index, it)| {
                let state = json!({ "text": it.text, "color": it.colour, "index": index });
                (it.value.to_string(), state)
            })
            .collect();
        defaults["mappings"] = json!([{ "type": "value", "options": options }]);
        let (first, rest) = states.split_first().unwrap();
        let rest: Vec<_> = rest.iter().map(|it| (it.value, it.colour.clone())).collect();
        defaults["thresholds"] = steps(&first.colour, &rest);
    }
    if let Some(decimals) = panel.decimals {
        defaults["decimals"] = json!(decimals);
    }
    if panel.kind == "timeseries" {
        for (end, value) in [("min", panel.min), ("max", panel.max)] {
            if let Some(value) = value {
                defaults[end] = json!(value);
            }
        }
    }
    if let Some(custom) = custom(panel) {
        defaults["custom"] = custom;
    }
    defaults
}

fn custom(panel: &Panel) -> Option<Value> {
    let custom = match panel.kind.as_str() {
        "timeseries" => json!({
            "axisPlacement": "auto", "drawStyle": "line", "lineInterpolation": "linear",
            "lineWidth": 1, "fillOpacity": if panel.stack { 40 } else { 8 }, "gradientMode": "none",
            "showPoints": "never", "spanNulls": false,
            "scaleDistribution": { "type": "linear" },
            "stacking": { "group": "A", "mode": if panel.stack { "normal" } else { "none" } },
            "thresholdsStyle": { "mode": if panel.thresholds.is_empty() { "off" } else { "dashed" } },
        }),
        "state-timeline" => json!({ "fillOpacity": 70, "lineWidth": 0 }),
        "heatmap" => json!({ "scaleDistribution": { "type": "linear" } }),
        "table" => json!({ "align": "auto", "cellOptions": { "type": "auto" }, "inspect": false }),
        _ => return None,
    };
    Some(custom)
}

/// Colours of single series, and units of single columns.
fn overrides(panel: &Panel) -> Value {
    let by_name = |name: &str, properties: Vec<Value>| json!({ "matcher": { "id": "byName", "options": name }, "properties": properties });
    let mut overrides = Vec::new();
    for (name, colour) in &panel.colours {
        let colour = json!({ "mode": "fixed", "fixedColor": colour });
        overrides.push(by_name(name, vec![json!({ "id": "color", "value": colour })]));
    }
    if panel.kind == "table" {
        for query in panel.all_queries().iter().filter(|query| !query.hidden) {
            let unit = query.unit.as_deref().unwrap_or(&panel.unit);
            let mut properties = vec![json!({ "id": "unit", "value": unit })];
            if !query.thresholds.is_empty() {
                let steps = steps("green", &query.thresholds);
                properties.push(json!({ "id": "thresholds", "value": steps }));
                let colour = json!({ "type": "color-text" });
                properties.push(json!({ "id": "custom.cellOptions", "value": colour }));
            }
            overrides.push(by_name(&query.legend, properties));
        }
    }
    json!(overrides)
}

fn options(source: &Source, panel: &Panel) -> Value {
    let legend = json!({
        "calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": true,
    });
    let tooltip = json!({ "mode": "multi", "sort": "desc" });
    match panel.kind.as_str() {
        "timeseries" => json!({ "legend": legend, "tooltip": tooltip }),
        "stat" => json!({
            "colorMode": if panel.states.is_some() { "background_solid" } else { "value" },
            "graphMode": if panel.states.is_some() { "none" } else { "area" },
            "justifyMode": "auto", "orientation": "auto", "percentChangeColorMode": "standard",
            "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
            "showPercentChange": false, "textMode": "auto", "wideLayout": true,
        }),
        "state-timeline" => json!({
            "alignValue": "left", "legend": legend, "mergeValues": true, "rowHeight": 0.8,
            "showValue": "auto", "tooltip": { "mode": "single", "sort": "none" },
        }),
        "heatmap" => json!({
            "calculate": false, "cellGap": 1,
            "color": {
                "exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "reverse": false,
                "scale": "exponential", "scheme": "Blues", "steps": 64,
            },
            "exemplars": { "color": "rgba(255,0,255,0.7)" },
            "filterValues": { "le": 1e-9 },
            "legend": { "show": true }, "rowsFrame": { "layout": "auto" }, "showValue": "never",
            "tooltip": { "mode": "single", "showColorScale": false, "yHistogram": false },
            "yAxis": { "axisPlacement": "left", "reverse": false, "unit": panel.unit },
        }),
        "table" => json!({
            "cellHeight": "sm", "frameIndex": 0, "showHeader": true, "sortBy": sorting(panel),
            "footer": { "countRows": false, "reducer": ["sum"], "show": false },
        }),
        "text" => {
            json!({ "content": source.fill(panel.content.as_deref().unwrap()), "mode": "markdown" })
        }
        other => panic!("{}: panels of kind {other} are not known here", panel.title),
    }
}

fn sorting(panel: &Panel) -> Value {
    let Some(column) = &panel.sort else { return json!([]) };
    let name = column.strip_prefix('-').unwrap_or(column);
    json!([{ "displayName": name, "desc": column.starts_with('-') }])
}

/// One row for each set of labels, and a column for each query, under its legend.
fn transformations(queries: &[Query]) -> Value {
    let (mut excluded, mut renamed, mut order) = (json!({ "Time": true }), json!({}), json!({}));
    let mut labels = Vec::new();
    for query in queries {
        for label in super::promql::names(&query.expr).grouped {
            if label != "le" && !labels.contains(&label) {
                labels.push(label);
            }
        }
    }
    for (at, label) in labels.iter().enumerate() {
        let (first, rest) = label.split_at(1);
        renamed[label] = json!(first.to_uppercase() + rest);
        order[label] = json!(at);
    }
    for (at, query) in queries.iter().enumerate() {
        // Grafana names the column of a lone query without its letter.
        let letter = format!("Value #{}", letter(at));
        for column in [letter.as_str(), "Value"].into_iter().take(3 - queries.len().min(2)) {
            if query.hidden {
                excluded[column] = json!(true);
            } else {
                renamed[column] = json!(query.legend);
                order[column] = json!(labels.len() + at);
            }
        }
    }
    json!([
        { "id": "merge", "options": {} },
        {
            "id": "organize",
            "options": {
                "excludeByName": excluded, "indexByName": order, "renameByName": renamed,
                "includeByName": {},
            },
        },
    ])
}
