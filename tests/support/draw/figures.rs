//! Panels without an axis: single numbers, tables, and texts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::svg::{self, Frame, Svg};
use super::{Panel, colour_of, steps, units};
use crate::watched::Series;

fn last(series: &Series) -> f64 {
    series
        .values
        .iter()
        .rev()
        .map(|(_, value)| *value)
        .find(|it| it.is_finite())
        .unwrap_or(f64::NAN)
}

/// The last value of each series, large; its course below it.
pub fn stat(svg: &mut Svg, panel: &Panel, frame: Frame) {
    let thresholds = panel.thresholds();
    let states = &panel.default("mappings")[0]["options"];
    let places = panel.default("decimals").as_u64().and_then(|it| usize::try_from(it).ok());
    let count = panel.series.len().max(1);
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    let wide = frame.width / count as f64;
    for (at, (name, _, series)) in panel.series.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        let x = frame.x + at as f64 * wide;
        let value = last(series);
        let colour = colour_of(&thresholds, value);
        let state = states[value.to_string()]["text"].as_str();
        let text = state.map_or_else(|| units::written(value, panel.unit(), places), str::to_owned);
        let mut size = if count > 1 { 20.0 } else { 26.0 };
        while svg::width(&text, size) > wide - 8.0 {
            size -= 1.0;
        }
        let middle = x + wide / 2.0;
        let spark = frame.height * 0.34;
        let mut y = frame.y + (frame.height - spark) / 2.0 + size * 0.36;
        if let Some(state) = state {
            let ground = Frame { x: x - 2.0, width: wide + 4.0, ..frame };
            svg.rect(ground, svg::colour(colour, false));
            let y = frame.y + frame.height / 2.0 + size * 0.36;
            let look = "text-anchor=\"middle\" font-weight=\"600\" style=\"fill:#fff\"";
            svg.any_text((middle, y), size, look, state);
            continue;
        }
        if count > 1 {
            svg.text_middle((middle, frame.y + 9.0), 10.5, "quiet", name);
            y += 6.0;
        }
        let dark = svg::colour(colour, true);
        let look = format!("text-anchor=\"middle\" font-weight=\"600\" style=\"fill:{dark}\"");
        svg.any_text((middle, y), size, &look, &text);
        course(
            svg,
            series,
            panel,
            Frame {
                x: x + 2.0,
                y: frame.y + frame.height - spark,
                width: wide - 4.0,
                height: spark,
            },
            svg::colour(colour, false),
        );
    }
}

fn course(svg: &mut Svg, series: &Series, panel: &Panel, frame: Frame, colour: &str) {
    let finite: Vec<_> = series.values.iter().filter(|(_, it)| it.is_finite()).collect();
    let most = finite.iter().map(|(_, it)| *it).fold(0.0, f64::max);
    let least = finite.iter().map(|(_, it)| *it).fold(0.0, f64::min);
    let (from, to) = panel.span;
    let point = |time: f64, value: f64| {
        let share = if most > least { (value - least) / (most - least) } else { 0.0 };
        let x = frame.x + (time - from) / (to - from) * frame.width;
        (x, frame.y + frame.height * (1.0 - 0.9 * share))
    };
    let line: Vec<_> = finite.iter().map(|(time, value)| point(*time, *value)).collect();
    if let (Some(first), Some(end)) = (line.first(), line.last()) {
        let mut area = line.clone();
        area.extend([(end.0, frame.y + frame.height), (first.0, frame.y + frame.height)]);
        svg.path(&area, &format!("fill=\"{colour}\" fill-opacity=\".15\""));
        svg.path(&line, &format!("fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\""));
    }
}

/// One cell of a table: what it says, its colour, and what it is sorted by.
type Cell = (String, String, f64);

/// Rows by their labels, a column for each query.
pub fn table(svg: &mut Svg, panel: &Panel, frame: Frame) {
    let organize = &panel.json["transformations"][1]["options"];
    let name_of = |column: &str| organize["renameByName"][column].as_str();
    let column_of = |query: usize| {
        let letter = panel.json["targets"][query]["refId"].as_str().unwrap();
        let column = format!("Value #{letter}");
        name_of(&column).map(str::to_owned)
    };
    let mut labels: Vec<(&String, u64)> = organize["indexByName"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(column, _)| !column.starts_with("Value"))
        .map(|(column, at)| (column, at.as_u64().unwrap()))
        .collect();
    labels.sort_by_key(|it| it.1);
    // Rows are told apart by the labels that all queries have: the first.
    let key = labels[0].0;
    let queries = panel.json["targets"].as_array().unwrap().len();
    let mut columns: Vec<String> =
        labels.iter().map(|(label, _)| name_of(label).unwrap().to_owned()).collect();
    columns.extend((0..queries).filter_map(column_of));
    let mut rows: BTreeMap<String, BTreeMap<String, Cell>> = BTreeMap::new();
    let end = panel.span.1;
    for (_, query, series) in &panel.series {
        // What is no more is not in a table of now.
        let Some(id) = series.labels.get(key) else { continue };
        let row = rows.entry(id.clone()).or_default();
        for (label, _) in &labels {
            if let Some(value) = series.labels.get(*label) {
                let cell = (value.clone(), String::new(), f64::NAN);
                row.insert(name_of(label).unwrap().to_owned(), cell);
            }
        }
        let is_now = series.values.last().is_some_and(|it| it.0 > end - 3.0 * panel.step);
        if let (Some(column), true) = (column_of(*query), is_now) {
            let value = last(series);
            row.insert(column.clone(), cell(panel, &column, value));
        }
    }
    let mut rows: Vec<_> = rows.into_values().collect();
    if let Some(sort) = panel.json["options"]["sortBy"].get(0) {
        let column = sort["displayName"].as_str().unwrap();
        let order = |row: &BTreeMap<String, Cell>| row.get(column).map_or(f64::NAN, |it| it.2);
        rows.sort_by(|a, b| order(b).total_cmp(&order(a)));
    }
    write_table(svg, &columns, &rows, frame);
}

