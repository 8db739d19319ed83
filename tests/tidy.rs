//! The promises that a machine can check: the order of modules, the purity of the limiter and the
//! policy, one home for metric names and one for the clock, and documents that name only what is
//! there.
//!
//! It reads text and nothing else: no parser, no build. A promise that gets in the way is changed
//! here, in the open, with its reason; it is not worked around in `src/`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The rank of every top-level module: each imports lower ranks and itself, nothing else.
const RANKS: &[(&str, u8)] = &[
    ("limiter", 0),
    ("policy", 1),
    ("clock", 1),
    ("errors", 1),
    ("sys", 1),
    ("tls", 1),
    ("trace", 1),
    ("metrics", 2),
    ("redis", 2),
    ("health", 3),
    ("log", 3),
    ("otlp", 3),
    ("top", 3),
    ("store", 4),
    ("identity", 4),
    ("subscriptions", 4),
    ("overrides", 5),
    ("usage", 5),
    ("proxy", 6),
    ("admin", 6),
    ("sim", 6),
    ("config", 7),
    ("commands", 8),
];

/// What the pure modules may not name, as the beginning of a path.
const IMPURE_PATHS: &[&str] = &[
    "tokio",
    "hyper",
    "hyper_util",
    "fred",
    "tracing",
    "metrics",
    "parking_lot",
    "arc_swap",
    "std::fs",
    "std::env",
    "std::io",
    "std::thread",
    "std::process",
    "std::sync::atomic",
];

/// The same as single words, wherever they come from.
const IMPURE_WORDS: &[&str] = &[
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Condvar",
];

/// A file of production code may be this long; above it, it is two files.
const PRODUCTION_LINES_MAX: usize = 700;
/// Above this it is worth a thought, and is printed.
const PRODUCTION_LINES_WARN: usize = 500;
/// Files that are allowed to be longer, each with its reason beside it.
const LONG_FILES: &[&str] = &[];

#[test]
fn modules_import_only_lower_ranks() {
    let mut wrong = Vec::new();
    let all = sources();
    // A macro is named from the root, wherever it is written.
    let home = |first: &str| {
        let defines = format!("macro_rules! {first} ");
        let at = all.iter().find(|source| source.code.iter().any(|line| line.contains(&defines)));
        at.map_or_else(|| first.to_owned(), |source| source.module.clone())
    };
    for source in &all {
        // `main` stands on `commands` alone, and `lib` is the list of modules.
        if matches!(source.module.as_str(), "main" | "lib") {
            for path in source.paths("tollgate").into_iter().chain(source.paths("crate")) {
                if path.first != "commands" {
                    wrong.push(format!("{}: {} imports {}", path.place, source.name, path.first));
                }
            }
            continue;
        }
        let Some(own) = rank(&source.module) else {
            wrong.push(format!("{}: module {} has no rank", source.name, source.module));
            continue;
        };
        for path in source.paths("crate").into_iter().chain(source.paths_above_root()) {
            let other = home(&path.first);
            let lower = rank(&other).is_some_and(|rank| rank < own);
            if other != source.module && !lower {
                wrong.push(format!("{}: {} imports {other}", path.place, source.module));
            }
        }
    }
    none(&wrong, "a module imports only modules of a lower rank");
}

#[test]
fn nothing_is_exported_twice() {
    let wrong = search(|source, line| {
        (source.module != "main" && (line.contains("pub use ") || line.contains("extern crate ")))
            .then_some("is exported from a second place; name the module that defines it")
    });
    none(&wrong, "imports name the module that defines the item");
}

