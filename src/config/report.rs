//! Errors of configuration: where, what was found, what was expected, what was perhaps meant.
//!
//! Owns how an error looks and how a field's place in the file is found. Knows no key.

use std::fmt;

use serde::Serialize;

use super::blot::{blotted, is_private_key, secret_variable};
use super::tree::{FILLED_IN, Kind, Mark, Node};

/// Widest piece of a source line that an excerpt shows.
const EXCERPT_COLUMNS_MAX: usize = 96;
/// Nothing shorter is a secret; and nearly every message holds a letter.
const SECRET_BYTES_MIN: usize = 4;
/// A message that holds so much of a value's beginning repeats it.
const REPEATED_CHARS: usize = 16;
/// Longest found value that a message repeats.
const FOUND_CHARS_MAX: usize = 80;
/// More errors of one file, or warnings, are counted and not shown.
const ERRORS_MAX: usize = 100;
/// A list of names in a message ends after so many.
const NAMES_MAX: usize = 32;

/// One step of a field's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A key of a mapping.
    Key(String),
    /// A place in a list, from 0.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Step::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Step::Index(index)
    }
}

/// The way to a field from the top of its file.
pub type Path = Vec<Step>;

/// Makes a [`Path`] of keys and indices: `path!["endpoints", 2, "cost"]`.
#[macro_export]
macro_rules! config_path {
    ($($step:expr),* $(,)?) => { vec![$($crate::config::report::Step::from($step)),*] };
}

/// A path as messages write it: `tiers.free.burst`, `endpoints[2].limits`, `identities["ip:::1"]`.
pub fn written(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
                if is_private_key(key) {
                    text.push_str("[a private key]");
                } else if key.is_empty() || !key.bytes().all(plain) {
                    text.push_str(&format!("[{:?}]", shortened(key)));
                } else if text.is_empty() {
                    text.push_str(&shortened(key));
                } else {
                    text.push('.');
                    text.push_str(&shortened(key));
                }
            }
        }
    }
    text
}

/// What is wrong with a field, its place aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What was found, or what is the matter.
    pub found: String,
    /// What should stand there.
    pub expected: Option<String>,
    /// A sentence that helps on.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A problem by what was found, or what is the matter.
    pub fn new(found: impl Into<String>) -> Self {
        Problem { found: found.into(), expected: None, suggestion: None }
    }

    /// Says what should stand there instead.
    pub fn expected(mut self, expected: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self
    }

    /// Adds a sentence that helps on.
    pub fn hint(mut self, sentence: impl Into<String>) -> Self {
        self.suggestion = Some(sentence.into());
        self
    }

    /// Expects one of `names`, and asks whether the nearest one was meant.
    pub fn expected_one_of<'a>(
        mut self,
        written: &str,
        names: impl IntoIterator<Item = &'a str> + Clone,
    ) -> Self {
        self.suggestion =
            nearest(written, names.clone()).map(|name| format!("did you mean \"{name}\"?"));
        self.expected = Some(one_of(names));
        self
    }

    /// Found and expected in one sentence.
    pub fn message(&self) -> String {
        match &self.expected {
            Some(expected) => format!("{}, expected {expected}", self.found),
            None => self.found.clone(),
        }
    }
}

/// Which part of a mapping's entry an error points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The key: it should not be there, or something beside it is missing.
    Key,
    /// The value.
    Value,
}

/// An error or a warning of configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigError {
    /// The file's name as the operator wrote it, or the command line's option.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The field: `tiers.free.burst`. Empty for the file as a whole.
    pub path: String,
    /// What was found and what was expected.
    pub message: String,
    /// What was expected, alone.
    pub expected: Option<String>,
    /// A sentence that helps on: `did you mean "burst"?`.
    pub suggestion: Option<String>,
    /// The line with a caret below the place; secrets are blotted out.
    #[serde(skip)]
    pub excerpt: Option<String>,
}