fn cell(panel: &Panel, column: &str, value: f64) -> Cell {
    let overrides = panel.json["fieldConfig"]["overrides"].as_array().unwrap();
    let own = overrides.iter().find(|it| it["matcher"]["options"] == column);
    let property = |id: &str| -> Option<&Value> {
        let mut all = own?["properties"].as_array()?.iter();
        all.find(|it| it["id"] == id).map(|it| &it["value"])
    };
    let unit = property("unit").and_then(Value::as_str).unwrap_or_default();
    let colour = property("thresholds")
        .map(|it| svg::colour(colour_of(&steps(it), value), true).to_owned())
        .unwrap_or_default();
    (units::written(value, unit, None), colour, value)
}

fn write_table(svg: &mut Svg, columns: &[String], rows: &[BTreeMap<String, Cell>], frame: Frame) {
    const SIZE: f64 = 11.0;
    const HIGH: f64 = 18.0;
    let text = |row: &BTreeMap<String, Cell>, column: &String| {
        row.get(column).map(|it| it.0.clone()).unwrap_or_default()
    };
    let wide: Vec<f64> = columns
        .iter()
        .map(|column| {
            let cells = rows.iter().map(|row| svg::width(&text(row, column), SIZE));
            cells.fold(svg::width(column, SIZE) * 1.05, f64::max) + 14.0
        })
        .collect();
    let scale = frame.width / wide.iter().sum::<f64>();
    let mut x = frame.x;
    for (column, wide) in columns.iter().zip(&wide) {
        let room = wide * scale - 8.0;
        let head = svg::cut(column, SIZE, room);
        svg.text((x + 3.0, frame.y + 13.0), SIZE, "strong", &head);
        for (at, row) in rows.iter().enumerate() {
            #[allow(clippy::cast_precision_loss, reason = "a few")]
            let y = frame.y + 13.0 + (at + 1) as f64 * HIGH;
            if y > frame.y + frame.height {
                break;
            }
            if let Some((text, colour, _)) = row.get(column) {
                let text = svg::cut(text, SIZE, room);
                let look = if colour.is_empty() {
                    String::new()
                } else {
                    format!("style=\"fill:{colour}\" font-weight=\"600\"")
                };
                svg.any_text((x + 3.0, y), SIZE, &look, &text);
            }
        }
        x += wide * scale;
    }
    for at in 0..rows.len() {
        #[allow(clippy::cast_precision_loss, reason = "a few")]
        let y = frame.y + 17.5 + at as f64 * HIGH;
        if y < frame.y + frame.height {
            svg.line((frame.x, y), (frame.x + frame.width, y), "class=\"g\"");
        }
    }
}

/// A text: its words, with links in their colour, and lists.
pub fn text(svg: &mut Svg, panel: &Panel, frame: Frame) {
    const SIZE: f64 = 11.5;
    let content = panel.json["options"]["content"].as_str().unwrap();
    let mut y = frame.y + 12.0;
    let lines = content.replace("**", "").replace('`', "").replace("\n- ", "\n\n- ");
    for paragraph in lines.split("\n\n").map(str::trim).filter(|it| !it.is_empty()) {
        let item = paragraph.strip_prefix("- ");
        let left = if item.is_some() { 10.0 } else { 0.0 };
        if item.is_some() {
            svg.text((frame.x, y), SIZE, "quiet", "•");
        }
        // Lines of words, each word a link or none.
        let (mut line, mut wide, mut is_link) = (Vec::new(), 0.0, false);
        let mut write = |line: &mut Vec<(String, bool)>| {
            let words = line.drain(..).map(|(word, is_link)| {
                if is_link { format!("<tspan class=\"link\">{word}</tspan>") } else { word }
            });
            let words = words.collect::<Vec<_>>().join(" ");
            svg.marked((frame.x + left, y), SIZE, &words);
            y += 16.0;
        };
        for word in item.unwrap_or(paragraph).split_whitespace() {
            // `[a b](address),`: the address is left out.
            is_link |= word.starts_with('[');
            let (shown, rest) = match word.split_once("](") {
                Some((shown, address)) => (shown, address.split_once(')').map_or("", |it| it.1)),
                None => (word, ""),
            };
            let shown = format!("{}{rest}", shown.trim_start_matches('['));
            let more = svg::width(&shown, SIZE) + SIZE * 0.28;
            if wide + more > frame.width - left {
                write(&mut line);
                wide = 0.0;
            }
            line.push((shown, is_link));
            wide += more;
            is_link &= !word.contains("](");
        }
        write(&mut line);
        y += if item.is_some() { 1.0 } else { 4.0 };
    }
}