#[test]
fn limiter_and_policy_are_pure() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|it| matches!(it.module.as_str(), "limiter" | "policy")) {
        for (number, path) in source.used_paths() {
            for impure in IMPURE_PATHS {
                if path == *impure || path.starts_with(&format!("{impure}::")) {
                    wrong.push(format!("{}:{number}: names {path}", source.name));
                }
            }
            let root = path.split("::").next().unwrap();
            // A vector that lies on the stack while it is short is no more than a vector.
            let is_plain = matches!(root, "std" | "core" | "alloc" | "smallvec")
                || matches!(root, "crate" | "self" | "super");
            if source.module == "limiter" && !is_plain {
                wrong.push(format!("{}:{number}: limiter is std only, not {path}", source.name));
            }
        }
        for (number, line) in source.production() {
            for word in words(line).filter(|word| IMPURE_WORDS.contains(word)) {
                wrong.push(format!("{}:{number}: names {word}", source.name));
            }
            for impure in IMPURE_PATHS.iter().filter(|path| names_path(line, path)) {
                wrong.push(format!("{}:{number}: names {impure}", source.name));
            }
        }
    }
    none(&wrong, "limiter and policy have no I/O, no clock, no runtime, no locks and no logging");
}

#[test]
fn libraries_stay_in_their_modules() {
    // The upstream's probe speaks HTTP, and the demo brings its own small backend.
    let homes: [(&str, &[&str]); 3] = [
        ("fred", &["src/redis", "src/store/redis", "src/subscriptions/redis", "src/usage/redis"]),
        ("hyper", &["src/proxy", "src/admin", "src/health", "src/commands/example_backend"]),
        ("metrics_exporter_prometheus", &["src/metrics"]),
    ];
    let wrong = search(|source, line| {
        homes.iter().find_map(|(library, homes)| {
            let at_home = homes.iter().any(|home| source.name.starts_with(home));
            (names_path(line, library) && !at_home).then_some("names a library outside its module")
        })
    });
    none(&wrong, "fred is named where a Redis is asked, hyper on the two sides of the proxy");
}

#[test]
fn metric_names_have_one_home() {
    let at_home = |source: &Source| source.module == "metrics";
    let declared: BTreeSet<String> = sources()
        .iter()
        .filter(|source| at_home(source))
        .flat_map(|source| source.literals.iter())
        .flat_map(|(_, text)| words(text).map(str::to_owned).collect::<Vec<_>>())
        .filter(|word| in_metric_family(word) || has_own_prefix(word))
        .collect();
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !at_home(source)) {
        for (number, text) in source.production_literals() {
            for word in words(text) {
                let own = has_own_prefix(word) && has_unit(word);
                if in_metric_family(word) || own || declared.contains(word) {
                    wrong.push(format!("{}:{number}: writes {word}", source.name));
                }
            }
        }
    }
    none(&wrong, "a metric's name is written in the metrics module and nowhere else");
}

#[test]
fn only_the_clock_reads_the_time() {
    let wrong = search(|source, line| {
        let reads = line.contains("Instant::now") || line.contains("SystemTime::now");
        (reads && source.name != "src/clock.rs").then_some("reads the time")
    });
    none(&wrong, "only clock.rs reads the time");
}

