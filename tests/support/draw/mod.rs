//! Draws a dashboard as a picture: the JSON that Grafana reads, and the answers of a Prometheus to its
//! queries, as SVG in a light theme. It is no Grafana: it draws what the dashboards here use, and
//! options that they all share are taken for granted.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod charts;
pub mod figures;
pub mod svg;
pub mod units;

use serde_json::Value;

use crate::watched::Series;
use svg::{Frame, Svg};

/// Width of a picture; 24 columns are this wide.
const WIDTH: f64 = 1000.0;
/// Height of one line of the grid.
const LINE: f64 = 27.0;
/// Room for the dashboard's name.
const HEAD: f64 = 40.0;
const GAP: f64 = 6.0;

/// What asks: an expression over the time of the picture, or at its end.
pub trait Ask {
    /// The time that is drawn, in seconds since 1970.
    fn span(&self) -> (f64, f64);
    /// Seconds from one point to the next.
    fn step(&self) -> f64;
    /// Over the whole time.
    fn range(&self, expression: &str) -> Vec<Series>;
}

/// A panel, and what its queries answered.
pub struct Panel<'a> {
    /// Its JSON.
    pub json: &'a Value,
    /// Each series with its name, and with the number of its query.
    pub series: Vec<(String, usize, Series)>,
    /// The time that is drawn.
    pub span: (f64, f64),
    /// Seconds from one point to the next.
    pub step: f64,
}

impl Panel<'_> {
    /// A text of the panel's own defaults.
    pub fn default(&self, key: &str) -> &Value {
        &self.json["fieldConfig"]["defaults"][key]
    }

    /// Its unit.
    pub fn unit(&self) -> &str {
        self.default("unit").as_str().unwrap_or_default()
    }

    /// Its thresholds: from this value on, this colour.
    pub fn thresholds(&self) -> Vec<(f64, String)> {
        steps(self.default("thresholds"))
    }
}

/// The steps of thresholds in JSON.
pub fn steps(thresholds: &Value) -> Vec<(f64, String)> {
    let steps = thresholds["steps"].as_array().into_iter().flatten();
    steps
        .map(|it| {
            let from = it["value"].as_f64().unwrap_or(f64::NEG_INFINITY);
            (from, it["color"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// The colour of a value.
pub fn colour_of(steps: &[(f64, String)], value: f64) -> &str {
    steps.iter().rev().find(|(from, _)| value >= *from).map_or("green", |(_, colour)| colour)
}

/// Draws a dashboard, or its first rows.
pub fn dashboard(json: &Value, ask: &impl Ask, rows: usize) -> String {
    let title = json["title"].as_str().unwrap();
    let panels = json["panels"].as_array().unwrap();
    let mut headings = panels.iter().filter(|it| it["type"] == "row").skip(rows);
    let end = headings.next().map_or(u64::MAX, |it| it["gridPos"]["y"].as_u64().unwrap());
    let shown: Vec<_> =
        panels.iter().filter(|it| it["gridPos"]["y"].as_u64().unwrap() < end).collect();
    let place = |panel: &Value, side: &str| panel["gridPos"][side].as_f64().unwrap();
    let bottom = shown.iter().map(|it| place(it, "y") + place(it, "h")).fold(0.0, f64::max);
    let mut svg = Svg::new(WIDTH, HEAD + bottom * LINE + GAP, title);
    svg.text((10.0, 26.0), 17.0, "title", title);
    let (from, to) = ask.span();
    let range = format!("{} to {} UTC", units::clock(from, true), units::clock(to, true));
    svg.text_end((WIDTH - 10.0, 26.0), 12.0, "quiet", &range);
    for json in shown {
        let column = WIDTH / 24.0;
        let frame = Frame {
            x: place(json, "x") * column + GAP / 2.0,
            y: HEAD + place(json, "y") * LINE + GAP / 2.0,
            width: place(json, "w") * column - GAP,
            height: place(json, "h") * LINE - GAP,
        };
        if json["type"] == "row" {
            let name = json["title"].as_str().unwrap();
            svg.text((frame.x + 4.0, frame.y + 16.0), 14.0, "row", name);
            continue;
        }
        draw(&mut svg, json, ask, frame);
    }
    svg.end()
}

fn draw(svg: &mut Svg, json: &Value, ask: &impl Ask, frame: Frame) {
    svg.panel(frame);
    let title = svg::cut(json["title"].as_str().unwrap(), 12.5, frame.width - 16.0);
    svg.text((frame.x + 8.0, frame.y + 17.0), 12.5, "name", &title);
    let inner = Frame {
        x: frame.x + 8.0,
        y: frame.y + 24.0,
        width: frame.width - 16.0,
        height: frame.height - 30.0,
    };
    let mut panel = Panel { json, series: Vec::new(), span: ask.span(), step: ask.step() };
    for (at, target) in json["targets"].as_array().into_iter().flatten().enumerate() {
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        let mut found = ask.range(target["expr"].as_str().unwrap());
        found.sort_by(|a, b| a.labels.cmp(&b.labels));
        panel.series.extend(found.into_iter().map(|it| (name(legend, &it), at, it)));
    }
    match json["type"].as_str().unwrap() {
        "timeseries" => charts::lines(svg, &panel, inner),
        "heatmap" => charts::heatmap(svg, &panel, inner),
        "state-timeline" => charts::states(svg, &panel, inner),
        "stat" => figures::stat(svg, &panel, inner),
        "table" => figures::table(svg, &panel, inner),
        "text" => figures::text(svg, &panel, inner),
        other => panic!("no picture of {other}"),
    }
}

/// `{{label}}` of a legend filled in.
fn name(legend: &str, series: &Series) -> String {
    let mut name = legend.to_owned();
    for (label, value) in &series.labels {
        name = name.replace(&format!("{{{{{label}}}}}"), value);
    }
    while let (Some(from), Some(to)) = (name.find("{{"), name.find("}}")) {
        name.replace_range(from..to + 2, "");
    }
    name.trim().to_owned()
}
