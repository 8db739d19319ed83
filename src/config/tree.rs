//! YAML text to a tree that knows where each value stands, variables of the environment filled in.
//!
//! One parse serves decoding and positions alike, so that the two cannot disagree. What a careless
//! or hostile file could do is bounded here: bytes, nodes (after aliases), depth. Two equal keys of
//! a mapping, several documents and unknown tags are errors; nothing is known of any key's meaning.

use std::collections::{HashMap, HashSet};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use sha2::{Digest, Sha256};

use super::blot::is_secret;
use super::report::{Part, Path, Problem, Step, shortened, text_at};

/// Longest file that is read: room for the most rules that a policy can have.
pub const FILE_BYTES_MAX: usize = 8 << 20;
/// Most values of one file, each alias counted with all that it stands for.
const NODES_MAX: usize = 2_000_000;
/// More faults of one file are not recorded; each costs a search of its text.
const FAULTS_MAX: usize = 128;
/// What [`Node::literal`] has in place of a variable; no file of YAML can hold it as it is.
pub const FILLED_IN: char = '\0';
/// Deepest nesting; the files themselves need six levels.
const DEPTH_MAX: usize = 64;

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters on that line, at least 1.
    pub length: usize,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub mark: Mark,
    /// What it is.
    pub kind: Kind,
    /// Of text that variables were filled into, what stands in the file itself: defaults are part
    /// of it, and [`FILLED_IN`] stands for each variable.
    pub literal: Option<Box<str>>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Text; only plain text can be a number, a boolean or nothing.
    Scalar {
        /// The text, variables filled in.
        text: String,
        /// Written without quotes.
        is_plain: bool,
    },
    /// A list.
    Sequence(Vec<Node>),
    /// A mapping, in the order of the file.
    Mapping(Vec<Entry>),
    /// Something that was wrong and reported; it decodes to whatever does no further harm.
    Pruned,
}

/// One key and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key begins.
    pub key_mark: Mark,
    /// The value.
    pub value: Node,
}

/// Something wrong at a place.
#[derive(Clone, Debug)]
pub struct Misplaced {
    /// The field.
    pub path: Path,
    /// The place.
    pub mark: Mark,
    /// What is wrong.
    pub problem: Problem,
    /// Whether the value was left out of the tree for it.
    pub is_pruned: bool,
}

/// A parsed file.
#[derive(Debug)]
pub struct Tree {
    /// The document; null where the file is empty.
    pub root: Node,
    /// What was wrong and could be left out.
    pub faults: Vec<Misplaced>,
}

impl Node {
    /// A null.
    pub fn null() -> Self {
        let kind = Kind::Scalar { text: String::new(), is_plain: true };
        Node { mark: Mark { line: 1, column: 1, length: 1 }, kind, literal: None }
    }