#[test]
fn tasks_are_counted_and_seen() {
    // A thread of its own with no seat among the event loops, and the demo's small backend.
    let elsewhere = ["src/subscriptions/", "src/commands/example_backend.rs"];
    let mut wrong = Vec::new();
    for source in sources() {
        if elsewhere.iter().any(|place| source.name.starts_with(place)) {
            continue;
        }
        let lines: Vec<(usize, &str)> = source.production().collect();
        for (index, (number, line)) in lines.iter().enumerate() {
            let spawns = ["spawn_local(", "tokio::spawn("].iter().any(|it| line.contains(it));
            let next = lines.get(index + 1).map_or("", |(_, next)| next);
            if spawns && !line.contains("watched(") && !next.contains("watched(") {
                wrong.push(format!("{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    none(&wrong, "a task is spawned as `watched(TaskType::…, future)`, see src/health/tasks.rs");
}

#[test]
fn every_file_says_what_it_is() {
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.trim_start().starts_with("//!"))
        .map(|source| format!("{}: opens without `//!`", source.name))
        .collect();
    none(&wrong, "every file opens with what it owns and what it must not do");
}

#[test]
fn unsafe_code_has_two_homes() {
    let homes = ["src/sys/allocator.rs", "src/sys/mapping.rs"];
    let wrong = search(|source, line| {
        let is_unsafe = words(line).any(|word| word == "unsafe" || word == "unsafe_code");
        (is_unsafe && !homes.contains(&source.name.as_str())).then_some("is unsafe")
    });
    none(&wrong, "only two files are unsafe, each with the need written beside it");
}

#[test]
fn nothing_is_left_unfinished() {
    let wrong = search(|_, line| {
        let unfinished = ["todo!", "unimplemented!", "dbg!"];
        unfinished.iter().any(|word| line.contains(word)).then_some("is unfinished")
    });
    none(&wrong, "no todo!, unimplemented! or dbg! in src");
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let mut wrong = Vec::new();
    for source in sources() {
        let lines = source.production().filter(|(_, line)| !line.trim().is_empty()).count();
        let listed = LONG_FILES.contains(&source.name.as_str());
        if lines > PRODUCTION_LINES_MAX && !listed {
            wrong.push(format!("{}: {lines} lines of production code", source.name));
        } else if lines > PRODUCTION_LINES_WARN {
            eprintln!("warning: {} has {lines} lines of production code", source.name);
        }
    }
    none(&wrong, "a file of src/ stays below 700 lines of production code");
}

#[test]
fn texts_speak_of_this_project_alone() {
    // Paths of somebody's machine, and words that make sense only to whoever was in the room.
    let paths = ["/work/", "/root/", "/Users/", "/tmp/bash"];
    let pairs =
        [("source", "document"), ("helper", "session"), ("closing", "note"), ("design", "page")];
    let mut wrong = Vec::new();
    for file in tracked() {
        let name = relative(&file);
        // This file has to spell out what it looks for.
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        if name == "tests/tidy.rs" || name.ends_with("Cargo.lock") {
            continue;
        }
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            let low = line.to_lowercase();
            let said: Vec<&str> = low.split(|c: char| !c.is_ascii_alphabetic()).collect();
            if let Some(path) = paths.iter().find(|path| line.contains(**path)) {
                wrong.push(format!("{name}:{number}: names {path}"));
            }
            for (first, second) in pairs {
                let near = |pair: &[&str]| pair[0] == first && pair[1].starts_with(second);
                if said.windows(2).any(near) {
                    wrong.push(format!("{name}:{number}: says {first} {second}"));
                }
            }
            if leaves_the_repository(&name, line) {
                wrong.push(format!("{name}:{number}: names a path outside of the repository"));
            }
        }
    }
    none(&wrong, "the project speaks of itself alone");
}

#[test]
fn documents_name_files_that_exist() {
    let mut wrong = Vec::new();
    for document in tracked() {
        let name = relative(&document);
        let is_code = name.ends_with(".rs") && name != "tests/tidy.rs";
        if !name.ends_with(".md") && !is_code {
            continue;
        }
        let text = std::fs::read_to_string(&document).unwrap();
        for (index, line) in text.lines().enumerate() {
            let mentions = if name.ends_with(".md") { file_mentions(line) } else { md_names(line) };
            for mention in mentions {
                // Code that writes a page of `docs/` names the page's neighbours.
                let homes = [root(), document.parent().unwrap().to_owned(), root().join("docs")];
                let homes = &homes[..if is_code { 3 } else { 2 }];
                if !homes.iter().any(|home| home.join(&mention).exists()) {
                    wrong.push(format!("{name}:{}: {mention} does not exist", index + 1));
                }
            }
        }
    }
    none(&wrong, "a document names only files that exist");
}

#[test]
fn commands_in_the_readme_exist() {
    // Without a README there is nothing to hold it to.
    let Ok(readme) = std::fs::read_to_string(root().join("README.md")) else { return };
    let mut wrong = Vec::new();
    for (number, line) in shell_lines(&readme) {
        let script = line.split_whitespace().next().unwrap_or_default();
        if script.ends_with(".sh") && !is_executable(&root().join(script)) {
            wrong.push(format!("README.md:{number}: {script} cannot be run"));
        }
        let Some(arguments) = tollgate_arguments(&line) else { continue };
        let subcommands: Vec<&str> = arguments
            .iter()
            .copied()
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
            .collect();
        // Commands nest at most once (`usage export`); what follows is a value.
        let help = (0..=subcommands.len().min(2)).rev().find_map(|depth| help(&arguments[..depth]));
        let Some(help) = help else { continue };
        if !subcommands.is_empty() && !help.1.contains(subcommands[0]) {
            wrong.push(format!("README.md:{number}: no command {}", subcommands[0]));
        }
        let known: Vec<&str> = help.1.split(|c: char| c.is_whitespace() || c == ',').collect();
        for flag in arguments.iter().filter(|word| word.starts_with("--")) {
            let flag = flag.split('=').next().unwrap();
            if flag.len() > 2 && !known.contains(&flag) {
                wrong.push(format!("README.md:{number}: {} has no {flag}", help.0));
            }
        }
    }
    none(&wrong, "every command that the README shows can be run");
}

/// One file below `src/`, with its comments blanked and its string literals set aside.
struct Source {
    /// The path from the root of the repository, with `/`.
    name: String,
    /// The top-level module that it belongs to.
    module: String,
    text: String,
    /// The code alone, line by line: comments and the insides of strings are blanks.
    code: Vec<String>,
    /// For each line, whether it belongs to production code.
    is_production: Vec<bool>,
    /// Each string literal with the number of its line.
    literals: Vec<(usize, String)>,
}

/// The first module of a path, and where it is written.
struct Edge {
    place: String,
    first: String,
}

impl Source {
    fn read(path: &Path) -> Source {
        let text = std::fs::read_to_string(path).unwrap();
        let name = relative(path);
        let module = name["src/".len()..].split(['/', '.']).next().unwrap().to_owned();
        let (code, literals) = separate(&text);
        let is_production = if name.ends_with("/tests.rs") {
            vec![false; code.len()]
        } else {
            production_lines(&code)
        };
        Source { name, module, text, code, is_production, literals }
    }

    /// Production lines with their numbers.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code
            .iter()
            .zip(&self.is_production)
            .enumerate()
            .filter(|(_, (_, production))| **production)
            .map(|(index, (line, _))| (index + 1, line.as_str()))
    }

    fn production_literals(&self) -> impl Iterator<Item = (usize, &str)> {
        self.literals
            .iter()
            .filter(|(number, _)| self.is_production[*number - 1])
            .map(|(number, text)| (*number, text.as_str()))
    }

    /// Production code as one text, and the line number of every byte's line start.
    fn joined(&self) -> String {
        let lines = self.code.iter().zip(&self.is_production);
        let kept = lines.map(|(line, production)| if *production { line.as_str() } else { "" });
        kept.collect::<Vec<_>>().join("\n")
    }

    /// Every `root::module`, and every module of `root::{…}`.
    fn paths(&self, root: &str) -> Vec<Edge> {
        let text = self.joined();
        let needle = format!("{root}::");
        let mut edges = Vec::new();
        for (at, _) in text.match_indices(&needle) {
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let place = format!("{}:{}", self.name, text[..at].matches('\n').count() + 1);
            for first in first_names(&text[at + needle.len()..]) {
                edges.push(Edge { place: place.clone(), first });
            }
        }
        edges
    }

    /// `super::super::x` that climbs to the root names a top-level module as well.
    fn paths_above_root(&self) -> Vec<Edge> {
        let within = self.name["src/".len()..].trim_end_matches(".rs").trim_end_matches("/mod");
        let depth = within.split('/').count();
        self.paths(&vec!["super"; depth].join("::"))
    }

    /// Every path of every `use`, with groups written out.
    fn used_paths(&self) -> Vec<(usize, String)> {
        let text = self.joined();
        let mut paths = Vec::new();
        for (at, _) in text.match_indices("use ") {
            if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let number = text[..at].matches('\n').count() + 1;
            let tree = text[at + "use ".len()..].split(';').next().unwrap_or_default();
            let tree: String = tree.split_whitespace().collect();
            write_out(&tree, "", &mut |path| paths.push((number, path)));
        }
        paths
    }
}

/// Calls `each` with every path that a `use` tree without blanks stands for.
fn write_out(tree: &str, prefix: &str, each: &mut impl FnMut(String)) {
    for branch in at_top_level(tree) {
        match branch.split_once('{') {
            Some((head, rest)) => {
                let inner = rest.strip_suffix('}').unwrap_or(rest);
                write_out(inner, &format!("{prefix}{head}"), each);
            }
            None => each(format!("{prefix}{branch}")),
        }
    }
}

/// The parts of a list between commas that are in no braces.
fn at_top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_usize, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[from..]);
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// The names that a path begins with: one, or each of a group.
fn first_names(rest: &str) -> Vec<String> {
    let Some(group) = rest.strip_prefix('{') else {
        return words(rest).next().map(str::to_owned).into_iter().collect();
    };
    let mut depth = 1_usize;
    let closed = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        depth == 0
    };
    let inside = group.split(closed).next().unwrap_or_default();
    at_top_level(inside).iter().filter_map(|part| words(part).next()).map(str::to_owned).collect()
}

