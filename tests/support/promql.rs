//! As much of PromQL as is needed to see which metrics an expression names, with which matchers and
//! under which function, and to add matchers to them. `promtool` says whether it is PromQL at all.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

/// `label=~"value"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    /// The label.
    pub label: String,
    /// `=`, `!=`, `=~` or `!~`.
    pub operator: String,
    /// What stands in quotes, as it stands there.
    pub value: String,
}

/// A metric that an expression names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// Its name.
    pub name: String,
    /// Its matchers.
    pub matchers: Vec<Matcher>,
    /// What stands between its brackets: `$__rate_interval`.
    pub range: Option<String>,
    /// The function around it: `rate`.
    pub function: String,
    /// Where a matcher can be put, and whether there are braces already, and others in them.
    insertion: (usize, bool, bool),
}

/// What an expression names.
#[derive(Debug, Default)]
pub struct Names {
    /// Metrics.
    pub selectors: Vec<Selector>,
    /// Labels of groupings and matchings.
    pub grouped: Vec<String>,
}

const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const WORDS: [&str; 8] =
    ["and", "or", "unless", "bool", "offset", "inf", "group_left", "group_right"];

fn word_end(text: &[u8], from: usize) -> usize {
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b':';
    text[from..].iter().position(|byte| !is_word(byte)).map_or(text.len(), |it| from + it)
}

fn skip_space(text: &[u8], mut from: usize) -> usize {
    while text.get(from).is_some_and(u8::is_ascii_whitespace) {
        from += 1;
    }
    from
}

/// The end of a quoted text that begins at `from`.
fn quote_end(text: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while text[at] != text[from] {
        at += 1 + usize::from(text[at] == b'\\');
    }
    at + 1
}

/// Labels of `(a, b)`, which begins at `from`; and where the list ends.
fn labels(text: &str, from: usize) -> (Vec<String>, usize) {
    let end = from + text[from..].find(')').unwrap();
    let labels = text[from + 1..end].split(',').map(str::trim).filter(|label| !label.is_empty());
    (labels.map(str::to_owned).collect(), end + 1)
}

/// Matchers of `{a="b",c=~"d"}`, which begins at `from`; and where they end.
fn matchers(text: &str, from: usize) -> (Vec<Matcher>, usize) {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), from + 1);
    loop {
        at = skip_space(bytes, at);
        match bytes[at] {
            b'}' => return (found, at + 1),
            b',' => at += 1,
            _ => {
                let quote = at + text[at..].find(['"', '\'']).unwrap();
                let end = quote_end(bytes, quote);
                let (label, operator) = text[at..quote].trim().split_at(word_end(bytes, at) - at);
                let operator = operator.trim();
                assert!(["=", "!=", "=~", "!~"].contains(&operator), "no operator: {operator}");
                let value = text[quote + 1..end - 1].to_owned();
                let (label, operator) = (label.to_owned(), operator.to_owned());
                found.push(Matcher { label, operator, value });
                at = end;
            }
        }
    }
}

/// Finds what an expression names.
pub fn names(expression: &str) -> Names {
    let text = expression.as_bytes();
    let mut names = Names::default();
    let (mut functions, mut word, mut at) = (Vec::new(), String::new(), 0);
    while at < text.len() {
        match text[at] {
            b'(' => {
                functions.push(std::mem::take(&mut word));
                at += 1;
            }
            b')' => {
                functions.pop();
                at += 1;
            }
            b'"' | b'\'' => at = quote_end(text, at),
            b'[' => {
                let end = at + text[at..].iter().position(|it| *it == b']').unwrap();
                if let Some(last) = names.selectors.last_mut() {
                    last.range = Some(expression[at + 1..end].to_owned());
                }
                at = end + 1;
            }
            byte if byte.is_ascii_digit() => at = word_end(text, at),
            byte if byte.is_ascii_alphabetic() || byte == b'_' || byte == b':' => {
                let end = word_end(text, at);
                let before = std::mem::replace(&mut word, expression[at..end].to_owned());
                let next = skip_space(text, end);
                at = end;
                if LISTS.contains(&word.as_str()) && text.get(next) == Some(&b'(') {
                    let (found, end) = labels(expression, next);
                    names.grouped.extend(found);
                    at = end;
                    // `sum by (a) (`: the bracket after the list is that of `sum`.
                    let is_aggregation = word == "by" || word == "without";
                    word = if is_aggregation { before } else { String::new() };
                } else if WORDS.contains(&word.as_str()) {
                    word.clear();
                } else if text.get(next) == Some(&b'(') || is_grouping(text, next) {
                } else {
                    let function = functions.last().cloned().unwrap_or_default();
                    let mut selector = Selector {
                        name: std::mem::take(&mut word),
                        function,
                        insertion: (end, false, false),
                        ..Selector::default()
                    };
                    if text.get(end) == Some(&b'{') {
                        (selector.matchers, at) = matchers(expression, end);
                        selector.insertion = (end + 1, true, !selector.matchers.is_empty());
                    }
                    names.selectors.push(selector);
                }
            }
            _ => at += 1,
        }
    }
    names
}

fn is_grouping(text: &[u8], at: usize) -> bool {
    let word = &text[at..word_end(text, at)];
    word == b"by" || word == b"without"
}

/// Puts matchers into every selector.
pub fn with_matchers(expression: &str, matchers: impl Fn(&Selector) -> String) -> String {
    let mut text = expression.to_owned();
    for selector in names(expression).selectors.iter().rev() {
        let added = matchers(selector);
        let (at, has_braces, has_others) = selector.insertion;
        if added.is_empty() {
            continue;
        }
        let comma = if has_others { "," } else { "" };
        text.insert_str(at, &if has_braces { added + comma } else { format!("{{{added}}}") });
    }
    text
}