    /// Whether it is YAML's null: nothing, `~` or `null`.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, is_plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What stands at a path.
    pub fn find(&self, path: &[Step]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| match (&node.kind, step) {
            (Kind::Sequence(items), Step::Index(index)) => items.get(*index),
            (Kind::Mapping(entries), Step::Key(key)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
            }
            _ => None,
        })
    }

    /// A scalar's text as far as it stands in the file itself.
    pub fn literal(&self) -> Option<&str> {
        match (&self.literal, &self.kind) {
            (Some(literal), _) => Some(literal),
            (None, Kind::Scalar { text, .. }) => Some(text),
            _ => None,
        }
    }

    /// The place of a path's key or value; of what should hold it, where it is not there.
    pub fn mark_of(&self, path: &[Step], part: Part) -> Option<Mark> {
        let mut node = self;
        let mut mark = None;
        for (depth, step) in path.iter().enumerate() {
            let part = if depth + 1 == path.len() { part } else { Part::Key };
            match (&node.kind, step) {
                (Kind::Sequence(items), Step::Index(index)) => {
                    let Some(item) = items.get(*index) else { return mark };
                    (node, mark) = (item, Some(item.mark));
                }
                (Kind::Mapping(entries), Step::Key(key)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == *key) else {
                        return mark;
                    };
                    let nothing = matches!(&entry.value.kind,
                        Kind::Scalar { text, is_plain: true } if text.is_empty());
                    let at_key = part == Part::Key || nothing;
                    mark = Some(if at_key { entry.key_mark } else { entry.value.mark });
                    node = &entry.value;
                }
                _ => return mark,
            }
        }
        mark
    }

    /// Takes what stands at a path out of the decoding; its place stays known.
    pub fn prune(&mut self, path: &[Step]) -> bool {
        let mut node = self;
        for step in path {
            let below = match (&mut node.kind, step) {
                (Kind::Sequence(items), Step::Index(index)) => items.get_mut(*index),
                (Kind::Mapping(entries), Step::Key(key)) => {
                    entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.value)
                }
                _ => None,
            };
            let Some(below) = below else { return false };
            node = below;
        }
        let was_there = !matches!(node.kind, Kind::Pruned);
        node.kind = Kind::Pruned;
        was_there
    }

    /// Feeds the content to a hash: no comments, no layout, no order but the file's.
    pub fn digest(&self, hash: &mut Sha256) {
        let mut text = |tag: u8, text: &str| {
            hash.update([tag]);
            hash.update(text.len().to_be_bytes());
            hash.update(text);
        };
        match &self.kind {
            Kind::Scalar { text: content, is_plain } => {
                text(if *is_plain { b'p' } else { b'q' }, content);
            }
            Kind::Sequence(items) => {
                text(b's', &items.len().to_string());
                items.iter().for_each(|item| item.digest(hash));
            }
            Kind::Mapping(entries) => {
                text(b'm', &entries.len().to_string());
                for entry in entries {
                    hash.update(entry.key.len().to_be_bytes());
                    hash.update(&entry.key);
                    entry.value.digest(hash);
                }
            }
            Kind::Pruned => text(b'x', ""),
        }
    }
}

/// Parses a file's text.
///
/// # Errors
/// What leaves no tree: text that is no YAML, or more of it than the bounds allow.
pub fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Tree, Box<Misplaced>> {
    let mut builder = Builder {
        text,
        env,
        stack: Vec::new(),
        anchors: HashMap::new(),
        nodes: 0,
        documents: 0,
        root: None,
        faults: Vec::new(),
    };
    for event in Parser::new_from_str(text) {
        match event {
            Ok((event, span)) => builder.on_event(event, span)?,
            Err(error) => {
                let at = error.marker();
                let mark = Mark { line: at.line().max(1), column: at.col() + 1, length: 1 };
                let mut problem = Problem::new(format!("invalid YAML: {}", error.info()));
                // The scanner reads on behind the brace, so the variable may be a line above.
                if (mark.line.saturating_sub(1)..=mark.line).any(|line| {
                    let start = Mark { line: line.max(1), column: 1, length: 1 };
                    text_at(text, start).is_some_and(|line| line.contains("${"))
                }) {
                    problem = problem
                        .hint("inside { } and [ ], a variable stands in quotes: \"${NAME}\"");
                }
                return Err(builder.fatal(mark, problem));
            }
        }
    }
    let root = builder.root.take().unwrap_or_else(Node::null);
    Ok(Tree { root, faults: builder.faults })
}

/// A list or mapping that is not complete yet.
struct Frame {
    mark: Mark,
    anchor: usize,
    nodes_before: usize,
    content: Content,
}

enum Content {
    Items(Vec<Node>),
    Entries { entries: Vec<Entry>, seen: HashSet<String>, key: Option<PendingKey> },
}

struct PendingKey {
    text: String,
    mark: Mark,
    is_duplicate: bool,
}

struct Builder<'a> {
    text: &'a str,
    env: &'a dyn Fn(&str) -> Option<String>,
    stack: Vec<Frame>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    documents: usize,
    root: Option<Node>,
    faults: Vec<Misplaced>,
}