/// Splits a text into code (comments and insides of strings blanked) and string literals.
fn separate(text: &str) -> (Vec<String>, Vec<(usize, String)>) {
    let chars: Vec<char> = text.chars().collect();
    let (mut code, mut literals) = (String::new(), Vec::new());
    let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
    let (mut at, mut line, mut counted) = (0, 1, 0);
    while at < chars.len() {
        let rest = &chars[at..];
        line += chars[counted..at].iter().filter(|c| **c == '\n').count();
        counted = at;
        let length = if rest.starts_with(&['/', '/']) {
            rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            block_comment(rest)
        } else if let Some((open, hashes)) = string_opening(&chars, at) {
            let (inside, whole) = string(rest, open, hashes);
            literals.push((line, inside));
            code.push('"');
            code.extend(rest[1..whole.max(2) - 1].iter().map(|c| blank(*c)));
            code.push('"');
            at += whole;
            continue;
        } else if let Some(length) = char_literal(rest) {
            length
        } else {
            code.push(chars[at]);
            at += 1;
            continue;
        };
        code.extend(rest[..length].iter().map(|c| blank(*c)));
        at += length;
    }
    (code.split('\n').map(str::to_owned).collect(), literals)
}

/// The length of a block comment, nested ones included.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Whether a string opens here: the length of its opening, and the hashes of a raw one.
fn string_opening(chars: &[char], at: usize) -> Option<(usize, Option<usize>)> {
    let rest = &chars[at..];
    if rest[0] == '"' {
        return Some((1, None));
    }
    let in_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    if in_word || !matches!(rest[0], 'r' | 'b' | 'c') {
        return None;
    }
    let prefix = rest.iter().take_while(|c| matches!(c, 'r' | 'b' | 'c')).count();
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    let raw = rest[..prefix].contains(&'r');
    (rest.get(prefix + hashes) == Some(&'"') && (raw || hashes == 0))
        .then_some((prefix + hashes + 1, raw.then_some(hashes)))
}

