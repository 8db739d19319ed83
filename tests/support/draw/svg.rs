//! Shapes and texts of a picture, and its colours.

use std::fmt::Write;

/// A rectangle of the picture.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Left.
    pub x: f64,
    /// Top.
    pub y: f64,
    /// From left to right.
    pub width: f64,
    /// From top to bottom.
    pub height: f64,
}

/// Size of most texts.
pub const USUAL: f64 = 10.5;

/// A picture that is being made.
pub struct Svg {
    text: String,
}

const STYLE: &str = "text{font-family:Inter,Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#24292e}\
    .title{font-weight:600}.row{font-weight:600;fill:#3b424a}.name{font-weight:600}\
    .quiet{fill:#69727d}.strong{font-weight:600}.link{fill:#1f62e0}\
    .l{fill:none;stroke-width:1.4;stroke-linejoin:round}.g{stroke:#e6e9ec}.v{stroke:#eef0f2}";

/// A number as short as it may be.
pub fn n(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    match rounded.to_string() {
        it if it == "-0" => "0".to_owned(),
        it if it.starts_with("0.") => it[1..].to_owned(),
        it if it.starts_with("-0.") => format!("-{}", &it[2..]),
        it => it,
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// How wide a text is at most, of letters of a common font.
pub fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| match c {
        'i' | 'j' | 'l' | '.' | ',' | ':' | '\'' | '|' | '!' => 0.3,
        'f' | 't' | 'r' | ' ' | '/' | '(' | ')' | '-' => 0.37,
        'm' | 'w' | 'M' | 'W' | '%' => 0.92,
        'A'..='Z' | '_' => 0.7,
        _ => 0.58,
    };
    text.chars().map(of).sum::<f64>() * size
}

/// A text cut so that it fits.
pub fn cut(text: &str, size: f64, room: f64) -> String {
    if width(text, size) <= room {
        return text.to_owned();
    }
    let mut short = text.to_owned();
    while !short.is_empty() && width(&short, size) > room - size {
        short.pop();
    }
    short.trim_end().to_owned() + "…"
}

/// A colour by Grafana's name of it; of words, dark enough to be read on white.
pub fn colour(name: &str, is_text: bool) -> &str {
    match (name, is_text) {
        ("green", false) => "#56a64b",
        ("green", true) => "#28793a",
        ("orange", false) => "#ff9830",
        ("orange", true) => "#b85a00",
        ("red", false) => "#e02f44",
        ("red", true) => "#c4162a",
        ("yellow", false) => "#f2cc0c",
        ("yellow", true) => "#8a6d00",
        ("blue", _) => "#3274d9",
        ("light-blue", _) => "#8ab8ff",
        ("purple", _) => "#a352cc",
        ("dark-purple", _) => "#7c2ea3",
        ("dark-red", _) => "#ad0317",
        ("dark-orange", _) => "#fa6400",
        _ => name,
    }
}

/// Colours of series that nothing else is said of.
pub const PALETTE: [&str; 12] = [
    "#56a64b", "#e0b400", "#3fa7c9", "#e5731c", "#d0342c", "#1f60c4", "#b8399f", "#705da0",
    "#2f6b2f", "#9a7d0a", "#2c7a9c", "#9c4a1a",
];

impl Svg {
    /// An empty picture.
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let mut text = String::new();
        writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
             height=\"{h}\" font-size=\"{USUAL}\" role=\"img\"><title>{title}</title><style>{STYLE}</style>\
             <rect width=\"{w}\" height=\"{h}\" fill=\"#f1f3f5\"/>",
            w = n(width),
            h = n(height),
            title = escaped(title),
        )
        .unwrap();
        Svg { text }
    }

    /// The whole picture.
    pub fn end(mut self) -> String {
        self.text += "</svg>\n";
        self.text
    }

    /// Markup as it is.
    pub fn raw(&mut self, markup: &str) {
        self.text += markup;
        self.text.push('\n');
    }

    /// A filled rectangle.
    pub fn rect(&mut self, frame: Frame, fill: &str) {
        let Frame { x, y, width, height } = frame;
        self.raw(&format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{fill}\"/>",
            n(x),
            n(y),
            n(width.max(0.0)),
            n(height.max(0.0)),
        ));
    }

    /// The ground of a panel.
    pub fn panel(&mut self, Frame { x, y, width, height }: Frame) {
        self.raw(&format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"3\" fill=\"#fff\" \
             stroke=\"#d5d9de\"/>",
            n(x),
            n(y),
            n(width),
            n(height),
        ));
    }

    /// A text that begins here.
    pub fn text(&mut self, at: (f64, f64), size: f64, class: &str, text: &str) {
        self.any_text(at, size, &format!("class=\"{class}\""), text);
    }

    /// A text that ends here.
    pub fn text_end(&mut self, at: (f64, f64), size: f64, class: &str, text: &str) {
        self.any_text(at, size, &format!("class=\"{class}\" text-anchor=\"end\""), text);
    }

    /// A text around here.
    pub fn text_middle(&mut self, at: (f64, f64), size: f64, class: &str, text: &str) {
        self.any_text(at, size, &format!("class=\"{class}\" text-anchor=\"middle\""), text);
    }

    /// A text with these attributes.
    pub fn any_text(&mut self, (x, y): (f64, f64), size: f64, attributes: &str, text: &str) {
        // The usual size is said once for all.
        let (x, y, text) = (n(x), n(y), escaped(text));
        let size =
            if size == USUAL { String::new() } else { format!("font-size=\"{}\" ", n(size)) };
        self.raw(&format!("<text x=\"{x}\" y=\"{y}\" {size}{attributes}>{text}</text>"));
    }

    /// A text with marks of its own in it.
    pub fn marked(&mut self, (x, y): (f64, f64), size: f64, marked: &str) {
        let (x, y) = (n(x), n(y));
        let size = n(size);
        self.raw(&format!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" class=\"quiet\">{marked}</text>"
        ));
    }

    /// A line from here to there.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), attributes: &str) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(n);
        self.raw(&format!("<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" {attributes}/>"));
    }

    /// A line through points; those that lie on the way between their neighbours are left out.
    pub fn path(&mut self, points: &[(f64, f64)], attributes: &str) {
        if points.is_empty() {
            return;
        }
        // Tenths, and each point from the one before: a picture has thousands of them.
        let tenths = |value: f64| (value * 10.0).round() / 10.0;
        let mut path = format!("M{} {}", n(points[0].0), n(points[0].1));
        let mut last = (tenths(points[0].0), tenths(points[0].1));
        for (at, point) in points.iter().enumerate().skip(1) {
            let is_between = points.get(at + 1).is_some_and(|next| {
                let share = (point.0 - last.0) / (next.0 - last.0);
                (last.1 + (next.1 - last.1) * share - point.1).abs() < 0.4
            });
            if is_between {
                continue;
            }
            let here = (tenths(point.0), tenths(point.1));
            let (x, y) = (n(here.0 - last.0), n(here.1 - last.1));
            let space = if y.starts_with('-') { "" } else { " " };
            write!(path, "l{x}{space}{y}").unwrap();
            last = here;
        }
        self.raw(&format!("<path d=\"{path}\" {attributes}/>"));
    }
}
