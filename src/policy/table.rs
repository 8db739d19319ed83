//! A trie over the segments of patterns, and the search for the most specific rule in it.
//!
//! One table serves one reading of paths. It does not read paths itself.
//!
//! **What a search costs.** A node is reached from its one parent only, by exactly one segment of
//! the path, so a search that backtracks comes to each node at most once: at most as many visits as
//! the nodes whose patterns agree with the beginning of the path, and never more than the policy
//! has. A sender can make a path as long and as odd as they like and adds nothing to that; only the
//! operator's own rules do. The path is cut and hashed once, before the search and no deeper than
//! the table is, so a visit costs one probe whatever the length of the segment. At a node the rules
//! of the request's host are found by bisection; those that differ by methods and headers alone are
//! tried one after another.

use std::cmp::Reverse;

use hashbrown::HashTable;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::pattern::{SEGMENTS_MAX, Segment};
use super::plan::RuleId;

/// A host by its number; the router gives them out.
pub type HostId = u32;
/// Sorts behind every host.
const ANY_HOST: HostId = HostId::MAX;

/// What a rule asks beside its path.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// This host.
    pub host: Option<HostId>,
    /// Any of these, `HEAD` already beside `GET`; empty: all.
    pub methods: Vec<Method>,
    /// All of these.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// What a search looks at beside the path.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// The host, if any rule names it.
    pub host: Option<HostId>,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// The patterns of one reading.
#[derive(Debug)]
pub struct Table {
    /// The root first.
    nodes: Vec<Node>,
    edges: HashTable<Edge>,
    /// Segments of the longest pattern.
    depth: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// Rules whose pattern ends here, the most specific first.
    exact: Vec<Candidate>,
    /// Rules whose pattern ends in `/**` here.
    below: Vec<Candidate>,
    /// The child of `{name}`.
    any: Option<u32>,
    /// Whether there is an edge to look for.
    has_literals: bool,
}

/// From a node to its child, by a literal segment.
#[derive(Debug)]
struct Edge {
    hash: u64,
    parent: u32,
    child: u32,
    segment: Box<[u8]>,
}

#[derive(Debug)]
struct Candidate {
    rule: RuleId,
    host: HostId,
    /// Takes part only where the strict reading has met this very rule.
    echo: bool,
    /// Methods and headers; `None` for the many rules without.
    rest: Option<Box<Conditions>>,
}

/// A segment of the path, hashed.
#[derive(Clone, Copy, Default)]
struct Cut<'a> {
    bytes: &'a [u8],
    hash: u64,
}

impl Default for Table {
    fn default() -> Self {
        Table { nodes: vec![Node::default()], edges: HashTable::new(), depth: 0 }
    }
}

impl Table {
    /// Adds a rule. With `echo` it takes part in a search only where [`Table::find`] is told that
    /// the other reading met it. Patterns longer than [`SEGMENTS_MAX`] are not for a table.
    pub fn insert(
        &mut self,
        segments: &[Segment],
        below: bool,
        rule: RuleId,
        conditions: &Conditions,
        echo: bool,
    ) {
        let at = segments.iter().fold(0, |parent, segment| self.child(parent, segment));
        self.depth = self.depth.max(segments.len()).min(SEGMENTS_MAX);
        let has_rest = !(conditions.methods.is_empty() && conditions.headers.is_empty());
        let candidate = Candidate {
            rule,
            host: conditions.host.unwrap_or(ANY_HOST),
            echo,
            rest: has_rest.then(|| Box::new(conditions.clone())),
        };
        if let Some(node) = self.nodes.get_mut(to_index(at)) {
            if below { node.below.push(candidate) } else { node.exact.push(candidate) }
        }
    }

    /// Puts the rules of each node in order, and tells which are equally specific and can meet the
    /// same request: pairs of the later rule and the first before it. To be called once, after the
    /// last [`Table::insert`]. Quadratic in the rules of one path and host that differ by methods
    /// and headers alone.
    pub fn settle(&mut self) -> Vec<(RuleId, RuleId)> {
        let mut clashes = Vec::new();
        for node in &mut self.nodes {
            for candidates in [&mut node.exact, &mut node.below] {
                candidates.sort_by_key(|it| (it.rank(), it.echo, it.rule.0));
                for equals in candidates.chunk_by(|a, b| a.rank() == b.rank()) {
                    for (index, later) in equals.iter().enumerate() {
                        let before = equals.iter().take(index);
                        let clash = before.into_iter().find(|it| it.overlaps(later));
                        clashes.extend(clash.map(|earlier| (later.rule, earlier.rule)));
                    }
                }
            }
        }
        clashes
    }

    /// The most specific rule that the request meets. A path that does not begin with a slash is
    /// the `*` of `OPTIONS *`: met by `/**` alone. `echo`: what the other reading met, where both
    /// readings are the same bytes.
    pub fn find(&self, path: &[u8], request: &Request<'_>, echo: Option<RuleId>) -> Option<RuleId> {
        let search = Search { table: self, request, echo };
        let Some(path) = path.strip_prefix(b"/") else {
            return search.pick(&self.nodes.first()?.below);
        };
        // One more than the longest pattern has, to tell its end from what lies below.
        let mut cuts = [Cut::default(); SEGMENTS_MAX + 1];
        let mut count = 0;
        let segments = path.split(|byte| *byte == b'/');
        for (cut, bytes) in cuts.iter_mut().take(self.depth + 1).zip(segments) {
            *cut = Cut { bytes, hash: hash(bytes) };
            count += 1;
        }
        search.descend(0, cuts.get(..count)?)
    }