/// The inside of a string and the length of the whole.
fn string(rest: &[char], open: usize, hashes: Option<usize>) -> (String, usize) {
    let mut at = open;
    while at < rest.len() {
        match (rest[at], hashes) {
            ('\\', None) => at += 1,
            ('"', None) => break,
            ('"', Some(hashes)) if rest[at + 1..].iter().take(hashes).all(|c| *c == '#') => break,
            _ => {}
        }
        at += 1;
    }
    let inside = rest[open..at.min(rest.len())].iter().collect();
    (inside, (at + 1 + hashes.unwrap_or(0)).min(rest.len()))
}

/// The length of a character literal; a lifetime is none.
fn char_literal(rest: &[char]) -> Option<usize> {
    if rest[0] != '\'' {
        return None;
    }
    if rest.get(1) == Some(&'\\') {
        return rest.iter().skip(3).position(|c| *c == '\'').map(|found| found + 4);
    }
    (rest.get(2) == Some(&'\'')).then_some(3)
}

/// Which lines are production code: all but the items under `#[cfg(test)]`.
fn production_lines(code: &[String]) -> Vec<bool> {
    let mut production = vec![true; code.len()];
    let mut line = 0;
    while line < code.len() {
        if !code[line].trim_start().starts_with("#[cfg(test)]") {
            line += 1;
            continue;
        }
        let (mut depth, mut opened) = (0_usize, false);
        while line < code.len() {
            production[line] = false;
            for c in code[line].chars() {
                match c {
                    '{' => (depth, opened) = (depth + 1, true),
                    '}' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            let ends_here = opened && depth == 0;
            let has_no_body = !opened && code[line].trim_end().ends_with(';');
            line += 1;
            if ends_here || has_no_body {
                break;
            }
        }
    }
    production
}

/// Lines of production code of which `judge` has something to say.
fn search(judge: impl Fn(&Source, &str) -> Option<&'static str>) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in source.production() {
            if let Some(complaint) = judge(&source, line) {
                found.push(format!("{}:{number}: `{}` {complaint}", source.name, line.trim()));
            }
        }
    }
    found
}

