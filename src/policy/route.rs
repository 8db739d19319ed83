//! Endpoint rules: which rules a request meets.
//!
//! Interface to be filled in.

use http::{HeaderName, HeaderValue, Method};

use super::facts::RequestFacts;
use super::plan::RuleId;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// The rule of the strict reading.
    pub strict: Option<RuleId>,
    /// The rule of the lenient reading.
    pub lenient: Option<RuleId>,
}

/// The compiled rules.
#[derive(Debug, Default)]
pub struct Router {}

/// Why a rule cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RouteError {
    /// Index of the pattern that is wrong.
    pub pattern: usize,
    /// What was found and what was expected.
    pub message: String,
}

/// Why a path is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// Compiles the patterns; [`RuleId`]s are their indices. Every error is reported, not the first.
    ///
    /// # Errors
    /// A path that is no pattern, or two rules that are equally specific.
    pub fn new(_patterns: &[Pattern]) -> Result<Self, Vec<RouteError>> {
        Ok(Router {})
    }

    /// The rules that the request meets.
    ///
    /// # Errors
    /// A path that no reading can be trusted of.
    pub fn find(&self, _facts: &RequestFacts<'_>) -> Result<Matched, PathError> {
        Ok(Matched::default())
    }
}
