//! Panels with an axis of time: lines, heatmaps, and states.

use std::collections::BTreeMap;

use super::svg::{self, Frame, PALETTE, Svg, n};
use super::{Panel, colour_of, units};
use crate::watched::Series;

const SIZE: f64 = svg::USUAL;

/// The colour that a panel gives to a series by its name.
fn fixed_colour(panel: &Panel, name: &str) -> Option<String> {
    let overrides = panel.json["fieldConfig"]["overrides"].as_array().unwrap();
    let own = overrides.iter().find(|it| it["matcher"]["options"] == name)?;
    let colour = own["properties"][0]["value"]["fixedColor"].as_str()?;
    Some(svg::colour(colour, false).to_owned())
}

/// What is drawn of a series: its values by the number of the step.
fn on_grid(series: &Series, panel: &Panel) -> BTreeMap<i64, f64> {
    let (from, step) = (panel.span.0, panel.step);
    #[allow(clippy::cast_possible_truncation, reason = "a few hundred steps")]
    let at = |time: f64| ((time - from) / step).round() as i64;
    let finite = series.values.iter().filter(|(_, value)| value.is_finite());
    finite.map(|(time, value)| (at(*time), *value)).collect()
}

/// The axis of time below a chart, and where a time lies.
fn time_axis(svg: &mut Svg, panel: &Panel, chart: Frame) -> impl Fn(f64) -> f64 + use<> {
    let (from, to) = panel.span;
    let at = move |time: f64| chart.x + (time - from) / (to - from) * chart.width;
    let steps = [15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];
    let fits = |step: &&f64| (to - from) / **step * 46.0 < chart.width;
    let step = *steps.iter().find(fits).unwrap_or(&3600.0);
    let mut mark = (from / step).ceil() * step;
    while mark <= to {
        let x = at(mark);
        let bottom = chart.y + chart.height;
        svg.line((x, chart.y), (x, bottom), "class=\"v\"");
        let is_inside = x > chart.x + 14.0 && x < chart.x + chart.width - 14.0;
        if is_inside {
            let text = units::clock(mark, step < 60.0);
            svg.text_middle((x, bottom + 12.0), SIZE, "quiet", &text);
        }
        mark += step;
    }
    at
}

/// Names and colours below a chart, on as many lines as there is room for; what they take of it.
fn legend(svg: &mut Svg, frame: Frame, items: &[(String, String)]) -> f64 {
    const HIGH: f64 = 14.0;
    let room = frame.width;
    let lines_max = if frame.height > 130.0 { 2 } else { 1 };
    let (mut lines, mut x) = (vec![Vec::new()], 0.0);
    let mut left_out = 0;
    for (index, (name, colour)) in items.iter().enumerate() {
        let name = svg::cut(name, SIZE, room * 0.9);
        let wide = svg::width(&name, SIZE) + 22.0;
        // Room for the words that tell of those that have none.
        let is_last = lines.len() == lines_max && index + 1 < items.len();
        let reserve = if is_last { 52.0 } else { 0.0 };
        if x + wide + reserve > room && x > 0.0 {
            if lines.len() == lines_max {
                left_out = items.len() - index;
                break;
            }
            lines.push(Vec::new());
            x = 0.0;
        }
        lines.last_mut().unwrap().push((x, name, colour.clone()));
        x += wide;
    }
    #[allow(clippy::cast_precision_loss, reason = "one or two")]
    let high = lines.len() as f64 * HIGH;
    let top = frame.y + frame.height - high;
    let mut y = top;
    for line in &lines {
        for (x, name, colour) in line {
            let mark = Frame { x: frame.x + x, y: y + 5.0, width: 10.0, height: 3.0 };
            svg.rect(mark, colour);
            svg.text((frame.x + x + 13.0, y + 10.5), SIZE, "quiet", name);
        }
        y += HIGH;
    }
    if left_out > 0 {
        let text = format!("+{left_out} more");
        svg.text_end((frame.x + room, y - HIGH + 10.5), SIZE, "quiet", &text);
    }
    high
}