fn none(wrong: &[String], promise: &str) {
    assert!(wrong.is_empty(), "{promise}:\n  {}", wrong.join("\n  "));
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Whether a path beginning with `path` stands in the line, and not as the tail of another.
fn names_path(line: &str, path: &str) -> bool {
    line.match_indices(&format!("{path}::"))
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'))
}

/// Names that dashboards and alerts know by heart.
fn in_metric_family(word: &str) -> bool {
    let families = [
        "rate_limit_",
        "backpressure_",
        "memory_rss_",
        "memory_vms_",
        "memory_objects_",
        "memory_gc_",
        "memory_growth_",
        "memory_allocator_",
        "circuit_breaker_state",
        "dependency_health_status",
        "slow_query_count",
        "query_timeout_count",
        "websocket_connections_",
        "response_time_p95",
        "error_rate_total",
    ];
    families.iter().any(|family| word.starts_with(family) && word.len() > family.len())
        || families.contains(&word) && !word.ends_with('_')
}

fn has_own_prefix(word: &str) -> bool {
    word.starts_with("tollgate_")
}

fn has_unit(word: &str) -> bool {
    let units = ["_total", "_seconds", "_bytes", "_ratio", "_info", "_estimate", "_in_flight"];
    units.iter().any(|unit| word.ends_with(unit))
}

/// Whether a `../…` in the line climbs above the root.
fn leaves_the_repository(name: &str, line: &str) -> bool {
    let depth = name.matches('/').count();
    line.split(|c: char| !(c.is_alphanumeric() || "./_-".contains(c)))
        .filter(|word| word.starts_with("../") && word.len() > 3)
        .any(|word| {
            let climbs = word.split('/').take_while(|part| *part == "..").count();
            let lands = word.split('/').nth(climbs).unwrap_or_default();
            // `../../../etc/passwd` is an attack in a test, not a file of anybody's.
            climbs > depth
                && !matches!(lands, "" | "etc" | "secret" | "admin" | "a" | "b")
                && (name.ends_with(".md") || name.ends_with(".sh") || !name.contains('/'))
        })
}

/// Files that a line of a document names in backticks or links to.
fn file_mentions(line: &str) -> Vec<String> {
    let folders = ["src/", "tests/", "config/", "benches/", "deploy/", "docs/", "fuzz/", ".ci/"];
    let mut mentions = md_names(line);
    for part in line.split(['`', '(', ')', ' ', '"']) {
        let part = part.trim_end_matches(['.', ',', ';', ':']);
        let odd = part.contains(['*', '<', '{', '…', '$', '=']);
        if !odd && folders.iter().any(|folder| part.starts_with(folder)) {
            mentions.push(part.split('#').next().unwrap().to_owned());
        }
    }
    mentions
}

/// Names of Markdown files in a line, unless they are part of an address.
fn md_names(line: &str) -> Vec<String> {
    line.split(|c: char| !(c.is_alphanumeric() || "./_-:".contains(c)))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| word.ends_with(".md") && word.len() > 3 && !word.contains(':'))
        .map(str::to_owned)
        .collect()
}

/// The lines of a document's shell blocks, with `$ ` cut and continuations joined.
fn shell_lines(document: &str) -> Vec<(usize, String)> {
    let (mut lines, mut inside, mut carried) = (Vec::new(), false, String::new());
    for (index, line) in document.lines().enumerate() {
        if let Some(language) = line.trim().strip_prefix("```") {
            inside = !inside && matches!(language, "sh" | "bash" | "console" | "shell");
        } else if inside {
            carried.push_str(line.trim().trim_start_matches("$ "));
            if carried.ends_with('\\') {
                carried.pop();
            } else {
                lines.push((index + 1, std::mem::take(&mut carried)));
            }
        }
    }
    lines
}