impl ConfigError {
    /// An error of a file, or of an option, as a whole.
    pub fn of_whole(file: Option<&str>, path: &[Step], problem: &Problem) -> Self {
        ConfigError {
            file: file.map(str::to_owned),
            line: None,
            column: None,
            path: written(path),
            message: problem.message(),
            expected: problem.expected.clone(),
            suggestion: problem.suggestion.clone(),
            excerpt: None,
        }
    }

    /// The same place with another message.
    pub fn saying(self, problem: &Problem) -> Self {
        ConfigError {
            message: problem.message(),
            expected: problem.expected.clone(),
            suggestion: problem.suggestion.clone(),
            ..self
        }
    }

    /// An error at a place of a file's text.
    pub fn at(file: &str, text: &str, mark: Mark, path: &[Step], problem: &Problem) -> Self {
        ConfigError {
            line: Some(mark.line),
            column: Some(mark.column),
            excerpt: excerpt(text, mark),
            ..Self::of_whole(Some(file), path, problem)
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_option = self.file.as_deref().is_some_and(|file| file.starts_with("--"));
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let (Some(line), Some(column)) = (self.line, self.column) {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " ")?;
        }
        // An option's name says already which field is meant.
        if !self.path.is_empty() && !is_option {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.message)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, "\n{excerpt}")?;
        }
        if let Some(suggestion) = &self.suggestion {
            write!(f, "\n  = {suggestion}")?;
        }
        Ok(())
    }
}