    fn child(&mut self, parent: u32, segment: &Segment) -> u32 {
        let child = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let Some(node) = self.nodes.get_mut(to_index(parent)) else { return parent };
        match segment {
            Segment::Any => {
                if let Some(any) = node.any {
                    return any;
                }
                node.any = Some(child);
            }
            Segment::Literal(bytes) => {
                node.has_literals = true;
                if let Some(edge) = self.edge(parent, bytes, hash(bytes)) {
                    return edge;
                }
                let hash = with_parent(parent, hash(bytes));
                let edge = Edge { hash, parent, child, segment: bytes.clone() };
                self.edges.insert_unique(hash, edge, |edge| edge.hash);
            }
        }
        self.nodes.push(Node::default());
        child
    }

    fn edge(&self, parent: u32, segment: &[u8], hash: u64) -> Option<u32> {
        let is_it = |edge: &Edge| edge.parent == parent && *edge.segment == *segment;
        self.edges.find(with_parent(parent, hash), is_it).map(|edge| edge.child)
    }
}

struct Search<'a> {
    table: &'a Table,
    request: &'a Request<'a>,
    echo: Option<RuleId>,
}

impl Search<'_> {
    /// Literal before `{name}` before `/**`, at each segment from the left. Goes no deeper than
    /// [`SEGMENTS_MAX`] calls.
    fn descend(&self, at: u32, rest: &[Cut<'_>]) -> Option<RuleId> {
        let node = self.table.nodes.get(to_index(at))?;
        let Some((segment, rest)) = rest.split_first() else {
            return self.pick(&node.exact).or_else(|| self.pick(&node.below));
        };
        let literal =
            if node.has_literals { self.table.edge(at, segment.bytes, segment.hash) } else { None };
        literal
            .and_then(|child| self.descend(child, rest))
            .or_else(|| {
                let any = node.any.filter(|_| !segment.bytes.is_empty())?;
                self.descend(any, rest)
            })
            .or_else(|| self.pick(&node.below))
    }

    /// The first of a node's rules that the request meets: those of its host come first.
    fn pick(&self, candidates: &[Candidate]) -> Option<RuleId> {
        let [first, ..] = candidates else { return None };
        // The usual node has nothing but one rule for every host.
        let hosts = (first.host != ANY_HOST).then_some(self.request.host).flatten();
        hosts
            .into_iter()
            .chain([ANY_HOST])
            .flat_map(|host| of_host(candidates, host))
            .find(|it| self.admits(it))
            .map(|it| it.rule)
    }

    fn admits(&self, candidate: &Candidate) -> bool {
        if candidate.echo && self.echo != Some(candidate.rule) {
            return false;
        }
        let Some(rest) = &candidate.rest else { return true };
        let method = rest.methods.is_empty() || rest.methods.contains(self.request.method);
        method
            && rest.headers.iter().all(|(name, value)| {
                self.request.headers.get_all(name).iter().any(|line| line == value)
            })
    }
}

impl Candidate {
    /// Order within a node: a host before none, methods before none, more headers before fewer.
    fn rank(&self) -> (HostId, bool, Reverse<usize>) {
        let has_methods = self.rest.as_ref().is_some_and(|it| !it.methods.is_empty());
        (self.host, !has_methods, Reverse(self.headers().len()))
    }

    fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        self.rest.as_ref().map_or(&[], |it| &it.headers)
    }

    /// Whether one request can meet both, given that they are of one rank. Two values of one field
    /// are held apart: who sends both lines gets the first rule of the file.
    fn overlaps(&self, other: &Candidate) -> bool {
        if self.echo || other.echo {
            return false;
        }
        let methods = match (&self.rest, &other.rest) {
            (Some(own), Some(others)) if !own.methods.is_empty() => {
                own.methods.iter().any(|method| others.methods.contains(method))
            }
            _ => true,
        };
        let has =
            |headers: &[(HeaderName, HeaderValue)], name: &HeaderName, value: &HeaderValue| {
                headers.iter().any(|(its_name, its_value)| its_name == name && its_value == value)
            };
        let apart = self.headers().iter().any(|(name, value)| {
            other.headers().iter().any(|(its_name, _)| its_name == name)
                && !has(other.headers(), name, value)
        });
        methods && !apart
    }
}

/// The rules of one host among those of a node, which are sorted by it.
fn of_host(candidates: &[Candidate], host: HostId) -> impl Iterator<Item = &Candidate> {
    let start = candidates.partition_point(|it| it.host < host);
    candidates.iter().skip(start).take_while(move |it| it.host == host)
}

fn to_index(node: u32) -> usize {
    usize::try_from(node).unwrap_or(usize::MAX)
}

/// Quick, and not keyed: what is in the table is the operator's, and a sender who looks for
/// collisions finds only probes that end where a miss ends too.
fn hash(segment: &[u8]) -> u64 {
    let (chunks, tail) = segment.as_chunks::<8>();
    let state = chunks.iter().fold(0, |state, chunk| mix(state ^ u64::from_le_bytes(*chunk)));
    let last = tail.iter().fold(1, |last, byte| last << 8 | u64::from(*byte));
    mix(state ^ last)
}

fn with_parent(parent: u32, hash: u64) -> u64 {
    mix(hash ^ u64::from(parent))
}

/// A folded multiplication: every bit of the input reaches all of the output.
fn mix(value: u64) -> u64 {
    let wide = u128::from(value ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let [low, high] = [wide, wide >> 64].map(|half| half & u128::from(u64::MAX));
    u64::try_from(low ^ high).unwrap_or_default()
}