/// Lines, or areas that are added up.
pub fn lines(svg: &mut Svg, panel: &Panel, frame: Frame) {
    let custom = panel.default("custom");
    let is_stacked = custom["stacking"]["mode"] == "normal";
    let mut items = Vec::new();
    for (at, (name, ..)) in panel.series.iter().enumerate() {
        let own = fixed_colour(panel, name);
        items.push((name.clone(), own.unwrap_or_else(|| PALETTE[at % PALETTE.len()].to_owned())));
    }
    // Highest last, so that the eye finds the same order in the legend.
    let below = legend(svg, frame, &items);
    let grids: Vec<_> = panel.series.iter().map(|(.., it)| on_grid(it, panel)).collect();
    let mut sums: BTreeMap<i64, f64> = BTreeMap::new();
    let mut drawn: Vec<Vec<(i64, f64, f64)>> = Vec::new();
    for grid in &grids {
        let mut line = Vec::new();
        for (at, value) in grid {
            let base = if is_stacked { *sums.entry(*at).or_default() } else { 0.0 };
            if is_stacked {
                sums.insert(*at, base + value);
            }
            line.push((*at, base, base + value));
        }
        drawn.push(line);
    }
    let all = || drawn.iter().flatten().map(|(_, _, value)| *value);
    let unit = panel.unit();
    let lowest = panel.default("min").as_f64().unwrap_or_else(|| all().fold(0.0, f64::min));
    let highest = all().fold(f64::NEG_INFINITY, f64::max);
    let highest = panel.default("max").as_f64().unwrap_or(highest);
    let flat = match unit {
        "short" | "ops" | "reqps" | "cps" | "pps" => 1.0,
        "percentunit" => 0.01,
        "s" => 0.001,
        _ => 1.0,
    };
    let top = if highest <= lowest || !highest.is_finite() { lowest + flat } else { highest };
    // A little air above, up to the next mark.
    let marks = units::marks(lowest, top, unit);
    let step = marks.get(1).map_or(top - lowest, |second| second - marks[0]);
    let top = if top - lowest > step * 0.5 { (top / step - 1e-6).ceil() * step } else { top };
    let marks = units::marks(lowest, top, unit);
    // Of per cents as many places as the marks have.
    let is_whole = |places: i32| {
        let scaled = step * 100.0 * 10_f64.powi(places);
        (scaled - scaled.round()).abs() < 1e-6
    };
    let places = (unit == "percentunit").then(|| (0..3).find(|it| is_whole(*it)).unwrap_or(3));
    let places = places.and_then(|it| usize::try_from(it).ok());
    let label = |value: f64| {
        units::written(value, unit, places)
            .replace(" req/s", "")
            .replace(" ops/s", "")
            .replace(" c/s", "")
            .replace(" p/s", "")
    };
    let labels: Vec<_> = marks.iter().map(|it| label(*it)).collect();
    let wide = labels.iter().map(|it| svg::width(it, SIZE)).fold(18.0, f64::max) + 6.0;
    let chart = Frame {
        x: frame.x + wide,
        y: frame.y + 5.0,
        width: frame.width - wide - 2.0,
        height: frame.height - below - 24.0,
    };
    let x_of = time_axis(svg, panel, chart);
    let y_of = |value: f64| {
        let share = ((value - lowest) / (top - lowest)).clamp(0.0, 1.0);
        chart.y + chart.height * (1.0 - share)
    };
    for (mark, label) in marks.iter().zip(&labels) {
        let y = y_of(*mark);
        svg.line((chart.x, y), (chart.x + chart.width, y), "class=\"g\"");
        svg.text_end((chart.x - 5.0, y + 3.5), SIZE, "quiet", label);
    }
    let point = |(at, value): (i64, f64)| {
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let time = panel.span.0 + at as f64 * panel.step;
        (x_of(time), y_of(value))
    };
    // The first is above all others of a stack: it is drawn last.
    for (line, (_, colour)) in drawn.iter().zip(&items).rev() {
        for run in line.chunk_by(|a, b| b.0 - a.0 <= 2) {
            let upper: Vec<_> = run.iter().map(|(at, _, value)| point((*at, *value))).collect();
            if is_stacked {
                let mut area = upper.clone();
                area.extend(run.iter().rev().map(|(at, base, _)| point((*at, *base))));
                let is_seen = run.iter().any(|(_, base, value)| (value - base).abs() > 0.0);
                if is_seen {
                    svg.path(&area, &format!("fill=\"{colour}\" fill-opacity=\".35\""));
                }
            }
            svg.path(&upper, &format!("class=\"l\" stroke=\"{colour}\""));
        }
    }
    if drawn.iter().all(Vec::is_empty) {
        svg.text_middle(
            (chart.x + chart.width / 2.0, chart.y + chart.height / 2.0),
            11.0,
            "quiet",
            "no data",
        );
    }
    if custom["thresholdsStyle"]["mode"] == "dashed" {
        for (from, colour) in panel.thresholds() {
            if from.is_finite() && from > lowest && from <= top {
                let y = y_of(from);
                let colour = svg::colour(&colour, false);
                let look =
                    format!("stroke=\"{colour}\" stroke-width=\"1.3\" stroke-dasharray=\"6 4\"");
                svg.line((chart.x, y), (chart.x + chart.width, y), &look);
            }
        }
    }
}