/// Every error that was found, in the order of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects what is wrong with one file.
#[derive(Debug)]
pub struct Report<'f> {
    file: Option<&'f str>,
    text: &'f str,
    root: &'f Node,
    faulted: Vec<Path>,
    overrides: Vec<(Path, &'static str)>,
    left_out: usize,
    warnings_left_out: usize,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

impl<'f> Report<'f> {
    /// A report on a file, or on what holds where there is none.
    pub fn new(file: Option<&'f str>, text: &'f str, root: &'f Node) -> Self {
        Report {
            file,
            text,
            root,
            faulted: Vec::new(),
            overrides: Vec::new(),
            left_out: 0,
            warnings_left_out: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// What makes the file unusable, and what is odd, each in the order of the file.
    pub fn finish(self) -> (Vec<ConfigError>, Vec<ConfigError>) {
        let (mut errors, mut warnings) = (self.errors, self.warnings);
        errors.sort_by_key(|error| (error.line, error.column));
        warnings.sort_by_key(|warning| (warning.line, warning.column));
        for (shown, left_out, what) in [
            (&mut errors, self.left_out, "errors"),
            (&mut warnings, self.warnings_left_out, "warnings"),
        ] {
            if left_out > 0 {
                let problem = Problem::new(format!("{left_out} more {what}, not shown"));
                shown.push(ConfigError::of_whole(self.file, &[], &problem));
            }
        }
        (errors, warnings)
    }

    /// From now on the field is the command line's.
    pub fn overridden(&mut self, path: Path, option: &'static str) {
        self.overrides.push((path, option));
    }

    /// Says nothing more of this field and what is below it: it was reported.
    pub fn silence(&mut self, path: Path) {
        self.faulted.push(path);
    }

    /// Whether something below this field was reported and left out.
    pub fn is_silent_below(&self, path: &[Step]) -> bool {
        self.faulted.iter().any(|faulted| faulted.starts_with(path))
    }

    /// An error at a field's value.
    pub fn value(&mut self, path: Path, problem: Problem) {
        self.error(&path, Part::Value, None, &problem);
    }

    /// An error at a field's key.
    pub fn key(&mut self, path: Path, problem: Problem) {
        self.error(&path, Part::Key, None, &problem);
    }

    /// An error at a place that is known already.
    pub fn error(&mut self, path: &[Step], part: Part, mark: Option<Mark>, problem: &Problem) {
        if self.faulted.iter().any(|faulted| path.starts_with(faulted)) {
            return;
        }
        if self.errors.len() >= ERRORS_MAX {
            self.left_out += 1;
            return;
        }
        let error = self.located(path, part, mark, problem);
        self.errors.push(error);
    }

    /// A warning at a field's value.
    pub fn warn(&mut self, path: Path, problem: Problem) {
        if self.faulted.iter().any(|faulted| path.starts_with(faulted)) {
            return;
        }
        if self.warnings.len() >= ERRORS_MAX {
            self.warnings_left_out += 1;
            return;
        }
        let warning = self.located(&path, Part::Value, None, &problem);
        self.warnings.push(warning);
    }

    /// A scalar's text as far as it stands in the file itself, as [`Node::literal`] says; `None`
    /// where the command line stands in for it.
    pub fn literal(&self, path: &[Step]) -> Option<&'f str> {
        let is_overridden = self.overrides.iter().any(|(over, _)| path.starts_with(over));
        self.root.find(path).filter(|node| !is_overridden && !node.is_null())?.literal()
    }

    /// Whether an error was reported at this field or below it.
    pub fn has_errors_below(&self, path: Path) -> bool {
        let field = written(&path);
        let is_below = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
        let mut errors = self.errors.iter();
        self.is_silent_below(&path)
            || errors.any(|error| error.path.strip_prefix(&*field).is_some_and(is_below))
    }

    /// An error at a field's value that is not reported: for what is found out later. Where the
    /// file does not have the field, at what it should be in.
    pub fn locate(&self, path: Path, problem: &Problem) -> ConfigError {
        self.located(&path, Part::Value, None, problem)
    }

    /// Whether the file has something at this path.
    pub fn is_set(&self, path: &[Step]) -> bool {
        self.root.find(path).is_some()
    }

    /// The place of a field's value, for what is checked later.
    pub fn place(&self, path: &[Step]) -> Option<Mark> {
        self.file?;
        self.root.mark_of(path, Part::Value)
    }

    /// The problem without the value, where a variable with a secret's name was filled in in a
    /// wrong place: messages repeat what should have been a name, a number or a file.
    fn veiled(&self, path: &[Step], problem: &Problem) -> Option<Problem> {
        let node = self.root.find(path)?;
        let (Some(literal), Kind::Scalar { text, .. }) = (&node.literal, &node.kind) else {
            return None;
        };
        let repeated: String = text.chars().take(REPEATED_CHARS).collect();
        let is_repeated = text.len() >= SECRET_BYTES_MIN && problem.found.contains(&repeated);
        if !literal.contains(FILLED_IN) || !is_repeated {
            return None;
        }
        let name = secret_variable(self.text, node.mark)?;
        let mut found = format!("the value of ${{{name}}}, which is not shown");
        // What is wrong with it can be said, where that does not repeat it: a file that is not there.
        if let Some(why) = problem.found.strip_prefix(&**text)
            && why.starts_with(": ")
            && !why.contains(&repeated)
        {
            found.push_str(why);
        }
        Some(Problem { found, ..problem.clone() })
    }

    fn located(
        &self,
        path: &[Step],
        part: Part,
        mark: Option<Mark>,
        problem: &Problem,
    ) -> ConfigError {
        let veiled = self.veiled(path, problem);
        let problem = veiled.as_ref().unwrap_or(problem);
        if let Some((_, option)) = self.overrides.iter().find(|(over, _)| path.starts_with(over)) {
            return ConfigError::of_whole(Some(option), path, problem);
        }
        let Some(file) = self.file else {
            return ConfigError::of_whole(None, path, problem);
        };
        match mark.or_else(|| self.root.mark_of(path, part)) {
            Some(mark) => ConfigError::at(file, self.text, mark, path, problem),
            None => ConfigError::of_whole(Some(file), path, problem),
        }
    }
}

/// `a, b or c`, after `one of` where there are several.
pub fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = names.into_iter().collect();
    let left_out = names.len().saturating_sub(NAMES_MAX);
    names.truncate(NAMES_MAX);
    let list = names.join(", ");
    match (names.len(), left_out) {
        (1, _) => list,
        (_, 0) => format!("one of {list}"),
        (_, more) => format!("one of {list} and {more} more"),
    }
}

/// The name that was perhaps meant: nearest by edits, near enough for its length.
pub fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if written.is_empty() || written.len() > FOUND_CHARS_MAX {
        return None;
    }
    let written = written.to_lowercase();
    names
        .into_iter()
        .filter(|name| name.len() <= FOUND_CHARS_MAX)
        .map(|name| (strsim::damerau_levenshtein(&written, &name.to_lowercase()), name))
        .filter(|(edits, name)| *edits <= (written.len().max(name.len()) / 3).max(1))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// A value as messages repeat it: not longer than a line bears, nothing that moves a terminal.
pub fn shortened(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= FOUND_CHARS_MAX {
        return text.chars().map(printable).collect();
    }
    let mut short: String = text.chars().take(FOUND_CHARS_MAX - 1).map(printable).collect();
    short.push('…');
    short
}

/// The lines of a text as YAML counts them.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\n', '\r']) else {
            rest = None;
            return Some(text);
        };
        let (line, after) = text.split_at(end);
        rest = after.strip_prefix("\r\n").or_else(|| after.get(1..));
        Some(line)
    })
}