/// The arguments of a line that runs tollgate, directly or through cargo.
fn tollgate_arguments(line: &str) -> Option<Vec<&str>> {
    let line = line.split(" #").next()?.split(" | ").next()?;
    let line: Vec<&str> = line.split_whitespace().filter(|word| *word != "&").collect();
    let program = line.iter().position(|word| !word.contains('='))?;
    let first = line[program];
    if first == "tollgate" || first.ends_with("/tollgate") {
        return Some(line[program + 1..].to_vec());
    }
    let separator = line.iter().position(|word| *word == "--")?;
    (first == "cargo" && line.get(program + 1) == Some(&"run"))
        .then(|| line[separator + 1..].to_vec())
}

/// The help of a subcommand: its name and the text, if there is such a command.
fn help(subcommand: &[&str]) -> Option<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command.args(subcommand).arg("--help").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !text.is_empty())
        .then(|| (format!("tollgate {}", subcommand.join(" ")), text))
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o111 != 0)
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    assert!(files.len() > 5, "src/ was not found");
    files.iter().map(|file| Source::read(file)).collect()
}

/// Every text file of the repository: what a build leaves behind is not ours.
fn tracked() -> Vec<PathBuf> {
    let mut files = Vec::new();
    walk(&root(), &mut files);
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if entry.is_symlink() || matches!(name.as_str(), "target" | ".git" | "node_modules") {
            continue;
        }
        if entry.is_dir() {
            walk(&entry, files);
        } else if !name.ends_with(".log") {
            files.push(entry);
        }
    }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/")
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from)
}

/// The scanner itself is held to a few awkward lines.
mod scanner {
    use super::*;

    #[test]
    fn comments_and_strings_are_no_code() {
        let text = "let a = \"x // y\"; // tokio\nlet b = 'c'; /* fred /* x */ */ let c: &'a str;\n\
                    let r = br#\"a \"quoted\" b\"#; let q = '\"'; let e = '\\''; tokio";
        let (code, literals) = separate(text);
        let inside: Vec<&str> = literals.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(inside, ["x // y", "a \"quoted\" b"]);
        assert_eq!(literals[1].0, 3);
        assert!(!code[0].contains("tokio") && !code[1].contains("fred"));
        assert!(code[1].ends_with("let c: &'a str;") && code[2].ends_with("; tokio"));
    }

    #[test]
    fn code_under_cfg_test_is_not_production() {
        let lines = ["fn a() {}", "#[cfg(test)]", "mod tests {", "  x {} ", "}", "fn b() {}"];
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(production_lines(&lines), [true, false, false, false, false, true]);
        let lines = ["#[cfg(test)]".to_owned(), "mod tests;".to_owned(), "fn b() {}".to_owned()];
        assert_eq!(production_lines(&lines), [false, false, true]);
    }

    #[test]
    fn use_trees_are_written_out() {
        let mut paths = Vec::new();
        write_out("std::{fs,io::{self,Read},net}", "", &mut |path| paths.push(path));
        assert_eq!(paths, ["std::fs", "std::io::self", "std::io::Read", "std::net"]);
        assert_eq!(first_names("{a::b, c::{d, e}, f} g"), ["a", "c", "f"]);
        assert_eq!(first_names("policy::plan::Plan;"), ["policy"]);
    }

    #[test]
    fn shell_lines_are_found() {
        let lines =
            shell_lines("x\n```sh\n$ cargo run --release -- \\\n  demo\n```\ntollgate no\n");
        assert_eq!(lines, [(4, "cargo run --release -- demo".to_owned())]);
        assert_eq!(tollgate_arguments(&lines[0].1), Some(vec!["demo"]));
        let run = "A=b ./target/release/tollgate run --upstream http://h # x";
        assert_eq!(tollgate_arguments(run), Some(vec!["run", "--upstream", "http://h"]));
        assert_eq!(tollgate_arguments("curl -i http://localhost"), None);
    }
}
