//! Endpoint rules: which rules a request meets.
//!
//! The interface, and the making of the two tables that it searches: one for each reading of a
//! path. How a path is read is `path`'s business, what a pattern may be `pattern`'s, and the search
//! `table`'s.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue, Method};

use super::facts::RequestFacts;
use super::path::Readings;
use super::pattern::{PathPattern, normal_host, parse_host};
use super::plan::RuleId;
use super::table::{Conditions, HostId, Request, Table};

/// What an endpoint rule asks of a request.
#[derive(Clone, Debug, Default)]
pub struct Pattern {
    /// Literal segments, `{name}` for one segment, `/**` at the end for the path and all below it.
    pub path: String,
    /// Any of these; empty: every method. `GET` includes `HEAD`.
    pub methods: Vec<Method>,
    /// This host, compared without case and port.
    pub host: Option<String>,
    /// Each of these fields with exactly this value.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `match: strict`: only the strict reading of a path meets the rule.
    pub strict_only: bool,
}

/// The rules that a request meets, one for each reading of its path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Matched {
    /// The rule of the strict reading.
    pub strict: Option<RuleId>,
    /// The rule of the lenient reading.
    pub lenient: Option<RuleId>,
    /// What further readings meet that these two do not; each once, the first ones first.
    pub further: Vec<RuleId>,
    /// Whether a further reading meets no rule, and divides the path differently.
    pub misses: bool,
}

impl Matched {
    /// Every rule that is met, once: the strict reading's, the lenient one's, others.
    pub fn rules(&self) -> impl Iterator<Item = RuleId> {
        let lenient = self.lenient.filter(|rule| Some(*rule) != self.strict);
        [self.strict, lenient].into_iter().flatten().chain(self.further.iter().copied())
    }

    /// Whether every reading of the path meets a rule, and a rule of this kind.
    pub fn all(&self, is_so: impl Fn(RuleId) -> bool) -> bool {
        let has_all = self.strict.is_some() && self.lenient.is_some() && !self.misses;
        has_all && self.rules().all(is_so)
    }
}

/// The compiled rules.
#[derive(Debug, Default)]
pub struct Router {
    strict: Table,
    lenient: Table,
    /// Whether any pattern means different paths to the two readings; if none does, a path that
    /// reads the same both ways is searched for once.
    tables_differ: bool,
    hosts: HashMap<Box<str>, HostId>,
    /// As they were written, for whoever wants to know why a rule is met.
    patterns: Box<[Pattern]>,
}

/// Why a rule cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RouteError {
    /// Index of the pattern that is wrong.
    pub pattern: usize,
    /// Index of the one that it is at odds with.
    pub other: Option<usize>,
    /// What was found and what was expected.
    pub message: String,
}

/// Why a path is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathError {
    /// NUL in any encoding, also encoded twice.
    #[error("the path holds a NUL")]
    Nul,
    /// A control character that is not encoded.
    #[error("the path holds a raw control character")]
    Control,
    /// A backslash that is not encoded.
    #[error("the path holds a raw backslash")]
    Backslash,
    /// A `%` without two hexadecimal digits.
    #[error("the path holds a `%` without two hexadecimal digits")]
    Escape,
    /// `..` above the root, in either reading.
    #[error("the path leaves the root by `..`")]
    AboveRoot,
    /// Neither `/…` nor `*`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
}

impl Router {
    /// Compiles the patterns; [`RuleId`]s are their indices. Every error is reported, not the
    /// first.
    ///
    /// # Errors
    /// A path that is no pattern, or two rules that are equally specific.
    pub fn new(patterns: &[Pattern]) -> Result<Self, Vec<RouteError>> {
        let mut router = Router { patterns: patterns.into(), ..Router::default() };
        let mut errors = Vec::new();
        for (index, pattern) in patterns.iter().enumerate() {
            let mut fail =
                |message| errors.push(RouteError { pattern: index, other: None, message });
            let Ok(rule) = u16::try_from(index) else {
                let most = usize::from(u16::MAX) + 1;
                fail(format!("{} rules, expected at most {most}", patterns.len()));
                break;
            };
            let path = PathPattern::parse(&pattern.path);
            let host = pattern.host.as_deref().map(parse_host).transpose();
            match (path, host) {
                (Ok(path), Ok(host)) => router.insert(RuleId(rule), pattern, &path, host),
                (path, host) => {
                    path.err().into_iter().flatten().chain(host.err()).for_each(&mut fail);
                }
            }
        }
        errors.extend(router.settle(patterns));
        errors.sort_by_key(|error| error.pattern);
        if errors.is_empty() { Ok(router) } else { Err(errors) }
    }