fn line_of(text: &str, number: usize) -> Option<&str> {
    lines(text).nth(number.checked_sub(1)?)
}

/// The source text from a mark to the end of its line.
pub fn text_at(text: &str, mark: Mark) -> Option<&str> {
    let line = line_of(text, mark.line)?;
    let (start, _) = line.char_indices().nth(mark.column.checked_sub(1)?)?;
    line.get(start..)
}

fn excerpt(text: &str, mark: Mark) -> Option<String> {
    line_of(text, mark.line)?;
    let shown: Vec<char> = blotted(text, mark.line)
        .into_iter()
        .map(|c| if c == '\t' { ' ' } else { c })
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    let column = mark.column.saturating_sub(1).min(shown.len());
    // A long line is cut so that the caret stays in sight.
    let start = if column < EXCERPT_COLUMNS_MAX { 0 } else { column - EXCERPT_COLUMNS_MAX / 2 };
    let piece: String = shown.iter().skip(start).take(EXCERPT_COLUMNS_MAX).collect();
    let room = (start + EXCERPT_COLUMNS_MAX).min(shown.len()).saturating_sub(column);
    let carets = "^".repeat(mark.length.min(room).max(1));
    let number = mark.line.to_string();
    let gutter = " ".repeat(number.len());
    let indent = " ".repeat(column - start);
    Some(format!("  {number} | {}\n  {gutter} | {indent}{carets}", piece.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_operators_read_them() {
        let shown = |path: Path| written(&path);
        assert_eq!(shown(config_path!["tiers", "free", "burst"]), "tiers.free.burst");
        assert_eq!(shown(config_path!["endpoints", 2, "cost"]), "endpoints[2].cost");
        assert_eq!(shown(config_path!["identities", "ip:::1"]), "identities[\"ip:::1\"]");
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("htpp", ["http", "https"]), Some("http"));
        assert_eq!(nearest("FREE", ["free", "premium"]), Some("free"));
        assert_eq!(nearest("gold", ["free", "premium"]), None);
    }

    #[test]
    fn excerpts_point_and_keep_secrets() {
        let mark = Mark { line: 2, column: 8, length: 3 };
        let shown = |line: &str| excerpt(&format!("a: 1\r\n{line}\n"), mark).unwrap();
        assert_eq!(shown("  abc: foo # x"), "  2 |   abc: foo # x\n    |        ^^^");
        assert_eq!(
            shown("  url: redis://me:pw@host:1/x"),
            "  2 |   url: redis://*****@host:1/x\n    |        ^^^"
        );
        let hides = |line: &str| !shown(line).contains("hunter");
        assert!(hides("  'secret' : hunter2") && hides("identity_hash_secret: hunter2"));
        assert!(hides("  url: me:hunter2@host") && hides("  url: 'redis://me:hu?nter@host'"));
        assert!(shown("  user:me@example.com: gold").contains("me@example.com"));
        assert_eq!(shown("secret: hunter2"), "  2 | secret: *******\n    |        ^^^");
        assert_eq!(shown(&"x".repeat(500)).lines().next().unwrap().len(), 6 + 96);
    }
}