impl Builder<'_> {
    fn on_event(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Misplaced>> {
        let mark = mark_of(span);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let problem = Problem::new("a second document").expected("one in a file");
                    return Err(self.fatal(mark, problem));
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some((mut node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(self.fatal(mark, Problem::new("an alias of itself")));
                };
                node.mark = mark;
                self.count(size, mark)?;
                self.complete(node, 0, self.nodes)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_string = self.check_tag(tag.as_deref(), mark)?;
                self.count(1, mark)?;
                let before = self.nodes.saturating_sub(1);
                let is_plain = style == ScalarStyle::Plain && !is_string;
                let (kind, literal) = if self.expects_key() {
                    (Kind::Scalar { text: text.into_owned(), is_plain }, None)
                } else {
                    self.expanded(&text, is_plain, mark)
                };
                self.complete(Node { mark, kind, literal }, anchor, before)
            }
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), mark)?;
                self.open(mark, anchor, Content::Items(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(tag.as_deref(), mark)?;
                let (entries, seen) = (Vec::new(), HashSet::new());
                self.open(mark, anchor, Content::Entries { entries, seen, key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Ok(()) };
                let kind = match frame.content {
                    Content::Items(items) => Kind::Sequence(items),
                    Content::Entries { entries, .. } => Kind::Mapping(entries),
                };
                let node = Node { mark: frame.mark, kind, literal: None };
                self.complete(node, frame.anchor, frame.nodes_before)
            }
        }
    }

    fn open(&mut self, mark: Mark, anchor: usize, content: Content) -> Result<(), Box<Misplaced>> {
        if self.expects_key() {
            let problem = Problem::new("a list or mapping as a key").expected("text");
            return Err(self.fatal(mark, problem));
        }
        if self.stack.len() >= DEPTH_MAX {
            let problem =
                Problem::new("nested too deeply").expected(format!("at most {DEPTH_MAX} levels"));
            return Err(self.fatal(mark, problem));
        }
        let nodes_before = self.nodes;
        self.count(1, mark)?;
        self.stack.push(Frame { mark, anchor, nodes_before, content });
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn complete(
        &mut self,
        node: Node,
        anchor: usize,
        nodes_before: usize,
    ) -> Result<(), Box<Misplaced>> {
        if anchor > 0 {
            // The copy that aliases are made from costs as much as the value itself.
            let size = self.nodes.saturating_sub(nodes_before);
            self.count(size, node.mark)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let mut duplicate = None;
        let Some(frame) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut frame.content {
            Content::Items(items) => items.push(node),
            Content::Entries { entries, seen, key } => match key.take() {
                Some(PendingKey { is_duplicate: true, .. }) => {}
                Some(PendingKey { text, mark, .. }) => {
                    entries.push(Entry { key: text, key_mark: mark, value: node });
                }
                None => {
                    let Kind::Scalar { text, .. } = node.kind else {
                        let problem = Problem::new("a list or mapping as a key").expected("text");
                        return Err(self.fatal(node.mark, problem));
                    };
                    let is_duplicate = !seen.insert(text.clone());
                    if is_duplicate && self.faults.len() < FAULTS_MAX {
                        let first = entries.iter().find(|entry| entry.key == text);
                        let line = first.map_or(0, |entry| entry.key_mark.line);
                        duplicate = Some((line, node.mark));
                    }
                    *key = Some(PendingKey { text, mark: node.mark, is_duplicate });
                }
            },
        }
        if let Some((line, mark)) = duplicate {
            let problem = Problem::new(format!("duplicate key, first on line {line}"));
            self.faults.push(Misplaced { path: self.path(), mark, problem, is_pruned: false });
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        self.stack
            .last()
            .is_some_and(|frame| matches!(frame.content, Content::Entries { key: None, .. }))
    }

    /// The path of the value that is read now.
    fn path(&self) -> Path {
        let step = |frame: &Frame| match &frame.content {
            Content::Items(items) => Some(Step::Index(items.len())),
            Content::Entries { key, .. } => key.as_ref().map(|key| Step::Key(key.text.clone())),
        };
        self.stack.iter().filter_map(step).collect()
    }

    fn count(&mut self, nodes: usize, mark: Mark) -> Result<(), Box<Misplaced>> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            let problem = Problem::new("too many values")
                .expected(format!("at most {NODES_MAX}, aliases counted in full"));
            return Err(self.fatal(mark, problem));
        }
        Ok(())
    }

    /// Whether the tag makes text of a plain scalar.
    fn check_tag(
        &self,
        tag: Option<&saphyr_parser::Tag>,
        mark: Mark,
    ) -> Result<bool, Box<Misplaced>> {
        match tag {
            None => Ok(false),
            Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
            Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Ok(true),
            Some(tag) => {
                let tag = shortened(&tag.to_string());
                Err(self.fatal(mark, Problem::new(format!("tag {tag}")).expected("no tags")))
            }
        }
    }

    fn expanded(&mut self, text: &str, is_plain: bool, mark: Mark) -> (Kind, Option<Box<str>>) {
        match expand(text, self.env) {
            Ok(Expanded { text, literal }) => (Kind::Scalar { text, is_plain }, literal),
            Err(_) if self.faults.len() >= FAULTS_MAX => (Kind::Pruned, None),
            Err(Unexpanded { reference, mut problem }) => {
                let path = self.path();
                let holds_secret = matches!(path.last(), Some(Step::Key(key)) if is_secret(key));
                // What is no name may be a piece of the secret itself.
                if holds_secret && !is_name(name_and_default(&reference).0) {
                    problem.found = "a variable without a name".to_owned();
                }
                // The exact column, where the reference stands on the scalar's first line.
                let offset = text_at(self.text, mark).and_then(|line| {
                    line.find(&reference).map(|at| line.get(..at).unwrap_or("").chars().count())
                });
                let length = if offset.is_some() { reference.chars().count() } else { mark.length };
                let mark = Mark { column: mark.column + offset.unwrap_or(0), length, ..mark };
                self.faults.push(Misplaced { path, mark, problem, is_pruned: true });
                (Kind::Pruned, None)
            }
        }
    }

    fn fatal(&self, mark: Mark, problem: Problem) -> Box<Misplaced> {
        // The path of what is being read helps only where it is inside of something complete.
        Box::new(Misplaced { path: Vec::new(), mark, problem, is_pruned: true })
    }
}