    /// The rules that the request meets.
    ///
    /// Where both readings of the path are the same bytes there is no doubt about it, and a rule
    /// with `strict_only` that the strict reading meets stands for both.
    ///
    /// # Errors
    /// A path that no reading can be trusted of.
    pub fn find(&self, facts: &RequestFacts<'_>) -> Result<Matched, PathError> {
        let readings = Readings::of(facts.path.as_bytes())?;
        let host = match facts.host {
            Some(host) if !self.hosts.is_empty() => {
                self.hosts.get(normal_host(host).as_ref()).copied()
            }
            _ => None,
        };
        let request = Request { method: facts.method, host, headers: facts.headers };
        let strict = self.strict.find(readings.strict(), &request, None);
        let lenient = if self.tables_differ || !readings.agree() {
            let echo = strict.filter(|_| readings.agree());
            self.lenient.find(readings.lenient(), &request, echo)
        } else {
            strict
        };
        let mut matched = Matched { strict, lenient, ..Matched::default() };
        for further in readings.further() {
            let table = if further.is_exact { &self.strict } else { &self.lenient };
            let rule = table.find(&further.path, &request, None);
            // `match: strict` is for the strict reading alone, and the strict table has it as well.
            let Some(rule) = rule.filter(|it| !self.is_strict_only(*it)) else {
                matched.misses |= readings.is_divided();
                continue;
            };
            if !matched.rules().any(|it| it == rule) {
                matched.further.push(rule);
            }
        }
        Ok(matched)
    }

    /// What each rule asks, by its index.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    fn is_strict_only(&self, rule: RuleId) -> bool {
        self.patterns.get(usize::from(rule.0)).is_some_and(|it| it.strict_only)
    }

    fn insert(
        &mut self,
        rule: RuleId,
        pattern: &Pattern,
        path: &PathPattern,
        host: Option<Box<str>>,
    ) {
        let next_host = HostId::try_from(self.hosts.len()).unwrap_or(HostId::MAX);
        let mut conditions = Conditions {
            host: host.map(|host| *self.hosts.entry(host).or_insert(next_host)),
            methods: pattern.methods.clone(),
            headers: Vec::new(),
        };
        if pattern.methods.contains(&Method::GET) {
            conditions.methods.push(Method::HEAD);
        }
        // Said twice is not more specific.
        for field in &pattern.headers {
            if !conditions.headers.contains(field) {
                conditions.headers.push(field.clone());
            }
        }
        self.tables_differ |= path.strict != path.lenient;
        self.strict.insert(&path.strict, path.below, rule, &conditions, false);
        self.lenient.insert(&path.lenient, path.below, rule, &conditions, pattern.strict_only);
    }

    /// Orders the tables; rules that are equally specific are errors, each told once.
    fn settle(&mut self, patterns: &[Pattern]) -> Vec<RouteError> {
        let text = |rule: RuleId| {
            let pattern = patterns.get(usize::from(rule.0));
            pattern.map_or(String::new(), Pattern::to_text)
        };
        let mut errors: Vec<RouteError> = Vec::new();
        for (clashes, reading, remedy) in [
            (self.strict.settle(), "", ""),
            (
                self.lenient.settle(),
                " once letters are folded, escapes decoded and a trailing slash cut",
                ", or `match: strict` on one of them",
            ),
        ] {
            for (later, earlier) in clashes {
                let [pattern, other] = [later, earlier].map(|rule| usize::from(rule.0));
                if errors.iter().any(|it| it.pattern == pattern && it.other == Some(other)) {
                    continue;
                }
                let message = format!(
                    "{} is as specific as {} (endpoints[{other}]){reading}, and one request can \
                     meet both, expected paths, hosts, methods or headers that tell them \
                     apart{remedy}",
                    text(later),
                    text(earlier),
                );
                errors.push(RouteError { pattern, other: Some(other), message });
            }
        }
        errors
    }
}

impl Pattern {
    /// The pattern as messages quote it: methods and path.
    fn to_text(&self) -> String {
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        match &methods[..] {
            [] => format!("`{}`", self.path),
            some => format!("`{} {}`", some.join(","), self.path),
        }
    }
}

#[cfg(test)]
mod tests;
