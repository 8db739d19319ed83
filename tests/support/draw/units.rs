//! Numbers with their units, as Grafana writes them, and the marks of axes.

/// A value in the unit of this name; `places` behind the point, or as many as are of use.
pub fn written(value: f64, unit: &str, places: Option<usize>) -> String {
    match unit {
        "percentunit" => {
            let places = places.unwrap_or(if value.abs() < 0.1 { 2 } else { 1 });
            format!("{}%", number(value * 100.0, Some(places)))
        }
        "s" => {
            let units: &[(f64, &str)] = &[
                (86_400.0, " days"),
                (3600.0, " h"),
                (60.0, " min"),
                (1.0, " s"),
                (1e-3, " ms"),
                (1e-6, " µs"),
                (1e-9, " ns"),
            ];
            scaled(value, units, places)
        }
        "bytes" => {
            let units: &[(f64, &str)] =
                &[(1_073_741_824.0, " GiB"), (1_048_576.0, " MiB"), (1024.0, " KiB"), (1.0, " B")];
            scaled(value, units, places)
        }
        "Bps" => {
            scaled(value, &[(1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")], places)
        }
        "reqps" => short(value, places) + " req/s",
        "ops" => short(value, places) + " ops/s",
        "cps" => short(value, places) + " c/s",
        "pps" => short(value, places) + " p/s",
        "d" => number(value, places) + " days",
        "suffix: x" => number(value, places) + " x",
        _ => short(value, places),
    }
}

fn scaled(value: f64, units: &[(f64, &str)], places: Option<usize>) -> String {
    if value == 0.0 {
        return format!("0{}", units.iter().find(|(size, _)| *size == 1.0).unwrap().1);
    }
    let fitting = units.iter().find(|(size, _)| value.abs() >= *size * 0.9995);
    let (size, name) = fitting.unwrap_or(units.last().unwrap());
    number(value / size, places) + name
}

fn short(value: f64, places: Option<usize>) -> String {
    let units: &[(f64, &str)] = &[(1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1.0, "")];
    if value.abs() < 1000.0 { number(value, places) } else { scaled(value, units, None) }
}

fn number(value: f64, places: Option<usize>) -> String {
    let useful = match value.abs() {
        it if it >= 100.0 => 0,
        it if it >= 10.0 => 1,
        it if it >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.*}", places.unwrap_or(useful));
    if places.is_none() && text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Marks of an axis that ends at these values: round ones, five of them or so.
pub fn marks(from: f64, to: f64, unit: &str) -> Vec<f64> {
    let span = to - from;
    if span <= 0.0 || !span.is_finite() {
        return vec![from];
    }
    // Bytes are round in their own way, and so are minutes.
    let base = match unit {
        "bytes" => 1024_f64.powf((to.abs().max(1.0).log2() / 10.0).floor()),
        "s" if to >= 7200.0 => 3600.0,
        "s" if to >= 120.0 => 60.0,
        _ => 1.0,
    };
    let rough = span / base / 4.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().find(|it| **it * power >= rough * 0.999);
    let step = step.unwrap_or(&10.0) * power * base;
    // Half of a replica, a request or a byte is none.
    let step = if unit == "bytes" || unit == "Bps" { step.max(1.0) } else { step };
    let mut marks = Vec::new();
    let mut at = (from / step).ceil() * step;
    while at <= to + step * 1e-6 {
        marks.push(if at.abs() < step * 1e-6 { 0.0 } else { at });
        at += step;
    }
    marks
}

/// The time of day, in UTC.
pub fn clock(time: f64, with_seconds: bool) -> String {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of day")]
    let of_day = (time.round() % 86_400.0) as u64;
    let (hours, minutes, seconds) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    if with_seconds {
        format!("{hours:02}:{minutes:02}:{seconds:02}")
    } else {
        format!("{hours:02}:{minutes:02}")
    }
}