fn mark_of(span: Span) -> Mark {
    let (start, end) = (span.start, span.end);
    let is_one_line = end.line() == start.line() && end.col() > start.col();
    let length = if is_one_line { end.col() - start.col() } else { 1 };
    Mark { line: start.line().max(1), column: start.col() + 1, length }
}

#[derive(Debug)]
struct Unexpanded {
    reference: String,
    problem: Problem,
}

/// Text with variables filled in.
#[derive(Debug)]
struct Expanded {
    text: String,
    /// As in [`Node::literal`].
    literal: Option<Box<str>>,
}

/// Fills in `${NAME}` and `${NAME:-default}`; `$${` stands for `${` itself.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, Unexpanded> {
    let mut filled = String::with_capacity(text.len());
    let mut literal = String::new();
    let mut has_variables = false;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            for text in [&mut filled, &mut literal] {
                text.push_str(before);
                text.push_str("${");
            }
            rest = reference.get(2..).unwrap_or("");
            continue;
        }
        filled.push_str(before);
        literal.push_str(before);
        let Some(end) = reference.find('}') else {
            let problem = Problem::new("a variable without its end").expected("${NAME}");
            return Err(Unexpanded { reference: "${".to_owned(), problem });
        };
        let (reference, after) = reference.split_at(end + 1);
        filled.push_str(&variable(reference, env)?);
        has_variables = true;
        literal.push(FILLED_IN);
        literal.push_str(name_and_default(reference).1.unwrap_or(""));
        rest = after;
    }
    filled.push_str(rest);
    literal.push_str(rest);
    Ok(Expanded { text: filled, literal: has_variables.then(|| literal.into()) })
}

fn name_and_default(reference: &str) -> (&str, Option<&str>) {
    let inner = reference.strip_prefix("${").and_then(|it| it.strip_suffix('}')).unwrap_or("");
    match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    }
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