/// Buckets of a histogram over time.
pub fn heatmap(svg: &mut Svg, panel: &Panel, frame: Frame) {
    let unit = panel.json["options"]["yAxis"]["unit"].as_str().unwrap();
    let mut edges: Vec<(f64, BTreeMap<i64, f64>)> = panel
        .series
        .iter()
        .map(|(.., series)| {
            let le = &series.labels["le"];
            (le.parse().unwrap_or(f64::INFINITY), on_grid(series, panel))
        })
        .collect();
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Each bucket without what is in those below it; and no bucket that was empty all the time.
    let mut buckets: Vec<(f64, BTreeMap<i64, f64>)> = Vec::new();
    for (at, (edge, grid)) in edges.iter().enumerate() {
        let below = at.checked_sub(1).map(|it| &edges[it].1);
        let own = grid.iter().map(|(time, value)| {
            let less = below.and_then(|it| it.get(time)).copied().unwrap_or(0.0);
            (*time, (value - less).max(0.0))
        });
        buckets.push((*edge, own.collect()));
    }
    let is_used = |(_, grid): &(f64, BTreeMap<i64, f64>)| grid.values().any(|it| *it > 1e-9);
    let first = buckets.iter().position(is_used).unwrap_or(0);
    let last = buckets.iter().rposition(is_used).unwrap_or(0);
    let shown = &buckets[first..=last.max(first)];
    let label = |edge: f64| {
        let places = (unit == "percentunit").then_some(0);
        if edge.is_finite() { units::written(edge, unit, places) } else { "more".to_owned() }
    };
    let labels: Vec<_> = shown.iter().map(|(edge, _)| label(*edge)).collect();
    let wide = labels.iter().map(|it| svg::width(it, SIZE)).fold(18.0, f64::max) + 6.0;
    let chart = Frame {
        x: frame.x + wide,
        y: frame.y + 5.0,
        width: frame.width - wide - 2.0,
        height: frame.height - 22.0,
    };
    let x_of = time_axis(svg, panel, chart);
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let high = chart.height / shown.len() as f64;
    let most = shown.iter().flat_map(|(_, grid)| grid.values()).fold(0.0_f64, |a, b| a.max(*b));
    let column = chart.width * panel.step / (panel.span.1 - panel.span.0);
    let mut labelled = f64::INFINITY;
    for (at, (_, grid)) in shown.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        let y = chart.y + chart.height - (at + 1) as f64 * high;
        // Cells of one shade side by side are one shape.
        let mut row: BTreeMap<u32, String> = BTreeMap::new();
        for (time, value) in grid.iter().filter(|(_, value)| **value > 1e-9) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 8")]
            let shade = ((value / most).sqrt() * 8.0).ceil().max(1.0) as u32;
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let time = panel.span.0 + *time as f64 * panel.step;
            let x = x_of(time) - column;
            if x >= chart.x - 0.5 {
                let cell = format!("M{} {}h{}", n(x), n(y + high / 2.0), n(column - 0.4));
                row.entry(shade).or_default().push_str(&cell);
            }
        }
        for (shade, path) in row {
            let blue = SHADES[shade as usize - 1];
            let wide = n(high - 0.8);
            svg.raw(&format!("<path d=\"{path}\" stroke=\"{blue}\" stroke-width=\"{wide}\"/>"));
        }
        // The label says the upper edge; as many as do not run into each other.
        if labelled - y >= 12.0 {
            svg.text_end((chart.x - 5.0, y + 7.5), SIZE, "quiet", &labels[at]);
            labelled = y;
        }
    }
}

const SHADES: [&str; 8] =
    ["#e3eefa", "#c9def3", "#a8cbe9", "#7fb2dd", "#5797ce", "#377abb", "#1f5ca0", "#0c3c7c"];

/// What something was, over time: a bar for each series, its colour the state.
pub fn states(svg: &mut Svg, panel: &Panel, frame: Frame) {
    let names = &panel.default("mappings")[0]["options"];
    let thresholds = panel.thresholds();
    let wide =
        panel.series.iter().map(|(name, ..)| svg::width(name, 11.0)).fold(40.0, f64::max) + 8.0;
    let wide = wide.min(frame.width * 0.3);
    let chart = Frame {
        x: frame.x + wide,
        y: frame.y + 2.0,
        width: frame.width - wide - 2.0,
        height: frame.height - 18.0,
    };
    let x_of = time_axis(svg, panel, chart);
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let high = (chart.height / panel.series.len().max(1) as f64).min(34.0);
    for (at, (name, _, series)) in panel.series.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        let y = chart.y + at as f64 * high;
        let name = svg::cut(name, 11.0, wide - 6.0);
        svg.text_end((chart.x - 6.0, y + high / 2.0 + 4.0), 11.0, "quiet", &name);
        for run in series.values.chunk_by(|a, b| a.1.to_bits() == b.1.to_bits()) {
            let value = run[0].1;
            let from = x_of(run[0].0);
            let to = x_of(run[run.len() - 1].0 + panel.step).min(chart.x + chart.width);
            let bar = Frame { x: from, y: y + high * 0.1, width: to - from, height: high * 0.8 };
            let colour = svg::colour(colour_of(&thresholds, value), false);
            svg.rect(bar, colour);
            let text = names[value.to_string()]["text"].as_str().unwrap_or_default();
            if svg::width(text, SIZE) + 8.0 < bar.width {
                let attributes = "style=\"fill:#fff\" font-weight=\"600\"";
                svg.any_text((from + 5.0, y + high / 2.0 + 3.8), SIZE, attributes, text);
            }
        }
    }
}
