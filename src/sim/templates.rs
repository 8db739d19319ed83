//! Paths with what differs from request to request left out: `/orders/{id}/items`.
//!
//! A tree of segments. One that looks like an id stands for all of them at its place; so does any, where
//! there are more different ones than an interface has names for. The tree has a bound, so that no log
//! can make it large.

use std::collections::HashMap;

/// Different segments at one place; with more of them they are values.
const NAMES_MAX: u16 = 40;
/// Segments of a path; what is below is not told apart.
const DEPTH_MAX: usize = 6;
/// Places of the whole tree.
const NODES_MAX: usize = 1 << 16;
/// What stands for any segment.
const VALUE: &str = "{id}";
/// A word of digits and letters that is so long is an id.
const ID_LENGTH_MIN: usize = 16;

/// The templates of a log's paths.
#[derive(Debug)]
pub struct Templates {
    nodes: Vec<Node>,
    by_name: HashMap<(u32, Box<str>), u32>,
}

#[derive(Debug, Default)]
struct Node {
    parent: u32,
    /// Nothing: any segment.
    name: Option<Box<str>>,
    names: u16,
    any: Option<u32>,
    /// Whether what is below it is not told apart.
    is_cut: bool,
}

impl Default for Templates {
    fn default() -> Self {
        Templates { nodes: vec![Node::default()], by_name: HashMap::new() }
    }
}

impl Templates {
    /// The number of a path's template. Of paths that turn out to have the same one, the numbers may
    /// differ: [`Templates::name`] tells.
    pub fn number(&mut self, path: &str) -> u32 {
        let mut node = 0;
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        for (depth, segment) in segments.enumerate() {
            if depth >= DEPTH_MAX {
                if let Some(node) = self.node_mut(node) {
                    node.is_cut = true;
                }
                break;
            }
            node = self.child(node, segment);
        }
        node
    }

    /// The template as a rule of a policy has it.
    pub fn name(&self, number: u32) -> String {
        let mut parts = Vec::new();
        let mut at = number;
        if self.node(number).is_some_and(|node| node.is_cut) {
            parts.push("**");
        }
        while at != 0
            && let Some(node) = self.node(at)
        {
            let is_value = self.node(node.parent).is_some_and(|parent| parent.names > NAMES_MAX);
            parts.push(node.name.as_deref().filter(|_| !is_value).unwrap_or(VALUE));
            at = node.parent;
        }
        parts.reverse();
        let mut path = String::new();
        let mut values = 0;
        for part in parts {
            path.push('/');
            match part {
                // A name is said once in a path.
                VALUE => {
                    values += 1;
                    let number = if values > 1 { values.to_string() } else { String::new() };
                    path.push_str(&format!("{{id{number}}}"));
                }
                name => path.push_str(name),
            }
        }
        if path.is_empty() { "/".to_owned() } else { path }
    }

    fn child(&mut self, parent: u32, segment: &str) -> u32 {
        let is_full = self.nodes.len() >= NODES_MAX;
        let Some(node) = self.node(parent) else { return parent };
        let is_value = looks_like_id(segment) || node.names > NAMES_MAX || is_full;
        if is_value {
            return match node.any {
                Some(any) => any,
                // Full: what comes below is not told apart.
                None if is_full => parent,
                None => {
                    let any = self.add(parent, None);
                    if let Some(node) = self.node_mut(parent) {
                        node.any = Some(any);
                    }
                    any
                }
            };
        }
        if let Some(known) = self.by_name.get(&(parent, Box::from(segment))) {
            return *known;
        }
        if let Some(node) = self.node_mut(parent) {
            node.names += 1;
        }
        let child = self.add(parent, Some(segment.into()));
        self.by_name.insert((parent, segment.into()), child);
        child
    }

    fn add(&mut self, parent: u32, name: Option<Box<str>>) -> u32 {
        let number = u32::try_from(self.nodes.len()).unwrap_or(0);
        self.nodes.push(Node { parent, name, ..Node::default() });
        number
    }

    fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(usize::try_from(number).ok()?)
    }

    fn node_mut(&mut self, number: u32) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(number).ok()?)
    }
}

/// A number, a UUID, a hash, or whatever else no programmer names a path.
fn looks_like_id(segment: &str) -> bool {
    let has_digit = segment.bytes().any(|byte| byte.is_ascii_digit());
    let is_number =
        has_digit && segment.bytes().all(|it| it.is_ascii_digit() || b".-,".contains(&it));
    let is_hex =
        segment.len() >= 8 && segment.bytes().all(|it| it.is_ascii_hexdigit() || it == b'-');
    let is_long = segment.len() >= ID_LENGTH_MIN || segment.contains(['%', '{', '}', '*', '@']);
    is_number
        || (has_digit && (is_hex || is_long))
        || segment.len() > 64
        || segment.contains(['%', '{', '}', '*', '@'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_left_out() {
        let mut templates = Templates::default();
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/orders", "/orders"),
            ("/orders/7", "/orders/{id}"),
            ("/orders/2025-10-10/items/", "/orders/{id}/items"),
            ("/u/0b9e3c1a-6f1c-4c66-9a0e-5d7c8f3a2b10", "/u/{id}"),
            ("/u/deadbeef00", "/u/{id}"),
            ("/u/facade", "/u/facade"),
            ("/v1/users", "/v1/users"),
            ("/a%2Fb", "/{id}"),
            ("/{x}/**", "/{id}/{id2}"),
            ("/1/2/3/4/5/6/7/8", "/{id}/{id2}/{id3}/{id4}/{id5}/{id6}/**"),
        ] {
            let number = templates.number(path);
            assert_eq!(templates.name(number), expected, "{path}");
        }
    }

    #[test]
    fn many_names_at_one_place_are_values() {
        let mut templates = Templates::default();
        let first = templates.number("/symbol/aa");
        assert_eq!(templates.name(first), "/symbol/aa");
        for one in 'a'..='z' {
            for two in 'a'..='d' {
                templates.number(&format!("/symbol/{one}{two}"));
            }
        }
        let last = templates.number("/symbol/zz/quote");
        assert_eq!(templates.name(first), "/symbol/{id}");
        assert_eq!(templates.name(last), "/symbol/{id}/quote");
    }

    #[test]
    fn no_log_makes_it_large() {
        let mut templates = Templates::default();
        for number in 0..200_000_u32 {
            let word = |number: u32| -> String {
                (0..6).map(|at| char::from(b'a' + (number >> (at * 3) & 7) as u8)).collect()
            };
            templates.number(&format!(
                "/{}/{}/{}",
                word(number),
                word(number / 7),
                word(number / 3)
            ));
        }
        assert!(templates.nodes.len() <= NODES_MAX);
    }
}