fn variable(reference: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Unexpanded> {
    let (name, default) = name_and_default(reference);
    if !is_name(name) {
        let problem = Problem::new(format!("variable \"{}\"", shortened(name)))
            .expected("${NAME} or ${NAME:-default}, with letters, digits and _ in the name");
        return Err(Unexpanded { reference: reference.to_owned(), problem });
    }
    // As in a shell, the default stands in for an empty variable too.
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let problem = Problem::new(format!("environment variable {name} is not set"))
                .hint(format!("set it, or give a default: ${{{name}:-default}}"));
            Err(Unexpanded { reference: reference.to_owned(), problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("8080".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn fatal(text: &str) -> String {
        let error = parse(text, &env).unwrap_err();
        format!("{}:{}: {}", error.mark.line, error.mark.column, error.problem.message())
    }

    #[test]
    fn variables_are_filled_in() {
        let filled =
            |text: &str| expand(text, &env).map(|it| it.text).map_err(|it| it.problem.found);
        assert_eq!(filled("a${PORT}b${PORT}").unwrap(), "a8080b8080");
        assert_eq!(filled("${NONE:-x:y}").unwrap(), "x:y");
        assert_eq!(filled("${EMPTY:-d}${EMPTY}").unwrap(), "d");
        assert_eq!(filled("$${PORT} $5 $").unwrap(), "${PORT} $5 $");
        assert_eq!(filled("${NONE}").unwrap_err(), "environment variable NONE is not set");
        assert_eq!(filled("${1X}").unwrap_err(), "variable \"1X\"");
        assert_eq!(filled("${X").unwrap_err(), "a variable without its end");
    }

    #[test]
    fn what_stands_in_the_file_itself_is_known() {
        let literal = |text: &str| expand(text, &env).unwrap().literal;
        assert_eq!(literal("plain $${X}"), None);
        assert_eq!(literal("${PORT}").as_deref(), Some("\0"));
        assert_eq!(literal("a${PORT:-80}$${b").as_deref(), Some("a\080${b"));
    }

    #[test]
    fn places_are_those_of_the_text() {
        let tree = parse("a:\n  b: { c: 10, dé: ünß, e: }\n  f: [x, 'y z']\n", &env).unwrap();
        let mark = |path: &Path, part| {
            let mark = tree.root.mark_of(path, part).unwrap();
            (mark.line, mark.column, mark.length)
        };
        let c = crate::config_path!["a", "b", "c"];
        assert_eq!(mark(&c, Part::Key), (2, 8, 1));
        assert_eq!(mark(&c, Part::Value), (2, 11, 2));
        assert_eq!(mark(&crate::config_path!["a", "b", "dé"], Part::Value), (2, 19, 3));
        assert_eq!(mark(&crate::config_path!["a", "b", "e"], Part::Value), (2, 24, 1));
        assert_eq!(mark(&crate::config_path!["a", "f", 1], Part::Value), (3, 10, 5));
        assert_eq!(mark(&crate::config_path!["a", "missing"], Part::Value), (1, 1, 1));
    }

    #[test]
    fn a_missing_variable_has_its_exact_place() {
        let tree = parse("a: 1\nb: 'x ${NONE} y'\n", &env).unwrap();
        let fault = tree.faults.first().unwrap();
        assert_eq!((fault.mark.line, fault.mark.column, fault.mark.length), (2, 7, 7));
    }

    #[test]
    fn bombs_are_defused() {
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let below = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(",")));
        }
        assert!(fatal(&bomb).contains("too many values, expected at most"), "{}", fatal(&bomb));
        assert_eq!(
            fatal(&"- ".repeat(1000)),
            "1:129: nested too deeply, expected at most 64 levels"
        );
        assert!(fatal(&"[".repeat(100_000)).contains("recursion limit"));
        assert!(fatal("a: &x [*x]").ends_with("an alias of itself"));
    }

    #[test]
    fn what_is_no_single_plain_document_is_refused() {
        assert_eq!(fatal("a: 1\n---\nb: 2\n"), "2:1: a second document, expected one in a file");
        assert_eq!(fatal("a: !exec x\n"), "1:4: tag !exec, expected no tags");
        assert_eq!(fatal("? [a]\n: b\n"), "1:3: a list or mapping as a key, expected text");
    }
}
