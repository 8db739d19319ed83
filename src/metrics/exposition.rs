//! Prometheus's text format: what the exporter does not write itself, and the order of it all.

use std::borrow::Cow;
use std::fmt::{Display, Write};

use super::histogram::{Edges, HistogramTotals};
use super::labels::ObjectType;
use super::names::{self, Desc, Kind};

/// The text of one family.
#[derive(Debug)]
pub struct Family {
    desc: &'static Desc,
    text: String,
    samples: usize,
    /// The edges of a histogram as they are printed, with the last that is none.
    edges: Vec<String>,
}

impl Family {
    /// HELP and TYPE, and no sample yet.
    pub fn new(desc: &'static Desc) -> Self {
        let kind = match desc.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = desc.help.replace('\\', "\\\\").replace('\n', "\\n");
        let name = desc.name;
        let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        Family { desc, text, samples: 0, edges: Vec::new() }
    }

    /// The buckets, sum and count of one histogram.
    pub fn histogram(&mut self, labels: &[&str], edges: Edges, totals: &HistogramTotals) {
        debug_assert_eq!(labels.len(), self.desc.labels.len(), "{}", self.desc.name);
        let mut pairs = String::with_capacity(64);
        push_pairs(&mut pairs, self.desc.labels, labels);
        if self.edges.is_empty() {
            self.edges = edges.iter().map(|nanos| (*nanos as f64 / 1e9).to_string()).collect();
            self.edges.push("+Inf".to_owned());
        }
        let (name, text) = (self.desc.name, &mut self.text);
        let comma = if pairs.is_empty() { "" } else { "," };
        for (edge, (_, count)) in self.edges.iter().zip(totals.cumulative(edges)) {
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "{name}_bucket{{{pairs}{comma}le=\"{edge}\"}} {count}");
        }
        let pairs = if pairs.is_empty() { pairs } else { format!("{{{pairs}}}") };
        let _ = writeln!(text, "{name}_sum{pairs} {}", totals.sum_seconds());
        let _ = writeln!(text, "{name}_count{pairs} {}", totals.count());
        self.samples = self.samples.saturating_add(self.edges.len()).saturating_add(2);
    }

    /// A single value.
    pub fn sample(&mut self, labels: &[&str], value: impl Display) {
        debug_assert_eq!(labels.len(), self.desc.labels.len(), "{}", self.desc.name);
        self.text.push_str(self.desc.name);
        if !labels.is_empty() {
            self.text.push('{');
            push_pairs(&mut self.text, self.desc.labels, labels);
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
        self.samples = self.samples.saturating_add(1);
    }
}

fn push_pairs(text: &mut String, labels: &[&str], values: &[&str]) {
    for (index, (label, value)) in labels.iter().zip(values).enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str(label);
        text.push_str("=\"");
        push_escaped(text, value);
        text.push('"');
    }
}

fn push_escaped(text: &mut String, value: &str) {
    // Nearly no value needs it.
    if !value.contains(['\\', '"', '\n']) {
        return text.push_str(value);
    }
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

/// A label's value as the exporter needs it to come out right: it takes a backslash before
/// another one, or before a quotation mark, for an escape that was made already. Line feeds it
/// escapes always.
pub fn for_exporter(value: &str) -> String {
    if value.contains(['\\', '"']) {
        value.replace('\\', "\\\\").replace('"', "\\\"")
    } else {
        value.to_owned()
    }
}

/// All families in the order of their names, samples in order too, so that two scrapes of the
/// same state are the same bytes. Their number is told twice: in a family of its own, and among
/// the `objects`, which lack that one sample.
pub fn assemble(exporter: &str, own: &[Family], mut objects: Family) -> String {
    let mut samples: usize = own.iter().map(|family| family.samples).sum();
    // By name, and the text that the exporter made.
    let mut blocks: Vec<(&str, Cow<'_, str>)> = own
        .iter()
        .filter(|family| family.samples > 0)
        .map(|family| (family.desc.name, Cow::Borrowed(&*family.text)))
        .collect();
    for block in exporter.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let mut lines: Vec<&str> = block.lines().filter(|line| !line.is_empty()).collect();
        let heads = lines.iter().take_while(|line| line.starts_with('#')).count();
        samples = samples.saturating_add(lines.len().saturating_sub(heads));
        if let Some(found) = lines.get_mut(heads..) {
            found.sort_unstable();
        }
        let name = lines.first().and_then(|head| head.split(' ').nth(2)).unwrap_or_default();
        let mut text = lines.join("\n");
        text.push('\n');
        blocks.push((name, Cow::Owned(text)));
    }
    let samples = samples.saturating_add(objects.samples).saturating_add(2);
    objects.sample(&[ObjectType::MetricSeries.as_str()], samples);
    let mut count = Family::new(&names::SERIES);
    count.sample(&[], samples);
    for family in [&count, &objects] {
        blocks.push((family.desc.name, Cow::Borrowed(&family.text)));
    }
    blocks.sort_unstable();
    let mut text = String::with_capacity(blocks.iter().map(|(_, text)| text.len()).sum());
    blocks.iter().for_each(|(_, block)| text.push_str(block));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut family = Family::new(&names::P95);
        family.sample(&["a\"b\\c\nd"], 1.5);
        assert!(family.text.ends_with("{endpoint=\"a\\\"b\\\\c\\nd\"} 1.5\n"));
    }

    #[test]
    fn families_come_in_order_and_are_counted() {
        let exporter = "# HELP b x\n# TYPE b gauge\nb{l=\"2\"} 1\nb{l=\"1\"} 1\n\n";
        let mut own = Family::new(&names::DEGRADED);
        own.sample(&[], 0);
        let empty = Family::new(&names::P95);
        let mut objects = Family::new(&names::OBJECTS);
        objects.sample(&["requests"], 7);
        let text = assemble(exporter, &[own, empty], objects);
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let objects =
            |kind: &str, count| format!("{}{{type=\"{kind}\"}} {count}", names::OBJECTS.name);
        let expected = [
            "b{l=\"1\"} 1",
            "b{l=\"2\"} 1",
            &objects("requests", 7),
            &objects("metric_series", 6),
            &format!("{} 0", names::DEGRADED.name),
            &format!("{} 6", names::SERIES.name),
        ];
        assert_eq!(samples, expected);
    }
}
